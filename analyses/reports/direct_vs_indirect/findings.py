"""A run → the numbers of the report, each with its interval over images. Needs no model."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

from analyses.reports.direct_vs_indirect import all_paths as indirect
from analyses.reports.direct_vs_indirect.all_paths import Indirect
from analyses.reports.direct_vs_indirect.rule import GATE
from interp import measures, stats
from interp.vocabulary import BOUNDS, SINKLESS

# Large, and in no figure or table: of a long run they need not be in memory.
UNREAD = ("value_bias", "direct_by_layer", "mediated_alone")
MARK = {"all": 0.90, "family": 0.85}  # accuracy that the embedded model is meant to reach


@dataclass(frozen=True)
class Findings:
    """Numbers behind the figures, the tables and the text."""

    run: xr.Dataset
    paths: xr.Dataset
    """Mean effect by (token_class, source_set, path), "total" first."""
    shares: xr.Dataset
    """Σ direct / Σ total by (token_class, source_set), with `is_shown` where the gate is passed."""
    margins: xr.Dataset
    """Mean of direct − (total − direct) by (token_class, source_set)."""
    layers: xr.Dataset
    """Mean effect of the image by (token_class, layer_path, layer)."""
    accuracy: pd.DataFrame | None
    """Accuracy of all texts that the model wrote, explained or not; None for reference text."""
    errors: xr.Dataset
    bound: float
    indirect: Indirect | None
    """Everything beyond edge effects; None for a run of edge effects alone."""


def find(run: xr.Dataset) -> Findings:
    """All numbers of the report from a run; the bootstrap's seed is the run's."""
    seed = run.attrs["seed"]
    run = run.drop_vars(UNREAD, errors="ignore")
    run = _with_sinks_named(measures.with_sources(run.load()))
    effect, total = measures.per_image(run, "effect"), measures.per_image(run, "total")
    with_total = xr.concat([total.expand_dims(path=["total"]), effect], dim="path")
    direct = effect.sel(path="direct", drop=True)
    paths = stats.mean_interval(with_total, seed=seed)
    shares = stats.share_interval(direct, total, seed=seed)
    shares["is_shown"] = paths["lower"].sel(path="total", drop=True) >= GATE
    by_layer = measures.per_image(run, "effect_by_layer").sel(source_set="image", drop=True)
    return Findings(
        run=run,
        paths=paths,
        shares=shares,
        margins=stats.mean_interval(2 * direct - total, seed=seed),
        layers=stats.mean_interval(by_layer, seed=seed),
        accuracy=_accuracy(run),
        errors=measures.relative_errors(run),
        bound=BOUNDS[run.attrs["dtype"]],
        indirect=indirect.find(run, seed),
    )


def _with_sinks_named(run: xr.Dataset) -> xr.Dataset:
    """The run; where it has no sinks, without the edge effects of sets without their sinks."""
    if bool(run["n_sinks"].any()):
        return run
    names = [name for name in run["source_set"].values if not name.endswith(SINKLESS)]
    return run.sel(source_set=names)


def _accuracy(run: xr.Dataset) -> pd.DataFrame | None:
    answered = [entry for entry in run.attrs["statuses"].values() if "is_correct" in entry]
    if not answered:
        return None
    frame = pd.DataFrame(answered)
    by_family = list(frame.groupby("family", sort=True))
    groups = [("all", frame), *(by_family if len(by_family) > 1 else ())]
    rows = []
    for family, group in groups:
        low, high = stats.proportion_interval(int(group.is_correct.sum()), len(group))
        rows.append(
            {
                "family": family,
                "n": len(group),
                "accuracy": group.is_correct.mean(),
                "lower": low,
                "upper": high,
            }
        )
    return pd.DataFrame(rows)


def missed_marks(findings: Findings) -> list[str] | None:
    """Where the embedded model's answers fall short of its mark; None for other models and text."""
    if (
        findings.accuracy is None
        or findings.run.attrs["model"] != "tiny"
        or not findings.run.attrs["data"].startswith("digits")
        or findings.run.attrs["adapter"]
    ):
        return None
    goals = [MARK["all" if name == "all" else "family"] for name in findings.accuracy["family"]]
    return findings.accuracy["family"][findings.accuracy["accuracy"] < goals].tolist()


def table(interval: xr.Dataset) -> pd.DataFrame:
    """An interval dataset as rows for CSV and LaTeX."""
    dims = [
        d
        for d in ("token_class", "source_set", "path", "layer_path", "layer")
        if d in interval.dims
    ]
    return interval.to_dataframe(dim_order=dims).reset_index()


def tables(findings: Findings) -> dict[str, pd.DataFrame]:
    """Every table of the report by file name."""
    errors = {
        name: {
            "median": float(array.median()),
            "largest": float(array.max()),
            "bound": findings.bound,
        }
        for name, array in findings.errors.items()
    }
    frames = {
        "paths": table(findings.paths),
        "shares": table(findings.shares),
        "margins": table(findings.margins),
        "by_layer": table(findings.layers),
        "exactness": pd.DataFrame(errors).T.rename_axis("check").reset_index(),
        "targets": _targets(findings),
    }
    if findings.indirect is not None:
        frames |= indirect.tables(findings.indirect)
    return frames if findings.accuracy is None else frames | {"accuracy": findings.accuracy}


def _targets(findings: Findings) -> pd.DataFrame:
    """One row per target: total and direct effect of every source set, and the errors."""
    names = ["target_sample", "target_position", "target_token", "target_role"]
    frame = pd.DataFrame({name: findings.run[name].values for name in names})
    for source_set in findings.run["source_set"].values:
        effects = findings.run.sel(source_set=source_set)
        frame[f"total_{source_set}"] = effects["total"].where(effects["is_defined"]).values
        direct = effects["effect"].sel(path="direct").where(effects["is_defined"])
        frame[f"direct_{source_set}"] = direct.values
    return frame.assign(
        **{f"error_{name}": array.values for name, array in findings.errors.items()}
    )


def reading(total: xr.Dataset) -> str:
    """How a mean total effect is to be read: "share", "negative", "no effect" or "undecided"."""
    low, high = float(total["lower"]), float(total["upper"])
    if low >= GATE:
        return "share"
    if high < 0:
        return "negative"
    return "no effect" if low > -GATE and high < GATE else "undecided"


def is_exact(findings: Findings) -> bool:
    """Whether every target of the run keeps its bound."""
    return all(bool((array <= findings.bound).all()) for array in findings.errors.values())


def points(findings: Findings, source_set: str = "image") -> dict[str, xr.Dataset]:
    """Direct part and total effect of every target, by token class."""
    effects = findings.run[["effect", "total"]].sel(source_set=source_set)
    per_target = xr.Dataset(
        {"direct": effects["effect"].sel(path="direct", drop=True), "total": effects["total"]}
    )
    role = findings.run["target_role"].values
    return {
        name: per_target.isel(target=np.flatnonzero(role == name))
        for name in measures.TOKEN_CLASSES
        if (role == name).any()
    }
