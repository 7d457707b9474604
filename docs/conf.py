"""How these pages are built: `sphinx-build -W --keep-going docs docs/_build` from the root of the project.

Sphinx, and not MkDocs Material: the latter announces its end of life (May 2027) at every build, and MkDocs itself has had
no release since 2024. Pages are Markdown (MyST); the theme loads nothing from the network.
"""

import sys
from pathlib import Path

import featherlight

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "featherlight"
author = "The featherlight authors"
copyright = author
release = version = featherlight.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "api_pages"]
exclude_patterns = ["_build", "_ext"]
suppress_warnings = ["config.cache"]

api_package = "featherlight"
api_source = str(Path(featherlight.__file__).parents[1])
api_left_out = ["cli"]

default_role = "literal"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
toc_object_entries = False
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"featherlight {release}"
html_show_sphinx = False
html_copy_source = False
html_show_sourcelink = False
