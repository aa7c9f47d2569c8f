"""The plan of the house holds: who imports whom, who knows what, and every room is on the map."""

import ast
import re
import tomllib
from itertools import chain
from pathlib import Path

import grimp
import pytest

from analyses import reports
from interp import vocabulary
from tests.support import ROOT

TORCH = ("torch", "nnsight", "transformers")
# Rooms of a report that load models.
WITH_MODELS = (
    "measure",
    "sample",
    "controls",
    "models",
    "answers",
    "games",
    "partners",
    "pixels",
    "through_words",
)
MODULE_PATHS = re.compile(
    r"self_attn|input_layernorm|post_attention_layernorm|\blm_head\b(?! )|rope_deltas|"
    r"get_image_features|\.mlp\b|\.model\.language_model|\.language_model\.(layers|norm)|"
    r"\.model\.visual\b"
)
TOPS = ("interp", "analyses", "train")


def sources() -> list[Path]:
    return sorted(chain.from_iterable((ROOT / top).rglob("*.py") for top in TOPS))


@pytest.fixture(scope="module")
def graph():
    return grimp.build_graph(*TOPS, include_external_packages=True, cache_dir=None)


def test_reports_draw_without_torch(graph):
    """By wildcard: a room of a report that is not for models knows no torch, however far away."""
    rooms = [m for m in graph.modules if m.startswith("analyses.reports")]
    light = [m for m in rooms if m.rpartition(".")[2] not in WITH_MODELS]
    assert len(light) > 15
    for module in light:
        known = graph.find_upstream_modules(module) & set(TORCH)
        assert not known, graph.find_shortest_chain(module, known.pop())


def test_reports_do_not_know_each_other(graph):
    for one in reports.REPORTS:
        for other in set(reports.REPORTS) - {one}:
            chains = graph.find_shortest_chains(
                f"analyses.reports.{one}", f"analyses.reports.{other}", as_packages=True
            )
            assert not chains


def test_only_families_know_modules_of_hugging_face_models():
    for path in sources():
        # What makes tiny knows what tiny is made of.
        if "families" in path.parts or path.parent.name == "tiny":
            continue
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            assert not MODULE_PATHS.search(line), f"{path.relative_to(ROOT)}:{number}: {line}"


def test_families_are_named_where_they_are_known_alone():
    """Their files, their titles, prompts, and TransformerLens, which has a list of its own."""
    known = ("vocabulary.py", "inputs/prompts.py", "validate/witness.py")
    for path in (ROOT / "interp").rglob("*.py"):
        name = str(path.relative_to(ROOT / "interp"))
        if not name.startswith("model/families/") and name not in known:
            named = re.search(
                "qwen|internvl|smolvlm|idefics|gemma", path.read_text(), re.IGNORECASE
            )
            assert named is None, f"{name}: {named[0]}"


def test_a_public_call_is_a_file_is_its_algebra():
    from interp import extract

    rooms = {path.stem for path in (ROOT / "interp/extract").glob("*.py")}
    assert set(extract.__all__) <= rooms
    algebra = {path.stem for path in (ROOT / "interp/algebra").glob("*.py")}
    assert {"ledger", "effects", "node_effects", "shapley", "first_order", "origins"} <= algebra


def test_file_names_are_unique_but_for_a_call_and_its_algebra():
    seen: dict[str, Path] = {}
    for path in sorted((ROOT / "interp").rglob("*.py")):
        if path.stem == "__init__":
            continue
        other = seen.setdefault(path.stem, path)
        folders = {path.parent.name, other.parent.name}
        assert other == path or folders == {"algebra", "extract"}, (other, path)


def test_every_list_has_titles_and_every_title_an_entry():
    from interp.attribution import METHODS
    from interp.model.families import MODEL_FAMILIES
    from interp.scoring import RULES

    assert set(RULES) == set(vocabulary.RULE_TITLES)
    assert set(METHODS) == set(vocabulary.METHOD_TITLES)
    assert set(MODEL_FAMILIES) == set(vocabulary.FAMILY_TITLES)
    assert set(reports.REPORTS) == set(vocabulary.REPORT_TITLES)
    assert {*vocabulary.ORIGINS, vocabulary.IMAGE_LEVEL} == set(vocabulary.ORIGIN_TITLES)
    assert {kind for rule in RULES.values() for kind in (rule.kind,)} <= set(vocabulary.MAP_KINDS)


def test_every_report_has_its_rooms_and_its_command():
    for name in reports.REPORTS:
        rooms = {path.name for path in (ROOT / "analyses/reports" / name).iterdir()}
        wanted = ("measure.py", "findings.py", "figures.py", "words.py", "page.py", "page.html")
        assert set(wanted) <= rooms, name
        assert (ROOT / "analyses" / f"{name}.py").is_file()
    from analyses.options import EXTRACTIONS

    assert tuple(EXTRACTIONS) == reports.REPORTS


def test_every_file_is_on_the_map():
    """docs/LAYOUT.md has every file with the first line of its docstring, and no other."""
    page = (ROOT / "docs/LAYOUT.md").read_text()
    expected = []
    for path in sources():
        caption = (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n")[0]
        name = path.relative_to(ROOT)
        if name.stem == "__init__":
            name = f"{name.parent}/"
        expected.append(f"| `{name}` | {caption} |")
    missing = [line for line in expected if line not in page]
    assert not missing, "\n".join(missing)
    listed = set(re.findall(r"^\| `([\w/.]+)` \|", page, re.MULTILINE))
    assert listed == {re.match(r"\| `(.*?)`", line)[1] for line in expected}


def test_the_tops_are_short():
    for top in ("interp", "analyses"):
        assert len(list((ROOT / top).glob("*.py"))) <= 12


def test_every_interval_of_a_report_gets_the_seed():
    """A bootstrap without it would be the same whatever --seed says."""
    found = 0
    for path in (ROOT / "analyses/reports").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                "stats.interval",
                "stats.mean_interval",
                "stats.share_interval",
                "stats.median_interval",
            ):
                found += 1
                assert "seed" in [k.arg for k in node.keywords], f"{path}:{node.lineno}"
    assert found > 20


def test_shapes_are_checked_wherever_arrays_are_computed():
    """The suite's type checker sees every room of the algebra, `make soak`'s sees all of them."""
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]
    (seen,) = [one for one in options["ini_options"]["addopts"] if one.startswith("--jaxtyping")]
    packages = seen.partition("=")[2].split(",")[:-1]
    unseen = set()
    for path in (ROOT / "interp").rglob("*.py"):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        is_seen = any(module == one or module.startswith(f"{one}.") for one in packages)
        if "from jaxtyping" in path.read_text() and not is_seen:
            unseen.add(module.split(".")[1])
    assert unseen == {"data", "inputs", "model"}  # readers, roles, and paths of families
    soak = (ROOT / "Makefile").read_text().partition("\nsoak:")[2]
    assert soak.count("$(ALL_SHAPES)") == soak.partition("\n\n")[0].count("-m pytest") == 2


def test_docstrings_have_a_subject():
    """None begins with "Of" or "What"; modules and public and private functions alike."""
    for path in (*sources(), *sorted((ROOT / "tests").rglob("*.py"))):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node) or ""
                where = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}"
                assert not text.startswith(("Of ", "What ")), f"{where}: {text.splitlines()[0]}"
