"""The embedded data: scenes of real handwritten digits, with evidence, thinking text and twins."""

from interp.data.digits.question_families import FAMILIES
from interp.data.digits.scenes import at_first_glance, load, make_sample, object_boxes

__all__ = ["FAMILIES", "at_first_glance", "load", "make_sample", "object_boxes"]
