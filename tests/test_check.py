"""The checkers are proven: each takes its solution and another right answer, and names each mistake that it was made for.

The solutions come from the notebooks, the other answers and the mutants from exercises.toml.
"""

import copy
import json
import math
import sys
import tomllib
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from torch import nn

sys.path.insert(0, str(ROOT / "tools"))
import exercises as views
import make_learn
import write_teaching

import nyx.lora
import nyx.model
from nyx import NYX, attention, check, rotary, sampling

CHAPTERS = ("data", "rotary", "attention", "lora", "model", "training", "sampling")
EXERCISES = [e for chapter in CHAPTERS for e in views.exercises(ROOT / "nbs" / f"{chapter}.ipynb")]
CASES = tomllib.loads((ROOT / "tests" / "exercises.toml").read_text(encoding="utf-8"))
MUTANTS = [(e, mutant) for e in EXERCISES for mutant in CASES.get(e.name, {}).get("mutants", [])]
NAMES = {"torch": torch, "nn": nn, "F": F, "np": np, "math": math, "nyx": nyx}

each_exercise = pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: e.name)
each_mutant = pytest.mark.parametrize(
    "exercise, mutant", MUTANTS, ids=[f"{e.name}: {m['mistake']}" for e, m in MUTANTS]
)


@pytest.fixture(autouse=True)
def no_progress(monkeypatch, tmp_path):
    """Nothing is noted, wherever the tests are started."""
    monkeypatch.delenv("NYX_PROGRESS", raising=False)
    monkeypatch.chdir(tmp_path)


def written(code: str, exercise: views.Exercise):
    """What the code of a cell defines, as the exercise's checker takes it."""
    exec(compile(code, exercise.name, "exec"), names := dict(NAMES))
    return names[exercise.argument]


def solution(name: str):
    exercise = next(e for e in EXERCISES if e.name == name)
    return written(exercise.code, exercise)


def mutated(exercise: views.Exercise, mutant: dict) -> str:
    assert exercise.code.count(mutant["old"]) == 1, f"the solution has {mutant['old']!r} not exactly once"
    return exercise.code.replace(mutant["old"], mutant["new"])


def verdict(exercise: views.Exercise, mine) -> check.Verdict:
    return getattr(check, exercise.name)(mine)


@cache
def verdict_on(exercise: views.Exercise, mistake: str) -> check.Verdict:
    """What the checker says to the mutant of that name."""
    mutant = next(m for m in CASES[exercise.name]["mutants"] if m["mistake"] == mistake)
    return verdict(exercise, written(mutated(exercise, mutant), exercise))


# the exercises


def test_there_are_enough_exercises():
    counts = {chapter: sum(e.chapter == chapter for e in EXERCISES) for chapter in CHAPTERS}
    assert len(EXERCISES) >= 18 and min(counts.values()) >= 2, counts
    assert {e.level for e in EXERCISES} == {"warm-up", "medium", "hard"}
    assert [(e.name, e.chapter) for e in EXERCISES] == list(check.EXERCISES.items()), "in the order of the course"
    assert set(CASES) == set(check.EXERCISES)


@each_exercise
def test_an_exercise_is_small(exercise):
    lines = views.stub(exercise.code).splitlines()
    assert len(lines) <= 10 and 1 <= exercise.minutes <= 30
    assert views.STUB in "\n".join(lines) and "BEGIN" not in "\n".join(lines)


# the checkers


@each_exercise
def test_a_checker_takes_the_solution(exercise):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    found = verdict(exercise, written(exercise.code, exercise))
    assert found, found
    assert found.verified and repr(found).startswith(f"✓ {exercise.name} is right.")
    assert torch.equal(torch.rand(2), expected), "a checker leaves the learner's random numbers alone"


@each_exercise
def test_a_checker_takes_another_right_answer(exercise):
    other = CASES[exercise.name]["other"]
    assert other.strip() not in views.without_marks(exercise.code)
    assert (found := verdict(exercise, written(other, exercise))), found


@each_exercise
def test_a_checker_turns_the_stub_away(exercise):
    found = verdict(exercise, written(views.stub(exercise.code), exercise))
    assert not found and "there is nothing to check yet" in found.sentence


@each_mutant
def test_a_checker_names_the_mistake(exercise, mutant):
    found = verdict_on(exercise, mutant["mistake"])
    assert not found, "the mutant was taken for right"
    assert mutant["says"] in found.sentence, found
    assert any(figure.isdigit() for figure in found.sentence) or "`" in found.sentence, "a message has its numbers"


@each_exercise
def test_each_mistake_has_its_own_message(exercise):
    mutants = CASES[exercise.name]["mutants"]
    assert len(mutants) >= 3
    said = [(m, verdict_on(exercise, m["mistake"]).sentence) for m in mutants]
    mixed = [
        (m["mistake"], n["mistake"]) for m in mutants for n, s in said if m["says"] != n["says"] and m["says"] in s
    ]
    assert not mixed
    assert len({m["says"] for m in mutants}) >= 3


