"""The scenes that the report shows as examples, and where their pages lie."""

from pathlib import Path

import numpy as np
import xarray as xr

from interp.data.sample import is_file_name

N_EXAMPLES = 5


def example_ids(run: xr.Dataset) -> list[str]:
    """The first sample of each kind of question; without kinds of question, the first samples."""
    names, families = run["sample"].values.astype(str), run["family"].values.astype(str)
    first = np.sort(np.unique(families, return_index=True)[1])
    places = first if len(first) > 1 else np.arange(len(names))
    return names[places[:N_EXAMPLES]].tolist()


def answer_path(run_path: Path, sample: str) -> Path:
    """Where the page of a sample's answer lies in a run.

    Raises:
        ValueError: an id that would leave the folder.
    """
    if not is_file_name(sample):
        raise ValueError(f"expected a sample id of letters, digits and . _ -, got {sample!r}")
    return run_path / "answers" / f"{sample}.html"
