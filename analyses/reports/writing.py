"""A report on disk: OUT/index.html, figures, tables, more JSON, and the manifest.

One function for all reports: each makes a `Report` out of a run, without a model, and `write` puts
it down. The same run gives the same files; the manifest says when, where and by which command.
"""

import base64
import json
import logging
import platform
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import jinja2
import pandas as pd
import xarray as xr
from matplotlib.figure import Figure

from analyses.reports import drawing, intervals
from analyses.reports.captions import captions
from analyses.reports.folding import folded
from interp.plots import fonts
from interp.store.opening import write_json
from interp.store.spreadsheets import inert
from interp.vocabulary import PATH_TITLES

log = logging.getLogger("extraction")
TEMPLATES = Path(__file__).parent
PACKAGES = ("xarray", "scipy", "seaborn", "matplotlib")
# Attributes of a run that are long; they stay in the run's own manifest.
LONG = (
    "statuses",
    "data_hashes",
    "controls",
    "pixels",
    "certificate",
    "reasons",
    "codes",
    "packages",
    "curves",
    "reduced",
)
TOLD = ("model", "adapter", "data", "text", "gauge")  # with the captions of figures
MOST_ROWS = 100  # of a LaTeX table; the CSV has all
# What pdflatex does not know as it is.
LATEX = {
    "−": "$-$",
    "–": "--",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "Δ": r"$\Delta$",
    "Σ": r"$\Sigma$",
    "ρ": r"$\rho$",
    "φ": r"$\varphi$",
    "ψ": r"$\psi$",
    "σ": r"$\sigma$",
    "²": r"$^2$",
    "→": r"$\to$",
}
_READ_ON = re.compile(r"^([\[*])", re.MULTILINE)  # the end of the row before it would take it
LATIN = {*map(chr, (10, *range(32, 127), *range(161, 384))), *"‘’“”…€"}  # what it knows


@dataclass(frozen=True)
class Report:
    """A report's figures, tables and values, before anything is written."""

    name: str
    """One of `analyses.reports.REPORTS`; its folder has the page's template."""
    run: xr.Dataset
    run_path: Path
    draw: Callable[[], dict[str, Figure | None]]
    """Draws the figures by file name; None for what the run has no numbers for."""
    tables: dict[str, pd.DataFrame | None]
    page: dict
    """Values that fill the page's template, besides images, attributes and counts."""
    records: dict[str, dict] = field(default_factory=dict)
    """More JSON files by name, for machines and for other reports."""
    files: dict[str, Path] = field(default_factory=dict)
    """Files of the run that the page links, by their place in OUT."""
    linked: str | None = None
    """Another report, whose summary the page shows where it lies in a folder of its name in OUT."""


def write_report(name: str, run_path: Path, out: Path) -> dict[str, int]:
    """Writes a run's report into `out`; returns how many samples were ok, skipped and failed.

    Args:
        name: one of `analyses.reports.REPORTS`.
        run_path: the run.
        out: folder of the report.

    Raises:
        ValueError: a run that cannot be opened, or is not of this report.
    """
    return write(import_module(f"analyses.reports.{name}.page").make_report(run_path), out)


def write(report: Report, out: Path) -> dict[str, int]:
    """Writes a report into `out`; returns how many samples were ok, skipped and failed.

    Figures and tables of an earlier report in that folder go.
    """
    for folder in ("figures", "tables"):
        (out / folder).mkdir(parents=True, exist_ok=True)
        for old in (out / folder).glob("*.*"):
            old.unlink()
    log.info("drawing %s", out / "index.html")
    figures = {name: figure for name, figure in report.draw().items() if figure is not None}
    boxed = fonts.missing(list(figures.values()))
    images = drawing.save(figures, out / "figures")
    save_tables(report.tables, out / "tables")
    for name, content in report.records.items():
        write_json(out / f"{name}.json", content)
    for old in (out / "answers").glob("*.html"):
        old.unlink()
    for place, source in report.files.items():
        (out / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, out / place)
    counts, short = statuses(report.run), short_attributes(report.run)
    page = render(
        f"{report.name}/page.html",
        images=images,
        attributes=report.run.attrs,
        provenance=short,
        counts=counts,
        boxed=boxed,
        linked=_summary(out / report.linked) if report.linked else None,
        **report.page,
    )
    (out / "index.html").write_text(folded(page), encoding="utf-8")
    told = "; ".join(f"{name} {short[name]}" for name in TOLD if short.get(name))
    text = f"all figures: {told}\n\n{captions(page, images)}"
    (out / "figures/captions.txt").write_text(text, encoding="utf-8")
    content = {
        "report": report.name,
        "run": str(report.run_path.resolve()),
        "command": shlex.join(sys.argv),
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": platform.platform(),
        "counts": counts,
        "provenance": short,
        "packages": {name: version(name) for name in PACKAGES},
        "files": sorted(str(path.relative_to(out)) for path in out.glob("[aft]*/*")),
    }
    write_json(out / "manifest.json", content)
    return counts


