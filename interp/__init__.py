"""Direct against indirect contributions in vision-language models.

    vlm = interp.load_model("tiny")
    samples = interp.load_samples("digits", split="test", limit=64)
    ds = interp.extract.ledger(vlm, samples[0])
    fx = interp.extract.effects(vlm, samples[0])

Importing this is cheap: what needs torch is loaded when it is first used.
"""

from importlib import import_module

_PUBLIC = {
    "load_model": ("interp.loading", "load_model"),
    "load_samples": ("interp.data", "load_samples"),
    "open_run": ("interp.store", "open_run"),
    "Sample": ("interp.data.sample", "Sample"),
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
        "viewer",
    )
} | {"alignment": "interp.maps.alignment"}


def __getattr__(name: str):
    if name in _PUBLIC or name in _MODULES:
        import_module("interp.accessor")  # whoever holds a dataset of ours has ds.vlm
    if name in _PUBLIC:
        module, attribute = _PUBLIC[name]
        return getattr(import_module(module), attribute)
    if name in _MODULES:
        return import_module(_MODULES[name])
    raise AttributeError(f"module 'interp' has no attribute {name!r}")


def __dir__():
    return sorted([*_PUBLIC, *_MODULES])
