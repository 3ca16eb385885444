"""What the site of NYX needs beyond Sphinx: notebooks without their marks, pages for the modules, links between all."""

import ast
import importlib
import inspect
import re
import sys
from functools import cache
from pathlib import Path

import nbformat
import torch
from docutils import nodes
from fastcore.docments import docments

ROOT = Path(__file__).resolve().parent.parent
SOLUTION_MARKS = ("### BEGIN SOLUTION", "### END SOLUTION")  # nbgrader's; a reader of the site does not need them
LESSONS = ["data", "rotary", "attention", "lora", "model", "training", "sampling", "speed", "scale", "ablations", "finetune", "race"]
TAGS = {"hide": "remove-cell", "default_exp": "remove-cell", "code-fold": "hide-input", "hide_input": "remove-input"}
TORCH = "https://docs.pytorch.org/docs/stable"
TORCH_PAGES = {  # what has no page of its own under generated/
    "torch.Tensor": "tensors.html",
    "torch.device": "tensor_attributes.html#torch.device",
    "torch.dtype": "tensor_attributes.html#torch.dtype",
    "torch.finfo": "type_info.html#torch.finfo",
    "torch.nn.Parameter": "generated/torch.nn.parameter.Parameter.html",
    "torch.inference_mode": "generated/torch.autograd.grad_mode.inference_mode.html",
}

# Pages


def site_links(text: str) -> str:
    """Links between nbs/ and docs/, which the site keeps in one folder."""
    return re.sub(r"\]\(((?:\.\./)*)\.\./(?:docs|nbs)/", r"](\1", text)


def read(text: str):
    """A notebook without its `#|` lines; what they say becomes tags that myst-nb knows."""
    nb = nbformat.reads(text, as_version=4)
    nb.metadata["language_info"] = {"name": "python", "pygments_lexer": "ipython3"}
    for cell in nb.cells:
        if cell.cell_type != "code":
            cell.source = site_links(cell.source)
            continue
        lines = cell.source.splitlines()
        marks = [m.group(1) for line in lines if (m := re.match(r"\s*#\|\s*([\w-]+)", line))]
        tags = set(cell.metadata.get("tags", [])) | {TAGS[mark] for mark in marks if mark in TAGS}
        cell.metadata["tags"] = sorted(tags | ({"remove-input"} if "show_doc(" in cell.source else set()))
        marked = [line for line in lines if line.lstrip().startswith("#|") or line.strip() in SOLUTION_MARKS]
        cell.source = "\n".join(line for line in lines if line not in marked).strip()
    return nb


def toctree(title: str, pages: list[str]) -> str:
    """A hidden table of contents, for the side bar."""
    return "\n".join([f"```{{toctree}}\n:hidden:\n:caption: {title}\n", *pages, "```\n"])


def modules() -> list[str]:
    """The modules of `nyx`, without the package itself."""
    return sorted(p.stem for p in (ROOT / "nyx").glob("[a-z]*.py"))


def public_names(module: str) -> list[str]:
    """What `from nyx.<module> import *` gives."""
    return list(importlib.import_module(f"nyx.{module}").__all__)


def constants(module: str) -> list[str]:
    """Public names that are neither functions nor classes; autodoc must be asked for them by name."""
    names, values = public_names(module), vars(sys.modules[f"nyx.{module}"])
    return [name for name in names if not (inspect.isroutine(values[name]) or inspect.isclass(values[name]))]


def module_page(module: str) -> str:
    """The reference of one module: all functions and classes in the order of the source, then its constants."""
    lines = [f".. automodule:: nyx.{module}", ""]
    for name in constants(module):
        long = len(repr(getattr(sys.modules[f"nyx.{module}"], name))) > 150
        lines += [f".. autodata:: nyx.{module}.{name}", *(["   :no-value:"] if long else []), ""]
    return "\n".join([f"# `nyx.{module}`\n", "```{eval-rst}", *lines, "```\n"])


def overview() -> str:
    """One page with every public name."""
    parts = ["# All public names\n", "`from nyx import NYX, NYXConfig` is what most programs need; both are defined in"]
    parts += ["[`nyx.model`](model.md). Everything else, module by module:\n"]
    for module in modules():
        links = [f"[`{name}`](#nyx.{module}.{name})" for name in public_names(module)]
        parts.append(f"**[`nyx.{module}`]({module}.md)** {' '.join(links)}\n")
    return "\n".join(parts)


