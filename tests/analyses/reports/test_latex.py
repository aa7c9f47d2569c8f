"""The tables of the reports compile with a real engine, whatever a model or a data set wrote."""

import shutil
import subprocess

import pandas as pd
import pytest

from analyses.reports import writing
from tests.support import golden

HEAD = r"\documentclass{article}\usepackage{booktabs}\begin{document}\tiny"
ENGINE = shutil.which("pdflatex")
needs_engine = pytest.mark.skipif(ENGINE is None, reason="no pdflatex on this machine")


def compiled(tables: dict, folder) -> None:
    """Compiles a document of all tables; a LaTeX error is one of the test."""
    writing.save_tables(tables, folder)
    paths = sorted(folder.glob("*.tex"))
    assert paths
    inputs = [rf"\noindent\input{{{path.name}}}\clearpage" for path in paths]
    (folder / "all.tex").write_text("\n".join([HEAD, *inputs, r"\end{document}"]))
    command = [ENGINE, "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, timeout=120)
    text = done.stdout.decode(errors="replace")
    assert done.returncode == 0, "\n".join(line for line in text.splitlines() if line[:1] in "!l")
    assert (folder / "all.pdf").stat().st_size > 1000


@needs_engine
@pytest.mark.parametrize("name", ["direct_vs_indirect", "faithfulness"])
def test_the_tables_of_every_report_compile(name, tmp_path):
    (tmp_path / "tables").mkdir()
    tables = golden.tables(name, golden.unpacked(name, tmp_path))
    compiled(tables, tmp_path / "tables")


def test_a_cell_keeps_its_line_and_a_missing_number_is_a_dash(tmp_path):
    table = pd.DataFrame(
        {
            "text": ["one\n\ntwo", "three"],
            "path": ["value_bias", "ffn"],
            "value": [float("nan"), 1.25],
        }
    )
    writing.save_tables({"small": table}, tmp_path)
    rows = [line for line in (tmp_path / "small.tex").read_text().splitlines() if "&" in line]
    assert rows[1] == r"one\textbackslash n\textbackslash ntwo & value bias & -- \\"
    assert rows[2] == r"three & FFN & 1.25 \\"


@needs_engine
def test_hostile_texts_compile(tmp_path):
    texts = [
        r"50 % of $x_1$ & \alpha ^ ~ # {a}",
        r"\input{/etc/passwd} \end{tabular}",
        "Δ − ρ ≤ ≥ × → “quotes” é ü ß …",
        "see 数字 🐶 العربية नमस्ते",
        "an empty\n\nline",
        "line\nbreak\ttab\0nul",
        "<script>alert(1)</script> [–]",
        "[2in] more",
        "* more",
    ]
    table = pd.DataFrame(
        {"text_of": texts, "estimate": range(len(texts)), "lower": 0.1, "upper": 1.5}
    )
    compiled({"hostile": table}, tmp_path)
    assert "[U+6570]" in (tmp_path / "hostile.tex").read_text()
