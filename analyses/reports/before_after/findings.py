"""A run of models before and after training → tables. Needs no model."""

from dataclasses import dataclass

import pandas as pd
import xarray as xr

from interp import stats
from interp.measures import normalised
from interp.vocabulary import PATH_CLASSES, PATH_TITLES, PLAYERS, RULE_TITLES

BOUNDS = ("estimate", "lower", "upper")
CONTROLS = {
    "chance": "boxes' area (chance)",
    "alignment_shuffled": "boxes elsewhere",
    "alignment_center": "centred rectangle",
    "border_share": "border cells",
}
GAME = "image and words against the twin's, own words (contrast)"
CROSSED = {
    "its weights on the words before": ("own", "before"),
    "the weights before on its words": ("before", "own"),
}
EVIDENCE_SHARE = "evidence: share of evidence and background [share]"
GAUGE = "centered"  # of every logit that the report measures
REFERENCE_TITLES = {"mean": "mean embedding", "twin": "twin"}


@dataclass(frozen=True)
class ArmFindings:
    """Tables of a run; every number with its interval over images."""

    run: xr.Dataset
    levels: pd.DataFrame
    """Every quantity in every model."""
    changes: pd.DataFrame
    """After minus before, and after minus the control after, paired by image."""
    curves: pd.DataFrame | None
    """The training logs, a row per model and step."""
    seeds: pd.DataFrame | None
    """Changes by reward over training runs: mean, least and largest; None without repetitions."""

    @property
    def before(self) -> str:
        """The model that was trained."""
        return str(self.run["arm"].values[0])

    @property
    def after(self) -> list[str]:
        """Names of the models after training."""
        return self.run["arm"].values[1:].tolist()


def find(run: xr.Dataset) -> ArmFindings:
    """All tables of a run."""
    run = run.load()
    by_name = quantities(run)
    levels, changes = [], []
    arms, seed = run["arm"].values.tolist(), run.attrs["seed"]
    for (group, name), values in by_name.items():
        row = {"group": group, "quantity": name}
        levels += [row | {"arm": arm} | _level(values, arm, seed) for arm in arms]
        pairs = [(arm, "before", arms[0]) for arm in arms[1:]]
        pairs += [(arm, "control", baseline) for arm, baseline in controls(run).items()]
        changes += [
            row | {"arm": arm, "against": against} | _change(values, arm, baseline, seed)
            for arm, against, baseline in pairs
        ]
    curves = [
        pd.DataFrame(curve).assign(arm=arm) for arm, curve in run.attrs["curves"].items() if curve
    ]
    return ArmFindings(
        run,
        pd.DataFrame(levels),
        pd.DataFrame(changes),
        pd.concat(curves, ignore_index=True) if curves else None,
        _seeds(run, pd.DataFrame(changes)),
    )


def controls(run: xr.Dataset) -> dict[str, str]:
    """For each model that was paid for a map, the control: of the same seed and scenes if any."""
    facts = run.attrs["arms"]
    arms = run["arm"].values[1:].tolist()
    free = [arm for arm in arms if facts[arm]["map"] == "none"]
    by_arm = {}
    for arm in arms:
        if facts[arm]["map"] not in ("none", "") and free:
            alike = [one for one in free if facts[one]["training"] == facts[arm]["training"]]
            by_arm[arm] = (alike or free)[0]
    return by_arm


def _seeds(run: xr.Dataset, changes: pd.DataFrame) -> pd.DataFrame | None:
    """How far training runs of one reward differ: the mean change over them, least and largest."""
    paid = {arm: run.attrs["arms"][arm]["map"] for arm in run["arm"].values[1:].tolist()}
    if len(set(paid.values())) == len(paid):
        return None
    table = changes.assign(reward=changes["arm"].map(paid))
    by = table.groupby(["group", "quantity", "reward", "against"], sort=False)["estimate"]
    spread = by.agg(mean="mean", least="min", largest="max", n_runs="size")
    return spread.reset_index()


# A quantity: one number per arm and image, or two whose sums over images are divided.
Quantity = tuple[xr.DataArray] | tuple[xr.DataArray, xr.DataArray]


def _level(values: Quantity, arm: str, seed: int) -> dict:
    """A model's mean or ratio over images; no ratio where what it is a share of may be 0."""
    terms = [one.sel(arm=arm, drop=True) for one in values]
    if len(terms) == 1:
        return _numbers(stats.mean_interval(*terms, seed=seed))
    share = stats.share_interval(*terms, seed=seed)
    return _numbers(share, is_shown=_is_positive(terms[1], seed))


def _change(values: Quantity, arm: str, baseline: str, seed: int) -> dict:
    """Paired by image: a model's mean or ratio minus another's."""
    terms, baseline_terms = ([one.sel(arm=a, drop=True) for one in values] for a in (arm, baseline))
    if len(terms) == 1:
        return _numbers(stats.mean_interval(terms[0] - baseline_terms[0], seed=seed))
    is_shown = _is_positive(terms[1], seed) and _is_positive(baseline_terms[1], seed)
    return _numbers(stats.interval((*terms, *baseline_terms), _gap, seed=seed), is_shown=is_shown)


