"""Images as the model gets them: opened safely, upright, in RGB.

Photos are stored as the sensor saw them, with a note of how to turn them (EXIF orientation). Every
way in turns them upright: a path, a file's content, and an image that is open already.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.ExifTags import Base

MAX_IMAGE_PIXELS = 50_000_000
# Raster formats alone: Pillow starts Ghostscript on PostScript, whatever the file is called.
FORMATS = (
    *("PNG", "JPEG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000"),
    *("ICO", "ICNS", "PPM", "TGA", "PCX", "SGI", "DDS", "QOI", "XBM", "XPM", "MSP", "IM", "SPIDER"),
)
TURNED = (5, 6, 7, 8)  # orientations that swap width and height
Given = Image.Image | str | os.PathLike | bytes | np.ndarray


def given_image(image) -> Image.Image | Path | bytes:
    """An image as people have it, as an open image, a path or a file's content.

    Args:
        image: an open image; a path; a file's content; or an array (height, width) or (height,
            width, 3 or 4), of whole numbers in 0..255 or fractions in 0..1.

    Raises:
        ValueError: nothing of these, or an array of another shape or range.
    """
    if isinstance(image, Image.Image | bytes):
        return image
    if isinstance(image, bytearray | memoryview):
        return bytes(image)
    if isinstance(image, str | os.PathLike):
        if "://" in str(image):
            raise ValueError(f"expected a file, got the address {str(image)!r}; download it first")
        return Path(image)
    if isinstance(image, np.ndarray):
        return Image.fromarray(_as_bytes(image))
    is_several = isinstance(image, list | tuple)
    got = (
        f"{len(image)} images" if is_several else "none" if image is None else type(image).__name__
    )
    raise ValueError(
        f"expected one image as a path, a file's content, an array or a PIL image, got {got}"
    )


def _as_bytes(array: np.ndarray) -> np.ndarray:
    """Pixels as whole numbers in 0..255."""
    is_picture = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if not is_picture or 0 in array.shape:
        raise ValueError(
            f"expected an image (height, width) or (height, width, 3 or 4), got {array.shape}"
        )
    top = 1.0 if array.dtype.kind == "f" else 255
    is_known = array.dtype.kind in "iuf" and np.isfinite(array).all()
    if not is_known or array.min() < 0 or array.max() > top:
        raise ValueError(
            f"expected pixels in 0..{top:g} of dtype {array.dtype}, got others; scale them"
        )
    return (array * (255 / top)).round().astype(np.uint8)


def open_image(image, max_pixels: int = MAX_IMAGE_PIXELS) -> Image.Image:
    """The image in RGB, upright, decoded only if it has at most `max_pixels` pixels.

    16-bit grey is scaled by its full range. Floating-point grey is taken to be in 0..1 where it
    nowhere exceeds 1, and in 0..255 otherwise. Transparency is laid on white.

    Raises:
        ValueError: as `given_image`; the file is missing, not an image of `FORMATS`, damaged or too
            large; or grey levels are outside their range, infinite or not a number.
    """
    image = given_image(image)
    name = _name(image)
    with _opened(image) as raw:
        width, height = raw.size
        if width * height > max_pixels:
            raise ValueError(
                f"{name}: expected at most {max_pixels} pixels, got {width} x {height}; "
                "downscale the image"
            )
        with _readable(name):
            raw.load()
            upright = ImageOps.exif_transpose(raw)  # reads EXIF, which may be damaged too
        return _to_rgb(upright, name)


def stored_size(image: Given) -> tuple[tuple[int, int], int]:
    """(width, height) as stored, and the EXIF orientation (1 for upright), from the header alone.

    Raises:
        ValueError: as `open_image`.
    """
    image = given_image(image)
    with _opened(image) as raw, _readable(_name(image)):
        return raw.size, int(raw.getexif().get(Base.Orientation, 1))


def upright_size(image: Given) -> tuple[int, int]:
    """(width, height) of the upright image, from the header alone.

    Raises:
        ValueError: as `open_image`.
    """
    size, orientation = stored_size(image)
    return size[::-1] if orientation in TURNED else size


def turned_boxes(boxes: np.ndarray, orientation: int) -> np.ndarray:
    """Boxes of the stored image, (x0, y0, x1, y1) in 0..1, as boxes of the upright one.

    Args:
        boxes: of the image as it is stored.
        orientation: EXIF's, 1 to 8.
    """
    x0, y0, x1, y1 = boxes.T
    if orientation in TURNED:  # transposed first: the upright x runs along the stored y
        x0, y0, x1, y1 = y0, x0, y1, x1
    if orientation in (2, 3, 6, 7):
        x0, x1 = 1 - x1, 1 - x0
    if orientation in (3, 4, 7, 8):
        y0, y1 = 1 - y1, 1 - y0
    return np.stack([x0, y0, x1, y1], axis=1)


def _name(image: Image.Image | Path | bytes) -> str:
    return (image.name or str(image)) if isinstance(image, Path) else "image"


@contextmanager
def _opened(image: Image.Image | Path | bytes) -> Iterator[Image.Image]:
    if isinstance(image, Image.Image):
        yield image
        return
    with _readable(_name(image)):
        raw = Image.open(image if isinstance(image, Path) else BytesIO(image), formats=FORMATS)
    with raw:
        yield raw


@contextmanager
def _readable(name: str) -> Iterator[None]:
    """Context in which a decoder's error, of whatever kind, says that the file is not readable."""
    try:
        yield
    except UnidentifiedImageError as error:  # its own message names an object in memory
        raise ValueError(
            f"{name}: expected a readable image file, got no raster format that is known"
        ) from error
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise ValueError(f"{name}: expected a readable image file, got {reason}") from error


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_grey(image, name)).convert("RGB")
    if image.mode == "La":  # grey with premultiplied transparency has no other way out
        image = image.convert("LA")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        canvas = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(canvas, rgba).convert("RGB")
    return image.convert("RGB")


def _grey(image: Image.Image, name: str) -> np.ndarray:
    """Grey levels in 0..255 by the range of their mode, not by what this image happens to use."""
    levels = np.asarray(image, dtype=np.float64)
    top = 65535.0
    if image.mode.startswith("F"):
        top = 1.0 if levels.max() <= 1 else 255.0
    if not np.isfinite(levels).all() or levels.min() < 0 or levels.max() > top:
        raise ValueError(
            f"{name}: expected finite grey levels in 0..{top:g} in mode {image.mode}, got "
            f"{levels.min():g} to {levels.max():g}; scale them"
        )
    transparent = image.info.get("transparency")  # one level, which is laid on white
    grey = (levels * (255 / top)).round()
    if isinstance(transparent, int):
        grey[levels == transparent] = 255
    return grey.astype(np.uint8)


def blank(processor, size: tuple[int, int]) -> Image.Image:
    """An image of the processor's mean colour, which is 0 once normalised; (width, height)."""
    mean = np.asarray(processor.image_processor.image_mean)
    return Image.new("RGB", size, tuple(int(x) for x in (255 * mean).round()))
