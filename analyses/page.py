"""A run → the report: figures, tables, manifest and one self-contained page. Needs no model."""

import base64
from importlib.metadata import version
from pathlib import Path

import jinja2
import xarray as xr

import interp
from analyses import figures, findings
from analyses.findings import GATE, MARK, Findings
from interp.labels import PATH_TITLES
from interp.store import write_json

LONG = ("statuses", "data_hashes")  # per sample; in the run's manifest
TEMPLATES = Path(__file__).parent / "templates"


def write_report(run_path: Path, out: Path) -> dict[str, int]:
    """Writes OUT/index.html, figures, tables and manifest; returns the counts of statuses.

    Raises:
        ValueError: a run that cannot be opened.
    """
    run = interp.open_run(run_path)
    found = findings.find(run)
    for folder in ("figures", "tables"):
        for old in (out / folder).glob("*.*"):
            old.unlink()
    drawn = figures.draw_all(found, run_path, out / "figures")
    tables = findings.tables(found)
    (out / "tables").mkdir(parents=True, exist_ok=True)
    for name, frame in tables.items():
        frame.to_csv(out / "tables" / f"{name}.csv", index=False)
        latex = frame.to_latex(index=False, float_format="%.3g", escape=True)
        (out / "tables" / f"{name}.tex").write_text(latex)
    counts = findings.statuses(run)
    (out / "index.html").write_text(_page(found, drawn, counts))
    packages = ("xarray", "scipy", "seaborn", "matplotlib")
    content = {
        "run": str(run_path),
        "seed": run.attrs["seed"],
        "counts": counts,
        "provenance": {k: v for k, v in run.attrs.items() if k not in LONG},
        "packages": {name: version(name) for name in packages},
        "files": sorted(str(p.relative_to(out)) for p in out.glob("[ft]*/*")),
    }
    write_json(out / "manifest.json", content)
    return counts


def _page(found: Findings, drawn: dict[str, bytes], counts: dict[str, int]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined
    )
    run = found.run
    images = {name: base64.b64encode(png).decode() for name, png in drawn.items()}
    skipped = [
        (name, entry["reason"])
        for name, entry in run.attrs["statuses"].items()
        if entry["status"] != "ok"
    ]
    return environment.get_template("report.html").render(
        images=images,
        headline=headlines(found),
        share_rows=_share_rows(found),
        path_rows=_path_rows(found),
        accuracy=None if found.accuracy is None else found.accuracy.to_dict("records"),
        missed=findings.missed_marks(found),
        mark=MARK,
        n_incomplete=sum(not e.get("is_complete", True) for e in run.attrs["statuses"].values()),
        box_share=_box_share(run),
        errors={name: (float(a.median()), float(a.max())) for name, a in found.errors.items()},
        bound=found.bound,
        is_exact=findings.is_exact(found),
        counts=counts,
        skipped=skipped,
        gate=GATE,
        attributes={k: v for k, v in run.attrs.items() if k not in LONG},
        n_targets={c: int((run["target_role"] == c).sum()) for c in ("answer", "thinking")},
        n_sequence=(int((run["source_role"] != "padding").sum("source").min()),
                    int((run["source_role"] != "padding").sum("source").max())),
    )  # fmt: skip


def interval_text(one: xr.Dataset, digits: int = 2) -> str:
    """An estimate with its interval, as text."""
    estimate, low, high = (float(one[name]) for name in ("estimate", "lower", "upper"))
    return f"{estimate:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


READINGS = {
    "negative": "The effect is negative: without the image these tokens would be likelier.",
    "no effect": f"That is no effect worth sharing out: its interval lies within ±{GATE} logits.",
    "undecided": f"Its interval is not above {GATE} logits, so no share is given.",
}


def headlines(found: Findings) -> list[str]:
    """What was found for the image, in plain sentences, one per token class."""
    sentences = []
    for token_class in ("answer", "thinking"):
        one = found.paths.sel(token_class=token_class, source_set="image")
        total = one.sel(path="total")
        if int(total["n"]) == 0:
            continue
        sentence = (
            f"When the row that predicts a token of the {token_class} cannot read the image's "
            f"values, that token loses {interval_text(total)} logits on average. "
        )
        read = findings.reading(total)
        share = found.shares.sel(token_class=token_class, source_set="image")
        sentences.append(sentence + (_shared(one, share) if read == "share" else READINGS[read]))
    return sentences


def _shared(one: xr.Dataset, share: xr.Dataset) -> str:
    """The direct share against one half, and the largest other part, in a sentence."""
    estimate, low, high = (float(share[name]) for name in ("estimate", "lower", "upper"))
    against = "the interval does not exclude one half"
    if low > 0.5 or high < 0.5:
        against = "more than half" if low > 0.5 else "less than half"
    others = one.drop_sel(path=["total", "direct"])["estimate"].to_series()
    largest = others.abs().idxmax()
    is_cancelling = others.abs().sum() > 2 * abs(others.sum())
    more = (
        " The other parts are not small: they largely cancel each other." if is_cancelling else ""
    )
    return (
        f"The direct path of Eq. 1 carries {100 * estimate:.0f} % of it "
        f"[{100 * low:.0f}, {100 * high:.0f}], {against}; the largest other part is "
        f"{PATH_TITLES[largest]} with {interval_text(one.sel(path=largest))} logits.{more}"
    )


def _box_share(run: xr.Dataset) -> float | None:
    """Mean over images of the share of the boxes' area that the evidence tokens cover."""
    inside = run["box_overlap"].where(run["source_role"] == "image", 0)
    area = inside.sum("source")
    if float(area.sum()) == 0:
        return None
    covered = inside.where(run["is_evidence"], 0).sum("source")
    return float((covered / area).where(area > 0).mean())


def _share_rows(found: Findings) -> list[dict]:
    rows = []
    for token_class in ("answer", "thinking"):
        for source_set in found.shares["source_set"].values:
            one = found.shares.sel(token_class=token_class, source_set=source_set)
            total = found.paths.sel(token_class=token_class, source_set=source_set, path="total")
            if int(total["n"]) == 0:
                continue
            margin = found.margins.sel(token_class=token_class, source_set=source_set)
            rows.append(
                {
                    "token_class": token_class,
                    "source_set": str(source_set),
                    "n": int(total["n"]),
                    "total": interval_text(total),
                    "share": interval_text(one)
                    if bool(one["is_shown"])
                    else findings.reading(total),
                    "margin": interval_text(margin),
                }
            )
    return rows


def _path_rows(found: Findings) -> list[dict]:
    one = found.paths.sel(source_set="image")
    return [
        {
            "path": "total effect" if path == "total" else PATH_TITLES[str(path)],
            **{
                str(c): interval_text(one.sel(token_class=c, path=path), digits=3)
                for c in one["token_class"].values
                if int(one.sel(token_class=c, path=path)["n"])
            },
        }
        for path in one["path"].values
    ]
