"""Puts the vocabulary, every name in a dataset with its unit, into docs/DATA.md.

    python analyses/dictionary.py

A test holds the page against the vocabulary.
"""

import argparse
import sys
from pathlib import Path

from interp import vocabulary

PAGE = Path(__file__).parent.parent / "docs/DATA.md"
HEAD = """# What is in a dataset

Every name in the datasets of `interp.extract` and in runs on disk, as `interp/vocabulary.py` has
it; `units` and `long_name` of every array say the same. Written by `python analyses/dictionary.py`.

To look at one as a table, ask for a variable or two: `ds[["logit", "embed"]].to_dataframe()`, or
`ds.direct.sum("source").to_series().nlargest(10)` for heads. `ds.to_dataframe()` of a whole ledger
multiplies all of its dimensions.
"""

VALUES = {
    "path": {
        "direct": "values read from the set and written into the logit (Eq. 1)",
        "value_bias": "the constant part of these values",
        "ffn": "the row's FFNs see another state",
        "attention": "the row's later layers attend and read otherwise",
        "norm": "the final norm rescales",
        "routing": "the pattern of attention that the set's keys make",
        "mediated": "other positions that saw the set",
        "self": "earlier layers of the target's own row",
    },
    "path_class": {
        "direct write": "what the set's values and keys change in what is written into the logit",
        "rest of the row": "what FFNs and later layers of the target's row make of it",
        "other positions": "what rows in between make of it",
    },
    "mode": {
        "zero": "cut edges read nothing",
        "mean": "cut edges read the mean value of the image's tokens (for text: the question's)",
        "mask": "cut edges are taken out of the softmax",
    },
    "norm": {
        "live": "the final norm is that of the changed state",
        "frozen": "the final norm is that of the clean run",
    },
    "reference": {
        "mean": "the average visual token of a pool of images",
        "other": "another image of the pool, with another answer",
        "twin": "the same scene with one attribute changed",
        "blur": "the image, blurred",
    },
    "component": {
        "resid_pre": "the residual stream before the layer",
        "attn_out": "what its attention writes",
        "resid_mid": "the stream between attention and FFN",
        "ffn_out": "what its FFN writes",
        "resid_post": "the stream behind the layer, before what DeepStack adds there",
        "injected": "what DeepStack adds there; of models that have it alone",
    },
    "origin": {
        "embed": "the token's embedding",
        "attention": "what attention wrote into it, value biases apart",
        "bias": "value biases, as its attention layers wrote them",
        "ffn": "what its FFNs wrote into it",
        f"{vocabulary.IMAGE_LEVEL} 0": "what DeepStack adds behind layer 0; so for each level",
    },
}
"""Values of coordinates and attributes, and their meanings."""


def page() -> str:
    """The page's Markdown."""
    variables = [(name, unit, title) for name, (unit, title) in vocabulary.VARIABLES.items()]
    coordinates = [(name, unit, title) for name, (unit, title) in vocabulary.COORDINATES.items()]
    values = [
        (value, name, meaning)
        for name, meanings in VALUES.items()
        for value, meaning in meanings.items()
    ]
    return "\n".join(
        [
            HEAD,
            *_section("Variables", ("name", "unit", "what it is"), variables),
            *_section("Dimensions", ("name", "what it is"), vocabulary.DIMENSIONS.items()),
            *_section("Coordinates", ("name", "unit", "what it is"), coordinates),
            *_section("Attributes", ("name", "what it is"), vocabulary.ATTRIBUTES.items()),
            *_section("Values", ("value", "of", "what it is"), values),
        ]
    )


def _section(title: str, columns: tuple, rows) -> list[str]:
    head = ["", f"## {title}", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    cells = ((f"`{name}`", *(str(one).replace("|", "\\|") for one in rest)) for name, *rest in rows)
    return head[1:] + [f"| {' | '.join(one)} |" for one in cells] + [""]


def main() -> int:
    """Rewrites the page."""
    argparse.ArgumentParser(description=__doc__.split("\n")[0]).parse_args()
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
