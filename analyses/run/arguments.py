"""From dataclasses to a command line, and back: a field is an option.

    options = parse(DirectVsIndirect, __doc__)

Its name with hyphens, its type, default and help. Nothing heavy is imported here, so that `--help`
answers at once.
"""

import argparse
from dataclasses import MISSING, field, fields
from typing import TypeVar

Options = TypeVar("Options")
DRAWING = ("from_run", "out", "overwrite", "log_level", "threads")


def option(default, text: str, **how):
    """A field with its help, and what else argparse is to know of it."""
    return field(default=default, metadata={"help": text} | how)


def size(text: str) -> int:
    """A size in bytes with a unit of 1024s, as 500M or 8G."""
    units = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    number, unit = (text[:-1], text[-1]) if text[-1:].upper() in units else (text, "")
    try:
        n_bytes = int(float(number) * units.get(unit.upper(), 1))
    except (ValueError, OverflowError):
        n_bytes = 0
    if n_bytes < 1:
        raise argparse.ArgumentTypeError(f"expected a size as 500M or 8G, got {text!r}")
    return n_bytes


def positive(text: str) -> int:
    """A whole number from 1."""
    number = int(text) if text.strip().lstrip("+-").isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got {text!r}")
    return number


def parse(kind: type[Options], description: str, argv: list[str] | None = None) -> Options:
    """The options that a command line gives, or an exit with what was wrong (code 2)."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add(parser, kind)
    options = filled(kind, parser.parse_args(argv))
    if getattr(options, "from_run", None) is not None:
        _refuse_measuring(parser, kind, argv)
    return options


def _refuse_measuring(parser: argparse.ArgumentParser, kind: type, argv: list[str] | None) -> None:
    """Ends with what is wrong where options of a measurement stand beside --from-run."""
    asked = argparse.ArgumentParser()
    add(asked, kind, has_defaults=False)
    given = vars(asked.parse_args(argv))
    measuring = [f"--{name.replace('_', '-')}" for name in given if name not in DRAWING]
    if measuring:
        parser.error(
            f"expected --from-run without options of a measurement, got {', '.join(measuring)}; a "
            "run that is redrawn stays as it was measured: leave them out, or measure anew"
        )


def parse_one_of(
    kinds: dict[str, type], description: str, argv: list[str] | None = None
) -> tuple[str, object]:
    """Which of several kinds the first word of a command line names, and its options."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = parser.add_subparsers(dest="name", required=True, metavar="REPORT")
    for name, kind in kinds.items():
        about = f"What analyses/{name}.py reads."
        add(names.add_parser(name, description=about, help=about), kind)
    namespace = parser.parse_args(argv)
    return namespace.name, filled(kinds[namespace.name], namespace)


def add(parser: argparse.ArgumentParser, kind: type, *, has_defaults: bool = True) -> None:
    """Adds an argument for every field; without defaults, only what is given is in the result."""
    for entry in fields(kind):
        how = dict(entry.metadata)
        if entry.type is bool:
            how |= {"action": "store_true"}
        elif entry.type == (bool | None):
            how |= {"action": argparse.BooleanOptionalAction, "default": entry.default}
        else:
            how |= {"default": entry.default if entry.default is not MISSING else None}
            how.setdefault("type", entry.type if isinstance(entry.type, type) else None)
        if not has_defaults:
            how["default"] = argparse.SUPPRESS
        positional = how.pop("positional", False)
        parser.add_argument(
            entry.name if positional else f"--{entry.name.replace('_', '-')}", **how
        )


def filled(kind: type[Options], namespace: argparse.Namespace) -> Options:
    """The dataclass with what argparse found."""
    values = {entry.name: getattr(namespace, entry.name) for entry in fields(kind)}
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
