"""What the tests of train.py and test.py share: a small shape, a small text, and both programs called or started."""

import hashlib
import json
import os
import random
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from conftest import GUARD, KEPT, ROOT

from nyx import NYX, NYXConfig
from nyx.cli import test_main as call_test
from nyx.cli import train_main as call_train

SHAPE = {"model_dim": 32, "layer_depth": 1, "num_attention_heads": 2, "head_dim": 8, "ff_mult": 1}
RUN = {
    "filepath": "text.txt",
    "seq_len": 32,
    "batch_size": 2,
    "gradient_accumulate_every": 2,
    "num_batches": 4,
    "threads": 1,
    "validate_every": 2,
    "validate_bytes": 256,
    "generate_every": 3,
    "generate_length": 4,
    "prime_length": 8,
    "checkpoint_every": 2,
}
PROGRAMS = {"train.py": call_train, "test.py": call_test}


class Done(NamedTuple):
    """A program that has ended: its exit code, and what it wrote."""

    code: int
    out: str
    err: str


def flags(*settings: dict, **more: object) -> list[str]:
    """`--name value` for each setting; a later one takes the place of an earlier one, and None leaves it out."""
    merged: dict = {}
    for setting in (*settings, more):
        merged |= setting
    return [part for name, value in merged.items() if value is not None for part in (f"--{name}", str(value))]


def write_text(path: Path, seed: int = 1, lines: int = 900) -> Path:
    """A text file of random sentences, about 40 bytes a line, the same for the same seed."""
    words = "the cat sat on a mat and saw one bird fly over blue water while rain fell".split()
    draw = random.Random(seed)
    path.write_text("".join(" ".join(draw.choices(words, k=9)).capitalize() + ".\n" for _ in range(lines)))
    return path


def small_model(seed: int = 0, **changes: object) -> NYX:
    """A model of the small shape with random weights."""
    torch.manual_seed(seed)
    return NYX(NYXConfig.from_dict(SHAPE | changes))


def log_of(folder: Path, event: str | None = None) -> list[dict]:
    """The records in a run's log, all of them or those of one kind."""
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [record for record in records if event in (None, record["event"])]


def snapshot(folder: Path) -> dict[str, tuple]:
    """Everything under a folder: what it is, and for a file its content and the time of its last change."""
    found = {}
    for path in sorted(folder.rglob("*")):
        about = (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns) if path.is_file() else ()
        found[str(path.relative_to(folder))] = (path.stat().st_mode, *about)
    return found


def same(a: object, b: object) -> bool:
    """Whether two trees of tensors and plain values are equal bit for bit."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return (a.dtype == b.dtype and torch.equal(a, b)) if isinstance(a, torch.Tensor) else a == b


def environment(home: Path, cache: Path, **more: str) -> dict[str, str]:
    """The variables of a user's machine: one thread, no network, no shape checks, which start slowly."""
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    kept |= {"HOME": str(home), "USERPROFILE": str(home), "NYX_CACHE": str(cache)}
    kept |= {"PYTHONPATH": os.pathsep.join([str(GUARD), str(ROOT)])}
    return kept | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONUTF8": "1"} | more


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, corpus_cache: Path) -> Path:
    """A folder with a text to train on; programs that are called from the test work in it."""
    place = tmp_path / "folder"
    place.mkdir()
    write_text(place / "text.txt")
    monkeypatch.chdir(place)
    monkeypatch.setenv("NYX_CACHE", str(corpus_cache))
    return place


@pytest.fixture
def call(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[..., Done]:
    """Call a program within this process, in `folder`: `call("train.py", "--num_batches", 2)`.

    An exception that the program lets through, a user's traceback, is the test's.
    """
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # the programs set their own
    threads = torch.get_num_threads()

    def run(program: str, *arguments: object) -> Done:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", [program])
        try:
            code = PROGRAMS[program](list(map(str, arguments)))
        except SystemExit as end:  # argparse
            code = end.code
        return Done(code, *capsys.readouterr())

    yield run
    torch.set_num_threads(threads)


@pytest.fixture
def start(folder: Path, tmp_path: Path, corpus_cache: Path):
    """Start a program of the repository as a process in `folder`; whatever still runs at the end is killed."""
    started = []

    def begin(*command: object, **variables: str) -> subprocess.Popen:
        env = environment(tmp_path, corpus_cache, **variables)
        program = subprocess.Popen(
            [sys.executable, *map(str, command)], cwd=folder, env=env,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8", errors="replace",
        )  # fmt: skip
        started.append(program)
        return program

    yield begin
    for program in started:
        if program.poll() is None:
            program.kill()
        program.communicate()


def finish(program: subprocess.Popen, timeout: float = 120) -> Done:
    """Wait for a process to end."""
    out, err = program.communicate(timeout=timeout)
    return Done(program.returncode, out, err)
