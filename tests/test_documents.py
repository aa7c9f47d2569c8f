"""The documents say what the code does: the dictionary, and sections that docstrings name."""

import ast
import re
from importlib.metadata import version
from itertools import chain

import pytest

import interp
from analyses import dictionary
from interp import vocabulary
from tests.support import ROOT

CITED = re.compile(r"METHODS(?:\.md)?\s+(\d(?:\.\d)?)(?:(?:,| and) (\d(?:\.\d)?)(?![\d.]*\)?:))*")


def test_the_dictionary_is_the_vocabulary():
    assert dictionary.PAGE.read_text() == dictionary.page(), "run python analyses/dictionary.py"
    for name in chain(
        vocabulary.VARIABLES,
        vocabulary.DIMENSIONS,
        vocabulary.COORDINATES,
        vocabulary.ATTRIBUTES,
    ):
        assert f"| `{name}` |" in dictionary.page()


def test_every_value_of_a_coordinate_has_its_meaning():
    lists = {
        "path": {*vocabulary.EDGE_PATHS, *vocabulary.NODE_PATHS},
        "path_class": vocabulary.PATH_CLASSES,
        "mode": vocabulary.EDGE_MODES,
        "norm": vocabulary.NORMS,
        "reference": vocabulary.REFERENCES,
        "component": vocabulary.COMPONENTS,
        "origin": [*vocabulary.ORIGINS, f"{vocabulary.IMAGE_LEVEL} 0"],
    }
    assert set(dictionary.VALUES) == set(lists)
    for name, values in lists.items():
        assert set(dictionary.VALUES[name]) == set(values), name


def test_editors_see_every_public_name():
    """The stub is read and not run: it cannot tell by itself that it has fallen behind."""
    stub = ast.parse((ROOT / "interp/__init__.pyi").read_text())
    told = {one.asname for node in stub.body for one in getattr(node, "names", [])}
    assert told | {"__version__"} == set(dir(interp))
    for node in stub.body:
        if isinstance(node, ast.ImportFrom):
            for one in node.names:
                assert getattr(interp, one.asname) is not None
    assert interp.__version__ == version("vlm-interp")
    assert (ROOT / "interp/py.typed").is_file()


@pytest.fixture(scope="module")
def datasets():
    """One of every call."""
    vlm = interp.load_model("tiny", device="cpu")
    sample = interp.load_samples("digits", split="test", limit=2)[1]
    extract, last = interp.extract, {"only": "answer"}
    row = {"positions": interp.extract.ledger(vlm, sample)["target_position"].values[-1:]}
    replaced = {"references": extract.references(vlm, sample, kinds=["blur"])}
    return {
        "ledger": extract.ledger(vlm, sample, **row),
        "heads": extract.heads(vlm, sample, **row),
        "alternatives": extract.alternatives(vlm, sample, **row),
        "effects": extract.effects(vlm, sample, **row),
        "maps": extract.maps(vlm, sample, kinds=("direct", "effect"), **last),
        "node_effects": extract.node_effects(vlm, sample, **replaced, **row),
        "shapley": extract.shapley(vlm, sample, **replaced, **row),
        "origins": extract.origins(vlm, sample, **row),
        "first_order": extract.first_order(vlm, sample, **row),
        "patch_effects": extract.patch_effects(vlm, sample, **row),
        "pixel_effects": extract.pixel_effects(vlm, sample, **row),
        "residual": extract.residual(vlm, sample, positions=[3]),
        "words": extract.words(vlm, sample, sample.twin),
    }


def test_every_call_is_asked_and_every_name_explained(datasets):
    assert {*datasets, "each", "references"} == set(interp.extract.__all__)
    for call, ds in datasets.items():
        for name, array in ds.data_vars.items():
            assert (array.attrs["units"], array.attrs["long_name"]) == vocabulary.VARIABLES[name]
        for name, array in ds.coords.items():
            assert array.attrs["long_name"], f"{call}: {name}"
            assert name in vocabulary.DIMENSIONS or "units" in array.attrs, f"{call}: {name}"
        assert set(ds.attrs) <= set(vocabulary.ATTRIBUTES), call


def test_every_section_that_is_cited_is_there():
    headings = set(
        re.findall(r"^#+ (\d(?:\.\d)?)\.? ", (ROOT / "docs/METHODS.md").read_text(), re.M)
    )
    assert {"1", "2.1", "3.6", "6"} <= headings
    n_cited = 0
    for top in ("interp", "analyses", "train", "docs"):
        for path in chain((ROOT / top).rglob("*.py"), (ROOT / top).rglob("*.md")):
            for found in CITED.finditer(path.read_text()):
                sections = {one for one in found.groups() if one}
                assert sections <= headings, f"{path}: {found[0]}"
                n_cited += 1
    assert n_cited > 60
