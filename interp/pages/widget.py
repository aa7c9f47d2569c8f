"""The page in a notebook: the same module and style, with its data as a trait."""

import anywidget
import traitlets

from interp.pages.page import script, style


class Page(anywidget.AnyWidget):
    """A page to click on, as a cell's output."""

    _esm = script()
    _css = style()
    page = traitlets.Dict().tag(sync=True)


def widget(data: dict) -> Page:
    """The contents that `interp.pages.page.contents` makes, as a widget."""
    return Page(page=data)
