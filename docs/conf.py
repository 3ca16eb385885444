"""Sphinx: the settings of the site. What is special to NYX is done in nyx_site.py."""

import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
os.environ["NYX_TYPECHECK"] = ""  # signatures as they are written, not as they are checked

project = "NYX"
author = "NYX contributors"
project_copyright = "2026, NYX contributors"
extensions = ["myst_nb", "sphinx.ext.autodoc", "nyx_site"]
exclude_patterns = ["**/.ipynb_checkpoints", "_*", "**/_*"]
root_doc = "index"
language = "en"

html_theme = "sphinx_book_theme"
html_title = "NYX"
html_logo = "../assets/logo.png"
html_favicon = "../assets/logo.png"
WIDGETS = "@jupyter-widgets/html-manager/dist"
SCRIPTS = ["mathjax/es5/tex-svg.js", "requirejs/require.js", f"{WIDGETS}/embed-amd.js"]
FONTS = sorted(str(p) for p in (HERE / "node_modules" / WIDGETS).glob("*.woff2"))
html_static_path = ["static", *(f"node_modules/{script}" for script in SCRIPTS), *FONTS]
html_css_files = ["nyx.css"]
html_js_files = [("nyx.js", {"priority": 100})]  # before the scripts that it tells where they are
html_theme_options = {
    "show_toc_level": 2,
    "use_download_button": False,
    "home_page_in_toc": True,
    "navbar_persistent": [],
    "logo": {"text": "NYX", "alt_text": "NYX, the start page"},
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
html_context = {"default_mode": "auto"}
html_copy_source = False
python_maximum_signature_line_length = 88

nb_execution_mode = "off"
nb_custom_formats = {".ipynb": "nyx_site.read"}
nb_render_markdown_format = "myst"
nb_ipywidgets_js = {"require.js": {}, "embed-amd.js": {}}
mathjax_path = "tex-svg.js"
myst_enable_extensions = ["amsmath", "dollarmath", "colon_fence"]
myst_heading_anchors = 3
suppress_warnings = ["mystnb.unknown_mime_type"]

autodoc_default_options = {"members": True, "undoc-members": True, "member-order": "bysource"}
autodoc_typehints = "signature"
