"""Sphinx: the notebooks as they are, and a page for each module of `nyx`."""

import os
import re
import sys
from pathlib import Path

import nbformat
from fastcore.docments import docments

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ["NYX_TYPECHECK"] = ""  # signatures as they are written, not as they are checked

LESSONS = ["data", "rotary", "attention", "lora", "model", "training", "sampling", "scale"]
TAGS = {"hide": "remove-cell", "default_exp": "remove-cell", "code-fold": "hide-input", "hide_input": "remove-input"}

project = "NYX"
author = "NYX contributors"
project_copyright = "2026, NYX contributors"
extensions = ["myst_nb", "sphinx.ext.autodoc"]
exclude_patterns = ["**/.ipynb_checkpoints", "_*", "**/_*"]
root_doc = "index"

html_theme = "sphinx_book_theme"
html_title = "NYX"
html_logo = "../assets/logo.png"
html_favicon = "../assets/logo.png"
SCRIPTS = ["mathjax/es5/tex-svg.js", "requirejs/require.js", "@jupyter-widgets/html-manager/dist/embed-amd.js"]
html_static_path = [f"node_modules/{script}" for script in SCRIPTS]
html_theme_options = {"show_toc_level": 2, "use_download_button": False, "home_page_in_toc": True}
html_copy_source = False

nb_execution_mode = "off"
nb_custom_formats = {".ipynb": "nyx_reader.read"}
nb_render_markdown_format = "myst"
nb_ipywidgets_js = {"require.js": {}, "embed-amd.js": {}}
mathjax_path = "tex-svg.js"
myst_enable_extensions = ["amsmath", "dollarmath", "colon_fence"]
myst_heading_anchors = 3
suppress_warnings = ["mystnb.unknown_mime_type", "myst.xref_missing"]

autodoc_default_options = {"members": True, "undoc-members": False, "member-order": "bysource"}
autodoc_typehints = "signature"
autodoc_mock_imports = []


def read(text: str):
    """A notebook without its `#|` lines; what they say becomes tags that myst-nb knows."""
    nb = nbformat.reads(text, as_version=4)
    nb.metadata["language_info"] = {"name": "python", "pygments_lexer": "ipython3"}
    for cell in nb.cells:
        if cell.cell_type != "code":
            continue
        lines = cell.source.splitlines()
        marks = [m.group(1) for line in lines if (m := re.match(r"\s*#\|\s*([\w-]+)", line))]
        tags = set(cell.metadata.get("tags", [])) | {TAGS[mark] for mark in marks if mark in TAGS}
        cell.metadata["tags"] = sorted(tags | ({"remove-input"} if "show_doc(" in cell.source else set()))
        cell.source = "\n".join(line for line in lines if not line.lstrip().startswith("#|")).strip()
    return nb


def toctree(title: str, pages: list[str]) -> str:
    """A hidden table of contents, for the side bar."""
    return "\n".join([f"```{{toctree}}\n:hidden:\n:caption: {title}\n", *pages, "```\n"])


def write_sources(app) -> None:
    """Pages that no notebook holds: the contents of the index, and one page for each module."""
    folder = Path(app.srcdir)
    modules = sorted(p.stem for p in (ROOT / "nyx").glob("[a-z]*.py"))
    (folder / "api").mkdir(exist_ok=True)
    for name in modules:
        page = f"# `nyx.{name}`\n\n```{{eval-rst}}\n.. automodule:: nyx.{name}\n```\n"
        (folder / "api" / f"{name}.md").write_text(page, encoding="utf-8")
    library = sorted(f"lib/{p.stem}" for p in (folder / "lib").glob("*.ipynb"))
    trees = [toctree("Lessons", [n for n in LESSONS if (folder / f"{n}.ipynb").exists()])]
    trees += [toctree("Reference", [f"api/{name}" for name in modules]), toctree("Library notebooks", library)]
    index = folder / "index.ipynb"
    nb = nbformat.read(index, as_version=4) if index.exists() else nbformat.v4.new_notebook()
    if not nb.cells:
        nb.cells = [nbformat.v4.new_markdown_cell("# NYX")]
    nb.cells.append(nbformat.v4.new_markdown_cell("\n".join(trees)))
    nbformat.write(nb, index)


def as_rst(line: str) -> str:
    """One line of Markdown as reStructuredText: back quotes mean code, and nothing else has a meaning."""
    parts = re.split(r"(?<![`:])`([^`]+)`(?!`)", line)
    return "".join(f"``{p}``" if i % 2 else re.sub(r"([*|]|\b_(?!\w))", r"\\\1", p) for i, p in enumerate(parts))


def comments_of_parameters(obj) -> list[str]:
    """What the comments beside parameters say, as fields."""
    try:
        found = docments(obj, full=True)
    except (TypeError, ValueError, OSError, SyntaxError, AttributeError):
        return []
    said = [(name, facts.docment) for name, facts in found.items() if facts.get("docment")]
    fields = [(":returns" if name == "return" else f":param {name}", words) for name, words in said]
    return ["", *(f"{field}: {as_rst(' '.join(words.split()))}" for field, words in fields)] if fields else []


def describe(app, what, name, obj, options, lines) -> None:
    """Docstrings are Markdown, and parameters are documented beside themselves."""
    lines[:] = [*map(as_rst, lines), *(comments_of_parameters(obj) if callable(obj) else [])]


def setup(app) -> None:
    sys.modules["nyx_reader"] = type(sys)("nyx_reader")
    sys.modules["nyx_reader"].read = read
    app.connect("builder-inited", write_sources)
    app.connect("autodoc-process-docstring", describe)
