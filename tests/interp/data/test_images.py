"""Images on every way in: upright, grey by its mode's range, damaged files, no program started."""

import io
import subprocess

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from interp.data import images
from interp.data.images import open_image

ORIENTATION = 0x0112


def encode(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photo(orientation: int, kind: str = "PNG") -> bytes:
    """40 x 30 as stored, black but for a white rectangle that is off every axis of symmetry."""
    pixels = np.zeros((30, 40, 3), np.uint8)
    pixels[6:12, 8:28] = 255
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return encode(Image.fromarray(pixels), kind, exif=exif)


WHITE = np.array([[8 / 40, 6 / 30, 28 / 40, 12 / 30]])


def white_box(image: Image.Image) -> np.ndarray:
    y, x = np.nonzero(np.asarray(image)[..., 0] > 128)
    sides = np.array([x.min(), y.min(), x.max() + 1, y.max() + 1])
    return sides / np.array([*image.size, *image.size])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_upright_on_every_way_in_and_its_boxes_with_it(orientation, tmp_path):
    content = photo(orientation)
    (tmp_path / "a.png").write_bytes(content)
    by_path = open_image(tmp_path / "a.png")
    for other in (content, Image.open(io.BytesIO(content)), Image.open(tmp_path / "a.png")):
        np.testing.assert_array_equal(np.asarray(open_image(other)), np.asarray(by_path))
    assert by_path.size == ((30, 40) if orientation >= 5 else (40, 30))
    assert images.upright_size(content) == images.upright_size(tmp_path / "a.png") == by_path.size
    turned = images.turned_boxes(WHITE, orientation)
    np.testing.assert_allclose(turned[0], white_box(by_path), atol=1e-12)


def test_sizes_come_from_headers(tmp_path):
    """A file that ends behind its header has a size all the same, and no pixels."""
    content = photo(6, "JPEG")
    short = content[:-20]
    assert images.upright_size(short) == (30, 40)
    with pytest.raises(ValueError, match="image: expected a readable image file"):
        open_image(short)


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        (np.full((8, 9), 32768, np.uint16), 128),
        (np.full((8, 9), 200, np.uint16), 1),
        (np.full((8, 9), 32768, np.int32), 128),
        (np.full((8, 9), 0.5, np.float32), 128),
        (np.full((8, 9), 127.0, np.float32), 127),
        (np.full((8, 9), 127, np.uint8), 127),
    ],
)
def test_grey_is_scaled_by_the_range_of_its_mode(levels, expected):
    assert set(np.unique(np.asarray(open_image(Image.fromarray(levels))))) == {expected}
    kind = {"uint16": "PNG", "uint8": "PNG"}.get(str(levels.dtype), "TIFF")
    stored = open_image(encode(Image.fromarray(levels), kind))
    assert set(np.unique(np.asarray(stored))) == {expected}


@pytest.mark.parametrize("level", [np.nan, np.inf, -1.0, 300.0])
def test_grey_that_is_none_is_refused(level):
    levels = np.full((8, 9), 0.5, np.float32)
    levels[3, 4] = level
    with pytest.raises(ValueError, match=r"expected finite grey levels in 0\.\."):
        open_image(Image.fromarray(levels))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "La", "P", "PA", "RGBA", "RGBa", "CMYK", "LAB"])
def test_every_mode_becomes_rgb(mode):
    assert open_image(Image.new(mode, (5, 4))).mode == "RGB"


POSTSCRIPT = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 60 60\n%%EndComments\n"
    b"0 0 60 60 rectfill\nshowpage\n%%EOF\n"
)


def test_no_program_is_started_on_a_file(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(subprocess, "check_call", lambda *a, **k: started.append(a))
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: started.append(a))
    (tmp_path / "a.png").write_bytes(POSTSCRIPT)
    with pytest.raises(ValueError, match=r"a\.png: expected a readable image file, got no raster"):
        open_image(tmp_path / "a.png")
    assert not started


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000"])
def test_damaged_files_of_every_format_are_one_line(kind):
    """Cut at any length or with a byte turned over: an image, or a ValueError of one line."""
    pixels = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    content = encode(Image.fromarray(pixels), kind)
    rng, refused = np.random.default_rng(1), 0
    cut = [content[:n] for n in np.linspace(0, len(content) - 1, 40).astype(int)]
    for place in rng.integers(0, len(content), 60):
        turned = bytearray(content)
        turned[place] ^= 255
        cut.append(bytes(turned))
    cut.append(content[:-1] + bytes([content[-1] ^ 255]))
    for damaged in cut:
        try:
            assert open_image(damaged).mode == "RGB"
        except ValueError as error:
            refused += 1
            assert "\n" not in str(error) and " at 0x" not in str(error), error
    assert refused > 10


def test_damaged_exif_is_one_line_or_no_matter():
    """Orientation is read from what may be cut or overwritten anywhere."""
    content, n_read = photo(6, "JPEG"), 0
    start = content.index(b"Exif")
    for place in range(start, start + 40):
        for value in (0, 127, 255):
            damaged = bytearray(content)
            damaged[place] = value
            try:
                n_read += open_image(bytes(damaged)).size in ((40, 30), (30, 40))
            except ValueError as error:
                assert "expected a readable image file" in str(error)
    assert n_read > 20


def test_whatever_a_decoder_raises_is_a_value_error(monkeypatch):
    for kind in (RuntimeError, KeyError, IndexError, MemoryError, EOFError):

        def fail(_self, kind=kind):
            raise kind("broken")

        monkeypatch.setattr(TiffImagePlugin.TiffImageFile, "load", fail)
        with pytest.raises(ValueError, match="image: expected a readable image file, got"):
            open_image(encode(Image.new("RGB", (5, 4)), "TIFF"))
