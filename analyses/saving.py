"""Figures and tables of a report on disk."""

import base64
import io
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

PAGE_DPI = 100


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
