"""What train.py makes of its flags, for programs that measure runs from within."""

import shlex
import statistics
from collections.abc import Callable
from contextlib import closing
from itertools import islice
from pathlib import Path

from nyx.cli import prepare, set_threads, train_parser
from nyx.training import Trainer

NEVER = 10**9  # updates


def trainer_of(words: str, filepath: str | Path, out_dir: str | Path, **more: object) -> Trainer:
    """A new run, with its model, text and settings."""
    named = {"filepath": filepath, "out_dir": out_dir} | more
    flags = vars(
        train_parser().parse_args(
            [*shlex.split(words), *(part for k, v in named.items() for part in (f"--{k}", str(v)))]
        )
    )
    set_threads(flags)
    return prepare(flags)[0]


def seconds_per_update(words: str, filepath: str | Path, out_dir: str | Path, clock: Callable[[], float]) -> float:
    """The median of a few updates, after two that do not count."""
    trainer, times = trainer_of(words, filepath, out_dir, num_batches=NEVER), []
    with closing(trainer.run()) as records:
        for record in islice(records, 24):
            times += [clock()] if record["event"] == "update" else []
    return statistics.median(after - before for before, after in zip(times[2:], times[3:]))
