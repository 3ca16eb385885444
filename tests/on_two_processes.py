"""train.py with one thing changed, to be started by torchrun: `on_two_processes.py CHANGE ...flags`.

killed=RANK,UPDATE   the process of that rank is killed with SIGKILL when it begins that update
no_samples           every sample fails
fsdp                 FSDP on the CPU, where Accelerate has none: the plugin that fsdp.yaml describes, over gloo
"""

import os
import signal
import sys

from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

import nyx.training
from nyx.cli import train_main
from nyx.sharding import is_sharded

true_update = nyx.training.train_update


def killed(rank: str, update: str) -> None:
    def train_update(trainer):
        if os.environ["RANK"] == rank and trainer.update + 1 == int(update):
            os.kill(os.getpid(), signal.SIGKILL)
        return true_update(trainer)

    nyx.training.train_update = train_update


def no_samples() -> None:
    def write_sample(trainer, model):
        raise RuntimeError("no kernel for this")

    nyx.training.write_sample = write_sample


def fsdp() -> None:
    class Sharded(Accelerator):
        def __init__(self, **options):
            super().__init__(**options)
            self.state.fsdp_plugin = AcceleratorState._shared_state["fsdp_plugin"] = FullyShardedDataParallelPlugin()
            for state in (AcceleratorState, PartialState):
                state._shared_state["distributed_type"] = DistributedType.FSDP

    def train_update(trainer):
        blocks = trainer.model.blocks
        assert is_sharded(trainer.model) and all(type(b).__name__ == "FSDPBlock" for b in blocks)
        held = sum(t.to_local().numel() for slot in trainer.optimizer.state.values() for t in slot.values())
        assert held in (0, sum(p.to_local().numel() for p in trainer.model.parameters()))  # momentum, of its own share
        return true_update(trainer)

    nyx.training.Accelerator, nyx.training.train_update = Sharded, train_update


name, _, values = sys.argv[1].partition("=")
{"killed": killed, "no_samples": no_samples, "fsdp": fsdp}[name](*filter(None, values.split(",")))
raise SystemExit(train_main(sys.argv[2:]))
