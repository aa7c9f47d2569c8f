"""Captions of figures as a file beside them: a figure that leaves its page keeps its words."""

import html
import re

_FIGURE = re.compile(
    r'<figure><img alt="[^"]*" src="data:image/png;base64,([^"]+)">\s*'
    r"<figcaption>(.*?)</figcaption>",
    re.DOTALL,
)
_TAG = re.compile(r"<[^>]+>")


def captions(page: str, images: dict[str, str]) -> str:
    """A paragraph per figure, its file's name and what the page says below it, in the page's order.

    Args:
        page: a report's page.
        images: its figures in base64, by file name.
    """
    names = {image: name for name, image in images.items()}
    found = [(names[image], text) for image, text in _FIGURE.findall(page) if image in names]
    return "\n".join(
        f"{name}: {' '.join(html.unescape(_TAG.sub('', text)).split())}\n" for name, text in found
    )
