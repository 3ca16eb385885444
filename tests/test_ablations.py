"""The recorder of the ablations: what it runs and in which order, going on after a stop, and a file that fits its code."""

import json
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import record_ablations as recorder

NOTEBOOK, FILE = ROOT / "nbs" / "ablations.ipynb", ROOT / "nbs" / "ablations.json"


@pytest.fixture(scope="module")
def names() -> dict:
    """What the marked cells define."""
    exec(recorder.marked_code(NOTEBOOK, "record", "idea"), made := {"__name__": "ablations"})
    return made


def walk(names: dict, bits) -> list[dict]:
    """All runs in their order, when `bits(idea, optimizer, rate)` is what each costs."""
    runs = []
    while wanted := recorder.next_run(runs, names):
        run = dict(zip(("idea", "optimizer", "rate", "seed"), wanted)) | {"bits": bits(*wanted[:3])}
        assert len(runs) < 200 and run not in runs, f"{wanted} is run twice"
        runs.append(run)
    return runs


def test_rates_go_on_until_the_best_is_inside(names):
    runs = walk(names, lambda idea, optimizer, rate: abs(rate - 1e-2) if optimizer == "Lion" else abs(rate - 1e-4))
    rates = {o: sorted({r["rate"] for r in runs if r["optimizer"] == o}) for o in names["OPTIMIZERS"]}
    assert rates == {"Lion": [3e-4, 1e-3, 3e-3, 1e-2, 3e-2], "AdamW": [3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2]}


def test_every_idea_runs_from_every_seed_at_the_best_rate(names):
    runs = walk(names, lambda idea, optimizer, rate: abs(rate - 1e-3) if optimizer == "Lion" else abs(rate - 3e-3))
    assert len(runs) == 2 * 3 - 2 + len(recorder.SEEDS) * (len(names["IDEAS"]) + 1), "nothing more and nothing twice"
    for idea in names["IDEAS"]:
        mine = {r["seed"] for r in runs if (r["idea"], r["optimizer"], r["rate"]) == (idea, "Lion", 1e-3)}
        assert mine == {*recorder.SEEDS}, idea


def test_a_recording_that_was_stopped_goes_on(tmp_path, capsys):
    """Stopped by the clock: the next call adds runs, and they are those of one call."""

    def go(file: str, runs: int) -> list[dict]:
        clock = iter(range(1000))  # each run takes one tick, and so does each look at the clock
        recorder.main(["--tiny", "--out", str(tmp_path / file), "--minutes", str(3 * runs / 60)], lambda: next(clock))
        found = json.loads((tmp_path / file).read_text())["runs"]
        return [{name: value for name, value in run.items() if name != "seconds"} for run in found]

    first, both, once = go("a.json", 2), go("a.json", 2), go("b.json", 4)
    assert 1 <= len(first) < len(both) and both[: len(first)] == first
    assert both[: len(once)] == once[: len(both)]
    assert "the same command goes on" in capsys.readouterr().out
    other = json.loads((tmp_path / "a.json").read_text()) | {"code": "of another notebook"}
    (tmp_path / "a.json").write_text(json.dumps(other))
    assert len(go("a.json", 1)) < len(both)
    assert "recorded with another code: beginning anew" in capsys.readouterr().out


def test_the_recorded_runs_are_those_of_this_notebook(names):
    recorded = json.loads(FILE.read_text(encoding="utf-8"))
    assert recorded["code"] == recorder.shared_code(NOTEBOOK), (
        "a marked cell has changed: record anew with `make ablations`"
    )
    assert all(recorder.starts_alike(run, names) for run in recorded["runs"]), "an idea has changed: `make ablations`"
    assert recorder.next_run(recorded["runs"], names) is None, "some runs are missing: `make ablations` goes on"
    assert FILE.stat().st_size < 2**16
    for run in recorded["runs"]:
        assert run["parameters"] == sum(p.numel() for p in names["IDEAS"][run["idea"]]().parameters())


def test_an_idea_that_changed_is_recorded_anew(names):
    run = next(r for r in json.loads(FILE.read_text(encoding="utf-8"))["runs"] if r["idea"] == "RoPE")
    other = names | {"IDEAS": names["IDEAS"] | {"RoPE": names["IDEAS"]["GELU"]}}
    other["start"] = lambda idea, *rest: names["start"]("GELU" if idea == "RoPE" else idea, *rest)
    assert recorder.starts_alike(run, names) and not recorder.starts_alike(run, other)
    assert not recorder.starts_alike(run | {"idea": "gone"}, names)
