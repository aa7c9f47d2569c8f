"""Pages of the example scenes' answers, made while the model is there; the report links them."""

import logging
from dataclasses import replace
from pathlib import Path

import interp
from analyses.options import DirectVsIndirect
from analyses.reports.direct_vs_indirect.examples import answer_path, example_ids
from analyses.run.processes import this_process
from analyses.run.texts import stored_texts
from interp.data.sample import Sample
from interp.model.vlm import VLM

log = logging.getLogger("extraction")


def write_answers(path: Path, vlm: VLM, samples: list[Sample], options: DirectVsIndirect) -> None:
    """Writes a page for each example of a finished run; those that are there stay.

    Images may not be copied with --no-images, and several processes leave it to one alone.
    """
    number, n_processes = this_process()
    if options.no_images or n_processes > 1 or number > 0:
        return
    run = interp.open_run(path)
    by_id = {one.id: one for one in samples}
    chosen = [by_id[name] for name in example_ids(run) if name in by_id]
    for sample, text in zip(chosen, stored_texts(run, vlm, chosen), strict=True):
        file = answer_path(path, sample.id)
        if file.is_file() or isinstance(text, Exception):
            continue
        log.info("page of %s", sample.id)
        try:
            own = sample.text if text is None else replace(text, source="own")
            _write(file, vlm, sample, own)
        except ValueError as error:  # the report is whole without it
            log.warning("%s: no page, %s", sample.id, error)


def _write(file: Path, vlm: VLM, sample: Sample, text) -> None:
    answer = interp.explain(
        vlm,
        sample.image,
        sample.question,
        boxes=sample.boxes,
        answer=sample.answer,
        completion=text,
    )
    interp.page(answer.as_answer(partner=sample.twin), file)
