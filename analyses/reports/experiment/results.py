"""The runs of the experiment that are done, out of the files that each has left."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float

from analyses.reports.experiment.quantities import Quantity

FOLDER = Path("reports/experiment")


@dataclass(frozen=True, eq=False)
class Result:
    """One run: what was trained, and a table of numbers by scenes."""

    facts: dict
    tables: dict[str, pd.DataFrame]

    @property
    def key(self) -> tuple[str, str, str]:
        """Base, scenes and arm: what several seeds share."""
        base = self.facts["base"]
        is_usual = not base.startswith("tiny3")
        return ("tiny" if is_usual else "tiny3", self.facts["scenes"], self.facts["arm"])


def results(stage: str = "experiment", folder: Path = FOLDER) -> list[Result]:
    """All runs of a stage that are done, by name.

    Raises:
        ValueError: none is done.
    """
    found = []
    for path in sorted((folder / stage).glob("*.json")):
        facts = json.loads(path.read_text())
        tables = {name: pd.DataFrame(one) for name, one in facts.pop("measures").items()}
        found.append(Result(facts, tables))
    if not found:
        raise ValueError(
            f"expected runs that are done in {folder / stage}, got none; make experiment"
        )
    return found


def by_seed(
    runs: list[Result], key: tuple[str, str, str], quantity: Quantity
) -> dict[int, Float[np.ndarray, "2 image"]]:
    """Parts and wholes of a quantity in an arm, by seed, over images in one order."""
    return {run.facts["seed"]: _arrays(run, quantity) for run in runs if run.key == key}


@cache
def _arrays(run: Result, quantity: Quantity) -> Float[np.ndarray, "2 image"]:
    return quantity.arrays(run.tables[quantity.measured])


def strata(runs: list[Result], key: tuple[str, str, str], quantity: Quantity) -> np.ndarray:
    """The family of each image, in the order of `by_seed`."""
    table = next(run.tables[quantity.measured] for run in runs if run.key == key)
    return table.sort_values("sample")["family"].to_numpy()
