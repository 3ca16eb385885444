"""The house is in order: notebooks clean and readable, the package whole without the tools that wrote it."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from importlib.metadata import distributions
from pathlib import Path

import pytest
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

sys.path.insert(0, str(ROOT / "tools"))
import run_notebooks as runner

NOTEBOOKS = sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if not p.name.startswith((".", "_")))
FORBIDDEN = ("nbdev", "fastcore", "execnb", "ghapi", "IPython", "ipykernel", "ipywidgets", "jupyter", "jupyter_core")
FORBIDDEN += ("jupyterlab", "jupyter_server", "matplotlib", "nbformat", "nbclient", "pytest", "hypothesis", "psutil")
COURSE_ONLY = ("plot", "check")  # these two need the extra nyx[course]

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.relative_to(ROOT / "nbs").as_posix())


def load(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def source(cell: dict) -> str:
    return "".join(cell["source"])


class Images(HTMLParser):
    """The `img` tags of an HTML text, and whether each says in words what it shows."""

    def __init__(self, html: str):
        super().__init__()
        self.bare = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        if tag == "img" and not (dict(attrs).get("alt") or "").strip():
            self.bare.append(self.get_starttag_text()[:80])


def images_without_words(nb: dict) -> list[str]:
    """Where a notebook shows a picture without alt text, in Markdown, in HTML or as an output."""
    bare = []
    for number, cell in enumerate(nb["cells"]):
        if cell["cell_type"] == "markdown":
            bare += [f"cell {number}: {hit}" for hit in re.findall(r"!\[\s*\]\([^)]{0,60}", source(cell))]
            bare += [f"cell {number}: {hit}" for hit in Images(source(cell)).bare]
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            html = "".join(data.get("text/html", ""))
            bare += [f"cell {number}: {hit}" for hit in Images(html).bare]
            pictures = [kind for kind in data if kind.startswith("image/")]
            words = output.get("metadata", {})
            said = [words.get("alt"), *[(words.get(kind) or {}).get("alt") for kind in pictures]]
            plain = "".join(data.get("text/plain", ""))
            if pictures and not any(said) and (not plain.strip() or plain.lstrip().startswith("<")):
                bare.append(f"cell {number}: an output of kind {pictures[0]} beside {plain[:40]!r}")
    return bare


def test_there_are_notebooks():
    assert len(NOTEBOOKS) >= 3


@each_notebook
def test_a_notebook_is_clean(path):
    text = path.read_text(encoding="utf-8")
    assert text == runner.cleaned(text), "run `make export` (or `make run NB=...`) and commit the result"


@each_notebook
def test_a_notebook_opens_with_its_title(path):
    first = load(path)["cells"][0]
    assert first["cell_type"] == "markdown"
    assert re.match(r"# \S", source(first)), f"the first cell opens with {source(first)[:40]!r}, not with a title"
    others = [c for c in load(path)["cells"][1:] if c["cell_type"] == "markdown" and re.match(r"# \S", source(c))]
    assert not others, f"one title is enough: {source(others[0])[:40]!r}"


@each_notebook
def test_a_notebook_stores_no_error(path):
    for number, cell in enumerate(load(path)["cells"]):
        meant = "raises-exception" in cell["metadata"].get("tags", [])
        errors = [o for o in cell.get("outputs", []) if o["output_type"] == "error"]
        assert meant or not errors, f"cell {number} stores an error: {errors[0]['ename']}: {errors[0]['evalue'][:200]}"


@each_notebook
def test_a_notebook_names_no_folder_of_this_machine(path):
    paths = runner.machine_paths() | {"/home": "a home folder", "/Users": "a home folder", "/root/": "a home folder"}
    assert (sentence := runner.find_machine_path(load(path), paths)) is None, sentence


@each_notebook
def test_a_notebook_was_executed(path):
    """Cells that end in a bare expression, `print` or `plt.show` show something: otherwise nobody ran the notebook."""
    unrun = []
    for number, cell in enumerate(load(path)["cells"]):
        text = re.sub(r"^\s*[%!].*$", "", source(cell), flags=re.MULTILINE)
        tags = cell["metadata"].get("tags", [])
        if cell["cell_type"] != "code" or "skip-execution" in tags or re.search(r"^#\|\s*eval:\s*false", text, re.M):
            continue
        last = (ast.parse(text).body or [None])[-1]
        prints = isinstance(last, ast.Expr) and isinstance(last.value, ast.Call)
        named = prints and isinstance(last.value.func, ast.Name) and last.value.func.id == "print"
        bare = isinstance(last, ast.Expr) and isinstance(last.value, (ast.Name, ast.Tuple, ast.Dict, ast.List))
        quiet = text.rstrip().endswith(";") or "#| hide_output" in text or "%%" in source(cell)
        if (named or bare) and not quiet and not cell["outputs"]:
            unrun.append(number)
    assert not unrun, f"cells {unrun} should show something and show nothing: run `make run NB=...`"


@each_notebook
def test_pictures_have_words(path):
    assert not (bare := images_without_words(load(path))), f"add alt text: {bare[:3]}"


def test_the_check_for_words_can_fail():
    picture = {
        "output_type": "display_data",
        "data": {"image/png": "", "text/plain": "<Figure size 1x1>"},
        "metadata": {},
    }
    told = picture | {"metadata": {"alt": "a falling curve"}}
    cells = [{"cell_type": "markdown", "source": "![](x.png) ![words](y.png) <img src='z.png'>"}]
    cells += [{"cell_type": "code", "source": "", "outputs": [picture, told]}]
    assert len(images_without_words({"cells": cells})) == 3


def test_the_promises_name_tests_that_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8").partition("## What is promised")[2].partition("\n## ")[0]
    rows = [row for row in text.splitlines() if row.startswith("| ")][1:]
    assert len(rows) > 10
    for row in rows:
        named = re.findall(r"`(\w+\.py)::(\w+)`", row)
        assert named, f"no test is named in: {row}"
        for file, test in named:
            assert re.search(rf"^def {test}\(", (ROOT / "tests" / file).read_text(), re.M), (
                f"there is no {file}::{test}"
            )


def run_python(code: str, env: dict[str, str], cwd: Path, *flags: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *flags, "-c", code], env=env, cwd=cwd, capture_output=True, text=True, timeout=300
    )


BLOCKER = f"""
import importlib.abc, pkgutil, sys
class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {FORBIDDEN!r}:
            raise ModuleNotFoundError(f"{{name}} is blocked: nyx must do without it", name=name)
