"""The samples' images beside a run, so that overlays redraw."""

from pathlib import Path

from interp.data.images import open_image
from interp.data.sample import Sample
from interp.store import opening as store


def _save_images(path: Path, samples: list[Sample], sizes: dict[str, tuple[int, int]]) -> None:
    for sample in samples:
        if sample.id in sizes:
            target = store.image_path(path, sample.id)
            target.parent.mkdir(exist_ok=True)
            open_image(sample.image).resize(sizes[sample.id]).save(target)
