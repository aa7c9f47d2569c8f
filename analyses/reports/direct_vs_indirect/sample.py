"""Everything that a run holds of one sample: ledger, effects, order-free shares, patch maps.

One dataset per sample, over its targets. Names that several measurements share get the prefix of
their kind: `effect` and `total` are edge effects, `node_effect` and `shapley_total` the others.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import xarray as xr

import interp
from analyses.reports.direct_vs_indirect.rule import GAUGES
from analyses.run.recipe import Budget, Tick, attempt, nothing
from interp.capture.memory import is_out_of_memory
from interp.data.sample import Sample
from interp.extract.question import Query, ask
from interp.extract.references import Pool, counterparts, twin_text
from interp.extract.sharing import sharing
from interp.inputs.completions import Completion
from interp.model.state import undisturbed
from interp.model.vlm import VLM
from interp.vocabulary import EDGE_MODES, SINKLESS, SOURCE_SETS, describe

REFERENCES = ("mean", "other", "twin")
VISUAL_SETS = ("image", "evidence", "image" + SINKLESS, "evidence" + SINKLESS)
EDGE_SETS = (*SOURCE_SETS, *VISUAL_SETS[2:])
ENOUGH = 2**62  # bytes: no limit
N_THINKING = 2  # thinking tokens of a sample that get exact patch maps, chosen at random


_SAME = {
    "data_vars": ["total", "direct"],
    "coords": "minimal",
    "compat": "override",
    "combine_attrs": "override",
    "join": "override",
}


@dataclass(frozen=True)
class Measurer:
    """Measures samples of a run with the same model, pool, gauge and detail."""

    vlm: VLM
    pool: Pool | None
    """Where references come from; None measures edge effects alone."""
    gauge: str
    seed: int
    detail: str = "tokens"
    """Detail of the ledger; a summary is condensed from "tokens" afterwards."""
    given_foils: Mapping[str, list[int]] | None = None
    """Foils of another run by sample, so that two models are measured against the same tokens."""

    @property
    def modes(self) -> tuple[str, ...]:
        """Modes of the cuts; only "zero" where edge effects alone are measured."""
        return EDGE_MODES[:1] if self.pool is None else EDGE_MODES

    def measure(
        self, pairs: list[tuple], budget: Budget, tick: Tick = nothing
    ) -> list[xr.Dataset | Exception]:
        """All measurements of each sample, or why there are none.

        Args:
            pairs: sample, and its text: a `Completion`, None for the reference text, or why there
                is no text.
            budget: ledgers and edge effects go in batches within it.
            tick: takes how many more samples are done.
        """
        outcomes: list = [text if isinstance(text, Exception) else None for _, text in pairs]
        asked = []
        for k, (sample, text) in enumerate(pairs):
            foils = attempt(self._foils, sample, text) if outcomes[k] is None else None
            if isinstance(foils, Exception):
                outcomes[k] = foils
            if outcomes[k] is None:
                asked.append((k, sample, text, foils))
        shared = self._in_batches([one[1:] for one in asked], budget)
        for (k, sample, text, foils), outcome in zip(asked, shared, strict=True):
            outcomes[k] = outcome
            if not isinstance(outcome, Exception):
                with sharing(), undisturbed(self.vlm.model):
                    outcomes[k] = attempt(self._merged, sample, text, foils, *outcome)
            tick(1)
        return outcomes

    def _foils(self, sample: Sample, completion: Completion | None) -> list[int | None] | None:
        """The foils of a sample's targets, where something is measured against any.

        Raises:
            ValueError: a text, or a twin's, that cannot be explained.
        """
        if self.gauge != "contrast" and self.pool is None:
            return None
        if self.given_foils is not None:
            if sample.id not in self.given_foils:
                raise ValueError(f"{sample.id}: expected a sample of the first run, got another")
            return self.given_foils[sample.id]
        return contrast_foils(self.vlm, sample, ask(self.vlm, sample, completion=completion))

    def _own(self, completion: Completion | None, foils: list | None) -> dict:
        """A sample's own options of every extraction."""
        return {"completion": completion} | ({"foils": foils} if self.gauge == "contrast" else {})

    def _in_batches(self, asked: list[tuple], budget: Budget) -> Iterator[tuple | Exception]:
        """Ledger and edge effects in every mode, from one forward per batch; or why not."""
        detail = "full" if self.detail == "full" else "tokens"
        calls = [("ledger", {"detail": detail}), *(("effects", {"mode": m}) for m in self.modes)]
        inputs = [(sample, self._own(text, foils)) for sample, text, foils in asked]
        # A batch of one is computed in chunks; it need not fit at once.
        memory = budget.max_memory if budget.batch_size > 1 else ENOUGH
        at = 0
        while at < len(inputs):
            some = inputs[at:] if budget.batch_size > 1 else inputs[at : at + 1]
            try:
                results = interp.extract.each(
                    calls, self.vlm, some, max_memory=memory, gauge=self.gauge
                )
                for result in results:
                    at += 1
                    yield result
            except (ValueError, RuntimeError, TypeError, OSError) as error:
                if is_out_of_memory(error) and budget.batch_size > 1:
                    raise
                at += 1
                yield error

    def _merged(
        self,
        sample: Sample,
        completion: Completion | None,
        foils: list[int | None] | None,
        ledger: xr.Dataset,
        *effects: xr.Dataset,
    ) -> xr.Dataset:
        """All measurements of one sample.

        Raises:
            ValueError: as the functions of `interp.extract`.
        """
        options = {"gauge": self.gauge} | self._own(completion, foils)
        if self.gauge == "contrast" and self.given_foils is None:
            is_twins = [foil is not None for foil in foils]
            ledger = ledger.assign(is_twin_foil=("target", is_twins))
        parts = [ledger, _edges(self.modes, effects, ledger)]
        if self.pool is not None:
            # Without another answer in the pool, "other" is not defined; the sample stays.
            answer = sample.answer if completion is None else completion.answer
            has_other = bool(self.pool.candidates(sample, answer))
            kinds = [kind for kind in REFERENCES if kind != "other" or has_other]
            references = interp.extract.references(
                self.vlm, sample, pool=self.pool, kinds=kinds, completion=completion, seed=self.seed
            )
            parts += _nodes(self.vlm, sample, references, options, foils, ledger)
            parts.append(_patches(self, sample, references["mean"], options, ledger))
            parts.append(_origins(self.vlm, sample, options))
        merged = xr.merge(parts, join="exact", compat="equals", combine_attrs="override")
        return describe(merged)