def _gap(part, whole, other_part, other_whole, axis=-1):
    return part.sum(axis=axis) / whole.sum(axis=axis) - (
        other_part.sum(axis=axis) / other_whole.sum(axis=axis)
    )


def _is_positive(whole: xr.DataArray, seed: int) -> bool:
    return bool(stats.mean_interval(whole, seed=seed)["lower"] > 0)


def _numbers(interval: xr.Dataset, *, is_shown: bool = True) -> dict:
    n = {"n": int(interval["n"])}
    return {name: float(interval[name]) if is_shown else float("nan") for name in BOUNDS} | n


def quantities(run: xr.Dataset) -> dict[tuple[str, str], Quantity]:
    """(group, name with unit) → what is averaged."""
    by_name: dict[tuple[str, str], Quantity] = {
        ("text", "right answers [share]"): (run["is_correct"],),
        ("text", "well-formed texts [share]"): (run["is_well_formed"],),
        ("text", "length of the text [tokens]"): (run["n_tokens"],),
    }
    for text in ("own", "same"):
        group = f"alignment, {text} text"
        for rule, named in RULE_TITLES.items():
            at = {"text_of": text, "rule": rule, "drop": True}
            by_name[group, f"{named} [share]"] = (run["alignment"].sel(**at),)
        at = {"text_of": text, "rule": "direct", "drop": True}
        for name, title in CONTROLS.items():
            by_name[group, f"Saliency-R1's map: {title} [share]"] = (run[name].sel(**at),)
        by_name[group, "attention on the image [share]"] = (run["visual_attention"].sel(**at),)
    part, whole = (one.sel(text="answer", drop=True).mean("share") for one in normalised(run))
    for change in part["change"].values:
        for rule in part["explainer"].values:
            at = {"change": change, "explainer": rule, "drop": True}
            name = f"{change}, {RULE_TITLES[str(rule)]} [0 to 100]"
            by_name["faithfulness, answer of the own text", name] = (
                part.sel(**at),
                whole.sel(**at),
            )
    return by_name | _effects(run) | _games(run)


def _games(run: xr.Dataset) -> dict:
    """The game through the words, and the 2 × 2 of words and weights; empty for older runs."""
    if "words_owen" not in run:
        return {}
    by_name: dict[tuple[str, str], Quantity] = {}
    for player in PLAYERS:
        by_name[GAME, f"{player} [logit]"] = (run["words_owen"].sel(player=player, drop=True),)
    total = run["words_owen"].sum("player", skipna=False)
    by_name[GAME, "total [logit]"] = (total,)
    words = run["words_owen"].sel(player=PLAYERS[-1], drop=True)
    by_name[GAME, "words [share]"] = (words, total)
    for title, (weights, whose) in CROSSED.items():
        cell = run["words_effect"].sel(weights_of=weights, words_of=whose, drop=True)
        by_name[GAME, f"{title} [logit]"] = (cell,)
    return by_name


def _effects(run: xr.Dataset) -> dict:
    """Edge effects by path and exact total effects of visual sets, on the same text."""
    by_name = {}
    for token_class in run["token_class"].values:
        at = {"token_class": token_class, "drop": True}
        group = f"edge effect of the evidence on {token_class} tokens"
        edge = {"source_set": "evidence"} | at
        for path in run["path"].values:
            by_name[group, f"{PATH_TITLES[str(path)]} [logit]"] = (
                run["effect"].sel(**edge, path=path),
            )
        by_name[group, "total [logit]"] = (run["total"].sel(**edge),)
        for reference, title in REFERENCE_TITLES.items():
            group = f"exact effect on {token_class} tokens, against the {title}"
            at_reference = {"reference": reference} | at
            # The twin differs in the evidence alone.
            for name in ("evidence", "background") if reference == "mean" else ("evidence",):
                at_set = at_reference | {"visual_set": name}
                total = run["shapley_total"].sel(**at_set)
                direct = run["shapley"].sel(**at_set, path_class=PATH_CLASSES[0])
                by_name[group, f"{name}: total [logit]"] = (total,)
                by_name[group, f"{name}: direct write [logit]"] = (direct,)
                by_name[group, f"{name}: all other paths [logit]"] = (total - direct,)
                by_name[group, f"{name}: direct share [share]"] = (direct, total)
            if reference == "mean":
                both = run["shapley_total"].sel(**at_reference)
                evidence, background = (
                    both.sel(visual_set=name, drop=True) for name in ("evidence", "background")
                )
                by_name[group, EVIDENCE_SHARE] = (evidence, evidence + background)
    return by_name
