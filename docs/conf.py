"""The documentation site; `make docs` builds it into docs/_site/html."""

import os
import re

from sphinx_gallery.sorting import FileNameSortKey

import interp

os.environ.setdefault("HF_HUB_OFFLINE", "1")
IS_RUN = os.environ.get("DOCS_RUN", "1") == "1"  # `make test` builds the pages without running any

project = "vlm-interp"
author = copyright = "the vlm-interp authors"
version = release = interp.__version__
extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "myst_nb",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_site", "gallery", "notebooks/*.py", "**/.ipynb_checkpoints"]
exclude_patterns += [
    "pictures/*.ipynb",
    "sg_execution_times.rst",
    "pictures/sg_execution_times.rst",
]
suppress_warnings = ["config.cache"]  # the gallery's sorting key is a class

html_theme = "pydata_sphinx_theme"
html_title = "vlm-interp"
html_theme_options = {"show_toc_level": 2, "navigation_with_keys": False}
html_sidebars = {"index": []}
html_extra_path = ["../reports/pages"]  # the published reports, as they are
html_show_sphinx = False

default_role = "py:obj"  # a name in backticks is linked where it is a documented one
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True}
napoleon_google_docstring = True

myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
nb_execution_mode = "force" if IS_RUN else "off"
nb_execution_timeout = 300
nb_execution_raise_on_error = True

sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "pictures",
    "filename_pattern": "/" if IS_RUN else "^$",
    "within_subsection_order": FileNameSortKey,
    "abort_on_example_error": True,
    "download_all_examples": False,
    "show_memory": False,
    "min_reported_time": 10**6,
    "remove_config_comments": True,
}

_SECTION = re.compile(r"^(#+ (\d)(?:\.(\d))?\.? )", re.MULTILINE)
_CITED = re.compile(r"METHODS(?:\.md)? (\d)(?:\.(\d))?(?![\d.]\d)")


def _label(section: str, part: str | None) -> str:
    return f"methods-{section}" + (f"-{part}" if part else "")


def _with_labels(_app, name: str, source: list[str]) -> None:
    """Labels before the sections of METHODS.md, and links to them from everywhere else."""
    if name == "METHODS":
        source[0] = _SECTION.sub(lambda m: f"({_label(m[2], m[3])})=\n{m[1]}", source[0])
    elif not name.startswith(("notebooks/", "pictures/")):
        source[0] = _CITED.sub(lambda m: f"[{m[0]}](#{_label(m[1], m[2])})", source[0])


def _with_links(_app, _what, _name, _thing, _options, lines: list[str]) -> None:
    """Citations of METHODS.md in docstrings become links; bars and single stars stay bars."""
    for number, line in enumerate(lines):
        plain = line
        if not line.startswith("    "):  # a block of code stays as it is
            plain = line.replace("|", "\\|")
            plain = plain.replace("*", "\\*") if line.count("*") == 1 else plain
        lines[number] = _CITED.sub(lambda m: f":ref:`{m[0]} <{_label(m[1], m[2])}>`", plain)


def setup(app):
    """Connects the links."""
    app.connect("source-read", _with_labels)
    app.connect("autodoc-process-docstring", _with_links)
