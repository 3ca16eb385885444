"""Runs on every machine and in every folder: what a run takes from its file, what it saves when something fails, what it leaves alone."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from programs import (
    RUN,
    SHAPE,
    call,
    environment,
    finish,
    flags,
    folder,
    log_of,
    same,
    small_model,
    snapshot,
    start,
    write_text,
)
from test_processes import CHANGED, torchrun
from test_resume import KINDS, LEARN, interrupt, resume_command, what_matters

import nyx.cli
import nyx.runs
import nyx.training
from nyx import NYX
from nyx.checkpoint import RunLock, list_checkpoints, load_checkpoint, save_checkpoint
from nyx.data import DataError, load_corpus
from nyx.lora import add_adapter, save_adapter
from nyx.runs import best_device, training_precision
from nyx.training import TrainConfig, Trainer, learning_rate_at, rate_at_update

__all__ = ["call", "folder", "start", "torchrun"]  # fixtures

posix = pytest.mark.skipif(os.name != "posix", reason="signals and shells of this kind are POSIX only")
SMALL = RUN | SHAPE | LEARN
CONFIG = TrainConfig(num_batches=6, batch_size=2, gradient_accumulate_every=2, seq_len=16, validate_every=2, validate_bytes=256,
                     generate_every=3, generate_length=4, prime_length=8, checkpoint_every=2, precision="float32")  # fmt: skip


def trainer(out_dir: Path | None = None, **changes: object) -> Trainer:
    """A trainer of a small model on the text of the folder."""
    return Trainer(small_model(), load_corpus("text.txt"), replace(CONFIG, **changes), out_dir)


# weights of another dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])  # files of float64 are refused
def test_weights_of_another_dtype_are_trained_in_float32(call, folder, dtype):
    other = small_model().to(dtype)
    other.save_pretrained(folder / "other")
    other.float().save_pretrained(folder / "plain")  # the same values
    for name in ("other", "plain"):
        done = call("train.py", *flags(RUN | LEARN, weights=name, out_dir=f"run_{name}"))
        assert done.code == 0 and "precision float32" in done.out, done
    states = [load_checkpoint(folder / f"run_{name}" / "checkpoint_7.pth") for name in ("other", "plain")]
    assert same(*map(what_matters, states))
    momenta = [slot["exp_avg"] for slot in states[0]["optimizer"]["state"].values()]
    assert {t.dtype for t in (*states[0]["model"].values(), *momenta)} == {torch.float32}
    done = call("train.py", "--checkpoint_path", "run_other/checkpoint_3.pth", "--out_dir", "again")
    assert done.code == 0, done.err
    assert same(states[0]["model"], load_checkpoint(folder / "again" / "checkpoint_7.pth")["model"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_trainer_refuses_a_model_that_is_not_float32(folder, dtype):
    with pytest.raises(ValueError, match=f"is {str(dtype)[6:]}, and training needs weights in float32"):
        Trainer(small_model().to(dtype), load_corpus("text.txt"), CONFIG)


# a data folder that holds what the run itself writes


@pytest.mark.parametrize("out_dir", ["weights", ".", "deep/er"])
def test_what_a_run_writes_is_no_data(call, folder, monkeypatch, out_dir):
    write_text(folder / "second.txt", seed=2)
    (folder / "weights").mkdir()
    (folder / "weights" / "README.md").write_text("A text that was there before counts as data. " * 9)
    size = load_corpus(".").size
    line = flags(SMALL, filepath=".", out_dir=out_dir, export="exported")
    with monkeypatch.context() as patch:
        interrupt(patch, Trainer, "batch", 4)
        stopped = call("train.py", *line)
    assert stopped.code == 0 and (folder / out_dir / "log.jsonl").is_file(), stopped
    assert load_checkpoint(folder / out_dir / "checkpoint_4.pth")["data"]["size"] == size
    monkeypatch.chdir("/")  # from another folder, too
    done = call("train.py", *resume_command(stopped.out))
    assert done.code == 0, done.err
    assert (folder / "exported" / "config.json").is_file()
    monkeypatch.chdir(folder)
    for number, place in ((8, "elsewhere"), (9, "further")):  # each resume adds a folder of its own
        newest = max(list_checkpoints(folder / out_dir) + list_checkpoints(folder / "elsewhere"))[1]
        done = call("train.py", "--checkpoint_path", newest, "--num_batches", number, "--out_dir", place)
        assert done.code == 0, done.err
    assert load_checkpoint(folder / "further" / "checkpoint_9.pth")["data"]["size"] == size


def test_a_folder_changed_by_somebody_else_is_other_data(call, folder):
    write_text(folder / "second.txt", seed=2)
    assert call("train.py", *flags(SMALL, filepath=".", out_dir="weights")).code == 0
    (folder / "weights" / "notes.txt").write_text("These are not the run's. " * 20)
    done = call("train.py", "--checkpoint_path", "weights", "--num_batches", 8)
    assert done.code == 2 and "was trained on" in done.err


# devices


def test_one_function_decides_on_the_device(monkeypatch):
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)

    def found(cuda: bool, mps: bool) -> str:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(nyx.runs, "_mps_works", lambda: mps)
        return best_device().type

    choices = {(cuda, mps): found(cuda, mps) for cuda in (True, False) for mps in (True, False)}
    assert choices == {(True, True): "cuda", (True, False): "cuda", (False, True): "mps", (False, False): "cpu"}
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert found(True, True) == "cpu"


def test_test_py_computes_on_the_device_that_was_chosen(call, folder, monkeypatch):
    """Structural: `meta` stands for a GPU, and no byte is computed."""
    base = small_model()
    base.save_pretrained(folder / "base")
    small_model(model_dim=16).save_pretrained(folder / "draft")
    add_adapter(base, "rain", base.lora_targets("q"), rank=2)
    save_adapter(base, "rain", folder / "rain.safetensors")
    seen = {}

    def new_tokens(self, prompt, max_new, lengths, settings, seed, precision, draft):
        seen["prompt"], seen["model"] = prompt.device.type, {p.device.type for p in self.parameters()}
        seen["adapters"] = sum(".adapters." in name for name, _ in self.named_parameters())
        seen["draft"] = {p.device.type for p in draft.parameters()}
        yield torch.tensor([65])

    monkeypatch.setattr(nyx.cli, "best_device", lambda: torch.device("meta"))
    monkeypatch.setattr(NYX, "new_tokens", new_tokens)
    monkeypatch.setattr(NYX, "drafter", lambda self, draft: None)  # which would read the weights
    done = call("test.py", *flags(sample_prompt="a", weights="base", draft="draft", adapter="rain.safetensors"))
    assert done.code == 0 and done.out == "aA\n" and "on meta" in done.err, done
    assert seen == {"prompt": "meta", "model": {"meta"}, "adapters": 2, "draft": {"meta"}}


BROKEN_MPS = """
import sys
import torch
torch.backends.mps.is_available = torch.backends.mps.is_built = lambda: True  # and yet no tensor can be made there
from nyx.cli import test_main, train_main
raise SystemExit((test_main if "--sample_prompt" in sys.argv else train_main)(sys.argv[1:]))
"""


def test_a_gpu_that_does_not_work_is_not_used(start, folder):
    small_model().save_pretrained(folder / "good")
    done = finish(start("-c", BROKEN_MPS, *flags(SMALL, out_dir="run", num_batches=2)))
    assert done.code == 0 and "device cpu" in done.out, done
    done = finish(start("-c", BROKEN_MPS, *flags(sample_prompt="a", weights="good", generate_length=3)))
    assert done.code == 0 and "on cpu" in done.err, done


@pytest.mark.parametrize(("native", "expected"), [(True, "bf16"), (False, "float32")])
def test_auto_takes_no_emulated_bf16(monkeypatch, native, expected):
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native)
    assert training_precision("auto", torch.device("cuda")) == expected
    assert training_precision("bf16", torch.device("cuda")) == "bf16"  # typed, it wins
    for device in ("cpu", "mps"):
        assert training_precision("auto", torch.device(device)) == "float32"


# threads


def test_a_resume_takes_the_threads_of_the_run(call, folder, monkeypatch):
    used, true_update = [], nyx.training.train_update

    def train_update(trainer):
        used.append(torch.get_num_threads())
        return true_update(trainer)

    monkeypatch.setattr(nyx.training, "train_update", train_update)
    with monkeypatch.context() as patch:
        interrupt(patch, Trainer, "batch", 3)
        stopped = call("train.py", *flags(SMALL, out_dir="part", threads=3))
    assert load_checkpoint(folder / "part" / "checkpoint_3.pth")["notes"]["threads"] == 3
    torch.set_num_threads(1)
    done = call("train.py", *resume_command(stopped.out))
    assert done.code == 0 and set(used) == {3}, done
    before = snapshot(folder)
    done = call("train.py", "--checkpoint_path", "part", "--threads", 2)
    assert done.code == 2 and "threads 2" in done.err and "threads 3" in done.err and snapshot(folder) == before


def test_a_run_without_threads_is_resumed_with_any(call, folder):
    assert call("train.py", *flags(SMALL, out_dir="run", threads=None)).code == 0
    assert call("train.py", "--checkpoint_path", "run", "--threads", 1, "--num_batches", 8).code == 0
    assert load_checkpoint(folder / "run" / "checkpoint_8.pth")["notes"]["threads"] == 1


def test_a_checkpoint_of_an_older_nyx_is_resumed(call, folder):
    assert call("train.py", *flags(SMALL, out_dir="run")).code == 0
    state = load_checkpoint(folder / "run" / "checkpoint_3.pth")
    for key in ("threads", "outputs"):
        del state["notes"][key]
    del state["decay_from"]
    (folder / "old").mkdir()
    save_checkpoint(folder / "old" / "checkpoint_3.pth", state)
    done = call("train.py", "--checkpoint_path", "old", "--threads", 1)
    assert done.code == 0, done.err
    a, b = (load_checkpoint(folder / name / "checkpoint_7.pth") for name in ("run", "old"))
    assert same(a["model"], b["model"]) and same(a["optimizer"], b["optimizer"])


# a longer run


def rates(place: Path) -> list[float]:
    return [r["learning_rate"] for r in log_of(place, "update")]


@pytest.mark.parametrize("at", [2, 4, 12, 30, 40])
def test_a_longer_run_goes_on_from_the_rate_where_it_is(call, folder, at):
    """At 2 it is still warming up, at 40 it was over; then it is made longer once more."""
    settings = SMALL | {
        "num_batches": 40,
        "warmup_batches": 4,
        "checkpoint_every": 1,
        "keep": 99,
        "generate_every": 99,
        "validate_every": 99,
    }
    assert call("train.py", *flags(settings, out_dir="run")).code == 0
    first = TrainConfig(num_batches=40, warmup_batches=4, learning_rate=LEARN["learning_rate"])
    (folder / "part").mkdir()
    os.replace(folder / "run" / f"checkpoint_{at}.pth", folder / "part" / f"checkpoint_{at}.pth")
    os.replace(folder / "run" / "log.jsonl", folder / "part" / "log.jsonl")
    done = call("train.py", "--checkpoint_path", "part", "--num_batches", 60)
    now, end = learning_rate_at(at, first), first.learning_rate * first.final_rate
    assert (
        done.code == 0
        and f"60 updates, not 40: its learning rate decays from {now:.3g}, where it is, to {end:.3g}" in done.out
    )
    found = rates(folder / "part")
    assert found[:at] == [learning_rate_at(u, first) for u in range(at)]
    assert len(found) == 60 and found[at] == pytest.approx(now, rel=1e-12)
    top = max(at, 4)
    assert found[:top] == [learning_rate_at(u, first) for u in range(top)]  # the warm-up is as long as it was
    assert all(a >= b for a, b in zip(found[top:], found[top + 1 :])) and found[-1] >= end

    for name in ("whole", "cut"):  # longer again: in one go, and killed on the way
        (folder / name).mkdir()
        os.link(folder / "part" / "checkpoint_50.pth", folder / name / "checkpoint_50.pth")
    assert call("train.py", "--checkpoint_path", "whole", "--num_batches", 80).code == 0
    again = rates(folder / "whole")
    assert len(again) == 30 and again[0] == pytest.approx(found[50], rel=1e-12)
    assert all(a >= b for a, b in zip(again, again[1:])) and again[-1] == pytest.approx(end, rel=0.1)
    assert call("train.py", "--checkpoint_path", "cut", "--num_batches", 80).code == 0
    for update, path in list_checkpoints(folder / "cut"):
        if update > 65:
            path.unlink()
    done = call("train.py", "--checkpoint_path", "cut")
    assert done.code == 0 and "not 80" not in done.out
    states = [load_checkpoint(folder / name / "checkpoint_80.pth") for name in ("whole", "cut")]
    assert same(*map(what_matters, states)) and rates(folder / "cut") == again


def test_a_shorter_run_follows_its_own_schedule(call, folder):
    assert call("train.py", *flags(SMALL, num_batches=40, out_dir="run", checkpoint_every=10)).code == 0
    done = call("train.py", "--checkpoint_path", "run/checkpoint_20.pth", "--num_batches", 25, "--out_dir", "short")
    short = TrainConfig(num_batches=25, learning_rate=LEARN["learning_rate"])
    assert done.code == 0 and rates(folder / "short") == [learning_rate_at(u, short) for u in range(20, 25)]


def test_without_a_change_the_schedule_is_the_lesson_s():
    config = TrainConfig(num_batches=50, warmup_batches=5)
    assert [rate_at_update(u, config) for u in range(60)] == [learning_rate_at(u, config) for u in range(60)]


# a sample that fails


class NoKernel(NotImplementedError):
    """What torch raises where a device lacks an operation is of many kinds."""


@pytest.mark.parametrize("error", [NoKernel("no kernel for this"), MemoryError("too long"), ValueError("what?")])
def test_a_sample_that_fails_ends_no_run_and_costs_nothing(call, folder, monkeypatch, error):
    assert call("train.py", *flags(SMALL, out_dir="whole")).code == 0
    saved = []

    def stream(self, *arguments, **options):
        saved.append([update for update, _ in list_checkpoints(folder / "part")])
        raise error
        yield

    with monkeypatch.context() as patch:
        patch.setattr(NYX, "stream", stream)
        done = call("train.py", *flags(SMALL, out_dir="part"))
    assert done.code == 0 and saved == [[3], [6, 3], [7, 6, 3]], done  # first the checkpoint, then the sample
    words = f"warning: the sample after update 3 failed ({type(error).__name__}: {error}): the run goes on"
    assert words in done.err and "Traceback" not in done.err
    assert [r["update"] for r in log_of(folder / "part", "failed_sample")] == [3, 6, 7]
    states = [load_checkpoint(folder / name / "checkpoint_7.pth") for name in ("whole", "part")]
    assert same(*map(what_matters, states))
    done = call("train.py", "--checkpoint_path", "part")  # the sample of this update comes after its checkpoint
    assert done.code == 0 and [r["update"] for r in log_of(folder / "part", "sample")] == [7]
    assert log_of(folder / "part", "sample") == log_of(folder / "whole", "sample")[-1:]


def test_a_sample_that_fails_ends_no_run_of_two_processes(torchrun, folder):
    done = finish(torchrun(CHANGED, "no_samples", *flags(SMALL, out_dir="two")), timeout=180)
    assert done.code == 0, done.err
    assert log_of(folder / "two", "start")[0]["processes"] == 2
    assert [r["update"] for r in log_of(folder / "two", "failed_sample")] == [3, 6, 7]
    assert log_of(folder / "two")[-1]["event"] == "final"


# data that cannot be read any more


class Truncated(np.ndarray):
    """The tokens of a file that was cut short: `good` windows can still be read, the next one cannot."""

    def __getitem__(self, where: slice) -> np.ndarray:
        self.good -= 1
        if self.good < 0:
            raise self.error
        return np.asarray(super().__getitem__(where))


@pytest.mark.parametrize("good", [0, 17, 18])  # of 4 windows in each update; 18 is the second micro-batch
@pytest.mark.parametrize(
    "error", [DataError("text.txt was truncated while it was read"), OSError(5, "Input/output error")]
)
def test_data_that_is_lost_saves_the_last_good_state(call, folder, monkeypatch, good, error):
    kind = KINDS["dropout"]
    assert call("train.py", *flags(kind, out_dir="whole")).code == 0
    true_load = nyx.cli.load_corpus

    def load(*arguments, **options):
        corpus = true_load(*arguments, **options)
        train = corpus.train.view(Truncated)
        train.good, train.error = good, error
        return replace(corpus, train=train)

    with monkeypatch.context() as patch:
        patch.setattr(nyx.cli, "load_corpus", load)
        done = call("train.py", *flags(kind, out_dir="part"))
    last = good // 4
    assert done.code == 1 and "Traceback" not in done.err
    assert re.search(f"error: the run stopped after update {last}: text.txt .*checkpoint_{last}.pth holds", done.err), (
        done.err
    )
    assert load_checkpoint(folder / "part" / f"checkpoint_{last}.pth")["update"] == last
    assert call("train.py", "--checkpoint_path", "part").code == 0  # the file is whole again
    a, b = (what_matters(load_checkpoint(folder / name / "checkpoint_7.pth")) for name in ("whole", "part"))
    assert same(a, b), [key for key in a if not same(a[key], b[key])]


def test_a_validation_text_that_is_lost_saves_too(call, folder, monkeypatch):
    def evaluate(*arguments, **options):
        raise DataError("text.txt was truncated while it was read")

    monkeypatch.setattr(nyx.training, "evaluate", evaluate)
    done = call("train.py", *flags(SMALL, out_dir="part", validate_every=2))
    assert done.code == 1 and "after update 2: text.txt was truncated" in done.err
    assert [update for update, _ in list_checkpoints(folder / "part")] == [2]


# the command that resumes


@posix
@pytest.mark.parametrize("data", ["it's a text.txt", "."])
def test_the_printed_command_works_from_another_folder(tmp_path, corpus_cache, data):
    """It is pasted as it is printed into a shell, in a folder that has nothing to do with the run."""
    place, elsewhere = tmp_path / "ein Ordner $HOME", tmp_path / "elsewhere"
    place.mkdir(), elsewhere.mkdir()
    write_text(place / "it's a text.txt")
    write_text(place / "second.txt", seed=2)
    env = environment(tmp_path, corpus_cache)
    settings = SMALL | {
        "filepath": data,
        "out_dir": "my runs/été",
        "num_batches": 4000,
        "generate_every": 5000,
        "validate_every": 5000,
        "checkpoint_every": 5000,
    }
    line = [sys.executable, os.path.relpath(ROOT / "train.py", place), *flags(settings)]
    program = subprocess.Popen(
        line, cwd=place, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
    )
    try:
        while "update 1 of" not in (said := program.stdout.readline()):
            assert said, program.stderr.read()
        program.send_signal(signal.SIGINT)
        out, err = program.communicate(timeout=120)
    finally:
        program.kill()
    assert program.returncode == 0, err
    printed = re.search("go on with: (.*)", out)[1]
    at = log_of(place / "my runs" / "été")[-1]["update"]
    shell = ["bash", "-c", f"{printed} --num_batches {at + 3}"] if at + 3 > 4000 else ["bash", "-c", printed]
    resumed = subprocess.Popen(
        shell, cwd=elsewhere, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
    )
    try:
        while "update " not in (said := resumed.stdout.readline()):
            assert said, resumed.stderr.read()
    finally:
        os.kill(resumed.pid, signal.SIGTERM)
        out, err = resumed.communicate(timeout=120)
    assert not list(elsewhere.iterdir()), err
    assert log_of(place / "my runs" / "été", "start")[-1]["update"] == at


def test_a_command_for_windows_is_quoted_as_windows_does(monkeypatch, tmp_path):
    program = tmp_path / "my programs" / "train.py"
    program.parent.mkdir()
    program.touch()
    monkeypatch.setattr(sys, "argv", [str(program)])
    monkeypatch.setattr(sys, "platform", "win32")
    line = nyx.runs.resume_command(Path("a b/checkpoint_3.pth"), "c d.txt")
    monkeypatch.undo()
    assert f'"{program}"' in line and 'checkpoint_3.pth" --filepath "' in line and "'" not in line


# whoever reads goes, or the caller


def begun(program: subprocess.Popen) -> None:
    """Wait until a run has made its first update."""
    while "update 1 of" not in (line := program.stdout.readline()):
        assert line, program.stderr.read()


LONG = SMALL | {
    "num_batches": 100_000,
    "validate_every": 1,
    "generate_every": 10**6,
    "checkpoint_every": 10**6,
    "out_dir": "part",
}


def assert_saved(folder: Path) -> None:
    last = log_of(folder / "part")[-1]
    assert last["event"] == "stopped" and last["update"] > 0
    assert load_checkpoint(folder / "part" / f"checkpoint_{last['update']}.pth")["update"] == last["update"]


@posix
def test_sighup_saves_however_often_it_comes(start, folder):
    program = start(ROOT / "train.py", *flags(LONG))
    begun(program)
    for _ in range(3):
        program.send_signal(signal.SIGHUP)
    done = finish(program)
    assert done.code == 0 and "stopped after update" in done.out and done.err == "", done
    assert_saved(folder)


@posix
def test_nohup_is_heeded(call, folder, monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopped_by(signal.SIGHUP, monkeypatch):
            done = call("train.py", *flags(SMALL, out_dir="part"))
        assert done.code == 0 and log_of(folder / "part")[-1]["event"] == "final"
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


class stopped_by:
    """A signal that comes in update 3."""

    def __init__(self, number: int, monkeypatch: pytest.MonkeyPatch):
        self.number, self.patch = number, monkeypatch

    def __enter__(self) -> None:
        true_update = nyx.training.train_update

        def train_update(trainer):
            if trainer.update == 2:
                os.kill(os.getpid(), self.number)
                time.sleep(0.01)
            return true_update(trainer)

        self.patch.setattr(nyx.training, "train_update", train_update)

    def __exit__(self, *_: object) -> None:
        self.patch.undo()


@posix
def test_a_closed_pipe_saves(start, folder):
    program = start(ROOT / "train.py", *flags(LONG))
    begun(program)
    program.stdout.close()  # as `| head` does
    program.wait(timeout=120)
    err = program.stderr.read()
    program.stdout = program.stderr = None  # read, and closed
    assert program.returncode == 141 and "Traceback" not in err and "go on with: " in err, err
    assert_saved(folder)


@posix
def test_both_streams_closed_saves(start, folder):
    program = start(ROOT / "train.py", *flags(LONG))
    begun(program)
    program.stdout.close(), program.stderr.close()
    assert program.wait(timeout=120) == 141
    program.stdout = program.stderr = None
    assert_saved(folder)


@posix
def test_streams_that_were_never_open_are_no_matter(start, folder):
    code = "import os, sys; os.close(1); os.close(2); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    done = finish(start("-c", code, ROOT / "train.py", *flags(SMALL, out_dir="part")))
    assert done.code == 0 and done.out == done.err == ""
    assert log_of(folder / "part")[-1]["event"] == "final"


@posix
def test_a_closed_terminal_saves(folder, tmp_path, corpus_cache):
    import fcntl
    import pty
    import termios

    ours, theirs = pty.openpty()
    program = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *flags(LONG)], cwd=folder, env=environment(tmp_path, corpus_cache),
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )  # fmt: skip
    try:
        os.close(theirs)
        said = b""
        while b"update 1 of" not in said:
            piece = os.read(ours, 2**16)
            assert piece, said
            said += piece
        os.close(ours)  # the window is closed: the kernel sends SIGHUP, and nothing can be written any more
        program.wait(timeout=120)
    finally:
        program.kill()
        program.wait()
    assert_saved(folder)


@posix
def test_a_run_left_half_way_leaves_nothing_behind(folder):
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    kept = trainer(folder / "part")
    run = kept.run()
    for record in run:
        if record["event"] == "update" and record["update"] == 3:
            break
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == handlers
    with pytest.raises(KeyboardInterrupt):  # an interrupt between two records is the caller's
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
    assert [update for update, _ in list_checkpoints(folder / "part")] == [2]
    state = load_checkpoint(folder / "part" / "checkpoint_2.pth")
    other = trainer(folder / "part")  # while `run` is still held
    other.resume(state)
    assert [r["update"] for r in other.run() if r["event"] == "update"] == [3, 4, 5, 6]
    assert next(run, None) is None  # it was closed when the other began

    for _ in trainer(folder / "dropped").run():
        break
    with RunLock(folder / "dropped"):
        pass


def test_a_run_in_another_thread_keeps_its_folder(folder):
    run, refused = trainer(folder / "part").run(), []
    next(run)

    def begin():
        try:
            next(trainer(folder / "part").run())
        except ValueError as error:
            refused.append(str(error))

    other = threading.Thread(target=begin)
    other.start()
    other.join()
    assert refused and "in use by another run" in refused[0]
    assert next(run)["event"] == "update"


@posix
def test_a_stopped_run_may_be_run_again(folder):
    kept = trainer(folder / "part")
    for record in kept.run():
        if record["event"] == "update" and record["update"] == 2:
            kept.stop()
    assert record["event"] == "stopped" and record["update"] == 2
    assert [r["update"] for r in kept.run() if r["event"] == "update"] == [3, 4, 5, 6]


# Accelerate


def test_the_launcher_s_precision_is_honoured(call, folder, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")  # what accelerate launch --mixed_precision bf16 sets
    done = call("train.py", *flags(SMALL, out_dir="run"))
    assert done.code == 0 and "precision bf16" in done.out, done
    refused = call("train.py", *flags(SMALL, out_dir="new", precision="float32"))
    assert refused.code == 2 and "precision was float32" in refused.err and "asks for bf16" in refused.err
    assert call("train.py", *flags(SMALL, out_dir="typed", precision="bf16")).code == 0
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")  # what it sets without the flag: nothing was asked for
    assert "precision float32" in call("train.py", *flags(SMALL, out_dir="plain")).out
    done = call("train.py", "--checkpoint_path", "run/checkpoint_3.pth", "--out_dir", "again")  # as it was
    assert done.code == 0 and "precision bf16" in done.out
    a, b = (load_checkpoint(folder / name / "checkpoint_7.pth") for name in ("run", "again"))
    assert same(a["model"], b["model"])
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp8")
    refused = call("train.py", *flags(SMALL, out_dir="new"))
    assert refused.code == 2 and "fp8" in refused.err and not (folder / "new").exists()


OTHERS = """
import sys, torch
from accelerate import Accelerator
sys.path.insert(0, sys.argv[1])
from programs import small_model
from nyx.data import load_corpus
from nyx.training import TrainConfig, Trainer, train_update

