"""Figures: one labelled array → one Axes. Data first, Axes second; nothing is computed here."""

from interp.plots.charts import (
    by_layer,
    class_means,
    direct_against_total,
    errors,
    margin_legend,
    margins,
    node_means,
    path_means,
    paths,
    shares,
)
from interp.plots.pictures import overlay, scene, signed_map, token_strip
from interp.plots.style import plain_logarithms, use_style

__all__ = [
    "by_layer",
    "class_means",
    "direct_against_total",
    "errors",
    "margin_legend",
    "margins",
    "node_means",
    "overlay",
    "path_means",
    "paths",
    "plain_logarithms",
    "scene",
    "shares",
    "signed_map",
    "token_strip",
    "use_style",
]
