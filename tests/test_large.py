"""A file larger than memory is trained on in bounded memory: resident pages are counted by the system itself."""

import signal
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT
from programs import RUN, SHAPE, finish, flags, folder, log_of, start

__all__ = ["folder", "start"]  # fixtures

linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc counts resident memory on Linux alone")


def peak_mib(pid: int) -> int:
    """The most memory, in MiB, that a living process has ever had resident, pages of mapped files included."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) // 1024


def train_on(start, folder: Path, size: int, updates: int, scoring: float) -> int:
    """Train on a file of `size` bytes, score its validation split for some seconds, stop; peak resident MiB."""
    with open(folder / "large.bin", "wb") as file:
        file.truncate(size)  # holes take no room on the disk
    run = RUN | SHAPE | {"filepath": "large.bin", "out_dir": "run", "batch_size": 16, "seq_len": 256}
    often = {"num_batches": updates, "validate_every": updates // 2, "validate_bytes": 100_000}
    program = start(ROOT / "train.py", *flags(run, often, generate_every=updates, checkpoint_every=updates))
    for line in program.stdout:
        if line.startswith("scoring all"):
            break
    else:
        pytest.fail(program.stderr.read())
    time.sleep(scoring)
    peak = peak_mib(program.pid)
    program.send_signal(signal.SIGINT)
    done = finish(program)
    assert done.code == 0 and "skipped" in done.out, done.err
    assert [r["update"] for r in log_of(folder / "run", "update")] == list(range(1, updates + 1))
    return peak


@linux
def test_a_large_file_is_trained_on_in_bounded_memory(start, folder):
    assert train_on(start, folder, 1_000_000_000, updates=100, scoring=2.0) < 490  # 430 as it is


@linux
@pytest.mark.nightly
def test_twenty_gigabytes_are_trained_on_in_bounded_memory(start, folder):
    assert train_on(start, folder, 20_000_000_000, updates=2000, scoring=60.0) < 1500
