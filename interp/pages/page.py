"""A page of one answer, or of two side by side: one file that holds all it shows."""

import json
import os
from collections.abc import Iterable, Mapping
from functools import cache
from html import escape
from pathlib import Path

import xarray as xr

from interp.data.sample import Sample
from interp.pages import notes
from interp.pages.contents import Answer, named, shown

FOLDER = Path(__file__).parent
SCRIPTS = ("arrays", "elements", "picture", "charts", "sections", "view")
"""Files of the one module, in order; each uses those before it."""
MOST_ANSWERS = 2


def page(
    answers,
    path: str | os.PathLike,
    *,
    title: str = "",
    names: Iterable[str] = (),
    samples: Iterable[Sample] = (),
) -> Path:
    """Writes a page to look at: every token, its map, its parts and its paths, in one HTML file.

    The file opens from disk, holds images and numbers, and asks no other address for anything.
    Numbers of maps are drawn in steps of 1/127 of each map's largest value; all others are float32.

    Args:
        answers: what `interp.explain` gives; or datasets of one answer, as a list or by name, a
            ledger among them; or a list of two of these, side by side.
        path: a file to write; one that is there is replaced.
        title: by default the question.
        names: of the answers; by default the model's and the adapter's.
        samples: of datasets, for image and boxes; by default the one they were made of, for as long
            as somebody holds it.

    Raises:
        ValueError: nothing of these, more than two answers, datasets of different texts, no ledger,
            or as many names or samples as there are not answers.
    """
    path = check_path(path)
    data = contents(answers, title=title, names=names, samples=samples)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(html(data), encoding="utf-8")
    part.replace(path)
    return path


def check_path(path: str | os.PathLike) -> Path:
    """The file to write; raises ValueError where its name does not end with .html."""
    path = Path(path)
    if path.suffix.lower() not in (".html", ".htm") or path.is_dir():
        raise ValueError(f"expected a file to write that ends with .html, got {str(path)!r}")
    return path


def contents(answers, *, title: str = "", names: Iterable[str] = (), samples=()) -> dict:
    """Everything that a page shows, as the script reads it; arguments as for `page`."""
    found = _answers(answers)
    for what, given in (("names", list(names)), ("samples", list(samples))):
        if given and len(given) != len(found):
            raise ValueError(f"expected {len(found)} {what}, one per answer, got {len(given)}")
        found = [
            Answer(**vars(one) | {what[:-1]: own} if given else vars(one))
            for one, own in zip(found, given or found, strict=True)
        ]
    runs = [shown(one) for one in found]
    title = title or next((run["question"] for run in runs if run["question"]), "An answer")
    return {"title": title, "runs": runs, "rounded": notes.ROUNDED, "graph_note": notes.GRAPH}


def _answers(answers) -> list[Answer]:
    if isinstance(answers, Answer):
        return [answers]
    if hasattr(answers, "as_answer"):
        return [answers.as_answer()]
    if isinstance(answers, xr.Dataset):
        return [Answer(named([answers]))]
    if isinstance(answers, Mapping):
        return [Answer(named(answers))]
    several = list(answers) if isinstance(answers, Iterable) else []
    if several and all(isinstance(one, xr.Dataset) for one in several):
        return [Answer(named(several))]
    if not several or isinstance(answers, str) or len(several) > MOST_ANSWERS:
        got = f"{len(several)} of them" if several else type(answers).__name__
        raise ValueError(
            "expected what interp.explain gives, or datasets of interp.extract, of one answer or a "
            f"list of two, got {got}"
        )
    return [one for answer in several for one in _answers(answer)]


@cache
def script() -> str:
    """The one module that a page and a notebook's widget share."""
    return "\n".join((FOLDER / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS)


@cache
def style() -> str:
    """Its style sheet."""
    return (FOLDER / "page.css").read_text(encoding="utf-8")


def html(data: dict) -> str:
    """The page: style, data and script in one document, nothing of which is taken for markup."""
    inert = json.dumps(data, allow_nan=False).replace("<", "\\u003c")
    frame = (FOLDER / "page.html").read_text(encoding="utf-8")
    module = script().replace("export default", "const view =")
    if "</script" in module.lower():
        raise ValueError("expected a script without an end tag in it")
    for name, text in (
        ("TITLE", escape(data["title"])),
        ("STYLE", style()),
        ("MODULE", module),
        ("DATA", inert),
    ):
        frame = frame.replace(f"<!--{name}-->", text, 1)
    return frame
