"""Map gradient (ours; METHODS.md 5): the alignment of a fixed text's map, differentiated.

    L = L_GRPO − λ · mean over completions with accuracy ≥ τ of S̃
    S̃ = Σ_y Σ_p w_p ReLU(M_{y,p}) / Σ_y Σ_p |M_{y,p}|

∇ E_y[S(y, θ)] = E_y[S ∇ log π(y)] + E_y[∇ S(y, θ)]: a reward has the first term alone, it chooses
between texts; this is the second, how the same text is read. M is Eq. 1's map of an answer token,
or the bottleneck's, centred, on the graph of the policy's own forward: through queries, keys and
values of all layers and through u, its RMS included; W_o, the output embedding and γ are constants.
"""

from dataclasses import dataclass
from functools import partial

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from interp.algebra.ledger import readout_vectors, slot_scores
from interp.algebra.readout import gauge_rows, value_biases
from interp.capture.heard import Heard
from interp.model.linear import transposed
from interp.model.parts import Parts
from train.losses.micro_batch import MicroBatch

RULES = ("eq1", "bottleneck")
MASSES = ("absolute", "positive")


@dataclass(frozen=True)
class MapGradient:
    """The share of a map inside the boxes, to be raised.

    Args:
        weight: λ.
        tau: least accuracy of a completion that counts.
        rule: "eq1", or "bottleneck", through the thinking (Saliency-R1 §3.2). The gradient of an
            effect map would be a second derivative of the whole decoder, and is not to be had.
        mass: what the share is of: "absolute" Σ|M|; with "positive" Σ ReLU(M) the background learns
            to write against the token, which costs nothing.
        per_gated: mean over the completions that passed; otherwise over all of them.
        is_sham: the boxes stand elsewhere: the placebo.

    Raises:
        ValueError: an option by another name.
    """

    weight: float = 0.2
    tau: float = 0.5
    rule: str = "eq1"
    mass: str = "absolute"
    per_gated: bool = True
    is_sham: bool = False
    name: str = "map_gradient"

    def __post_init__(self):
        if self.rule not in RULES:
            raise ValueError(
                f"expected a rule of {RULES}, got {self.rule!r}; an effect map has no gradient here"
            )
        if self.mass not in MASSES:
            raise ValueError(f"expected a mass of {MASSES}, got {self.mass!r}")

    def layers(self, parts: Parts) -> range:
        """All of them; raises ValueError for a family with norms behind attention."""
        if parts.layers[0].attention_post_norm:
            raise ValueError(
                "expected a family without norms behind attention, got one whose maps need what "
                "each layer's attention puts out; use ease, or another model"
            )
        return range(parts.n_layers)

    def __call__(self, heard: Heard, batch: MicroBatch, log) -> Float[Tensor, " sequence"]:
        """−S̃ of each completion that passed, else 0; logs alignment and texts without mass."""
        values, has_mass = [], []
        for s in range(len(batch.texts)):
            value = heard.final[0].new_zeros((), dtype=_wide(heard.final[0].dtype))
            if batch.is_paid[s] and not batch.texts[s].rows_of("answer"):
                has_mass.append(False)  # cut off before it
            elif batch.is_paid[s]:
                signed = self.maps(heard, batch, s)
                value, mass = self._score(signed, batch.texts[s].overlap)
                has_mass.append(mass)
            values.append(value)
        if has_mass:
            log("map_gradient/alignment", float(sum(values).detach()) / len(has_mass))
            log("map_gradient/no_mass", 1 - sum(has_mass) / len(has_mass))
        return -torch.stack(values)

    def _score(self, signed: Float[Tensor, "target visual"], overlap) -> tuple[Tensor, bool]:
        mass = signed.abs() if self.mass == "absolute" else signed.relu()
        inside = signed.relu() @ torch.from_numpy(overlap).to(signed)
        has_mass = bool(mass.sum() > 0)
        return inside.sum() / mass.sum().clamp_min(torch.finfo(mass.dtype).tiny), has_mass

    def maps(self, heard: Heard, batch: MicroBatch, number: int) -> Float[Tensor, "target visual"]:
        """M of one completion's answer tokens, of which there are some; signed, on the graph."""
        parts, text, left = heard.parts, batch.texts[number], batch.n_left[number]
        device = batch.ids.device
        answer = _at(text.rows_of("answer"), left, device)
        thinking = _at(text.rows_of("thinking"), left, device)
        visual = torch.from_numpy(text.tokens.is_visual).to(device).nonzero()[:, 0] + left
        rows = torch.cat([answer - 1, thinking]) if self.rule == "bottleneck" else answer - 1
        folded = self._folded(heard, number, batch.ids[number, answer], answer - 1)
        total = folded[0].new_zeros(len(answer), len(visual))
        of, write = _Rows(number, rows, answer, thinking, visual), _written
        if self.rule == "bottleneck":
            # The rows of a long thinking text are gigabytes over all layers: made anew, layer by
            # layer, when the gradient is.
            write = partial(checkpoint, _written, use_reentrant=False)
        for layer, biases in enumerate(_biases(parts, total.dtype)):
            total = total + write(heard, layer, batch.is_visible, of, folded[layer], biases)
        return total

    def _folded(
        self, heard: Heard, number: int, targets: Int[Tensor, " i"], rows: Int[Tensor, " i"]
    ) -> list[Float[Tensor, "i head d_head"]]:
        """W_oᵀ u by layer; u with its RMS on the graph."""
        parts = heard.parts
        with torch.no_grad():
            gauge = gauge_rows(parts.output_embedding, targets, "centered")
            norm_weight = parts.norm_weight.detach().to(gauge.dtype)
        final = heard.final[0][number, rows].to(gauge.dtype)
        vectors = readout_vectors(gauge, final, norm_weight, parts.epsilon)
        return [
            rearrange(transposed(layer.o_proj, vectors), "i (h d) -> i h d", h=parts.n_heads)
            for layer in parts.layers
        ]


