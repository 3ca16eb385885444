"""The small programs in tools/, each on a notebook made for the purpose."""

import json
import os
import shutil
import sys
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import check_sync
import make_learn
import run_notebooks as runner


def write_notebook(path: Path, *cells, **metadata) -> Path:
    """A notebook of the given cells: text is code, a pair is code with tags."""
    nb = nbformat.v4.new_notebook(metadata=metadata)
    for number, cell in enumerate(cells):
        code, tags = (cell, []) if isinstance(cell, str) else cell
        made = nbformat.v4.new_code_cell(code, metadata={"tags": tags} if tags else {})
        made.id = f"cell{number}"
        nb.cells.append(made)
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nb, path)
    return path


def outputs(path: Path) -> list[list[dict]]:
    return [cell["outputs"] for cell in json.loads(path.read_text())["cells"]]


# the runner


@pytest.fixture(scope="module")
def widget_notebook(tmp_path_factory) -> Path:
    """A notebook with two widgets, streams, a picture, and cells that are not to be run; executed once."""
    folder = tmp_path_factory.mktemp("widgets")
    cells = [
        "import os, sys, time, ipywidgets as w\nfrom pathlib import Path",
        "w.HBox([w.IntSlider(3, description='knob'), w.Label('seen')])",
        "for i in range(3):\n    print(i, flush=True); time.sleep(0.05)\nprint('10 %\\r20 %\\r30 %')",
        "#| eval: false\nraise SystemExit('this cell must not run')",
        ("raise SystemExit('nor this one')", ["skip-execution"]),
        "Path.cwd().name, os.environ['OMP_NUM_THREADS']",
    ]
    path = write_notebook(folder / "nb.ipynb", *cells, kernelspec={"name": "python3", "display_name": "My machine"})
    nb = nbformat.read(path, 4)
    nb.cells[4].outputs = [nbformat.v4.new_output("stream", text="kept\n")]
    nbformat.write(nb, path)
    os.environ["OMP_NUM_THREADS"] = "1"
    runner.run_notebook(path, paths={})
    return path


def test_a_second_run_changes_nothing(widget_notebook):
    first = widget_notebook.read_text()
    runner.run_notebook(widget_notebook, paths={})
    assert widget_notebook.read_text() == first


def test_widgets_are_numbered_and_keep_their_state(widget_notebook):
    nb = json.loads(widget_notebook.read_text())
    state = nb["metadata"]["widgets"][runner.WIDGETS]["state"]
    assert sorted(state) == [f"{n:032x}" for n in range(len(state))] and len(state) >= 5
    (shown,) = outputs(widget_notebook)[1]
    box = state[shown["data"][runner.WIDGET_VIEW]["model_id"]]
    slider, label = (state[child.removeprefix("IPY_MODEL_")]["state"] for child in box["state"]["children"])
    assert (slider["value"], slider["description"], label["value"]) == (3, "knob", "seen")


def test_skipped_cells_keep_their_outputs_and_the_rest_is_run(widget_notebook):
    _, _, stream, eval_false, tagged, last = outputs(widget_notebook)
    assert ["".join(o["text"]) for o in stream] == ["0\n1\n2\n30 %\n"]
    assert eval_false == [] and "".join(tagged[0]["text"]) == "kept\n"
    assert "".join(last[0]["data"]["text/plain"]) == f"({widget_notebook.parent.name!r}, '1')"


def test_housekeeping_cells_are_folded(tmp_path):
    path = write_notebook(tmp_path / "nb.ipynb", "#| default_exp x", "#| hide\nimport os", "#| export\nx = 1", "x")
    runner.run_notebook(path, paths={})
    cells = json.loads(path.read_text())["cells"]
    assert [cell["metadata"].get("jupyter") for cell in cells] == [{"source_hidden": True}] * 2 + [None] * 2


def test_metadata_names_no_machine_and_no_time(widget_notebook):
    nb = json.loads(widget_notebook.read_text())
    assert nb["metadata"]["kernelspec"] == {"display_name": "python3", "language": "python", "name": "python3"}
    assert set(nb["metadata"]) == {"kernelspec", "widgets"}
    assert all(set(cell["metadata"]) <= {"tags", "jupyter"} and cell["execution_count"] is None for cell in nb["cells"])
    assert runner.cleaned(widget_notebook.read_text()) == widget_notebook.read_text()


