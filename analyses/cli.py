"""The installed command, `vlm-interp NAME …`: the scripts of `analyses/`, and `train.evaluate`.

    vlm-interp direct_vs_indirect --model Qwen/Qwen2.5-VL-3B-Instruct --limit 100
    vlm-interp certify --model FOLDER

Nothing heavy is imported before a command is named.
"""

import sys
from importlib import import_module

COMMANDS = {
    "direct_vs_indirect": (
        "analyses.direct_vs_indirect",
        "how much of an image's effect is direct",
    ),
    "faithfulness": ("analyses.faithfulness", "how faithful saliency maps are"),
    "before_after": ("analyses.before_after", "what training on a saliency reward moved"),
    "page": ("analyses.page", "one answer as a page to click on, in one file"),
    "extract": ("analyses.extract", "measure many samples into a run, without a report"),
    "certify": ("analyses.validate_extractor", "is the extractor right on this model?"),
    "evaluate": ("train.evaluate", "right answers of a model on the embedded scenes"),
}


def usage() -> str:
    """The commands with a line each."""
    lines = [f"  {name:20}{about}" for name, (_, about) in COMMANDS.items()]
    return "\n".join(
        ["usage: vlm-interp COMMAND [options]; COMMAND --help for its options", *lines]
    )


def main() -> int:
    """Hands the command line on to the command that its first word names."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print(usage())
        return 0 if len(sys.argv) > 1 else 2
    if name not in COMMANDS:
        print(f"error: expected a command of {list(COMMANDS)}, got {name!r}", file=sys.stderr)
        return 2
    sys.argv = [f"vlm-interp {name}", *sys.argv[2:]]
    return import_module(COMMANDS[name][0]).main() or 0


if __name__ == "__main__":
    sys.exit(main())
