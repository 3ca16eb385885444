"""Runs train.py again and again, each time in a fork of itself that is killed as asked; the imports are paid for once.

Reads lines of JSON, `{"line": [...], "place": ..., "seconds": ...}`: the flags, and where or after how long SIGKILL comes (None:
never). Answers each with the exit code, negative for a signal. What the forks say goes into `said.txt`.
"""

import json
import os
import signal
import sys
import time

import torch

torch.set_num_threads(1)
import matplotlib.backends.backend_agg  # noqa: F401 - else each fork would import it
import torch._dynamo

import nyx.checkpoint
import nyx.training
from nyx.cli import train_main

PLACES = {  # what is about to be called when the signal comes, and when
    "between micro-batches": (nyx.training.Trainer, "batch", lambda trainer, micro: (trainer.update, micro) == (4, 1)),
    "in a validation": (nyx.training, "evaluate", lambda *_: os.path.exists("part/checkpoint_3.pth")),
    "in a sample": (nyx.training, "write_sample", lambda trainer, model: trainer.update == 6),
    "with a checkpoint half-written": (nyx.checkpoint, "_read_outline", lambda file, path: "checkpoint_6" in str(path)),
    "before a checkpoint has its name": (os, "replace", lambda old, new: "checkpoint_6" in str(new)),
    "before old checkpoints are deleted": (nyx.training, "prune", lambda *_: os.path.exists("part/checkpoint_6.pth")),
    "before the first checkpoint": (nyx.training, "save", lambda trainer: trainer.update == 3),
}


def kill_at(owner: object, name: str, now) -> None:
    """Have this process killed when `owner.name` is about to be called and `now` says yes."""
    function = getattr(owner, name)

    def wrapped(*arguments, **options):
        if now(*arguments):
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)

    setattr(owner, name, wrapped)


def child(line: list[str], place: str | None) -> None:
    said = os.open("said.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(said, 1), os.dup2(said, 2)
    if place:
        kill_at(*PLACES[place])
    code = train_main(line)
    sys.stdout.flush()
    os._exit(code)


def ended(pid: int, seconds: float) -> int:
    """Wait for a child, but not longer than that: then it is killed."""
    deadline = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            deadline = float("inf")
        time.sleep(0.002)


if __name__ == "__main__":
    for request in sys.stdin:
        asked = json.loads(request)
        pid = os.fork()
        if pid == 0:
            child(asked["line"], asked["place"])
        print(ended(pid, asked["seconds"] or 1e9), flush=True)
