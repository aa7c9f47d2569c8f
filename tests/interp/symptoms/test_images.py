"""Images as Pillow's users found them wrong: colours, transparency, orientation, depth, damage."""

import io

import numpy as np
from PIL import Image

from interp.data.images import open_image
from tests.support.symptoms import colour, png


def test_a_colour_that_png_calls_transparent_is_laid_on_white():
    """An RGB PNG names one colour as transparent (tRNS) and the loader forgets it.

    python-pillow/Pillow #421, Loading RGB image with tRNS header ignores transparency
    """
    content = png(Image.new("RGB", (40, 40), (255, 0, 255)), transparency=(255, 0, 255))
    assert colour(open_image(content)) == (255, 255, 255)


def test_grey_with_a_transparent_level_is_laid_on_white():
    """The same for 8-bit grey (python-pillow/Pillow #423, tRNS header when converting)."""
    content = png(Image.new("L", (40, 40), 7), transparency=7)
    assert colour(open_image(content)) == (255, 255, 255)


def test_deep_grey_with_a_transparent_level_is_laid_on_white():
    """The same for 16-bit grey, whose tRNS stays in info (python-pillow/Pillow #423)."""
    image = Image.fromarray(np.full((40, 40), 1000, np.uint16))
    content = _png16_with_trns(1000)
    assert Image.open(io.BytesIO(content)).info.get("transparency") is not None
    assert colour(open_image(image)) == (4, 4, 4)
    assert colour(open_image(content)) == (255, 255, 255)


def _png16_with_trns(level: int) -> bytes:
    import struct
    import zlib

    def chunk(name, content):
        total = name + content
        return struct.pack(">I", len(content)) + total + struct.pack(">I", zlib.crc32(total))

    rows = (b"\x00" + struct.pack(">H", level) * 40) * 40
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 40, 40, 16, 0, 0, 0, 0))
        + chunk(b"tRNS", struct.pack(">H", level))
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def test_a_palette_with_transparency_of_its_own_is_laid_on_white():
    """A palette in RGBA loses its transparency (python-pillow/Pillow #6348)."""
    image = Image.new("P", (40, 40), 0)
    image.putpalette([0, 0, 0, 0, 255, 0, 0, 255], "RGBA")
    assert colour(open_image(image)) == (255, 255, 255)
    image.putpixel((20, 20), 1)
    assert colour(open_image(image)) == (255, 0, 0)


def test_half_transparent_palette_entries_are_mixed_with_white():
    """Palette images with bytes as transparency come out grainy (python-pillow/Pillow #7288)."""
    image = Image.new("P", (40, 40), 0)
    image.putpalette([0, 0, 0, 255, 0, 0])
    got = colour(open_image(png(image, transparency=bytes([128, 255]))))
    assert all(abs(c - 127) <= 1 for c in got)


def test_cmyk_photos_keep_their_colours():
    """A CMYK JPEG comes out with inverted colours (python-pillow/Pillow #4860)."""
    content = png(Image.new("RGB", (64, 64), (200, 30, 30)).convert("CMYK"), format="JPEG")
    got = np.array(colour(open_image(content)), dtype=int)
    assert np.abs(got - (200, 30, 30)).max() < 12


def test_a_map_is_drawn_over_the_upright_photo(maps, tmp_path):
    """A photo is shown as the sensor saw it, so the overlay lies on the wrong places.

    python-pillow/Pillow #9109, Image ignores orientation in EXIF data for certain images
    """
    import matplotlib.pyplot as plt

    exif = Image.Exif()
    exif[0x0112] = 6
    photo = Image.open(
        io.BytesIO(png(Image.new("RGB", (120, 60), "red"), format="JPEG", exif=exif))
    )
    ax = maps.vlm.plot("answer", "direct", image=photo)
    height, width = ax.images[0].get_array().shape[:2]
    plt.close("all")
    assert (height, width) == (120, 60)


def test_the_callers_image_stays_as_it_is(tmp_path):
    """Reading an image closes or converts the caller's object.

    python-pillow/Pillow #3676 (files are closed overeagerly) and #1630 (seek of closed file)
    """
    Image.new("P", (30, 20), 3).save(tmp_path / "a.gif")
    image = Image.open(tmp_path / "a.gif")
    open_image(image)
    open_image(image)
    assert image.mode == "P" and image.size == (30, 20)
    image.load()
    assert image.getpixel((1, 1)) is not None
