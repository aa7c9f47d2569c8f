"""Pages of the gallery, into reports/pages/answers: python -m docs.answers, or make answers."""

import tempfile
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_sample_image

import interp
from interp.vocabulary import MAP_KINDS
from tests.support import hub_folder

OUT = Path(__file__).parent.parent / "reports/pages/answers"
ALL = {"kinds": MAP_KINDS, "pixels": True, "methods": ("rollout", "AttnLRP"), "n_heads": 24}
REAL_SHAPE = {"hidden": 256, "layers": 36, "heads": 16, "kv_heads": 2}
SPOKEN = (
    "<think>\nThe roof has golden tiles and there are red lanterns.\n</think>\nA temple in China."
)


def explained(vlm, sample, completion=None):
    """The model's text about a scene."""
    return interp.explain(
        vlm,
        sample.image,
        sample.question,
        boxes=sample.boxes,
        answer=sample.answer,
        completion=completion,
    )


def one_scene(model: str):
    """Everything about one scene: all kinds of map, two other methods, pixels, words, paths."""
    scene = interp.load_samples("digits", split="test", limit=8)[6]
    answer = explained(interp.load_model(model), scene)
    return answer.as_answer(partner=scene.twin, **ALL)


def words():
    """A question whose answer comes through the words, beside the same about its twin."""
    scenes = interp.load_samples("digits", split="test", limit=40)
    scene = next(one for one in scenes if one.family == "sum")
    vlm = interp.load_model("tiny")
    pairs = ((scene, scene.twin), (scene.twin, scene))
    return [explained(vlm, one).as_answer(partner=other) for one, other in pairs]


def trained():
    """The careless model, and what the saliency reward made of it, on the first one's text."""
    scene = interp.load_samples("digits", split="test", limit=8)[6]
    first = explained(interp.load_model("tiny-cold"), scene)
    adapted = interp.load_model("tiny-cold", adapter="tiny-saliency-r1")
    return [first.as_answer(), explained(adapted, scene, first.text).as_answer()]


def photo():
    """A photograph, and a random model of the 3B's depth, with words put in its mouth."""
    picture = Image.fromarray(load_sample_image("china.jpg"))
    with tempfile.TemporaryDirectory() as folder:
        hub_folder.write(Path(folder) / "random", sizes=REAL_SHAPE)
        vlm = interp.load_model(str(Path(folder) / "random"), max_pixels=400 * 28 * 28)
    answer = interp.explain(vlm, picture, "What is in the picture?", completion=SPOKEN)
    return answer.as_answer()


PAGES = {
    "tiny": (lambda: one_scene("tiny"), "One scene, everything that can be shown of it", ()),
    "tiny3": (lambda: one_scene("tiny3"), "The same of a Qwen3-VL", ()),
    "words": (words, "A sum: the answer comes through the words", ("image", "its twin")),
    "trained": (trained, "Before and after training on a saliency reward", ()),
    "photo": (photo, "A photograph and a random model of 36 layers", ("random weights",)),
}
"""Of each page what it shows, its title, and its answers' names."""


def main() -> None:
    """Writes all pages."""
    for name, (make, title, names) in PAGES.items():
        path = interp.page(make(), OUT / f"{name}.html", title=title, names=names)
        print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
