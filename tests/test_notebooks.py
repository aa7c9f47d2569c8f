"""The notebooks run from first cell to last; `make soak` does so in kernels of their own."""

import json

import matplotlib as mpl
import pytest
from IPython.core.interactiveshell import InteractiveShell

from tests.support import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture
def shell(monkeypatch):
    monkeypatch.chdir(ROOT / "notebooks")
    mpl.use("Agg")
    yield InteractiveShell()
    mpl.pyplot.close("all")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_runs(path, shell, capsys):
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    for cell in cells:
        shell.run_cell("".join(cell["source"])).raise_error()
    assert len(cells) > 3
    assert capsys.readouterr().out
