"""Images as the model gets them: opened safely, upright, in RGB."""

from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_IMAGE_PIXELS = 50_000_000


def open_image(
    image: Image.Image | Path | bytes, max_pixels: int = MAX_IMAGE_PIXELS
) -> Image.Image:
    """The image in RGB, upright, decoded only if it has at most `max_pixels` pixels.

    Raises:
        ValueError: the file is missing, not an image, truncated or too large.
    """
    if isinstance(image, Image.Image):
        return _to_rgb(image)
    name = image.name if isinstance(image, Path) else "image"
    try:
        with Image.open(image if isinstance(image, Path) else BytesIO(image)) as opened:
            width, height = opened.size
            if width * height > max_pixels:
                raise ValueError(
                    f"{name}: expected at most {max_pixels} pixels, got {width} x {height}; "
                    "downscale the image"
                )
            opened.load()
            return _to_rgb(ImageOps.exif_transpose(opened))
    except (OSError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ValueError(f"{name}: expected a readable image file, got {error}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith(("I", "F")):
        # PIL clips 16-bit grey to white; scale its full range to 8 bits instead.
        levels = np.asarray(image, dtype=np.float64)
        return Image.fromarray((levels * (255 / max(levels.max(), 255))).astype(np.uint8)).convert(
            "RGB"
        )
    if "A" in image.getbands() or "transparency" in image.info:
        rgba = image.convert("RGBA")
        canvas = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(canvas, rgba).convert("RGB")
    return image.convert("RGB")


def blank(processor, size: tuple[int, int]) -> Image.Image:
    """An image of the processor's mean colour, which is 0 once normalised; (width, height)."""
    mean = np.asarray(processor.image_processor.image_mean)
    return Image.new("RGB", size, tuple(int(x) for x in (255 * mean).round()))
