"""Puts what `make soak` tried (reports/faults.json) into the table of docs/FAULTS.md.

python analyses/faults.py
"""

import argparse
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
JSON, PAGE = ROOT / "reports/faults.json", ROOT / "docs/FAULTS.md"
_TABLE = re.compile(r"(?<=<!-- table -->\n).*?(?=<!-- end -->)", re.DOTALL)


def table(content: dict) -> str:
    """The faults as Markdown, in the order in which they were tried."""
    rows = [
        f"| {one['fault']} | {one['tried']:,} | {one['happens']} |".replace(
            "<script>", "`<script>`"
        )
        for one in content["tried"]
    ]
    return "\n".join(["| What was tried | Times | What happens |", "|---|---|---|", *rows, ""])


def main() -> int:
    """Rewrites the table."""
    argparse.ArgumentParser(description=__doc__.split("\n")[0]).parse_args()
    content = json.loads(JSON.read_text())
    if content["failed_tests"]:
        print(f"error: {content['failed_tests']} tests failed; mend that first", file=sys.stderr)
        return 2
    PAGE.write_text(_TABLE.sub(lambda _: table(content), PAGE.read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
