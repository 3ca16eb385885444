"""More than one process: the same losses as one process with the whole batch, whoever dies and whoever goes on."""

import re
import signal
import socket
import subprocess
import time

import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from conftest import ROOT
from programs import RUN, SHAPE, call, finish, flags, folder, log_of, same, small_model, start

from nyx import NYX
from nyx.checkpoint import load_checkpoint

__all__ = ["call", "folder", "start"]  # fixtures

UPDATES = 20
CHANGED = ROOT / "tests" / "on_two_processes.py"
SET = RUN | SHAPE | {"num_batches": UPDATES, "learning_rate": 1e-3, "precision": "float32", "checkpoint_every": 5}
SET |= {"validate_every": 5, "generate_every": 10}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def torchrun(start):
    """Start a program in several processes, as `ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2` does."""

    def begin(*command: object, **variables: str) -> subprocess.Popen:
        launcher = ["-m", "torch.distributed.run", "--nproc_per_node", 2, "--master_addr", "127.0.0.1"]
        return start(*launcher, "--master_port", free_port(), *command, **{"ACCELERATE_USE_CPU": "true"} | variables)

    return begin


def losses(place) -> list[float]:
    """The losses of all updates, each of which must be there once."""
    records = log_of(place, "update")
    assert [r["update"] for r in records] == list(range(1, UPDATES + 1))
    return [r["loss"] for r in records]


@pytest.fixture
def one(call, folder) -> list[float]:
    """The losses of one process with the whole batch."""
    assert call("train.py", *flags(SET, out_dir="one", batch_size=4)).code == 0
    assert log_of(folder / "one", "start")[0]["processes"] == 1
    alone = losses(folder / "one")
    assert abs(alone[0] - alone[-1]) > 1e-2 and len({round(x, 3) for x in alone}) > UPDATES / 2  # it does learn
    return alone


def test_two_processes_learn_what_one_learns(torchrun, folder, one):
    done = finish(torchrun(ROOT / "train.py", *flags(SET, out_dir="two")), timeout=180)
    assert done.code == 0, done.err
    assert log_of(folder / "two", "start")[0]["processes"] == 2  # first of all: there were two
    assert re.search("processes 2", done.out) and done.out.count("update 1 of") == 1  # one of them speaks
    assert losses(folder / "two") == pytest.approx(one, rel=0, abs=1e-5)
    kinds = ("validation", "final")
    bits = {n: [r["bits_per_byte"] for r in log_of(folder / n) if r["event"] in kinds] for n in ("one", "two")}
    assert bits["two"] == pytest.approx(bits["one"], rel=0, abs=1e-4) and len(bits["two"]) > 1
    states = {name: load_checkpoint(folder / name / f"checkpoint_{UPDATES}.pth") for name in ("one", "two")}
    assert states["one"]["samples"] == states["two"]["samples"] == UPDATES * 2 * 2 * 2


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.nightly), 1])
def test_a_killed_process_ends_the_run_and_one_process_goes_on_with_it(torchrun, call, folder, one, rank):
    begun = time.monotonic()
    done = finish(torchrun(CHANGED, f"killed={rank},13", *flags(SET, out_dir="two")), timeout=90)
    assert log_of(folder / "two", "start")[0]["processes"] == 2
    assert done.code != 0 and time.monotonic() - begun < 60, done  # and that includes the start
    assert [r["update"] for r in log_of(folder / "two", "update")][-1] == 12
    if rank:  # the first one is left, and says what happened
        assert "error: the run stopped after update 12: another process has ended" in done.err, done.err
        assert "checkpoint_10.pth holds the last checkpoint" in done.err

    done = call("train.py", "--checkpoint_path", "two", "--threads", 1)
    assert done.code == 0, done.err
    assert "the run had 2 processes and goes on with 1: gradient_accumulate_every is now 4" in done.err
    assert log_of(folder / "two", "start")[-1]["processes"] == 1
    assert losses(folder / "two") == pytest.approx(one, rel=0, abs=1e-5)  # the same windows in the same updates
    state = load_checkpoint(folder / "two" / f"checkpoint_{UPDATES}.pth")
    assert state["samples"] == UPDATES * 8 and state["train_config"]["gradient_accumulate_every"] == 4


