"""The samples' images beside a run, so that overlays redraw."""

from pathlib import Path

from interp.data.images import open_image
from interp.data.sample import Sample
from interp.store import opening as store


def save_images(path: Path, samples: list[Sample], sizes: dict[str, tuple[int, int]]) -> None:
    """Saves images at the size at which the model saw them.

    Args:
        path: of the run.
        samples: some; those without a size are left out.
        sizes: width and height by sample.
    """
    for sample in samples:
        if sample.id in sizes:
            target = store.image_path(path, sample.id)
            target.parent.mkdir(exist_ok=True)
            open_image(sample.image).resize(sizes[sample.id]).save(target)
