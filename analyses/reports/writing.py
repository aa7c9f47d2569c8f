"""Figures, tables, page and manifest of a report on disk."""

import base64
import io
from pathlib import Path

import jinja2
import matplotlib.pyplot as plt
import pandas as pd
import xarray as xr

from interp.store.opening import write_json

PAGE_DPI = 100
TEMPLATES = Path(__file__).parent
# Attributes of a run that are long; they stay in the run's own manifest.
LONG = ("statuses", "data_hashes", "controls", "certificate", "reasons", "codes", "packages",
        "curves", "reduced")  # fmt: skip


def save_figures(figures: dict, folder: Path) -> dict[str, str]:
    """PDF, SVG and PNG of each; the PNG as base64 for the page."""
    folder.mkdir(parents=True, exist_ok=True)
    images = {}
    for name, figure in figures.items():
        # No creation date: the same run redraws to the same file.
        figure.savefig(folder / f"{name}.pdf", metadata={"CreationDate": None})
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=PAGE_DPI)
        (folder / f"{name}.png").write_bytes(buffer.getvalue())
        images[name] = base64.b64encode(buffer.getvalue()).decode()
        plt.close(figure)
    return images


def save_tables(tables: dict[str, pd.DataFrame], folder: Path) -> None:
    """CSV and LaTeX of each."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        table.to_csv(folder / f"{name}.csv", index=False, float_format="%.6g")
        table.to_latex(folder / f"{name}.tex", index=False, float_format="%.3g", escape=True)


def render(template: str, **values) -> str:
    """A page; text of models and data is escaped, and a name that is missing is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True,
        undefined=jinja2.StrictUndefined, lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template(template).render(**values)


def statuses(run: xr.Dataset) -> dict[str, int]:
    """How many samples were ok, skipped and failed."""
    states = [entry["status"] for entry in run.attrs["statuses"].values()]
    return {name: states.count(name) for name in ("ok", "skipped", "failed")}


def save_manifest(run: xr.Dataset, out: Path) -> None:
    """What was measured on what, beside the page."""
    short = {key: value for key, value in run.attrs.items() if key not in LONG}
    write_json(out / "manifest.json", {"counts": statuses(run)} | short)
