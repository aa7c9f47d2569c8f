"""Saliency maps on the grid of patches, and how well they lie on the evidence."""

from interp.maps import alignment
from interp.maps.grid import holistic, on_grid, one_map, token_map
from interp.maps.map import Map
from interp.maps.named import target_index, target_indices

__all__ = [
    "Map",
    "alignment",
    "holistic",
    "on_grid",
    "one_map",
    "target_index",
    "target_indices",
    "token_map",
]
