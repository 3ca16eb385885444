"""Times come from the file that the runner wrote, and from nowhere else."""

import json
import re

import pytest
from conftest import ROOT

from nyx import plot

TIMES = json.loads((ROOT / "nbs" / "times.json").read_text(encoding="utf-8"))["notebooks"]
LESSONS = sorted(p.stem for p in (ROOT / "nbs").glob("*.ipynb") if not p.name.startswith((".", "_")))


def cells(lesson: str) -> list[dict]:
    return json.loads((ROOT / "nbs" / f"{lesson}.ipynb").read_text(encoding="utf-8"))["cells"]


@pytest.mark.parametrize("lesson", LESSONS)
def test_a_lesson_says_how_long_it_takes_as_measured(lesson, capsys):
    """Its stored output is what `plot.measured` says today; if not, run `make notebooks` and commit."""
    calls = [(re.fullmatch(r"plot\.measured\((.+)\)", "".join(c["source"]).strip()), c) for c in cells(lesson)]
    calls = [(call[1], cell) for call, cell in calls if call]
    assert len(calls) == 1, "one cell says plot.measured(...)"
    names = re.findall(r'"([\w/]+)"', calls[0][0])
    assert names and (lesson == "index" or names == [lesson])
    plot.measured(*names, file=str(ROOT / "nbs" / "times.json"))
    said = capsys.readouterr().out
    assert "not measured" not in said, said
    assert "".join(calls[0][1]["outputs"][0]["text"]) == said


def test_the_readme_names_the_measured_time():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for seconds, lesson in re.findall(r"the whole notebook in (\d+) s \| `make run NB=nbs/(\w+)\.ipynb`", text):
        assert float(seconds) == TIMES[lesson]["seconds"], f"README.md says {seconds} s for {lesson}"
    assert "the whole notebook in" in text, "this test reads a sentence that is no longer there"
