"""The embedded models, and the only questions that they know."""

import re
from pathlib import Path

EMBEDDED = sorted(one.name for one in (Path(__file__).parents[1] / "checkpoints").iterdir())
_ASKED = re.compile(
    r"which digit is \w+\?|what color is the \d\?|which digit is just left of the \d\?"
    r"|how many digits are \w+\?|what is the \w+ digit plus the \w+ digit\?"
    r"|which digits are there\?"
)


def is_strange_to(model: str, question: str) -> bool:
    """Whether an embedded model, which knows these questions alone, is asked another one."""
    return model in EMBEDDED and _ASKED.fullmatch(question) is None
