"""A trainer's own forwards over whole texts as their prefills (METHODS.md 5): under vLLM.

    forwards = Forwards(policy)                  # hooks alone
    trainer's log-probabilities of the policy    # whoever computes them, in chunks
    forwards.refusal([0, 1], batches); forwards.prefills([0, 1], batches); forwards.drop()

Kept are keys and values of all tokens, and of those that are scored (whose `labels` are not −100)
queries and final states. Forwards with gradients, with adapters switched off (a reference) and of
this package itself are not listened to.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from interp.capture.assembled import Rows, Run, assembled
from interp.capture.attending import turned
from interp.capture.generated import changes, drops, given_tensor, other_image
from interp.capture.prefill import Prefills, positions_of
from interp.model import families
from interp.model.families import is_held


@dataclass
class Forward:
    """One chunk of texts."""

    ids: Int[Tensor, "sequence token"]
    is_text: Bool[Tensor, "sequence token"]
    """False on padding, left and right."""
    first: int
    """The first row whose queries are kept."""
    pixels: Tensor | None
    content: Tensor
    positions: Int[Tensor, "3 sequence token"]
    queries: list[Float[Tensor, "sequence row head_d_head"]] = field(default_factory=list)
    keys: list[Float[Tensor, "sequence token kv_d_head"]] = field(default_factory=list)
    """In front of norm and rotary embedding."""
    values: list[Float[Tensor, "sequence token kv_d_head"]] = field(default_factory=list)
    rotary: tuple[Tensor, Tensor] | None = None
    final: Float[Tensor, "sequence row d_model"] | None = None


class Forwards:
    """Listens to a policy's forwards over whole texts, and keeps them until they are dropped.

    Args:
        model: the policy, adapters in place.
    """

    def __init__(self, model: nn.Module):
        parts = families.parts(model)
        self.model, self.parts = model, parts
        self.chunks: list[Forward] = []
        self._weights = 0
        self._inputs: dict = {}
        self._pixels: Tensor | None = None
        self._open: Forward | None = None
        decoder, first = parts.language_model, parts.layers[0].attention
        self._hooks = [
            families.base_model(model).register_forward_pre_hook(self._asked, with_kwargs=True),
            parts.vision_tower.register_forward_pre_hook(self._seen, with_kwargs=True),
            decoder.register_forward_pre_hook(self._entered, with_kwargs=True),
            decoder.register_forward_hook(self._done),
            first.register_forward_pre_hook(self._turned, with_kwargs=True),
            parts.final_norm.register_forward_pre_hook(self._final),
        ]
        for layer in parts.layers:
            self._hooks += [
                layer.q_proj.register_forward_hook(self._query),
                layer.k_proj.register_forward_hook(self._key),
                layer.v_proj.register_forward_hook(self._value),
            ]

    def drop(self) -> None:
        """Forgets all forwards."""
        self.chunks, self._inputs, self._pixels, self._open = [], {}, None, None

    def close(self) -> None:
        """Takes the hooks off the model."""
        self.drop()
        for hook in self._hooks:
            hook.remove()

    # --------------------------------------------------------------------------------- listening

    def _asked(self, _module, _args, kwargs) -> None:
        self._inputs, self._pixels = kwargs, None

    def _seen(self, _module, args, kwargs) -> None:
        if not torch.is_grad_enabled():
            self._pixels = given_tensor(args, kwargs)

    def _entered(self, _module, _args, kwargs) -> None:
        self._open = None
        labels, ids = self._inputs.get("labels"), self._inputs.get("input_ids")
        mask = self._inputs.get("attention_mask")
        is_cached = kwargs.get("past_key_values") is not None
        if torch.is_grad_enabled() or is_held(self.model) or is_cached:
            return
        if any(one is None for one in (labels, ids, mask)) or _is_off(self.model):
            return
        if any(drops(module) for module in self.model.modules()):
            return
        is_scored = (labels != -100).any(dim=0)
        if not is_scored.any():
            return
        self._open = Forward(
            ids=ids,
            is_text=mask.bool(),
            first=max(int(is_scored.int().argmax()) - 1, 0),
            pixels=self._pixels,
            content=self.parts.entered(kwargs),
            positions=positions_of(kwargs).expand(3, len(ids), -1),
        )
        self.chunks.append(self._open)
        self._weights = changes(self.model)

    def _turned(self, _module, _args, kwargs) -> None:
        if self._open:
            shape = (len(self._open.ids), -1, -1)
            cos, sin = (one.expand(shape) for one in kwargs["position_embeddings"])
            self._open.rotary = cos, sin

    def _query(self, _module, _args, output) -> None:
        if self._open:
            self._open.queries.append(output[:, self._open.first :].clone())

    def _key(self, _module, _args, output) -> None:
        if self._open:
            self._open.keys.append(output)

    def _value(self, _module, _args, output) -> None:
        if self._open:
            self._open.values.append(output)

    def _final(self, _module, args) -> None:
        if self._open:
            self._open.final = args[0][:, self._open.first :].clone()

    def _done(self, *_) -> None:
        self._open = None

    # ----------------------------------------------------------------------------------- reading

    def refusal(self, numbers: list[int], batches: list[Mapping]) -> str:
        """Why the forwards cannot stand for these sequences; empty where they can.

        Args:
            numbers: which of all their sequences each is, chunk after chunk.
            batches: of prompt and completion, one sequence each.
        """
        n_all = sum(len(chunk.ids) for chunk in self.chunks)
        reason = ""
        if not self.chunks:
            reason = "no forward over whole texts was heard"
        elif self._weights != changes(self.model):
            reason = "weights changed since"
        elif self.parts.has_windows:
            reason = "layers with a window"
        elif max(numbers) >= n_all:
            reason = f"{n_all} sequences were read"
        return reason or next(filter(None, map(self._other, numbers, batches)), "")

    def _other(self, number: int, batch: Mapping) -> str:
        """Why a sequence that was read is not this one: other tokens, or another image."""
        chunk, row = self._place(number)
        if not torch.equal(chunk.ids[row][chunk.is_text[row]], batch["input_ids"][0]):
            return "other tokens"
        return other_image(self.parts, chunk.ids, chunk.pixels, row, batch)

    def prefills(self, numbers: list[int], batches: list[Mapping]) -> Prefills:
        """Some of the sequences, padded on the left; see `interp.capture.assembled`.

        Args:
            numbers, batches: as for `refusal`, which has to be asked first.
        """
        runs = [self._run(*self._place(number)) for number in numbers]
        return assembled(self.parts, runs, [batch["input_ids"].shape[1] for batch in batches])

    def _place(self, number: int) -> tuple[Forward, int]:
        for chunk in self.chunks:
            if number < len(chunk.ids):
                return chunk, number
            number -= len(chunk.ids)
        raise IndexError(number)

    def _run(self, chunk: Forward, row: int) -> Run:
        start = int(chunk.is_text[row].int().argmax())
        own = slice(start, start + int(chunk.is_text[row].sum()))
        rotary = tuple(one[row : row + 1, own] for one in chunk.rotary)
        heads = {"d": self.parts.d_head}
        return Run(
            keys=[
                turned(keys[row : row + 1, own], layer.k_norm, rotary)[0]
                for keys, layer in zip(chunk.keys, self.parts.layers, strict=True)
            ],
            values=[_by_head(values[row, own], **heads) for values in chunk.values],
            content=chunk.content[row, own],
            positions=chunk.positions[:, row, own],
            rows=self._rows(chunk, row, start),
        )

    @staticmethod
    def _rows(chunk: Forward, row: int, start: int) -> Rows:
        def half(which: list[int], number: int) -> Tensor:
            return chunk.rotary[number][row, [chunk.first + k for k in which]]

        return Rows(
            first=chunk.first - start,
            n_rows=chunk.ids.shape[1] - chunk.first,
            queries=lambda layer, which: chunk.queries[layer][row, which],
            rotary=lambda which: (half(which, 0), half(which, 1)),
            final=lambda which: chunk.final[row, which],
        )


def _by_head(values: Float[Tensor, "token kv_d_head"], d: int) -> Float[Tensor, "kv token d_head"]:
    return values.unflatten(-1, (-1, d)).transpose(0, 1)


def _is_off(model: nn.Module) -> bool:
    """Whether adapters are switched off, as for a reference's log-probabilities."""
    layers = [one for one in model.modules() if isinstance(one, BaseTunerLayer)]
    return any(layer.disable_adapters for layer in layers)
