"""More than one process: the same losses as one process with the whole batch."""

import re
import socket

import pytest
from conftest import ROOT
from programs import RUN, SHAPE, call, finish, flags, folder, log_of, start

from nyx.checkpoint import load_checkpoint

__all__ = ["call", "folder", "start"]  # fixtures

UPDATES = 10


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_two_processes_learn_what_one_learns(start, call, folder):
    run = RUN | SHAPE | {"num_batches": UPDATES, "learning_rate": 1e-3, "precision": "float32"}
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", 2, "--master_addr", "127.0.0.1", "--master_port"]
    two = start(
        *launcher, free_port(), ROOT / "train.py", *flags(run, out_dir="two", batch_size=2), ACCELERATE_USE_CPU="true"
    )
    done = finish(two, timeout=180)
    assert done.code == 0, done.err
    assert log_of(folder / "two", "start")[0]["processes"] == 2  # first of all: there were two
    assert re.search("processes 2", done.out) and done.out.count("update 1 of") == 1  # one of them speaks

    assert call("train.py", *flags(run, out_dir="one", batch_size=4)).code == 0
    assert log_of(folder / "one", "start")[0]["processes"] == 1
    losses = {name: [r["loss"] for r in log_of(folder / name, "update")] for name in ("one", "two")}
    assert len(losses["one"]) == len(losses["two"]) == UPDATES >= 8
    assert losses["two"] == pytest.approx(losses["one"], rel=0, abs=1e-5)
    assert abs(losses["one"][0] - losses["one"][-1]) > 1e-3  # the weights did change on the way
    kinds = ("validation", "final")
    bits = {n: [r["bits_per_byte"] for r in log_of(folder / n) if r["event"] in kinds] for n in ("one", "two")}
    assert bits["two"] == pytest.approx(bits["one"], rel=0, abs=1e-4) and len(bits["two"]) > 1
    states = {name: load_checkpoint(folder / name / f"checkpoint_{UPDATES}.pth") for name in ("one", "two")}
    assert states["one"]["samples"] == states["two"]["samples"] == UPDATES * 2 * 2 * 2