JUNK = {
    "None": lambda *a, **k: None,
    "text": lambda *a, **k: "seven",
    "a list": lambda *a, **k: [[1, 2], [3]],
    "an empty tensor": lambda *a, **k: torch.zeros(0),
    "a number": lambda *a, **k: 0.5,
    "no number": lambda *a, **k: math.nan,
    "no numbers": lambda x, *a, **k: torch.full_like(torch.as_tensor(x, dtype=torch.float32), math.nan),
    "an object": lambda *a, **k: object(),
    "an error": lambda *a, **k: {}["x"],
    "no arguments": lambda: 1,
}


@each_exercise
@pytest.mark.parametrize("kind", [*JUNK, "no function"])
def test_junk_is_answered_in_a_sentence(exercise, kind):
    found = verdict(exercise, JUNK.get(kind, 7))
    assert not found and len(found.sentence) > 20


def test_a_change_in_place_is_noticed():
    def turn_pairs(x, cos, sin):
        half = x.shape[-1] // 2
        x[..., :half], x[..., half:] = (
            x[..., :half] * cos - x[..., half:] * sin,
            x[..., half:] * cos + x[..., :half] * sin,
        )
        return x

    found = check.turn_pairs(lambda x, c, s: x.mul_(1.5))
    assert "changed its argument number 1 in place" in found.sentence
    assert "in place" in check.turn_pairs(turn_pairs).sentence


# parts of the learner's own inside NYX

PART_OF = {
    "cut_windows": "window_batch", "frequencies": "rotary_frequencies", "turn_pairs": "apply_rotary", "xpos_stretch": "xpos_scale",
    "grouped_attend": "causal_attention", "low_rank": "LowRank", "gated": "swiglu", "parallel_block": "Block", "rate_at": "learning_rate_at",
    "lion": "Lion", "at_temperature": "apply_temperature", "keep_top_k": "top_k_filter", "keep_top_p": "top_p_filter",
}  # fmt: skip


@pytest.mark.parametrize("name, part", PART_OF.items())
def test_nyx_runs_on_the_learners_part(name, part):
    """A forward pass, a short training run and a sample call it, give what the library gives, and only while it is in force."""
    calls = []
    mine = solution(name)

    def counted(*given, **options):
        calls.append(part)
        return mine(*given, **options)

    expected = check.rehearse()
    with check.using(**{part: counted}):
        assert check.replaced() == {part}
    assert not calls
    found = check.rehearse(**{part: counted})
    assert calls and check.replaced() == set()
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-4, rtol=0)
    assert found.losses == pytest.approx(expected.losses, abs=1e-4)
    assert torch.equal(found.written, expected.written)
    calls.clear()
    check.rehearse()
    assert not calls, "it is off on exit"


def test_all_parts_of_the_learner_together():
    parts = {part: solution(name) for name, part in PART_OF.items()}
    found, expected = check.rehearse(**parts), check.rehearse()
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-4, rtol=0)
    assert torch.equal(found.written, expected.written)


def test_a_part_that_is_right_alone_and_wrong_inside_is_told():
    grouped, gated = solution("grouped_attend"), solution("gated")
    found = check.grouped_attend(lambda *given: grouped(*given).double())
    assert not found and "inside NYX it stopped with RuntimeError" in found.sentence
    found = check.gated(lambda a, gate: gated(a, gate) if a.shape[-1] < 32 else 0 * a)
    assert not found and "inside NYX the logits move by up to" in found.sentence
    slow = check.rate_at(
        lambda update, config: solution("rate_at")(update, config) * (1 if config.num_batches > 2 else 50)
    )
    assert not slow and "inside NYX two updates had losses" in slow.sentence


def test_a_wrong_part_shows():
    still = check.rehearse(apply_rotary=lambda x, cos, sin: x)
    assert (still.logits - check.rehearse().logits).abs().max() > 1e-3


@pytest.mark.parametrize("part", check.PARTS)
def test_a_part_is_replaced_everywhere_and_put_back(part):
    def where(value):
        modules = [m for name, m in list(sys.modules.items()) if name.split(".")[0] == "nyx" and m is not check]
        return {m.__name__ for m in modules if vars(m).get(part) is value}

    own = getattr(check.PARTS[part], part)
    homes = where(own)
    assert homes

    def first(*a): ...

    def second(*a): ...

    with check.using(**{part: first}):
        assert where(first) == homes and not where(own)
        with pytest.raises(RuntimeError, match="inside"), check.using(**{part: second}):
            assert where(second) == homes and check.replaced() == {part}
            raise RuntimeError("inside")
        assert where(first) == homes and check.replaced() == {part}
        with check.using(**{part: first}):
            assert where(first) == homes
        assert where(first) == homes
    assert where(own) == homes and not check.replaced()