def test_a_skipped_cell_keeps_the_state_of_its_widget(widget_notebook, tmp_path):
    path = tmp_path / "nb.ipynb"
    nb = nbformat.read(widget_notebook, 4)
    nb.cells[1].metadata["tags"] = ["skip-execution"]
    nb.cells.append(nbformat.v4.new_code_cell("w.Text('new')"))
    nbformat.write(nb, path)
    runner.run_notebook(path, paths={})
    state = json.loads(path.read_text())["metadata"]["widgets"][runner.WIDGETS]["state"]
    values = {model["state"].get("value") for model in state.values()}
    assert {3, "seen", "new"} <= values
    assert runner.named_widgets(outputs(path)) <= state.keys()
    first = path.read_text()
    runner.run_notebook(path, paths={})
    assert path.read_text() == first


@pytest.mark.parametrize("code", ["print(f'{1/0}')", "import os; os._exit(3)"], ids=["error", "dead kernel"])
def test_a_failed_run_writes_nothing(tmp_path, code):
    path = write_notebook(tmp_path / "nb.ipynb", "print('first')", code)
    before = path.read_bytes()
    with pytest.raises(runner.Refused, match="nb.ipynb"):
        runner.run_notebook(path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_an_output_that_names_this_machine_is_refused(tmp_path):
    path = write_notebook(tmp_path / "nb.ipynb", "from pathlib import Path", "Path.home() / 'notes'")
    before = path.read_bytes()
    with pytest.raises(runner.Refused, match="cell 1 stores .* of this machine"):
        runner.run_notebook(path)
    assert path.read_bytes() == before


def test_words_that_only_look_like_a_path_pass():
    cell = {"outputs": [{"output_type": "stream", "text": "the srv/courseware and /srv/course-notes"}]}
    assert runner.find_machine_path({"cells": [cell], "metadata": {}}, {"/srv/course": "the repository"}) is None
    cell["outputs"][0]["text"] = "File /srv/course/nyx/model.py"
    assert runner.find_machine_path({"cells": [cell], "metadata": {}}, {"/srv/course": "the repository"})


def test_times_are_merged_into_the_file(tmp_path):
    file = tmp_path / "times.json"
    runner.record_times({"b": {"seconds": 2.0, "peak_mib": 300}}, file)
    runner.record_times({"a": {"seconds": 1.0, "peak_mib": 100}}, file)
    times = json.loads(file.read_text())
    assert list(times["notebooks"]) == ["a", "b"] and times["notebooks"]["b"]["peak_mib"] == 300
    assert times["machine"]["cores"] >= 1


# the sync check


@pytest.fixture
def project(tmp_path) -> Path:
    """A small nbdev project, in sync."""
    shutil.copy(ROOT / "settings.ini", tmp_path)
    cells = ["#| default_exp sums", "#| export\ndef double(x: int) -> int:\n    return 2 * x"]
    write_notebook(tmp_path / "nbs" / "sums.ipynb", *cells)
    out = tmp_path / "out"
    out.mkdir()
    shutil.copytree(check_sync.export(tmp_path, out), tmp_path / "nyx")
    (tmp_path / "nyx" / "py.typed").touch()
    return tmp_path


def test_a_project_in_sync_passes_even_after_a_notebook_was_run(project, capsys):
    path = project / "nbs" / "sums.ipynb"
    nb = nbformat.read(path, 4)
    nb.cells[1].outputs = [nbformat.v4.new_output("stream", text="a learner ran this")]
    nbformat.write(nb, path)
    assert check_sync.main(project) == 0
    assert "In sync" in capsys.readouterr().out


@pytest.mark.parametrize(
    "damage, said", [("edit", "return 3 * x"), ("delete", "missing"), ("add", "no notebook exports")]
)
def test_every_way_out_of_sync_is_found(project, damage, said, capsys):
    module = project / "nyx" / "sums.py"
    if damage == "edit":
        module.write_text(module.read_text().replace("2 * x", "3 * x"))
    elif damage == "delete":
        module.unlink()
    else:
        (project / "nyx" / "more.py").write_text("x = 1\n")
    before = {p: p.read_bytes() for p in project.rglob("*") if p.is_file() and "out" not in p.parts}
    assert check_sync.main(project) == 1
    printed = capsys.readouterr().out
    assert said in printed and "make export" in printed
    assert {p: p.read_bytes() for p in project.rglob("*") if p.is_file() and "out" not in p.parts} == before


# the learner's copy


@pytest.fixture
def course(tmp_path) -> Path:
    """A course of two chapters and a library notebook, copied once."""
    (tmp_path / "nbs" / "lib").mkdir(parents=True)
    (tmp_path / "nbs" / ".ipynb_checkpoints").mkdir()
    for name in ("rotary", "model", "lib/plot", ".ipynb_checkpoints/rotary-checkpoint"):
        (tmp_path / "nbs" / f"{name}.ipynb").write_text(f"{name} 1")
    assert make_learn.main([], tmp_path) == 0
    return tmp_path


def learn_files(course: Path) -> dict[str, str]:
    found = (p for p in (course / "learn").rglob("*.ipynb"))
    return {p.relative_to(course / "learn").as_posix(): p.read_text() for p in found}


def test_the_copy_is_made_and_refreshed(course):
    assert learn_files(course) == {f"{n}.ipynb": f"{n} 1" for n in ("rotary", "model", "lib/plot")}
    (course / "nbs" / "rotary.ipynb").write_text("rotary 2")
    (course / "learn" / "model.ipynb").unlink()
    make_learn.main([], course)
    assert learn_files(course) == {"rotary.ipynb": "rotary 2", "model.ipynb": "model 1", "lib/plot.ipynb": "lib/plot 1"}


def test_what_the_learner_changed_is_never_overwritten(course, capsys):
    mine, source = course / "learn" / "rotary.ipynb", course / "nbs" / "rotary.ipynb"
    mine.write_text("my notes")
    make_learn.main([], course)
    assert "new" not in str(sorted(learn_files(course))), "nothing is offered while the course stands still"
    source.write_text("rotary 2")
    make_learn.main([], course)
    assert "rotary.new.ipynb" in capsys.readouterr().out
    assert mine.read_text() == "my notes" and learn_files(course)["rotary.new.ipynb"] == "rotary 2"
    (course / "learn" / "rotary.new.ipynb").unlink()
    make_learn.main([], course)
    assert "rotary.new.ipynb" not in learn_files(course), "one version is offered once"
    source.write_text("rotary 3")
    make_learn.main([], course)
    source.write_text("rotary 4")
    make_learn.main([], course)
    assert learn_files(course)["rotary.new.ipynb"] == "rotary 4", "an offer that nobody touched is renewed"
    (course / "learn" / "rotary.new.ipynb").write_text("more notes")
    source.write_text("rotary 5")
    make_learn.main([], course)
    files = learn_files(course)
    assert (files["rotary.new.ipynb"], files["rotary.new-1.ipynb"]) == ("more notes", "rotary 5")
    assert mine.read_text() == "my notes"


@pytest.mark.parametrize("record", ["", "[]", '{"rotary.ipynb": 3}', None], ids=["empty", "list", "odd", "gone"])
def test_a_lost_record_costs_no_work(course, record):
    manifest = course / "learn" / make_learn.MANIFEST
    manifest.unlink() if record is None else manifest.write_text(record)
    (course / "learn" / "rotary.ipynb").write_text("my notes")
    make_learn.main([], course)
    files = learn_files(course)
    assert (files["rotary.ipynb"], files["rotary.new.ipynb"], files["model.ipynb"]) == (
        "my notes",
        "rotary 1",
        "model 1",
    )


def test_a_chapter_is_renewed_and_the_old_one_kept(course, capsys):
    mine = course / "learn" / "rotary.ipynb"
    for text in ("first try", "second try"):
        mine.write_text(text)
        make_learn.main(["--chapter", "rotary"], course)
    files = learn_files(course)
    assert [files[f"rotary{x}.ipynb"] for x in ("", ".old-1", ".old-2")] == ["rotary 1", "first try", "second try"]
    assert "rotary.old-2.ipynb" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="the chapters are model, rotary"):
        make_learn.main(["--chapter", "rotari"], course)
