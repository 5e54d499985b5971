"""Build the documentation: `make docs`, or `python -m sphinx -W docs output/docs`."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "_extensions")]

import anchoropt_plugin  # noqa: E402

project = "anchoropt-plugin"
version = release = anchoropt_plugin.__version__
html_title = f"anchoropt-plugin {version}"
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["drawings.css"]
html_show_copyright = False
html_show_sphinx = False
exclude_patterns = ["_extensions"]
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "public_names",
    "default_config",
]

# A reference to a public name must have a target; other names, such as torch.Tensor, have none.
nitpicky = True
nitpick_ignore_regex = [
    ("py:(class|data|obj)", r"(?!anchoropt_plugin\.\w+$).*"),
    ("py:exc", "ValueError"),
]
suppress_warnings = ["myst.header"]  # experiments write docs/results/, with headings of their own
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
python_use_unqualified_type_names = True
napoleon_use_ivar = True
napoleon_custom_sections = ["Shapes"]