def test_using_refuses_nonsense():
    with pytest.raises(ValueError, match="no part 'rotary': choose from"), check.using(rotary=max):
        pass
    with pytest.raises(TypeError, match="swiglu was a int: give a function"), check.using(swiglu=3):
        pass
    with check.using(swiglu=max), pytest.raises(ValueError, match="check outside of `using`"):
        check.gated(max)
    assert not check.replaced()


def test_the_names_of_the_issue_are_parts():
    assert len(check.PARTS) >= 6
    assert attention.apply_rotary is rotary.apply_rotary
    with check.using(apply_rotary=max, top_k_filter=min):
        assert attention.apply_rotary is max and sampling.top_k_filter is min


def test_sampling_goes_through_the_part():
    mini = NYX.from_pretrained(ROOT / "weights" / "nyx-mini")
    prompt = torch.tensor([list(b"def ")])
    greedy = mini.generate(prompt, 5, temperature=0)
    with check.using(
        top_k_filter=lambda logits, k: torch.full_like(logits, -1e9).index_fill(1, torch.tensor([65]), 0.0)
    ):
        assert mini.generate(prompt, 5, temperature=1.0, top_k=3).tolist() == [[65] * 5]
    with check.using(causal_attention=lambda q, k, v, mask=None, dropout=0.0: torch.zeros_like(q)):
        assert not torch.equal(mini.generate(prompt, 5, temperature=0), greedy)
    assert torch.equal(mini.generate(prompt, 5, temperature=0), greedy)


# the curve


def test_a_good_curve_is_in_the_band_and_bad_ones_are_told():
    band = check.read_band(ROOT / "nbs" / "band.json")
    middle = [(low + high) / 2 for low, high in zip(band["low"], band["high"])]
    assert len(middle) == check.UPDATES // check.AVERAGED and len(band["seeds"]) >= 3
    assert check.against_band(middle, band) == ""
    assert check.against_band([middle[0], middle[1] + 3, *middle[2:]], band) == "", "one point is chance"
    assert "does not fall" in check.against_band([8.0] * 30, band)
    assert "too slowly" in check.against_band([m + 0.6 for m in middle[:3]] + [m + 0.6 for m in middle[3:]], band)
    assert "Too good to be true" in check.against_band([*middle[:10], *[0.3] * 20], band)
    assert "by update 20 the loss is nan" in check.against_band([middle[0], math.nan, *middle[2:]], band)


def test_the_learners_loop_is_drawn_over_the_band(capsys):
    pytest.importorskip("matplotlib")
    band, train = ROOT / "nbs" / "band.json", solution("train_on")
    found = check.where_should_i_be(
        train, updates=60, file=band, Lion=solution("lion"), learning_rate_at=solution("rate_at")
    )
    assert found, found
    said = capsys.readouterr().out
    assert "after 0 updates" in said and "after 50 updates" in said and "after 60 updates" in said

    def uphill(model, batches, optimizer, clip):
        for batch in batches:
            loss = -model.loss(batch)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            yield -loss.item()

    assert not (lost := check.where_should_i_be(uphill, updates=30, file=band)) and "band" in lost.sentence
    stub = written(views.stub(next(e.code for e in EXERCISES if e.name == "train_on")), EXERCISES_BY["train_on"])
    assert "nothing to check yet" in check.where_should_i_be(stub, updates=10, file=band).sentence


EXERCISES_BY = {e.name: e for e in EXERCISES}


def test_a_band_that_is_missing_is_named(tmp_path):
    with pytest.raises(ValueError, match="make band"):
        check.read_band(tmp_path / "none.json")


# progress


def test_progress_is_kept_in_one_file(monkeypatch, tmp_path):
    learn = tmp_path / "learn"
    learn.mkdir()
    (learn / ".manifest.json").write_text("{}")
    monkeypatch.chdir(learn)
    assert check.solved() == {} and check.progress_file() == learn / "progress.json"
    assert not check.gated(max)
    assert check.solved() == {}, "only what is right counts"
    assert "Solved: 1 of" in repr(check.gated(solution("gated")))
    assert "Solved: 2 of" in repr(check.frequencies(solution("frequencies")))
    assert set(check.solved()) == {"gated", "frequencies"}
    (learn / "progress.json").unlink()
    assert check.solved() == {}
    (learn / "progress.json").write_text("[1")
    with pytest.raises(ValueError, match="delete it, and progress starts anew"):
        check.solved()
    monkeypatch.chdir(tmp_path)
    assert check.progress_file() is None and "Solved" not in repr(check.gated(solution("gated")))