def _summary(folder: Path) -> dict | None:
    """Summary of another report in OUT, with its figure; None without one."""
    if not (folder / "summary.json").is_file():
        return None
    summary = json.loads((folder / "summary.json").read_text())
    image = base64.b64encode((folder / summary["figure"]).read_bytes()).decode()
    return summary | {"image": image}


def save_tables(tables: dict[str, pd.DataFrame | None], folder: Path) -> None:
    """Writes each table as CSV, and as LaTeX what fits on a page or two."""
    present = {name: counted(table) for name, table in tables.items() if table is not None}
    for name, table in present.items():
        inert(table).to_csv(folder / f"{name}.csv", index=False)
        if len(table) <= MOST_ROWS:
            printed = with_intervals(table).map(_on_one_line)
            for column in [one for one in printed if one.split()[-1] == "path"]:
                printed[column] = printed[column].replace(PATH_TITLES)
            latex = printed.to_latex(index=False, float_format="%.3g", na_rep="–", escape=True)
            latex = "% \\usepackage{booktabs}\n" + in_latin(latex)
            (folder / f"{name}.tex").write_text(latex, encoding="utf-8")


def _on_one_line(value):
    """Text with its line breaks spelled; an empty line would end a cell."""
    return value.replace("\n", r"\n") if isinstance(value, str) else value


def counted(table: pd.DataFrame) -> pd.DataFrame:
    """The table with its counts of images as whole numbers; a join has made some floating."""
    is_floating = "n" in table and table["n"].dtype.kind == "f"
    is_count = is_floating and bool((table["n"].dropna() % 1 == 0).all())
    return table.astype({"n": "Int64"}) if is_count else table


def in_latin(latex: str) -> str:
    """LaTeX that pdflatex reads: signs as its commands, other scripts as code points, [U+4E00]."""
    known = [LATEX.get(char) or (char if char in LATIN else None) for char in latex]
    text = "".join(
        f"[U+{ord(char):04X}]" if written is None else written
        for char, written in zip(latex, known, strict=True)
    )
    return _READ_ON.sub(r"{\1}", text)


def with_intervals(table: pd.DataFrame) -> pd.DataFrame:
    """The table for print: a number and the interval behind it in one column, names with spaces."""
    columns, names = {}, list(table.columns)
    while names:
        name = names.pop(0)
        title, values = name.replace("_", " "), table[name]
        if [one[-5:] for one in names[:2]] == ["lower", "upper"]:
            low, high = (table[names.pop(0)] for _ in range(2))
            title = f"{title} [95 %]"
            values = [
                intervals.text({"estimate": x, "lower": y, "upper": z}, digits=None)
                for x, y, z in zip(values, low, high, strict=True)
            ]
        columns[title] = values
    return pd.DataFrame(columns, index=table.index)


def render(template: str, **values) -> str:
    """A page; text of models and data is escaped, and a name that is missing is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)


def statuses(run: xr.Dataset) -> dict[str, int]:
    """How many samples were ok, skipped and failed."""
    states = [entry["status"] for entry in run.attrs["statuses"].values()]
    return {name: states.count(name) for name in ("ok", "skipped", "failed")}


def short_attributes(run: xr.Dataset) -> dict:
    """The run's attributes without the long ones."""
    return {key: value for key, value in run.attrs.items() if key not in LONG}