sys.meta_path.insert(0, Blocked())
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The folder into which a wheel of this tree was installed, alone."""
    folder = tmp_path_factory.mktemp("wheel")
    tree = folder / "tree"
    tree.mkdir()
    for name in ("nyx", "setup.py", "settings.ini", "pyproject.toml", "MANIFEST.in", "LICENSE", "README.md"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif (ROOT / name).exists():
            shutil.copy(ROOT / name, tree / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    quiet = {"capture_output": True, "text": True, "check": True, "env": os.environ | {"PIP_NO_INDEX": "1"}}
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(tree)], **quiet)
    (wheel,) = folder.glob("nyx-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(folder / "site"), str(wheel)], **quiet)
    return folder / "site"


def test_a_wheel_holds_the_package_and_nothing_else(installed):
    held = {p.relative_to(installed / "nyx").as_posix() for p in (installed / "nyx").rglob("*") if p.is_file()}
    held = {name for name in held if "__pycache__" not in name}
    ours = {p.name for p in (ROOT / "nyx").iterdir() if p.suffix == ".py"} | {"py.typed"}
    assert held == ours
    top = {p.name for p in installed.iterdir() if not p.name.endswith(".dist-info")}
    assert top == {"nyx"}, f"the wheel installs more than nyx: {sorted(top)}"
    (info,) = installed.glob("nyx-*.dist-info")
    metadata = (info / "METADATA").read_text(encoding="utf-8")
    assert "License-Expression: MIT" in metadata
    assert "Requires-Python: >=3.11" in metadata
    assert "nyx = nyx._modidx:d" in (info / "entry_points.txt").read_text()


def test_the_package_needs_none_of_the_tools_that_wrote_it(installed, clean_env, tmp_path):
    env = clean_env | {"PYTHONPATH": str(installed), "NYX_TYPECHECK": ""}
    modules = [f"nyx.{p.stem}" for p in sorted((installed / "nyx").glob("[a-z]*.py")) if p.stem not in COURSE_ONLY]
    code = (
        BLOCKER + f"import importlib, nyx\nfor name in {modules!r}: importlib.import_module(name)\nprint(nyx.__file__)"
    )
    done = run_python(code, env, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert Path(done.stdout.strip()).is_relative_to(installed)


def test_the_blocker_blocks(clean_env, tmp_path):
    done = run_python(BLOCKER + "import matplotlib", clean_env, tmp_path)
    assert done.returncode == 1 and "matplotlib is blocked" in done.stderr


def test_importing_nyx_pays_for_nothing_it_does_not_use(installed, clean_env, tmp_path):
    env = clean_env | {"PYTHONPATH": str(installed)}
    code = """
