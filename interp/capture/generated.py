"""A model's own generation as the prefill of what it wrote: no second forward (METHODS.md 5).

    generated = Generated(model)                 # hooks alone; nothing is patched
    model.generate(…)                            # whoever calls it
    generated.refusal([0, 1], batches)           # "" where it can stand for these sequences
    generated.prefills([0, 1], batches)          # as interp.capture.prefill.prefills gives them
    generated.drop()                             # the cache is freed

Kept by reference: the cache, and what entered the language model; of the last token of each
forward also queries in front of the rotary embedding and final states, out of which rows of
attention follow without a replay. What this package itself reads of the model, its own generations
included, is not listened to.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from interp.capture.assembled import Rows, Run, assembled
from interp.capture.prefill import Prefills, positions_of
from interp.model import families
from interp.model.families import is_held
from interp.model.parts import Parts


@dataclass
class Generation:
    """One `generate` call; lists are by forward, the first one the prompts'."""

    cache: Cache
    prompt_ids: Int[Tensor, "sequence token"]
    is_prompt: Bool[Tensor, "sequence token"]
    """False on padding."""
    pixels: Tensor | None
    reason: str
    """Why it cannot stand for anything; empty where it can."""
    weights: int
    """Changes with every change of a weight in place."""
    ids: list[Int[Tensor, "sequence 1"]] = field(default_factory=list)
    content: list[Tensor] = field(default_factory=list)
    positions: list[Int[Tensor, "3 sequence _"]] = field(default_factory=list)
    rotary: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    queries: list[list[Tensor]] = field(default_factory=list)
    """By layer, the last token's."""
    final: list[Tensor] = field(default_factory=list)
    """The last token's."""


class Generated:
    """Listens to a model's generations and keeps the last one.

    Args:
        model: as it will generate, adapters in place.
        keep_queries: keep queries too: n_heads · d_head numbers per decoded token and layer, for
            rows of attention without a replay.
    """

    def __init__(self, model: nn.Module, *, keep_queries: bool = True):
        parts = families.parts(model)
        self.model, self.parts, self.last = model, parts, None
        self._inputs: dict = {}
        self._pixels: Tensor | None = None
        self._is_kept = False
        base = families.base_model(model)
        decoder, attention = parts.language_model, parts.layers[0].attention
        self._hooks = [
            base.register_forward_pre_hook(self._asked, with_kwargs=True),
            parts.vision_tower.register_forward_pre_hook(self._seen, with_kwargs=True),
            decoder.register_forward_pre_hook(self._entered, with_kwargs=True),
            decoder.register_forward_hook(self._done),
            attention.register_forward_pre_hook(self._turned, with_kwargs=True),
            parts.final_norm.register_forward_pre_hook(self._final),
        ]
        if keep_queries:
            self._hooks += [
                layer.q_proj.register_forward_hook(self._query) for layer in parts.layers
            ]

    def drop(self) -> None:
        """Forgets the last generation, whose cache is freed with it."""
        self.last = self._pixels = None
        self._inputs = {}

    def close(self) -> None:
        """Takes the hooks off the model."""
        self.drop()
        for hook in self._hooks:
            hook.remove()

    # --------------------------------------------------------------------------------- listening

    def _asked(self, _module, _args, kwargs) -> None:
        self._inputs = kwargs

    def _seen(self, _module, args, kwargs) -> None:
        """Before the vision tower, which generation calls once, in front of everything else."""
        if not torch.is_grad_enabled() and not is_held(self.model):
            self._pixels = given_tensor(args, kwargs)

    def _entered(self, _module, _args, kwargs) -> None:
        """Before each forward of the language model: a generation's first, a next one, or none."""
        self._is_kept = False
        cache = kwargs.get("past_key_values")
        ids = self._inputs.get("input_ids")
        if torch.is_grad_enabled() or is_held(self.model) or cache is None or ids is None:
            return
        if cache.get_seq_length() == 0:
            self.last = self._begun(cache, ids)
        elif self.last is None or self.last.cache is not cache:
            return  # somebody else's
        else:
            self.last.ids.append(ids)
        if ids.shape[1] > 1 and self.last.content:
            self.last.reason = "several tokens in one step"
        self._is_kept = True
        self.last.queries.append([])
        self.last.content.append(self.parts.entered(kwargs))
        self.last.positions.append(positions_of(kwargs).expand(3, len(ids), -1))

    def _begun(self, cache, ids: Tensor) -> Generation:
        mask = self._inputs.get("attention_mask")
        is_known = mask is None or (torch.is_tensor(mask) and mask.shape == ids.shape)
        return Generation(
            cache=cache,
            prompt_ids=ids,
            is_prompt=mask.bool() if mask is not None and is_known else torch.ones_like(ids).bool(),
            pixels=self._pixels,
            reason=_unusable(self.model, cache) or ("" if is_known else "a mask of another form"),
            weights=changes(self.model),
        )

    def _turned(self, _module, _args, kwargs) -> None:
        if self._is_kept:
            n_sequences = len(self.last.prompt_ids)
            rotary = (one.expand(n_sequences, -1, -1) for one in kwargs["position_embeddings"])
            self.last.rotary.append(tuple(map(_last_row, rotary)))

    def _query(self, _module, _args, output) -> None:
        if self._is_kept:
            self.last.queries[-1].append(_last_row(output))

    def _final(self, _module, args) -> None:
        if self._is_kept:
            self.last.final.append(_last_row(args[0]))

    def _done(self, *_) -> None:
        self._is_kept = False

    # ----------------------------------------------------------------------------------- reading

    def refusal(self, numbers: list[int], batches: list[Mapping]) -> str:
        """Why the last generation cannot stand for these sequences; empty where it can.

        Args:
            numbers: which of its sequences each is.
            batches: of prompt and completion, one sequence each.
        """
        last = self.last
        if last is None:
            return "no generation was heard"
        reason = last.reason or _unkept(last.cache)
        if not reason and last.weights != changes(self.model):
            reason = "weights changed since"
        if not reason and max(numbers) >= len(last.prompt_ids):
            reason = f"{len(last.prompt_ids)} sequences were generated"
        if reason:
            return reason
        return next(filter(None, map(self._other, numbers, batches)), "")

    def _other(self, number: int, batch: Mapping) -> str:
        """Why a generated sequence is not this one: other tokens, or another image."""
        last, ids = self.last, batch["input_ids"][0]
        prompt = last.prompt_ids[number][last.is_prompt[number]]
        fed = torch.cat([prompt, *(one[number] for one in last.ids)])[: len(ids)]
        if not len(prompt) <= len(ids) <= len(fed) + 1 or not torch.equal(ids[: len(fed)], fed):
            return "other tokens"
        return other_image(self.parts, last.prompt_ids, last.pixels, number, batch)

    def prefills(self, numbers: list[int], batches: list[Mapping]) -> Prefills:
        """Some of the sequences, padded on the left; see `interp.capture.assembled`.

        Args:
            numbers, batches: as for `refusal`, which has to be asked first.
        """
        n_tokens = [batch["input_ids"].shape[1] for batch in batches]
        content = torch.cat(self.last.content, dim=1)
        positions = torch.cat(self.last.positions, dim=2)
        runs = [
            self._run(k, n, content[k], positions[:, k])
            for k, n in zip(numbers, n_tokens, strict=True)
        ]
        return assembled(self.parts, runs, n_tokens)

    def _run(self, number: int, n_tokens: int, content: Tensor, positions: Tensor) -> Run:
        """One sequence without its padding."""
        last = self.last
        n_left, n_prompt = ((~last.is_prompt[number]).sum(), last.is_prompt[number].sum())
        own = slice(int(n_left), int(n_left) + n_tokens)
        has_rows = last.queries and all(last.queries)
        return Run(
            keys=[layer.keys[number, :, own] for layer in last.cache.layers],
            values=[layer.values[number, :, own] for layer in last.cache.layers],
            content=content[own],
            positions=positions[:, own],
            rows=self._rows(number, int(n_prompt)) if has_rows else None,
        )

    def _rows(self, number: int, n_prompt: int) -> Rows:
        """The prompt's last row and decoded tokens of one sequence: one of each forward."""
        last = self.last

        def half(steps: list[int], which: int) -> Tensor:
            return torch.stack([last.rotary[t][which][number, 0] for t in steps])

        return Rows(
            first=n_prompt - 1,
            n_rows=1 + len(last.ids),
            queries=lambda layer, steps: torch.stack(
                [last.queries[t][layer][number, 0] for t in steps]
            ),
            rotary=lambda steps: (half(steps, 0), half(steps, 1)),
            final=lambda steps: torch.stack([last.final[t][number, 0] for t in steps]),
        )


