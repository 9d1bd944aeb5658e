"""How the documentation is built: ``make docs``. Warnings are errors, and every example runs."""

import doctest
import sys
from importlib.metadata import version as installed
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "_ext"))

project = "pararealize"
author = "the pararealize authors"
copyright = f"2026, {author}"
version = release = installed("pararealize")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "accessible",
    "mathml",
    "module_map",
    "notebooks",
    "plan_schema",
    "readmes",
]

html_theme = "furo"
html_title = f"pararealize {release}"
html_static_path = ["_static"]
html_css_files = ["pararealize.css"]
html_copy_source = False
html_show_sphinx = False

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
maximum_signature_line_length = 88
add_module_names = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
napoleon_custom_sections = ["Source", "Shapes"]
pygments_style = "xcode"  # text of at least 4.5:1
highlight_language = "none"  # what says no language is a command line

exclude_patterns = ["_build", "_ext"]

doctest_test_doctest_blocks = ""  # docstrings are run by tests/test_docs.py
doctest_global_setup = "import torch; torch.manual_seed(0); torch.set_num_threads(1)"
doctest_default_flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE | doctest.DONT_ACCEPT_TRUE_FOR_1