user = Accelerator(mixed_precision="bf16", gradient_accumulation_steps=3, cpu=True)
mine = torch.nn.Linear(4, 4)
layer, optimizer = user.prepare(mine, torch.optim.SGD(mine.parameters(), 0.1))

def trainer(precision, accumulate):
    config = TrainConfig(num_batches=5, batch_size=2, gradient_accumulate_every=accumulate, seq_len=16, precision=precision)
    made = Trainer(small_model(), load_corpus("text.txt"), config)
    seen = []
    true_loss = type(made.model).loss
    def loss(tokens):
        seen.append(torch.is_autocast_enabled("cpu"))
        return true_loss(made.model, tokens)
    made.model.loss = loss
    return made, seen

(full, f), (half, h) = trainer("float32", 2), trainer("bf16", 4)
alone = trainer("float32", 2)[0]
for _ in range(3):
    before = [p.clone() for p in full.model.parameters()]
    a, b = train_update(full), train_update(half)
    assert any(not torch.equal(x, y) for x, y in zip(before, full.model.parameters()))  # it made its step
    with user.accumulate(layer):
        user.backward(layer(torch.randn(2, 4)).sum())
        moved = mine.weight.clone()
        optimizer.step()
assert len(f) == 6 and len(h) == 12 and not any(f) and all(h), (f, h)
for _ in range(3):
    c = train_update(alone)
