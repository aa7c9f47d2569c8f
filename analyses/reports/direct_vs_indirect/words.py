"""Findings → plain sentences. Needs no model."""

import pandas as pd
import xarray as xr

from analyses.reports import intervals
from analyses.reports.direct_vs_indirect import findings
from analyses.reports.direct_vs_indirect.findings import Findings
from analyses.reports.direct_vs_indirect.rule import GATE
from interp.data.embedded import is_strange_to
from interp.vocabulary import PATH_TITLES

READINGS = {
    "negative": "The effect is negative: without the image these tokens' logits would be higher.",
    "no effect": f"That is no effect worth sharing out: its interval lies within ±{GATE} logits.",
    "undecided": f"Its interval is not above {GATE} logits, so no share is given.",
}


FEW = 30  # images; with fewer an interval over images says little


def caveats(results: Findings) -> list[str]:
    """Conditions under which no sentence below should be read on: few images, poor or cut texts."""
    run, statuses = results.run, results.run.attrs["statuses"].values()
    answered = [one["is_correct"] for one in statuses if "is_correct" in one]
    told = [one["is_complete"] for one in statuses if "is_complete" in one]
    n_cut = told.count(False)
    found = []
    strange = sum(is_strange_to(run.attrs["model"], one) for one in run["question"].values.tolist())
    if strange:
        found.append(
            f"{run.attrs['model']} knows scenes of handwritten digits and five kinds of question; "
            f"{strange} of {run.sizes['sample']} are others; what it says of them means nothing."
        )
    if run.sizes["sample"] < FEW:
        n = run.sizes["sample"]
        few = f"Only {n} images: intervals over so few say little."
        found.append("One image: there is no interval." if n == 1 else few)
    if answered and sum(answered) < len(answered) / 2:
        found.append(
            f"The model's answers are wrong on {len(answered) - sum(answered)} of {len(answered)} "
            "samples: its texts may say little about the images."
        )
    if n_cut:
        found.append(
            f"{n_cut} of {len(told)} texts were cut off at the length limit; "
            "raise --max-new-tokens."
        )
    return found


def headlines(results: Findings) -> list[str]:
    """Plain sentences on the image's effect, one per token class."""
    sentences = []
    for token_class in ("answer", "thinking"):
        effects = results.paths.sel(token_class=token_class, source_set="image")
        total = effects.sel(path="total")
        if int(total["n"]) == 0:
            continue
        sentence = (
            f"When the row that predicts a token of the {token_class} cannot read the image's "
            f"values, that token loses {intervals.text(total)} logits on average. "
        )
        read = findings.reading(total)
        share = results.shares.sel(token_class=token_class, source_set="image")
        # Most of what a thinking token loses with all values is what any image would give it.
        if token_class == "thinking" and results.indirect is not None:
            sentences.append(_against_the_mean(results.indirect.modes))
        sentences.append(
            sentence + (_shared(effects, share) if read == "share" else READINGS[read])
        )
    return sentences


def _against_the_mean(modes: pd.DataFrame) -> str:
    """The sentence on thinking tokens whose row reads the image's mean value from every patch."""
    row = modes.query("mode == 'mean' and token_class == 'thinking'").iloc[0]
    read = findings.reading({"lower": row.total_lower, "upper": row.total_upper})
    low, middle, high = (
        intervals.number(100 * row[f"share{end}"], 0) for end in ("_lower", "", "_upper")
    )
    share = f"The direct path of Eq. 1 carries {middle} % of it [{low}, {high}]."
    return (
        "When the row that predicts a token of the thinking reads the image's mean value from "
        "every patch, so that it loses only what differs between patches, that token loses "
        f"{intervals.text(row, 'total')} logits. {share if read == 'share' else READINGS[read]}"
    )


def _shared(effects: xr.Dataset, share: xr.Dataset) -> str:
    """The direct share against one half, and the largest other part, in a sentence."""
    estimate, low, high = (float(share[name]) for name in ("estimate", "lower", "upper"))
    against = "the interval does not exclude one half"
    if low > 0.5 or high < 0.5:
        against = "more than half" if low > 0.5 else "less than half"
    others = effects.drop_sel(path=["total", "direct"])["estimate"].to_series()
    largest = others.abs().idxmax()
    is_cancelling = others.abs().sum() > 2 * abs(others.sum())
    remark = (
        " The other parts are not small: they largely cancel each other." if is_cancelling else ""
    )
    return (
        f"The direct path of Eq. 1 carries {intervals.number(100 * estimate, 0)} % of it "
        f"[{intervals.number(100 * low, 0)}, {intervals.number(100 * high, 0)}], {against}; the "
        "largest other part is "
        f"{PATH_TITLES[largest]} with {intervals.text(effects.sel(path=largest))} logits.{remark}"
    )
