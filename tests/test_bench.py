"""The benchmarks run, and README quotes what they measured. How fast anything is, no test says."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from math import isfinite

import pytest
import torch
from conftest import GUARD, ROOT
from matplotlib.container import BarContainer
from matplotlib.figure import Figure

BENCHMARKS = ROOT / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import bench
import report

PEERS = ("palm_rlhf_pytorch", "x_transformers")
missing = [name for name in PEERS if importlib.util.find_spec(name) is None]
peers = pytest.mark.skipif(
    bool(missing),
    reason=f"{' and '.join(missing)} not installed: pip install --no-deps -r benchmarks/requirements.txt",
)
RESULTS = json.loads((BENCHMARKS / "results.json").read_text(encoding="utf-8"))
MEASURED = ("inference", "busy", "growth", "speculation", "training", "data")


@pytest.fixture
def quick(monkeypatch):
    """Tiny shapes, as with --quick."""
    monkeypatch.setattr(bench, "scale", bench.QUICK)


def run_bench(folder, *flags: str) -> subprocess.CompletedProcess:
    env = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(GUARD))), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(BENCHMARKS / "bench.py"), *flags, "--out", str(folder)]
    return subprocess.run(command, env=env, capture_output=True, text=True, encoding="utf-8", timeout=900)


def numbers(value) -> list[float]:
    """All numbers inside of nested dictionaries."""
    if isinstance(value, dict):
        return [n for v in value.values() for n in numbers(v)]
    return [value] if isinstance(value, int | float) else []


# it runs


@peers
def test_a_quick_run_measures_and_reports(tmp_path):
    done = run_bench(tmp_path, "--quick", *MEASURED)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert set(results) == {"machine", *MEASURED}
    assert all(isfinite(n) for n in numbers(results)), results
    for batch in results["inference"].values():
        names = set(batch["decode"])
        assert names == set(batch["prefill"])
        for library in report.LIBRARIES:  # like with like: every library in float32 and in a lower precision
            assert {report.precision(n) for n in names if n.startswith(library)} >= {"float32", "bf16"}, names
    text = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert all(f"| {name} |" in text for name in results["inference"]["batch 1"]["decode"])
    assert (tmp_path / "results.png").stat().st_size > 10_000


@peers
@pytest.mark.nightly
def test_a_whole_quick_run_needs_nobody(tmp_path):
    done = run_bench(tmp_path, "--quick")
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert set(results) == {"machine", *bench.SECTIONS} and not list(tmp_path.glob("*.partial"))


def main_with(monkeypatch, folder, *flags: str) -> None:
    monkeypatch.setattr(sys, "argv", ["bench.py", "--quick", "--out", str(folder), *flags])
    monkeypatch.setattr(report, "picture", lambda *args: None)
    bench.main()


def test_a_run_that_was_stopped_goes_on(tmp_path, monkeypatch, capsys):
    calls = []

    def stop():
        raise KeyboardInterrupt

    count = lambda: calls.append("data") or {"share": 0.5}
    monkeypatch.setattr(bench, "SECTIONS", {"data": count, "imports": stop})
    with pytest.raises(KeyboardInterrupt):
        main_with(monkeypatch, tmp_path)
    assert not (tmp_path / "results.json").exists(), "half a run is no result"
    monkeypatch.setattr(bench, "SECTIONS", {"data": count, "imports": lambda: {"seconds": 0.25}})
    main_with(monkeypatch, tmp_path)
    assert calls == ["data"] and "measured before" in capsys.readouterr().out
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert results["data"] == {"share": 0.5} and results["imports"] == {"seconds": 0.25}
    main_with(monkeypatch, tmp_path)  # that one was whole: the next begins anew
    assert calls == ["data"] * 2


def test_what_other_code_measured_is_not_kept(tmp_path, monkeypatch):
    calls = []
    unfinished = tmp_path / "results.json.partial"
    bench.store({"machine": bench.machine(), "code": "of yesterday", "data": {"share": 0.1}}, unfinished)
    monkeypatch.setattr(bench, "SECTIONS", {"data": lambda: calls.append(1) or {"share": 0.5}})
    main_with(monkeypatch, tmp_path)
    assert calls and not unfinished.exists()


def test_one_section_stays_with_the_machine_of_the_others(tmp_path, monkeypatch, capsys):
    other = bench.machine() | {"threads": 77}
    bench.store({"machine": other, "imports": {"seconds": 1.0}}, tmp_path / "results.json")
    monkeypatch.setattr(bench, "SECTIONS", {"data": lambda: {"share": 0.5}})
    with pytest.raises(SystemExit):
        main_with(monkeypatch, tmp_path, "data")
    assert "measure all sections" in capsys.readouterr().err


def test_a_quick_run_does_not_take_the_place_of_results(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        main_with(monkeypatch, BENCHMARKS)
    assert "--out" in capsys.readouterr().err


def test_busy_neighbours_begin_and_end():
    children, start = [], subprocess.Popen

    def noted(*args, **options):
        children.append(start(*args, **options))
        return children[-1]

    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="in between"):
        patch.setattr(bench.subprocess, "Popen", noted)
        with bench.busy_neighbours():
            assert len(children) == 2 and all(child.poll() is None for child in children)
            raise RuntimeError("in between")
    assert all(child.poll() is not None for child in children)


def test_busy_neighbours_end_with_their_parent():
    """Whatever ends the benchmark: their standard input is then closed, and nothing else tells them."""
    child = subprocess.Popen([sys.executable, "-c", bench.BUSY], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert child.stdout.readline().split() == [b"busy"]
        child.stdin.close()
        assert child.wait(timeout=120) == 0
    finally:
        child.kill()
        child.stdout.close()


# it compares like with like


@peers
@torch.inference_mode()
def test_what_is_timed_is_one_step_after_the_prefill(quick):
    """A contender's step gives what a forward pass over the whole sequence gives, each time it is repeated."""
    tokens = torch.randint(0, 256, (2, 21))
    whole = {}
    for name, contender in bench.contenders().items():
        contender.prefill(tokens[:, :20])
        first, again = contender.decode(tokens), contender.decode(tokens)
        torch.testing.assert_close(first, again)
        library = name.split(", ")[0]
        if "float32" in name:  # the first of each library sets what the others must give
            alike = contender.prefill(tokens)
            torch.testing.assert_close(first, alike, rtol=1e-3, atol=1e-4)
            torch.testing.assert_close(first, whole.setdefault(library, first), rtol=1e-3, atol=1e-4)
    assert set(whole) == set(report.LIBRARIES)