def write_sources(app) -> None:
    """Pages that no notebook holds: the contents of the index, a page for each module, and what lies in docs/."""
    folder = Path(app.srcdir)
    (folder / "api").mkdir(exist_ok=True)
    for name in modules():
        (folder / "api" / f"{name}.md").write_text(module_page(name), encoding="utf-8")
    (folder / "api" / "index.md").write_text(overview(), encoding="utf-8")
    extra = sorted((ROOT / "docs").glob("*.md"))
    for page in extra:
        (folder / page.name).write_text(site_links(page.read_text(encoding="utf-8")), encoding="utf-8")
    library = sorted(f"lib/{p.stem}" for p in (folder / "lib").glob("*.ipynb"))
    lessons = [*LESSONS, *sorted({p.stem for p in folder.glob("*.ipynb")} - {*LESSONS, "index"})]
    trees = [toctree("Lessons", [n for n in lessons if (folder / f"{n}.ipynb").exists()])]
    trees += [toctree("Look up", [page.stem for page in extra])]
    trees += [toctree("Reference", ["api/index", *(f"api/{name}" for name in modules())])]
    trees += [toctree("Library notebooks", library)]
    index = nbformat.read(folder / "index.ipynb", as_version=4)
    index.cells.append(nbformat.v4.new_markdown_cell("\n".join(trees)))
    nbformat.write(index, folder / "index.ipynb")


# The reference


@cache
def origins(module: str) -> dict[str, tuple[str, str]]:
    """For each name of a module, the notebook whose cell defines it (without suffix, from nbs/) and the cell's id."""
    text = (ROOT / "nyx" / f"{module}.py").read_text(encoding="utf-8")
    cells = [re.match(r"# %% \.\./nbs/(.+)\.ipynb #(\w+)", line) for line in text.splitlines()]
    found = {}
    for node in ast.parse(text).body:
        targets = getattr(node, "targets", [getattr(node, "target", None)])
        targets = [part for target in targets if target is not None for part in ast.walk(target)]  # a, b = 1, 2
        names = [getattr(node, "name", None), *(getattr(t, "id", None) for t in targets)]
        cell = next((c for c in reversed(cells[: node.lineno]) if c), None)
        found |= {name: cell.groups() for name in names if name and cell}
    return found


@cache
def sections(notebook: str) -> dict[str, tuple[str, str]]:
    """For each cell id of a notebook, the title above it and the anchor of that title."""
    nb, title, found = nbformat.read(ROOT / "nbs" / f"{notebook}.ipynb", as_version=4), "", {}
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            text = re.sub(r"```.*?```", "", cell.source, flags=re.DOTALL)
            title = (re.findall(r"^#{1,4} (.+)$", text, re.MULTILINE) or [title])[-1]
        plain = re.sub(r"[`*$]", "", title)
        found[cell.id] = (plain, nodes.make_id(plain))
    return found


def lesson_line(module: str, name: str) -> list[str]:
    """A sentence with a link to the section that builds a name."""
    if name not in origins(module):
        return []
    notebook, cell = origins(module)[name]
    title, anchor = sections(notebook).get(cell, ("", ""))
    kind = "library notebook" if notebook.startswith("lib/") else "lesson"
    return [f"*Built in the {kind}* {notebook.split('/')[-1]}: `{title} <../{notebook}.html#{anchor}>`__"]


def torch_address(name: str) -> str:
    """The page of torch's own docs on a public name."""
    return f"{TORCH}/{TORCH_PAGES.get(name, f'generated/{name}.html')}"


def torch_names(obj) -> list[str]:
    """Functions and classes of torch, torch.nn and torch.nn.functional that the source of `obj` names."""
    try:
        tree = ast.parse(inspect.cleandoc("\n" + inspect.getsource(obj)))
    except (TypeError, OSError, SyntaxError):
        return []
    known = {torch: "torch", torch.nn: "torch.nn", torch.nn.functional: "torch.nn.functional"}
    scope = vars(sys.modules[obj.__module__])

    def resolve(node):
        if isinstance(node, ast.Name):
            return scope.get(node.id)
        base = resolve(node.value) if isinstance(node, ast.Attribute) else None
        return getattr(base, node.attr, None) if base in tuple(known) else None

    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            base, value = resolve(node.value), getattr(resolve(node.value), node.attr, None)
            if base in tuple(known) and callable(value):
                found[f"{known[base]}.{node.attr}"] = None
    return sorted(found)


