"""Killed at any moment and resumed, a run ends with the same bits as one that was left alone.

SIGKILL gives no chance to save: what is lost is done again, from the last checkpoint.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT
from programs import environment, flags, log_of, same, small_model, write_text
from test_resume import KINDS, what_matters, without_times

from nyx.checkpoint import list_checkpoints, load_checkpoint

pytestmark = pytest.mark.skipif(os.name != "posix", reason="forks and signals of this kind are POSIX only")

PLACES = [
    "between micro-batches",
    "in a validation",
    "in a sample",
    "with a checkpoint half-written",
    "before a checkpoint has its name",
    "before old checkpoints are deleted",
    "before the first checkpoint",
]
LONG = {"num_batches": 30, "validate_every": 10, "checkpoint_every": 5, "generate_every": 10}


class Forks:
    """Runs train.py in forks of one process, in a folder with a text and base weights."""

    def __init__(self, folder: Path, process: subprocess.Popen):
        self.folder, self.process = folder, process

    def run(self, line: list[str], place: str | None = None, seconds: float | None = None) -> int:
        print(json.dumps({"line": line, "place": place, "seconds": seconds}), file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())

    def go_on(self, line: list[str], **kill) -> int:
        """Resume the newest checkpoint in `part`; begin there while there is none."""
        begun = list_checkpoints(self.folder / "part")
        code = self.run(["--checkpoint_path", "part", "--threads", "1"] if begun else line, **kill)
        assert code in (0, -signal.SIGKILL), (self.folder / "said.txt").read_text()[-2000:]
        return code

    def assert_same(self, whole: str, last: int) -> None:
        """That the run in `part` ended as the one in `whole` did, and told the same."""
        a, b = (what_matters(load_checkpoint(self.folder / n / f"checkpoint_{last}.pth")) for n in (whole, "part"))
        assert same(a, b), [key for key in a if not same(a[key], b[key])]
        aside = ("start", "checkpoint")  # the kill may come between a checkpoint and the line that tells of it
        told = [[r for r in without_times(log_of(self.folder / n)) if r["event"] not in aside] for n in (whole, "part")]
        assert told[0] == told[1]
        assert not list((self.folder / "part").glob(".*.nyx-tmp"))


@pytest.fixture
def forks(tmp_path, corpus_cache):
    write_text(tmp_path / "text.txt")
    small_model().save_pretrained(tmp_path / "base")
    process = subprocess.Popen(
        [sys.executable, ROOT / "tests" / "forks.py"], cwd=tmp_path, env=environment(tmp_path, corpus_cache),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    yield Forks(tmp_path, process)
    process.kill()
    process.communicate()


def by_kind(now: str) -> list:
    """All kinds, of which one belongs to `make test` and the others to the night."""
    return [kind if kind == now else pytest.param(kind, marks=pytest.mark.nightly) for kind in KINDS]


@pytest.mark.parametrize("kind", by_kind("all of them"))
def test_a_run_killed_anywhere_ends_with_the_same_bits(forks, kind):
    assert forks.run(flags(KINDS[kind], out_dir="whole")) == 0
    for place in PLACES:
        line = flags(KINDS[kind], out_dir="part")
        assert forks.run(line, place=place) == -signal.SIGKILL, f"{place}: it was never there"
        with open(forks.folder / "part" / "log.jsonl", "a") as log:
            log.write('{"event": "upd')  # a line that was being written
        begun = len(list_checkpoints(forks.folder / "part"))
        assert bool(begun) == (place != "before the first checkpoint")
        assert forks.go_on(line) == 0
        forks.assert_same("whole", last=7)
        (forks.folder / "part").rename(forks.folder / place)


@pytest.mark.parametrize(
    ("kills", "kind"), [(5, "all of them"), *(pytest.param(25, kind, marks=pytest.mark.nightly) for kind in KINDS)]
)
def test_a_run_killed_at_random_moments_ends_with_the_same_bits(forks, kills, kind):
    """Moments are drawn over the time that a whole run takes, and later after a kill that found nothing new.

    A machine may be slower while it is killed than while it was measured. A run that was over before the kill begins anew.
    """
    settings = KINDS[kind] | LONG
    seconds, chance, reached, line = 1e9, random.Random(kills), [], flags(settings, out_dir="part")
    for name in ("first", "whole"):  # the first one is slower than the rest
        begun = time.monotonic()
        assert forks.run(flags(settings, out_dir=name)) == 0
        seconds = min(seconds, time.monotonic() - begun)
    while len(reached) < kills or len(set(reached)) == 1:
        assert len(reached) < 10 * kills, f"all kills came at update {reached[0]}"
        if forks.go_on(line, seconds=chance.uniform(0.1, 0.7) * seconds):
            reached.append(max((update for update, _ in list_checkpoints(forks.folder / "part")), default=0))
            seconds *= 2 if reached[-1] in reached[-2:-1] else 1
        else:
            forks.assert_same("whole", last=LONG["num_batches"])
            shutil.rmtree(forks.folder / "part")
            seconds /= 2
    assert forks.go_on(line) == 0
    forks.assert_same("whole", last=LONG["num_batches"])