@peers
@torch.inference_mode()
def test_a_cached_step_sees_one_token(quick):
    """Counted in rows of the largest matmul: without a cache a step is a forward pass over all tokens, with one it is not."""
    rows = {}
    for name, contender in bench.contenders().items():
        if "NYX" in name and name not in (bench.PLAIN, bench.NO_CACHE):
            continue  # packed: their matmuls are no modules
        contender.prefill(torch.zeros(1, 20, dtype=torch.long))
        seen = []
        hook = torch.nn.modules.module.register_module_forward_hook(
            lambda module, args, out, seen=seen: (
                seen.append(args[0].shape[-2]) if isinstance(module, torch.nn.Linear) else None
            )
        )
        try:
            contender.decode(torch.zeros(1, 21, dtype=torch.long))
        finally:
            hook.remove()
        rows[name] = max(seen, default=None)
    assert {name: n for name, n in rows.items() if n} and all(
        n == (21 if "no cache" in name else 1) for name, n in rows.items() if n
    ), rows


def test_the_gain_is_the_product_of_its_factors():
    speeds = {
        "NYX, float32": 140.0,
        "NYX, int8": 350.0,
        bench.PLAIN: 70.0,
        bench.NO_CACHE: 2.8,
        "palm-rlhf-pytorch, float32, no cache": 2.0,
        "palm-rlhf-pytorch, bf16, no cache": 3.0,
    }
    gains = report.gains({"decode": {name: {"median": v} for name, v in speeds.items()}})
    cache, packed, plain, ours, precision = (
        gains[next(k for k in gains if words in k)]
        for words in (
            "a cache, both in float32",
            "packed",
            "the cache, the model's own",
            "NYX without",
            "int8 in place",
        )
    )
    assert cache == pytest.approx(70) and precision == pytest.approx(2.5)
    assert cache * precision == pytest.approx(350 / 2.0)
    assert ours * plain * packed == pytest.approx(cache)


# it is quoted


def test_the_readme_quotes_the_benchmarks():
    """Row by row, as `report.py` writes them; if not, run `python benchmarks/report.py` and commit."""
    lines = (ROOT / "README.md").read_text(encoding="utf-8").split("\n")
    for row in report.quoted(RESULTS).values():
        assert row in lines, f"README.md should say:\n{row}"
    for line in lines:
        if "`make bench SECTIONS=" in line:
            assert line in report.quoted(RESULTS).values(), f"no section of results.json gives:\n{line}"


def test_the_table_is_that_of_the_results(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "picture", lambda *args: None)
    report.write(RESULTS, tmp_path)
    kept = (BENCHMARKS / "results.md").read_text(encoding="utf-8")
    assert (tmp_path / "results.md").read_text(encoding="utf-8") == kept, "run `python benchmarks/report.py` and commit"


def test_a_row_that_the_readme_lacks_is_named(tmp_path):
    (tmp_path / "README.md").write_text("nothing about it\n", encoding="utf-8")
    with pytest.raises(ValueError, match="it must have one"):
        report.quote({"busy": {"share of the quiet rate": {"median": 0.5}}}, tmp_path / "README.md")


def test_the_published_number_has_the_digits_of_its_page():
    for name in ("README.md", "benchmarks/README.md", "nbs/race.ipynb", "benchmarks/race.py"):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert not re.search(r"1\.88\d", text.replace("1.881", "").replace("1.889", "")), (
            f"nanoGPT's page says 1.88: {name}"
        )


@pytest.mark.parametrize("dots", [False, True])
def test_bars_begin_at_zero(dots):
    """A bar is as long as its number is large, so its axis is linear and begins at 0; a log axis gets dots."""
    ax = Figure().add_subplot()
    report.marks(ax, {"NYX, int8": {"median": 300.0}, "x-transformers, bf16": {"median": 2.0}}, "words", dots=dots)
    bars = [c for c in ax.containers if isinstance(c, BarContainer)]
    assert ax.get_xscale() == ("log" if dots else "linear") and bool(bars) != dots
    assert dots or (ax.get_xlim()[0] == 0 and [bar.get_width() for bar in bars[0]] == [300, 2])
