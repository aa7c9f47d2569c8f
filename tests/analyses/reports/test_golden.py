"""The reports' tables of stored runs are what they were (renewed by `tests.support.golden`)."""

import pandas as pd
import pytest

from interp import stats
from tests.support import golden

RESAMPLES = stats.RESAMPLES


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.long if n == "before_after" else ()) for n in golden.ASKED],
)
def test_tables_are_what_they_were(name, tmp_path, monkeypatch):
    monkeypatch.setattr(stats, "RESAMPLES", RESAMPLES)  # as users have them
    found = golden.tables(name, golden.unpacked(name, tmp_path))
    files = sorted((golden.FOLDER / name).glob("*.csv"))
    assert sorted(found) == [path.stem for path in files]
    for path in files:
        expected = pd.read_csv(path)
        pd.testing.assert_frame_equal(
            found[path.stem], expected, rtol=1e-5, atol=1e-6, check_dtype=False, obj=path.stem
        )