def test_the_map_fills_in(monkeypatch, tmp_path):
    plot = pytest.importorskip("nyx.plot")
    drawn = []
    monkeypatch.setattr(plot, "show", lambda figure, alt: drawn.append((plot.to_png(figure), alt)))
    monkeypatch.setenv("NYX_PROGRESS", str(tmp_path / "mine.json"))
    check.progress_map()
    check.gated(solution("gated"))
    check.progress_map()
    (before, said), (after, says) = drawn
    assert "model 0 of 4" in said and "model 1 of 4" in says and before != after


# two views of one source


@pytest.mark.parametrize("chapter", [*CHAPTERS, "index"])
def test_the_learners_view_is_the_source_with_stubs(chapter):
    """Put the folded solutions back in place of the stubs, and it is the source again."""
    source = json.loads((ROOT / "nbs" / f"{chapter}.ipynb").read_text(encoding="utf-8"))
    before = copy.deepcopy(source)
    view = views.learners_view(source)
    assert source == before
    solutions = [c for c in view["cells"] if c["id"].endswith("-solution")]
    assert len(solutions) == sum(e.chapter == chapter for e in EXERCISES)
    folded = {c["id"].removesuffix("-solution"): views.source(c) for c in solutions}
    assert len(source["cells"]) + len(solutions) == len(view["cells"])
    for cell, mine in zip(source["cells"], (c for c in view["cells"] if c not in solutions)):
        assert cell["id"] == mine["id"]
        if cell["id"] in folded:
            assert views.source(mine) == views.stub(views.source(cell)) != views.source(cell)
            assert f"```python\n{views.without_marks(views.source(cell))}\n```" in folded[cell["id"]]
        else:
            assert cell["source"] == mine["source"]
        if "check." in views.source(cell) and cell["cell_type"] == "code":
            assert mine["outputs"] == []
        elif cell["id"] not in folded:
            assert cell == mine


def test_learn_gets_stubs_and_keeps_the_learners_work(tmp_path, capsys):
    (tmp_path / "nbs").mkdir()
    (tmp_path / "nbs" / "rotary.ipynb").write_bytes((ROOT / "nbs" / "rotary.ipynb").read_bytes())
    make_learn.main([], tmp_path)
    mine = tmp_path / "learn" / "rotary.ipynb"
    fresh = mine.read_text(encoding="utf-8")
    assert views.BEGIN not in fresh and views.STUB in fresh
    make_learn.main([], tmp_path)
    assert "0 file(s) copied" in capsys.readouterr().out, "the view of an unchanged source is the same"
    mine.write_text(fresh.replace(views.STUB, "return x"), encoding="utf-8")
    make_learn.main([], tmp_path)
    assert "return x" in mine.read_text(encoding="utf-8")
    make_learn.main(["--chapter", "rotary"], tmp_path)
    assert mine.read_text(encoding="utf-8") == fresh
    assert "return x" in (tmp_path / "learn" / "rotary.old-1.ipynb").read_text(encoding="utf-8")


@each_exercise
def test_the_stored_output_says_right(exercise):
    cells = json.loads((ROOT / "nbs" / f"{exercise.chapter}.ipynb").read_text(encoding="utf-8"))["cells"]
    (call,) = [
        c
        for c in cells
        if c["cell_type"] == "code" and f"check.{exercise.name}({exercise.argument})" == views.source(c).split("\n")[-1]
    ]
    said = "".join("".join(o.get("data", {}).get("text/plain", "")) for o in call["outputs"])
    assert said.startswith(f"✓ {exercise.name} is right."), "run `make run NB=...`"


def test_the_teachers_tables_are_up_to_date():
    text = (ROOT / "docs" / "teaching.md").read_text(encoding="utf-8")
    verified = {e.name: verdict(e, written(e.code, e)).verified for e in EXERCISES}
    assert write_teaching.filled(text, verified) == text, "run `make teaching`"


# quizzes


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_quiz_explains_every_option(chapter):
    """Folded details, readable without a kernel: three questions at least, each option with its reason, one of them right."""
    import re

    cells = json.loads((ROOT / "nbs" / f"{chapter}.ipynb").read_text(encoding="utf-8"))["cells"]
    quiz = views.source(cells[-1])
    assert quiz.startswith("## Quiz")
    questions = re.split(r"^\*\*\d+\. ", quiz, flags=re.MULTILINE)[1:]
    assert len(questions) >= 3
    for question in questions:
        options = re.findall(r"<details><summary>(.+?)</summary>(.+?)</details>", question)
        assert len(options) == question.count("<details>") >= 3, question[:60]
        assert all(len(reason.split()) >= 4 for _, reason in options)
        assert sum(reason.startswith("Yes") for _, reason in options) == 1, f"one option is right: {question[:60]}"