def torch_line(obj) -> list[str]:
    """A sentence with links to what a name uses of torch."""
    links = [f"`{name} <{torch_address(name)}>`__" for name in torch_names(obj)]
    return [f"*Uses* {', '.join(links)}"] if links else []


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
    """Docstrings are Markdown, parameters are documented beside themselves, and each name says where it comes from."""
    fields = comments_of_parameters(obj) if callable(obj) else []
    if what == "data":
        lines[:] = []  # what a plain dict or number says about itself is Python's docstring, not ours
    _, module, *rest = name.split(".")
    above = lesson_line(module, rest[0]) if len(rest) == 1 else []
    above += torch_line(obj) if rest and what in ("function", "class", "method") else []
    lines[:] = [*map(as_rst, lines), *(line for words in above for line in ("", words)), *fields, ""]


def link_to_torch(app, env, node, contnode):
    """Types of torch in signatures lead to torch's docs."""
    target = node.get("reftarget", "")
    full = {"Tensor": "torch.Tensor", "nn.Module": "torch.nn.Module", "Module": "torch.nn.Module"}.get(target, target)
    full = re.sub(r"^torch\.nn\.modules\.\w+\.", "torch.nn.", full)
    if not full.startswith("torch."):
        return None
    return nodes.reference("", "", contnode, internal=False, refuri=torch_address(full), reftitle="in torch's docs")


def help_screen_readers(app, pagename, templatename, context, doctree) -> None:
    """Signatures over several lines are laid out with <dl> and are no lists of definitions; what unfolds names itself."""
    body = context.get("body", "").replace('<dd><em class="sig-param">', '<dd role="none"><em class="sig-param">')
    body = body.replace(' aria-label="Toggle hidden content"', "")
    context["body"] = re.sub(r'<dl>(?=\s*<dd role="none">)', '<dl role="none">', body)


# The glossary


@cache
def glossary() -> dict[str, str]:
    """Each word form that the titles of docs/glossary.md list, and its anchor there."""
    text = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    titles = re.findall(r"^### (.+)$", text, re.MULTILINE)
    return {form.strip(): nodes.make_id(title) for title in titles for form in title.split(",")}


def link_first_uses(app, doctree, docname) -> None:
    """In a lesson, the first mention of each term of the glossary leads there."""
    if docname.startswith("api/") or docname in ("glossary", "index") or not glossary():
        return
    page, seen = app.builder.get_relative_uri(docname, "glossary"), set()
    forms = "|".join(sorted(map(re.escape, glossary()), key=len, reverse=True))
    pattern = re.compile(rf"(?<![\w-])(?:{forms})(?:s|es)?(?![\w-])", re.IGNORECASE)
    anchors = {form.lower(): anchor for form, anchor in glossary().items()}
    inside = (nodes.reference, nodes.title, nodes.literal, nodes.literal_block, nodes.raw)
    for text in list(doctree.findall(nodes.Text)):
        parents = [text.parent]
        while parents[-1].parent is not None:
            parents.append(parents[-1].parent)
        in_prose = any(isinstance(p, nodes.paragraph) for p in parents)
        if not in_prose or any(isinstance(p, (*inside, nodes.math)) for p in parents):
            continue
        pieces, end, words = [], 0, text.astext()
        for hit in pattern.finditer(words):
            word = hit.group().lower()
            anchor = next(anchors[w] for w in (word, word[:-1], word[:-2]) if w in anchors)
            if anchor not in seen:
                seen.add(anchor)
                link = nodes.reference("", hit.group(), refuri=f"{page}#{anchor}", internal=True, classes=["term"])
                pieces += [nodes.Text(words[end : hit.start()]), link]
                end = hit.end()
        if pieces:
            text.parent.replace(text, [*pieces, nodes.Text(words[end:])])


def setup(app) -> dict:
    app.connect("builder-inited", write_sources)
    app.connect("autodoc-process-docstring", describe)
    app.connect("missing-reference", link_to_torch)
    app.connect("html-page-context", help_screen_readers)
    app.connect("doctree-resolved", link_first_uses)
    return {"version": "1", "parallel_read_safe": True}
