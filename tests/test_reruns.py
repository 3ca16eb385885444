"""Lessons as people run them: from another working directory, and each cell twice."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from hypothesis import settings
from test_tools import write_notebook

sys.path.insert(0, str(ROOT / "tools"))
import exercises
import rerun_notebooks as again

LESSONS = again.lessons()
AT_NIGHT = settings.get_current_profile_name() == "nightly"


def when(lesson: Path, quick: bool):
    """A parameter: quick lessons in every run and at night too, others at night alone."""
    return pytest.param(lesson, id=lesson.stem, marks=() if quick and not AT_NIGHT else pytest.mark.nightly)


@pytest.fixture
def rerun(clean_env, tmp_path):
    """Run tools/rerun_notebooks.py on a notebook from a folder that has nothing to do with the course."""

    def run(path: Path, timeout: float) -> subprocess.CompletedProcess:
        command = [sys.executable, str(ROOT / "tools" / "rerun_notebooks.py"), "--threads", "1", str(path)]
        options = {"capture_output": True, "text": True, "encoding": "utf-8", "errors": "replace"}
        return subprocess.run(command, cwd=tmp_path, env=clean_env, timeout=timeout, **options)

    return run


def test_quick_lessons_and_slow_ones_are_all_lessons():
    assert {path.name for path in LESSONS} == {path.name for path in (ROOT / "nbs").glob("[!._]*.ipynb")}
    assert any(map(again.is_quick, LESSONS)) and not all(map(again.is_quick, LESSONS))
    assert not again.is_quick(ROOT / "nbs" / "never-measured.ipynb")


@pytest.mark.parametrize("lesson", [when(p, again.is_quick(p)) for p in LESSONS])
def test_a_lesson_runs_elsewhere_and_each_cell_twice(lesson, rerun):
    before = lesson.read_bytes()
    done = rerun(lesson, timeout=3000)
    assert done.returncode == 0, done.stdout + done.stderr
    assert ", 0 errors, " in done.stdout and lesson.read_bytes() == before


@pytest.mark.parametrize("lesson", [when(p, False) for p in LESSONS if exercises.exercises(p)])
def test_a_learners_copy_with_nothing_solved_runs_elsewhere_and_each_cell_twice(lesson, rerun, tmp_path):
    copy = tmp_path / "learn" / lesson.name
    copy.parent.mkdir()
    copy.write_bytes(exercises.learners_bytes(lesson))
    done = rerun(copy, timeout=3000)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_breaks_elsewhere_or_the_second_time_is_reported(tmp_path, rerun):
    cells = [
        "import os; from pathlib import Path; os.environ['NYX_TYPECHECK'] = '1'",
        "assert Path.cwd() != Path.home() and not list(Path.cwd().iterdir()), 'begins in an empty folder'",
        "raise ValueError('at once')",
        "items = [1]",
        "items.remove(1)",
        "Path('left.txt').write_text('x')",
        "#| eval: false\nraise SystemExit",
        "#| hide\n#| slow\nraise SystemExit",
        "#| notest\nraise SystemExit",
        ("raise SystemExit", ["skip-execution"]),
    ]
    path = write_notebook(tmp_path / "broken é.ipynb", *cells)
    before = path.read_bytes()
    done = rerun(path, timeout=600)
    assert done.returncode == 1 and path.read_bytes() == before
    assert "6 cells, 4 errors" in done.stdout
    assert [line.strip() for line in done.stdout.splitlines()[1:]] == [
        "cell 2 (cell2), first time: ValueError: at once",
        "cell 2 (cell2), second time: ValueError: at once",
        "cell 4 (cell4), second time: ValueError: list.remove(x): x not in list",
        "left in the working directory: left.txt",
    ]


def test_a_kernel_that_dies_is_an_error(tmp_path, rerun):
    done = rerun(write_notebook(tmp_path / "dies.ipynb", "x = 1", "import os; os._exit(3)", "x"), timeout=600)
    assert done.returncode == 1 and "2 cells, 1 errors" in done.stdout and "cell 1 (cell1)" in done.stdout


def test_a_class_of_the_notebook_may_be_defined_again_at_any_time(tmp_path, rerun):
    """With the shape checks on: in its own methods, in later functions, alone, in a union, in a list, as a string."""
    defined = (
        "from dataclasses import dataclass\nfrom typing import Self\n@dataclass\nclass Point:\n    x: int = 0\n"
        "    def moved(self) -> 'Point':\n        return Point(self.x + 1)\n"
        "    def itself(self) -> Self:\n        return self\n"
        "    @classmethod\n    def at(cls, x: int) -> 'Point':\n        return cls(x)\n"
        "Point.at(1).moved().itself()"
    )
    cells = [
        "#| hide\nimport os\nos.environ['NYX_TYPECHECK'] = '1'",
        "%load_ext jaxtyping\n%jaxtyping.typechecker nyx.shapes.checked",
        "def before(p: 'Point') -> 'Point':\n    return p.moved()",
        defined,
        "def plain(p: Point, *, also: Point | None = None, more: list[Point] = []) -> Point:\n    return before(p)",
        "plain(Point(), also=Point(), more=[Point()])",
        defined,
        "plain(Point(), also=Point(), more=[Point()])",
        "from jaxtyping import Float, TypeCheckError\nimport torch",
        "def row(p: Point, x: Float[torch.Tensor, 'n']) -> Point:\n    return p",
        "row(Point(), torch.ones(2))\n"
        "try:\n    row(Point(), torch.ones(2, 2))\n"
        "except TypeCheckError:\n    pass\nelse:\n    raise AssertionError('shapes are no longer checked')",
    ]
    done = rerun(write_notebook(tmp_path / "classes.ipynb", *cells), timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr


def test_files_of_the_course_are_found_in_a_clone_with_spaces_and_accents_in_its_path(tmp_path, clean_env):
    """Imported from a working directory elsewhere: the files are those of this clone, and not of another."""
    clone, parts = tmp_path / "my clones" / "réseau", ("nyx", "tools", "weights/nyx-mini")
    for name in parts:
        shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
    (clone / "nbs").mkdir()
    for name in ("settings.ini", "nbs/times.json", "nbs/band.json"):
        shutil.copy(ROOT / name, clone / name)
    cells = [
        "from nyx import NYX, check, plot\nfrom nyx.course import course_file",
        f"assert course_file('weights/nyx-mini').parent.samefile({str(clone / 'weights')!r})",
        "mini = NYX.from_pretrained(course_file('weights/nyx-mini'))",
        "check.read_band(), plot.measured('index')",
    ]
    lesson = write_notebook(clone / "nbs" / "lesson.ipynb", *cells)
    command = [sys.executable, str(clone / "tools" / "rerun_notebooks.py"), str(lesson)]
    options = {"capture_output": True, "text": True, "encoding": "utf-8", "errors": "replace"}
    done = subprocess.run(command, cwd=tmp_path, env=clean_env, timeout=600, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("nbs/lesson.ipynb: 4 cells, 0 errors")
