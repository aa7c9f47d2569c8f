"""The documentation site is built, without running its notebooks and gallery (`make docs` does)."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest

pytestmark = pytest.mark.long  # half a minute; `make soak` builds the whole site besides
ROOT = Path(__file__).parent.parent
CITED = re.compile(r"METHODS(?:\.md)? (\d)(?:\.(\d))?(?![\d.]\d)")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The pages, built from a copy: the gallery writes where its sources are."""
    folder = tmp_path_factory.mktemp("docs")
    hidden = shutil.ignore_patterns("_site", "pictures", ".ipynb_checkpoints")
    for name in ("docs", "notebooks", "reports/pages"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=hidden)
    shutil.copy(ROOT / "README.md", folder)
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    done = subprocess.run(
        [*command, str(folder / "docs"), str(folder / "site/html")],
        env=os.environ | {"DOCS_RUN": "0"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return folder / "site/html"


@pytest.mark.long
def test_every_internal_link_resolves(site):
    pages = {page: page.read_text() for page in site.rglob("*.html") if "_static" not in page.parts}
    ids = {page: set(re.findall(r'id="([^"]+)"', text)) for page, text in pages.items()}
    n_links = 0
    for page, text in pages.items():
        for link in re.findall(r'(?:href|src)="([^"]+)"', text):
            if "://" in link or link.startswith(("data:", "mailto:")):
                continue
            name, _, anchor = unquote(link).partition("#")
            target = (page.parent / name.partition("?")[0]).resolve() if name else page
            assert target.exists(), (page, link)
            assert not anchor or target not in ids or anchor in ids[target], (page, link)
            n_links += 1
    assert n_links > 1000


def test_the_mathematics_that_a_docstring_cites_is_there(site):
    sections = set(re.findall(r'id="methods-([\d-]+)"', (site / "METHODS.html").read_text()))
    cited = {}
    for folder in ("interp", "analyses", "train"):
        for path in (ROOT / folder).rglob("*.py"):
            for found in CITED.finditer(path.read_text()):
                cited[f"{found[1]}-{found[2]}" if found[2] else found[1]] = path
    assert len(cited) > 10
    assert cited.keys() <= sections, {name: str(cited[name]) for name in cited.keys() - sections}
    assert 'href="METHODS.html#methods-3-1"' in (site / "api.html").read_text()


def test_every_public_call_has_its_entry(site):
    import interp

    api = (site / "api.html").read_text()
    for module in (interp.extract, interp.maps, interp.plots, interp.validate):
        for name in module.__all__:
            thing = getattr(module, name)
            if hasattr(thing, "__qualname__"):
                assert f">{name}<" in api, name
