"""The exercises in the notebooks, and the two views of them.

A notebook in nbs/ holds an exercise as three cells: a text that begins with `### Your turn`, the code with its solution
between nbgrader's marks, and a call of its checker. The learner's view has a stub in place of the solution, no outputs of
checkers, and the solution folded away below them.
"""

import copy
import json
import re
from dataclasses import dataclass
from pathlib import Path

BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
STUB = "raise NotImplementedError  # your code here"
TEXT = re.compile(
    r"### Your turn: (?P<title>.+)\n\n\*(?P<level>warm-up|medium|hard), (?P<minutes>\d+) minutes\* · (?P<task>.+?)\n\n"
    r"<details><summary>Hint</summary>(?P<hint>.+)</details>",
    re.DOTALL,
)
CALL = re.compile(r"^check\.(?P<name>\w+)\((?P<argument>\w+)\)$", re.MULTILINE)


@dataclass(frozen=True)
class Exercise:
    """An exercise as a notebook has it."""

    chapter: str
    name: str  # of its checker
    argument: str  # what the learner writes: a function or a class
    title: str
    level: str
    minutes: int
    hint: str
    code: str  # with the marks


def source(cell: dict) -> str:
    """The text of a cell."""
    return "".join(cell["source"])


def without_marks(code: str) -> str:
    """The solution as it is read and run, without marks and directives."""
    lines = (line for line in code.splitlines() if line.strip() not in (BEGIN, END))
    return "\n".join(line for line in lines if not line.startswith("#|"))


def stub(code: str) -> str:
    """The code with a line to fill in where the solution was."""
    cleared = re.sub(rf"^( *){BEGIN}$.*?^ *{END}$", rf"\1{STUB}", code, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"^#\|.*\n", "", cleared, flags=re.MULTILINE)  # the docs fold the solution, nobody folds the stub


def exercises(notebook: Path) -> list[Exercise]:
    """The exercises of a chapter, in their order. Raises ValueError for one that lacks a part."""
    cells, found = json.loads(notebook.read_text(encoding="utf-8"))["cells"], []
    for before, cell, after in zip([None, *cells], cells, [*cells[1:], None]):
        if BEGIN not in source(cell):
            continue
        text = TEXT.fullmatch(source(before)) if before else None
        call = CALL.search(source(after)) if after else None
        if not (text and call):
            raise ValueError(
                f"{notebook.name}: an exercise needs its text before and its checker after it: {source(cell)[:60]!r}"
            )
        facts = {"title": text["title"], "level": text["level"], "minutes": int(text["minutes"]), "hint": text["hint"]}
        found.append(Exercise(notebook.stem, call["name"], call["argument"], code=source(cell), **facts))
    return found


def folded(code: str, number: str) -> dict:
    """A cell that shows the solution when it is unfolded."""
    text = f"<details><summary>Solution</summary>\n\n```python\n{without_marks(code)}\n```\n\n</details>"
    return {
        "cell_type": "markdown",
        "id": f"{number}-solution",
        "metadata": {},
        "source": text.splitlines(keepends=True),
    }


def learners_view(notebook: dict) -> dict:
    """The notebook as a learner gets it: stubs, nothing checked yet, each solution folded below its checker."""
    view, waiting = copy.deepcopy(notebook), None
    view["cells"] = []
    for cell in copy.deepcopy(notebook["cells"]):
        text = source(cell)
        if cell["cell_type"] == "code" and re.search(r"\bcheck\.\w+\(", text):
            cell["outputs"] = []
        if BEGIN in text:
            cell |= {"source": stub(text).splitlines(keepends=True), "outputs": []}
            waiting = folded(text, cell["id"])
        view["cells"].append(cell)
        if waiting and CALL.search(text):
            view["cells"].append(waiting)
            waiting = None
    return view


def learners_bytes(path: Path) -> bytes:
    """What goes into learn/ for a file of nbs/: notebooks with exercises in the learner's view, the rest as it is."""
    raw = path.read_bytes()
    if path.suffix != ".ipynb" or BEGIN.encode() not in raw:
        return raw
    view = learners_view(json.loads(raw))
    return (json.dumps(view, indent=1, ensure_ascii=False) + "\n").encode()