def _edges(names: tuple[str, ...], effects: Iterable[xr.Dataset], ledger: xr.Dataset) -> xr.Dataset:
    """Edge effects in the mode "zero", which comes first; total and direct part in every mode."""
    effects = [one.assign(direct=one["effect"].sel(path="direct", drop=True)) for one in effects]
    modes = xr.Variable("mode", list(names))
    brief = [one[["total", "direct", "is_defined"]] for one in effects]
    by_mode = _all_sets(xr.concat(brief, dim=modes, **_SAME), EDGE_SETS, ledger)
    edges = _all_sets(effects[0].drop_vars("direct"), EDGE_SETS, ledger)
    edges["mode_total"], edges["mode_direct"] = by_mode["total"], by_mode["direct"]
    return edges


def _nodes(vlm, sample, references, options, foils, ledger) -> list[xr.Dataset]:
    """Node effects and Shapley values of the visual sets, with every reference."""
    nodes = interp.extract.node_effects(vlm, sample, references=references, **options)
    shares = interp.extract.shapley(
        vlm,
        sample,
        references=references,
        completion=options["completion"],
        gauge=GAUGES,
        foils=foils,
    )
    reindexing = {"reference": list(REFERENCES), "fill_value": 0}
    nodes, shares = (
        _all_sets(one.drop_attrs(deep=False).reindex(**reindexing), VISUAL_SETS, ledger)
        for one in (nodes, shares)
    )
    nodes = nodes.rename(
        effect="node_effect", total="node_total", is_defined="node_defined", path="node_path"
    )
    shares = shares.drop_vars("is_defined").rename(total="shapley_total")
    return [one.rename(source_set="visual_set") for one in (nodes, shares)]