assert a["loss"] == c["loss"] and a["loss"] != b["loss"]
assert user.mixed_precision == "bf16" and user.gradient_accumulation_steps == 3
assert not torch.equal(moved, mine.weight)  # the third of its three
assert user.state.device.type == "cpu" and full.precision == "float32" and half.precision == "bf16"
x, (w, b) = torch.randn(2, 4), (mine.weight, mine.bias)
half_precision = torch.nn.functional.linear(x.bfloat16(), w.bfloat16(), b.bfloat16()).float()
assert torch.equal(layer(x), half_precision) and not torch.equal(half_precision, torch.nn.functional.linear(x, w, b))
"""


def test_other_accelerators_of_the_process_are_undisturbed(start, folder):
    done = finish(start("-c", OTHERS, ROOT / "tests"))
    assert done.code == 0, done.err


def test_fp16_scales_its_loss_and_resumes(folder, monkeypatch):
    """Emulated: the CPU multiplies in fp16, too, if it must."""
    monkeypatch.setattr(nyx.training, "training_precision", lambda precision, device: "fp16")
    whole, cut = trainer(folder / "whole"), trainer(folder / "cut")
    assert whole.scaler.get_scale() > 1
    list(whole.run())
    for record in cut.run():
        if record["update"] == 3:
            cut.stop()
    again = trainer(folder / "cut")
    again.resume(load_checkpoint(folder / "cut" / "checkpoint_3.pth"))
    list(again.run())
    states = [load_checkpoint(folder / name / "checkpoint_6.pth") for name in ("whole", "cut")]
    assert states[0]["scaler"] and same(*map(what_matters, states))
    losses = [[r["loss"] for r in log_of(folder / name, "update")] for name in ("whole", "cut")]
    assert losses[0] == losses[1] and losses[0][-1] < losses[0][0]


# Windows, emulated


WINDOWS = """
import os, signal, sys, types
import subprocess, torch, accelerate  # which ask on their own what they run on
msvcrt = sys.modules["msvcrt"] = types.ModuleType("msvcrt")
msvcrt.LK_NBLCK, msvcrt.locking = 2, lambda number, mode, size: None
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None  # an import of it fails
for owner, names in ((os, ("fork", "geteuid", "getuid", "killpg", "setsid")), (signal, ("SIGHUP", "SIGKILL", "SIGALRM", "alarm"))):
    for name in names:
        if hasattr(owner, name):
            delattr(owner, name)
from nyx.cli import test_main, train_main
line = sys.argv[1:]
assert train_main([*line, "--num_batches", "4"]) == 0
assert train_main(["--checkpoint_path", "run", "--num_batches", "6"]) == 0
assert test_main(["--sample_prompt", "a", "--weights", "run/checkpoint_6.pth", "--generate_length", "3"]) == 0
"""


def test_a_whole_run_needs_nothing_that_windows_lacks(start, folder):
    done = finish(start("-c", WINDOWS, *flags(SMALL, out_dir="run", num_batches=None)))
    assert done.code == 0, done.err
    assert [r["update"] for r in log_of(folder / "run", "update")] == [1, 2, 3, 4, 5, 6]
