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


def page() -> str:
    """The page's Markdown."""
    variables = [(name, unit, title) for name, (unit, title) in vocabulary.VARIABLES.items()]
    coordinates = [(name, unit, title) for name, (unit, title) in vocabulary.COORDINATES.items()]
    return "\n".join(
        [
            HEAD,
            *_section("Variables", ("name", "unit", "what it is"), variables),
            *_section("Dimensions", ("name", "what it is"), vocabulary.DIMENSIONS.items()),
            *_section("Coordinates", ("name", "unit", "what it is"), coordinates),
            *_section("Attributes", ("name", "what it is"), vocabulary.ATTRIBUTES.items()),
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
