"""How Sphinx builds the documentation: `make docs`."""

from typing import Any

import faiss_dpq

project = "faiss-dpq"
author = "the developers of faiss-dpq"
release = version = faiss_dpq.__version__

extensions = ["myst_parser", "numpydoc", "sphinx.ext.autodoc", "sphinx_copybutton"]
exclude_patterns = ["accuracy/report.md"]

html_theme = "furo"
html_title = f"faiss-dpq {version}"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_copy_source = False
html_show_copyright = False

myst_heading_anchors = 3  # links to headings, as on GitHub, are checked

# `name` in a docstring is a link where there is such a name, and code otherwise.
default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # docstrings tell types with shapes
autodoc_inherit_docstrings = False
numpydoc_show_class_members = False
# What docstrings say of parameters must be true of the signature; sections are those of numpydoc.
numpydoc_validation_checks = {"GL06", "GL07", "GL08", "PR02", "PR03"}
numpydoc_validation_exclude = {r"\.Index(PreTransform|RefineFlat|Shards|Replicas)$"}  # take *args, as FAISS's do


def is_inherited(app: Any, what: str, name: str, member: Any, skip: bool, options: Any) -> bool | None:
    """Whether autodoc leaves a member out: what FAISS's classes bring along is described by FAISS."""
    function = getattr(member, "fget", None) or getattr(member, "__func__", member)
    return True if str(getattr(function, "__module__", "")).split(".")[0] == "faiss" else None


def setup(app: Any) -> None:
    """Connect what is above with Sphinx."""
    app.connect("autodoc-skip-member", is_inherited)
