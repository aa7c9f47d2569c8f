"""Direct against indirect contributions in vision-language models.

    vlm = interp.load_model("tiny")                       # or interp.wrap(model, processor)
    interp.explain(vlm, "photo.jpg", "What is it?").save("answer.html")  # or .show(), in a notebook
    sample = interp.Sample(image="photo.jpg", question="What is it?", answer="a cat")
    ds = interp.extract.ledger(vlm, sample)
    fx = interp.extract.effects(vlm, sample)

Importing this is cheap: what needs torch is loaded when it is first used.
"""

from importlib import import_module
from importlib.metadata import version

_PUBLIC = {
    "explain": ("interp.explained", "explain"),
    "load_model": ("interp.loading", "load_model"),
    "load_samples": ("interp.data", "load_samples"),
    "open_run": ("interp.store", "open_run"),
    "page": ("interp.pages.page", "page"),
    "wrap": ("interp.loading", "wrap"),
    "Completion": ("interp.inputs.completions", "Completion"),
    "Explained": ("interp.explained", "Explained"),
    "Sample": ("interp.data.sample", "Sample"),
    "VLM": ("interp.model.vlm", "VLM"),
}
_MODULES = {
    name: f"interp.{name}"
    for name in (
        "attribution",
        "extract",
        "faithfulness",
        "maps",
        "measures",
        "plots",
        "scoring",
        "stats",
        "store",
        "validate",
    )
} | {"alignment": "interp.maps.alignment"}


def __getattr__(name: str):
    if name == "__version__":
        return version("vlm-interp")
    if name in _PUBLIC or name in _MODULES:
        import_module("interp.accessor")  # whoever holds a dataset of ours has ds.vlm
    if name in _PUBLIC:
        module, attribute = _PUBLIC[name]
        return getattr(import_module(module), attribute)
    if name in _MODULES:
        return import_module(_MODULES[name])
    raise AttributeError(f"module 'interp' has no attribute {name!r}")


def __dir__():
    return sorted([*_PUBLIC, *_MODULES, "__version__"])
