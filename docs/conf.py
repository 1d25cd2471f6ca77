"""Sphinx: ``sphinx-build -W docs docs/_build``."""

import re
from pathlib import Path

_source = (Path(__file__).parents[1] / "verifier" / "__init__.py").read_text(encoding="utf-8")
_found = re.search(r'__version__ = "([^"]+)"', _source)
assert _found is not None

project = "nn-verifier"
copyright = "the authors of nn-verifier"
release = version = _found[1]
extensions = ["myst_parser"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"nn-verifier {version}"