def other_image(
    parts: Parts,
    ids: Int[Tensor, "sequence token"],
    pixels: Tensor | None,
    number: int,
    batch: Mapping,
) -> str:
    """Why a sequence's image is not a batch's; empty where it is, or where there is none.

    Args:
        parts: the model's parts.
        ids: of all sequences that the vision tower was given images of.
        pixels: what it was given.
        number: which of the sequences.
        batch: of one sequence.
    """
    if "pixel_values" not in batch:
        return ""
    if pixels is None or pixels.shape[1:] != batch["pixel_values"].shape[1:]:
        return "images that cannot be told apart"
    try:
        mine, cells = map(parts.by_token, (batch["pixel_values"], pixels))
    except ValueError as error:
        return str(error)
    counts = (ids == parts.image_token_id).sum(dim=1).tolist()
    theirs = cells.split(counts)[number] if sum(counts) == len(cells) else cells[:0]
    return "" if torch.equal(mine.to(theirs), theirs) else "another image"


def given_tensor(args: tuple, kwargs: dict) -> Tensor | None:
    """The first tensor that a module is given."""
    return next((one for one in (*args, *kwargs.values()) if torch.is_tensor(one)), None)


def _last_row(tensor: Float[Tensor, "sequence token d"]) -> Float[Tensor, "sequence 1 d"]:
    """The last token's, without holding on to the others."""
    return tensor if tensor.shape[1] == 1 else tensor[:, -1:].clone()


def _unusable(model: nn.Module, cache) -> str:
    """Why a generation that begins cannot stand for what is read in eval mode."""
    if type(cache) is not DynamicCache:
        return f"a cache of type {type(cache).__name__}"
    if any(drops(module) for module in model.modules()):
        return "dropout while sampling (lora_dropout, or disable_dropout: true in the config)"
    return ""


def drops(module: nn.Module) -> bool:
    """Whether a module draws what it leaves out."""
    chance = module.p if isinstance(module, nn.Dropout) else vars(module).get("attention_dropout")
    return module.training and bool(chance)


def _unkept(cache) -> str:
    kinds = {type(layer).__name__ for layer in cache.layers if type(layer) is not DynamicLayer}
    return f"layers of the cache that do not keep all tokens: {sorted(kinds)}" if kinds else ""


def changes(model: nn.Module) -> int:
    """A number that grows whenever a weight is changed in place, as optimizers do."""
    return sum(weight._version for weight in model.parameters())
