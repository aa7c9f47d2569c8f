"""Types of the arguments that all calls share; each call says what is wrong with another."""

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from interp.data.sample import Sample
from interp.inputs.completions import Completion
from interp.model.vlm import VLM

Model = VLM | nn.Module
"""A model with its processor, or a Hugging Face model alone (LoRA-wrapped too)."""
Inputs = Sample | Mapping[str, Tensor]
"""A sample, with a `VLM`; or what a processor has made of one sequence, with a model alone."""
Text = Completion | str
"""A text, as a model has written it or as somebody else has."""
Positions = Iterable[int]
"""Rows of `input_ids`, padding counted from the left."""
TargetTokens = Iterable[int | str]
"""Token ids, or texts of one token each."""
Foils = int | str | Iterable[int | str | None]
"""One token for each target, of which None is the likeliest other; one id for all; or "runner-up",
the likeliest other of each."""
Sources = Iterable[str] | Mapping[str, Iterable[int]]
"""Names of source sets, or rows by a name of one's own."""
