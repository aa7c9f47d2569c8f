"""The quantities that the experiment measures: each a ratio of sums over images, or a mean."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from interp.vocabulary import PLAYERS

ORDINARY, SHORTCUT, BROKEN = "ordinary", "shortcut", "broken"
SETS = ("evidence", "background")
Column = Callable[[pd.DataFrame], pd.Series]


@dataclass(frozen=True)
class Quantity:
    """A number of a run.

    Args:
        title: with its unit.
        group: what it says something about.
        part: of each image.
        whole: of each image, of whose sum the parts' sum is a share; 1 for a mean.
        trained: scenes of the training.
        measured: held-out scenes.
        chance: what a map that knows nothing scores, of each image.
        n_seeds: how many the plan has of an endpoint, which every image has to have; 0 for
            anything else.
    """

    title: str
    group: str
    part: Column
    whole: Column | None = None
    trained: str = ORDINARY
    measured: str = ORDINARY
    chance: Column | None = None
    n_seeds: int = 0

    def arrays(self, table: pd.DataFrame) -> Float[np.ndarray, "2 image"]:
        """Part and whole, 0 where an image has none.

        Raises:
            ValueError: an image without a number of an endpoint.
        """
        table = table.sort_values("sample")
        part = self.part(table).astype(float)
        whole = part * 0 + 1 if self.whole is None else self.whole(table).astype(float)
        is_there = part.notna() & whole.notna()
        if self.n_seeds and not is_there.all():
            lacking = table["sample"][~is_there].tolist()
            raise ValueError(f"expected {self.title} of every image, got none of {lacking}")
        return np.stack([part.where(is_there, 0.0), whole.where(is_there, 0.0)])


def column(name: str) -> Column:
    """A measure as it is."""
    return lambda table: table[name]


def both(kind: str, gauge: str = "contrast") -> Column:
    """|Effect of the evidence| + |effect of the background|."""
    names = [f"{kind} {one} {gauge}" for one in SETS]
    return lambda table: table[names].abs().sum(axis=1, skipna=False)


def _game(table: pd.DataFrame) -> pd.Series:
    return table[[f"words {name}" for name in PLAYERS]].sum(axis=1, skipna=False)


SHARE = Quantity(
    "evidence's share of the exact effect [share]",
    "effect",
    column("node evidence contrast"),
    both("node"),
    n_seeds=5,
)
ACCURACY = Quantity(
    "right answers on broken cues [share]",
    "answer",
    column("right"),
    trained=SHORTCUT,
    measured=BROKEN,
    n_seeds=3,
)
PRIMARY = (SHARE, ACCURACY)
"""The endpoints of docs/EXPERIMENT.md."""
RIGHT = Quantity("right answers [share]", "answer", column("right"))
_MAPS = {"direct": "Eq. 1", "bottleneck": "Saliency-R1's", "effect": "effect"}
ALIGNED = {
    kind: Quantity(
        f"alignment of the {title} map [share]",
        "map",
        column(f"alignment {kind}"),
        chance=column("area"),
    )
    for kind, title in _MAPS.items()
}
WORDS = Quantity("words' share of the game [share]", "words", column("words words"), _game)
HACKED = Quantity(
    "background's signed share of the exact effect [share]",
    "effect",
    column("node background contrast"),
    both("node"),
)
SIGNED = Quantity(
    "evidence's share with signs, background for and against cancelling [share]",
    "effect",
    column("node evidence contrast"),
    lambda table: table[[f"node {one} contrast" for one in SETS]].sum(axis=1, skipna=False),
)
EXPLORATORY = (
    RIGHT,
    SIGNED,
    *ALIGNED.values(),
    WORDS,
    HACKED,
    Quantity(
        "evidence's share, centered [share]",
        "effect",
        column("node evidence centered"),
        both("node", "centered"),
    ),
    *(
        Quantity(f"{kind} effect of the {one} [logit]", "effect", column(f"{kind} {one} contrast"))
        for kind in ("node", "edge")
        for one in SETS
    ),
    Quantity(
        "direct write's share of the evidence's effect [share]",
        "effect",
        column("direct evidence contrast"),
        column("node evidence contrast"),
    ),
    *(Quantity(f"{name}, own words [logit]", "words", column(f"words {name}")) for name in PLAYERS),
    *(
        Quantity(f"{change} of Saliency-R1's map [0 to 100]", "map", column(change), column(whole))
        for change, whole in (("deletion", "deletion whole"), ("insertion", "insertion whole"))
    ),
    Quantity("evidence painted over [logit]", "effect", column("pixels evidence contrast")),
    Quantity("evidence's vectors swapped [logit]", "effect", column("vector evidence contrast")),
    Quantity(
        "right answers where the cue holds [share]",
        "answer",
        column("right"),
        trained=SHORTCUT,
        measured=SHORTCUT,
    ),
    Quantity(
        "evidence's share on broken cues [share]",
        "effect",
        column("node evidence contrast"),
        both("node"),
        trained=SHORTCUT,
        measured=BROKEN,
    ),
)
"""Everything else, which no claim rests on."""