@dataclass(frozen=True)
class _Rows:
    """One completion's rows: those whose attention is read, and where its tokens stand."""

    number: int
    read: Int[Tensor, " row"]
    """The rows that predict the answer, and behind them the thinking's, where a map needs them."""
    answer: Int[Tensor, " i"]
    thinking: Int[Tensor, " t"]
    visual: Int[Tensor, " p"]


def _written(
    heard: Heard,
    layer: int,
    is_visible: Bool[Tensor, "all_sequences token"],
    of: _Rows,
    folded: Float[Tensor, "i head d_head"],
    biases: Float[Tensor, "1 kv 1 d_head"],
) -> Float[Tensor, "i p"]:
    """The part of M that a layer's heads write."""
    weights = heard.attention(layer, of.read[None], is_visible, [of.number])[0]
    first, n = weights[: len(of.answer)], len(of.answer)
    if len(of.read) > n:
        is_before = of.thinking < rearrange(of.answer - 1, "i -> i 1")
        first = first[..., of.thinking] * rearrange(is_before, "i t -> i 1 t")
        paid = torch.einsum("iht,thp->ihp", first, weights[n:][..., of.visual])
    else:
        paid = first[..., of.visual]
    values = heard.values[layer][of.number, of.visual].to(biases.dtype)
    values = rearrange(values, "p (kv d) -> 1 kv p d", kv=heard.parts.n_kv_heads) - biases
    return (paid.to(biases.dtype) * slot_scores(folded, values)).sum(dim=1)


def _biases(parts: Parts, dtype: torch.dtype) -> list[Tensor]:
    with torch.no_grad():
        return [rearrange(one, "kv d -> 1 kv 1 d") for one in value_biases(parts, dtype)]


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _at(rows: list[int], left: int, device) -> Int[Tensor, " row"]:
    return torch.tensor(rows, dtype=torch.long, device=device) + left
