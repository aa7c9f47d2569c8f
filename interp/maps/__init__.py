"""Saliency maps on the grid of patches, and how well they lie on the evidence."""

from interp.maps import alignment
from interp.maps.grid import holistic, on_grid, one_map, target_index, token_map

__all__ = ["alignment", "holistic", "on_grid", "one_map", "target_index", "token_map"]