import json, sys, nyx
hooked = any("jaxtyping" in type(finder).__module__ for finder in sys.meta_path)
print(json.dumps([hooked, [m for m in ("matplotlib", "tiktoken", "IPython", "accelerate") if m in sys.modules]]))
"""
    assert json.loads(run_python(code, env | {"NYX_TYPECHECK": ""}, tmp_path).stdout)[0] is False
    assert json.loads(run_python(code, env | {"NYX_TYPECHECK": "1"}, tmp_path).stdout)[0] is True
    loaded = json.loads(run_python(code, env | {"NYX_TYPECHECK": ""}, tmp_path).stdout)[1]
    assert not {"matplotlib", "tiktoken", "IPython"} & set(loaded)


def test_the_tests_have_no_network(clean_env, tmp_path):
    done = run_python("import socket; socket.create_connection(('192.0.2.1', 80), timeout=2)", clean_env, tmp_path)
    assert "the tests run without a network" in done.stderr


def test_requirements_agree_with_settings():
    """What `pip install .` asks for is pinned in requirements.txt, within the range that it asks for."""
    from configparser import ConfigParser

    settings = ConfigParser(delimiters=["="], interpolation=None)
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    fields = ("requirements", "course_requirements", "dev_requirements")
    asked = [Requirement(r) for field in fields for r in settings["DEFAULT"][field].split()]
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if "==" in line)
    pins = {canonicalize_name(name): version for name, version in pins.items()}
    for requirement in asked:
        assert pins[canonicalize_name(requirement.name)] in requirement.specifier, f"{requirement} is not met"


def test_no_file_names_a_package_registry():
    """Where packages come from is the user's pip's business."""
    hosts = ["".join(parts) for parts in (("pypi", ".org"), ("python", "hosted.org"), ("npm", "js.org"))]
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True).stdout.split("\0")
    texts = [ROOT / f for f in files if f and (ROOT / f).is_file() and (ROOT / f).stat().st_size < 2**21]
    naming = [f"{p.name}: {h}" for p in texts for h in hosts if h.encode() in p.read_bytes()]
    assert not naming


def test_the_pins_accept_every_python_that_the_readme_names():
    pins = {}
    for path in [*ROOT.glob("requirements*.txt"), ROOT / "constraints.txt"]:
        pins |= dict(re.findall(r"^([\w.-]+)==(\S+)", path.read_text(encoding="utf-8"), re.MULTILINE))
    installed = {canonicalize_name(d.name): d for d in distributions()}
    here = {name: installed[canonicalize_name(name)] for name in pins if canonicalize_name(name) in installed}
    assert len(here) > 100
    for name, distribution in here.items():
        accepted = SpecifierSet(distribution.metadata.get("Requires-Python") or "")
        for python in ("3.11.0", "3.12.0", "3.13.0"):  # Debian 12 has 3.11.2
            assert accepted.contains(python), (name, pins[name], str(accepted))
