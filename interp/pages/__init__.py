"""Pages to look at: one answer or two, every token and every path, in one file or a notebook."""

from interp.pages.page import page
from interp.pages.path_graph import PathGraph, path_graph

__all__ = ["PathGraph", "page", "path_graph"]
