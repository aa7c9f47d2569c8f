"""The samples that a command names."""

from collections.abc import Iterator

from PIL import Image

import interp
from analyses.options import OfSamples
from analyses.run.recipe import attempt
from interp.data import EMBEDDED
from interp.data.images import open_image
from interp.data.sample import Sample


def load(options: OfSamples) -> list[Sample]:
    """The samples of a data set, as the command line says.

    Raises:
        ValueError: as `interp.load_samples`.
    """
    is_drawn = options.shuffle or options.data in EMBEDDED  # whose seed is that of the scenes
    seed = options.seed if is_drawn else None
    return interp.load_samples(options.data, split=options.split, limit=options.limit, seed=seed)


def readable(samples: list[Sample]) -> Iterator[Sample]:
    """Samples of one image, which opens; the others get their reason when they are measured."""
    return (one for one in samples if not isinstance(attempt(only_image, one), Exception))


def only_image(sample: Sample) -> Image.Image:
    """The image of a sample that a report can measure.

    Raises:
        ValueError: none or several, or an image that does not open.
    """
    if len(sample.images) != 1:
        raise ValueError(
            f"{sample.id}: expected one image in a report, got {len(sample.images)}; "
            "interp.explain takes several, or none"
        )
    return open_image(sample.image)