@pytest.mark.nightly
def test_two_processes_go_on_where_one_was_killed(start, torchrun, folder, one):
    command = flags(SET, out_dir="two", batch_size=2, gradient_accumulate_every=4)
    done = finish(start(CHANGED, "killed=0,8", *command, RANK="0"), timeout=90)
    assert done.code != 0 and log_of(folder / "two", "update")[-1]["update"] == 7
    done = finish(torchrun(ROOT / "train.py", "--checkpoint_path", "two"), timeout=180)
    assert done.code == 0 and "gradient_accumulate_every is now 2" in done.err, done.err
    assert log_of(folder / "two", "start")[-1]["processes"] == 2
    assert losses(folder / "two") == pytest.approx(one, rel=0, abs=1e-5)


def test_processes_that_cannot_share_an_update_are_refused(call, folder, one, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    done = call("train.py", "--checkpoint_path", "one/checkpoint_15.pth", "--out_dir", "three")
    assert done.code == 2 and "2 micro-batches, which 3 processes cannot share" in done.err and "1, 2" in done.err
    assert not (folder / "three").exists()


@pytest.mark.nightly
def test_sigterm_stops_all_processes_and_says_how_to_go_on(torchrun, folder):
    program, seen = torchrun(ROOT / "train.py", *flags(SET, out_dir="two", num_batches=5000)), ""
    while "update 1 of" not in seen:
        line = program.stdout.readline()
        assert line, program.stderr.read()
        seen += line
    program.send_signal(signal.SIGTERM)
    done = finish(program, timeout=60)
    last = log_of(folder / "two")[-1]
    assert last["event"] == "stopped" and f"checkpoint_{last['update']}.pth" in done.out, done
    assert load_checkpoint(folder / "two" / f"checkpoint_{last['update']}.pth")["processes"] == 2


@pytest.fixture(scope="module")
def fsdp_variables() -> dict[str, str]:
    """What `accelerate launch --config_file fsdp.yaml` hands to the processes."""
    line = ["--config_file", str(ROOT / "fsdp.yaml"), "train.py"]
    arguments, *_ = _validate_launch_command(launch_command_parser().parse_args(line))
    assert arguments.use_fsdp and arguments.num_processes == 2
    return {name: text for name, text in prepare_multi_gpu_env(arguments).items() if "FSDP" in name}


def test_sharded_processes_learn_what_one_learns(torchrun, call, folder, one, fsdp_variables):
    done = finish(torchrun(CHANGED, "fsdp", *flags(SET, out_dir="two", export="exported"), **fsdp_variables), 180)
    assert done.code == 0, done.err
    assert log_of(folder / "two", "start")[0]["processes"] == 2
    assert losses(folder / "two") == pytest.approx(one, rel=0, abs=1e-5)
    events = [[(r["event"], r["update"]) for r in log_of(folder / name)] for name in ("one", "two")]
    assert events[0] == events[1]
    state = load_checkpoint(folder / "two" / f"checkpoint_{UPDATES}.pth")  # whole tensors
    assert same(dict(NYX.from_pretrained("exported").state_dict()), state["model"])
    done = call("train.py", "--checkpoint_path", "two/checkpoint_10.pth", "--out_dir", "again", "--threads", 1)
    assert done.code == 0, done.err  # and one process goes on, not sharded
    again = [r["loss"] for r in log_of(folder / "again", "update")]
    assert again == pytest.approx(one[10:], rel=0, abs=1e-5)


@pytest.mark.nightly
def test_a_sharded_run_resumes_sharded(torchrun, folder, one, fsdp_variables):
    finish(torchrun(ROOT / "train.py", *flags(SET, out_dir="two")), timeout=180)
    line = ["--checkpoint_path", "two/checkpoint_10.pth", "--out_dir", "again"]
    done = finish(torchrun(CHANGED, "fsdp", *line, **fsdp_variables), timeout=180)
    assert done.code == 0, done.err
    assert [r["loss"] for r in log_of(folder / "again", "update")] == pytest.approx(one[10:], rel=0, abs=1e-5)


def test_adapters_are_not_sharded(torchrun, folder, fsdp_variables):
    small_model().save_pretrained(folder / "base")
    line = flags(RUN, weights="base", lora_rank=2, out_dir="two")
    done = finish(torchrun(CHANGED, "fsdp", *line, **fsdp_variables), timeout=180)
    assert done.code != 0 and "--lora_rank does not go with FSDP" in done.err and not (folder / "two").exists()
