"""A page to look at, of one image and question: every token, its maps, its parts and its paths.

    python analyses/page.py --image photo.jpg --question "What is on the table?" --out answer.html
    python analyses/page.py --sample digits-test-0-000006 --partner twin --kinds direct effect edge
    python analyses/page.py --model M --adapter A --image a.jpg --question "…" --partner b.jpg
    python analyses/page.py --model tiny-cold --compare tiny-saliency-r1

One file that holds image and numbers, opens from disk and asks no other address for anything. With
--compare two answers stand side by side. docs/PAGE.md says how to read it.
"""

import sys
from dataclasses import replace
from pathlib import Path

from analyses.options import Page
from analyses.run import command
from analyses.run.arguments import parse

BESIDE_PARTNER = "partner"
SEARCHED = 2000
"""Samples of a data set among which an id is looked for."""


def _sample(options: Page):
    """The image and question that are asked about.

    Raises:
        ValueError: an image without a question, a question without an image, or no such sample.
    """
    import interp

    if bool(options.image) != (options.question is not None):
        raise ValueError(
            "expected --image and --question together, or neither, for a sample of --data, got "
            f"{'--image' if options.image else '--question'} alone"
        )
    if options.image:
        images = list(options.image)
        one = images[0] if len(images) == 1 else images
        return interp.Sample(image=one, question=options.question, answer=options.answer)
    limit = 1 if options.sample is None else SEARCHED
    found = interp.load_samples(options.data, split=options.split, limit=limit, seed=options.seed)
    known = {one.id: one for one in found}
    if options.sample is not None and options.sample not in known:
        raise ValueError(
            f"expected the id of one of the first {len(found)} samples of {options.data}, as "
            f"{found[0].id!r}, got {options.sample!r}"
        )
    return found[0] if options.sample is None else known[options.sample]


def _partner(options: Page, sample):
    """The same question about another image, or None.

    Raises:
        ValueError: a twin of a sample that has none, or a file that is not there.
    """
    import interp

    if options.partner is None and options.compare != BESIDE_PARTNER:
        return None
    if options.partner in (None, "twin"):
        if sample.twin is None:
            raise ValueError(f"{sample.id}: expected --partner IMAGE of a sample without a twin")
        return sample.twin
    return interp.Sample(image=Path(options.partner), question=sample.question)


def _explained(options: Page, vlm, sample, text):
    """A text of a model about a sample, as `interp.explain` has it."""
    import interp

    return interp.explain(
        vlm,
        list(sample.images) if len(sample.images) > 1 else sample.image,
        sample.question,
        answer=sample.answer,
        boxes=sample.boxes,
        completion=text,
        max_new_tokens=options.max_new_tokens,
    )


def _answers(options: Page) -> list:
    """One answer, or two that are compared."""
    from analyses.run import models

    sample = _sample(options)
    partner = _partner(options, sample)
    vlm = models.load(options, options.model, options.adapter)
    wanted = {
        "kinds": options.kinds,
        "methods": options.methods,
        "n_heads": options.heads,
        "pixels": options.pixels,
        "graph": not options.no_graph,
    }
    first = _explained(options, vlm, sample, options.text)
    answers = [first.as_answer(partner=partner, **wanted)]
    if options.compare == BESIDE_PARTNER:
        second = _explained(options, vlm, partner, None)
        back = replace(sample, twin=None)
        answers.append(second.as_answer(partner=back, **wanted))
        names = ("its image", "the partner's image")
        answers = [
            replace(one, name=f"{vlm.name}: {name}")
            for one, name in zip(answers, names, strict=True)
        ]
    elif options.compare is not None:
        other = models.compared(options, vlm)
        text = replace(first.completion, source="given")  # it is the first model's, not its own
        second = _explained(options, other, sample, text)
        answers.append(second.as_answer(partner=partner, **wanted))
    return answers


def main() -> int:
    """Explains, and writes the page."""
    options = parse(Page, __doc__)

    def work() -> None:
        from interp.pages.page import check_path, page

        check_path(options.out)
        print(page(_answers(options), options.out))

    return command.run(work, options.out, log_level=options.log_level, threads=options.threads)


if __name__ == "__main__":
    sys.exit(main())