def contrast_foils(vlm: VLM, sample: Sample, query: Query) -> list[int | None]:
    """The foil of each target (METHODS.md 3.6).

    For an answer token the twin's, where it differs and all answer tokens before it agree;
    otherwise None, the clean run's runner-up.
    """
    targets = query.targets.tolist()
    if sample.twin is None:
        return [None] * len(targets)
    foils, is_alike = [], True
    theirs = counterparts(twin_text(vlm, sample.twin), query)
    for (role, _), mine, other in zip(query.places, targets, theirs, strict=True):
        is_answer = role == "answer"
        foils.append(other if is_answer and is_alike and other != mine else None)
        is_alike = is_alike and (not is_answer or other == mine)
    return foils


def _all_sets(dataset: xr.Dataset, names: tuple[str, ...], ledger: xr.Dataset) -> xr.Dataset:
    """The dataset over source sets of these names; what the sample lacks is 0 and not defined.

    A set that holds no sinks is the same without them.
    """
    is_sink = ledger["is_sink"].values
    members = {"image": ledger["image"].values >= 0, "evidence": ledger["is_evidence"].values}
    place = {name: k for k, name in enumerate(dataset["source_set"].values.tolist())}
    for name, rows in members.items():
        if name in place and not (is_sink & rows).any():
            place.setdefault(name + SINKLESS, place[name])
    full = dataset.isel(source_set=[place.get(name, 0) for name in names])
    full = full.assign_coords(source_set=list(names))
    lacking = [k for k, name in enumerate(names) if name not in place]
    if lacking:
        for variable in full.data_vars.values():
            if "source_set" in variable.dims:
                variable[{"source_set": lacking}] = 0
    return full


def _patches(measurer: Measurer, sample: Sample, reference, options, ledger) -> xr.Dataset:
    """Exact and first-order patch maps of the answer's tokens and of some thinking tokens."""
    chosen = _chosen_targets(ledger, sample, measurer.seed)
    at = {"positions": ledger["target_position"].values[chosen].tolist(), **options}
    if options.get("foils") is not None:
        at["foils"] = [options["foils"][k] for k in chosen]
    vlm = measurer.vlm
    edge = interp.extract.patch_effects(vlm, sample, **at)
    slot = interp.extract.patch_effects(vlm, sample, form="slot", reference=reference, **at)
    first = interp.extract.first_order(vlm, sample, **at)
    maps = {
        "patch_edge": edge["total"],
        "patch_slot": slot["total"],
        "first_order_map": first["first_order"].sel(objective="total").sum("layer"),
    }
    dataset = xr.Dataset(coords=ledger.coords)
    for name, values in maps.items():
        full = np.zeros((ledger.sizes["target"], ledger.sizes["source"]), dtype=values.dtype)
        full[chosen] = values.values
        dataset[name] = (("target", "source"), full)
    has_patch = np.isin(np.arange(ledger.sizes["target"]), chosen)
    dataset["has_patch"] = ("target", has_patch)
    error = np.zeros(len(has_patch), dtype=first["completeness_error"].dtype)
    error[chosen] = first["completeness_error"].values
    dataset["completeness_error"] = ("target", error)
    return dataset.drop_vars("role", errors="ignore")


def _origins(vlm: VLM, sample: Sample, options: dict) -> xr.Dataset:
    """Origins of the image's direct contributions, sources summed."""
    origins = interp.extract.origins(vlm, sample, **options)
    is_visual = (origins["image"] >= 0).values
    image = origins["direct_by_origin"].isel(source=is_visual).sum("source")
    return xr.Dataset({"image_by_origin": image})


def _chosen_targets(ledger: xr.Dataset, sample: Sample, seed: int) -> np.ndarray:
    roles = ledger["target_role"].values
    thinking = np.flatnonzero(roles == "thinking")
    rng = np.random.default_rng([seed, int(sample.fingerprint, 16)])
    some = rng.permutation(thinking)[:N_THINKING]
    return np.sort(np.concatenate([np.flatnonzero(roles == "answer"), some]))
