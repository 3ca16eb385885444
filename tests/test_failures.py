"""What the machine refuses in the middle of a run, and what strangers put into files: a sentence, and nothing is lost."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, replace

import pytest
import safetensors.torch
import torch
from programs import RUN, SHAPE, Done, call, environment, flags, folder, log_of, same, small_model, write_text
from test_resume import KINDS, LEARN, what_matters, without_times

import nyx.cli
import nyx.training
from nyx import NYX, NYXConfig
from nyx.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint
from nyx.lora import add_adapter, load_adapter, save_adapter
from nyx.training import Trainer

__all__ = ["call", "folder"]  # fixtures

posix = pytest.mark.skipif(os.name != "posix", reason="limits of this kind are POSIX only")
SMALL = RUN | SHAPE | LEARN


def ends_like_the_whole(call, folder, settings: dict = SMALL) -> Done:
    """The run in `part`, resumed, ends with the bits and the log of one that nothing happened to."""
    done = call("train.py", "--checkpoint_path", "part")
    assert done.code == 0, done.err
    assert call("train.py", *flags(settings, out_dir="undisturbed")).code == 0
    a, b = (what_matters(load_checkpoint(folder / name / "checkpoint_7.pth")) for name in ("part", "undisturbed"))
    assert same(a, b)
    told = [[r for r in without_times(log_of(folder / n)) if r["event"] != "start"] for n in ("part", "undisturbed")]
    assert told[0] == told[1]
    return done


# a full disk


@posix
@pytest.mark.parametrize("what", ["a checkpoint", "the log"])
def test_a_full_disk_leaves_the_last_good_checkpoint(call, folder, monkeypatch, what):
    """The largest size of a file is limited from update 5 on: the write fails half-way, as on a full disk."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    true_update = nyx.training.train_update

    def train_update(trainer):
        if trainer.update == 4:
            log = folder / "part" / "log.jsonl"
            size = log.stat().st_size + 7 if what == "the log" else 60_000
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        return true_update(trainer)

    monkeypatch.setattr(nyx.training, "train_update", train_update)
    try:
        done = call("train.py", *flags(SMALL, out_dir="part"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    name, update = ("checkpoint_6.pth", 6) if what == "a checkpoint" else ("a file in part", 5)
    assert done.code == 1 and "Traceback" not in done.err
    assert re.search(f"error: the run stopped after update {update}: .*{name} could not be written", done.err), done.err
    assert "make room" in done.err and "checkpoint_3.pth holds the last checkpoint" in done.err
    assert [update for update, _ in list_checkpoints(folder / "part")] == [3]
    assert not list((folder / "part").glob(".*nyx-tmp"))
    monkeypatch.undo()
    os.chdir(folder)
    ends_like_the_whole(call, folder)


def test_a_picture_that_cannot_be_drawn_ends_no_run(call, folder):
    (folder / "part" / "loss.png").mkdir(parents=True)
    done = call("train.py", *flags(SMALL, out_dir="part"))
    assert done.code == 0 and "warning: part/loss.png could not be drawn" in done.err


# damaged checkpoints


@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied"])
def test_of_a_damaged_newest_checkpoint_the_one_before_is_taken(call, folder, damage):
    assert call("train.py", *flags(SMALL, out_dir="part")).code == 0
    (folder / "part" / "checkpoint_7.pth").unlink()
    newest = folder / "part" / "checkpoint_6.pth"
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 4
    newest.write_bytes({"cut": data[: len(data) // 2], "flipped": data, "emptied": b""}[damage])
    done = call("train.py", "--checkpoint_path", "part/checkpoint_6.pth")
    assert done.code == 2 and "checkpoint_6.pth" in done.err  # by name it is refused
    done = ends_like_the_whole(call, folder)
    assert re.search(r"warning: .*checkpoint_6.pth .*checkpoint_3.pth is tried", done.err), done.err
    assert [r["update"] for r in log_of(folder / "part", "start")] == [0, 3]


def test_the_best_checkpoint_is_kept_beside_the_newest(call, folder, monkeypatch):
    true_validate = nyx.training.validate

    def validate(trainer, whole=False):  # the best is that of update 2, long ago
        record = true_validate(trainer, whole)
        return record | {"bits_per_byte": 1.0 if record["update"] == 2 else 8.0}

    monkeypatch.setattr(nyx.training, "validate", validate)
    line = flags(SMALL, out_dir="part", num_batches=8, keep=2, checkpoint_every=1, validate_every=1)
    assert call("train.py", *line).code == 0
    assert [update for update, _ in list_checkpoints(folder / "part")] == [8, 7, 2]
    assert load_checkpoint(folder / "part" / "checkpoint_8.pth")["best"] == {"update": 2, "bits_per_byte": 1.0}


# memory


NEEDS = r"error: this run needs about [\d,.]+ GB \(.*\) and 0.00 GB are free: lower (\w+)"


@pytest.mark.parametrize(
    ("more", "lower"),
    [
        ({"batch_size": 64}, "batch_size from 64, and raise gradient_accumulate_every from 2"),
        ({"batch_size": 1, "seq_len": 500}, "seq_len from 500"),
        ({"batch_size": 1, "seq_len": 1, "model_dim": 64}, "model_dim from 64 or layer_depth from 1"),
    ],
)
def test_what_does_not_fit_into_memory_is_refused_before_the_first_update(call, folder, monkeypatch, more, lower):
    monkeypatch.setattr(nyx.training, "free_memory", lambda device: 250_000)
    done = call("train.py", *flags(SMALL, more, out_dir="new"))
    assert done.code == 2 and re.search(NEEDS, done.err) and lower in done.err, done.err
    assert not (folder / "new").exists()
    monkeypatch.setattr(nyx.training, "free_memory", lambda device: 10**9)
    assert call("train.py", *flags(SMALL, more, out_dir="new", num_batches=1)).code == 0


def test_a_shape_that_does_not_fit_is_refused_before_it_is_made(call, folder, monkeypatch):
    monkeypatch.setattr(nyx.cli, "free_memory", lambda: 10**10)
    monkeypatch.setattr(nyx.cli, "NYX", lambda shape: pytest.fail("it was made"))
    done = call("train.py", *flags(RUN, out_dir="new", model_dim=30_000))
    assert done.code == 2 and "lower model_dim from 30000 or layer_depth from 8" in done.err, done.err


MEASURE = """
import json, re, resource, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from nyx.model import NYX, NYXConfig
from nyx.memory import activation_bytes
from nyx.training import Objective
shape, batch, n = json.loads(sys.argv[1])
objective = Objective(NYX(NYXConfig(**shape)))
objective(torch.zeros(1, 9, dtype=torch.long)).backward()
status = Path("/proc/self/status")  # what getrusage says on Linux is inherited from the process that started this one
def peak():
    if status.exists():
        return int(re.search("VmHWM:\\s+(\\d+)", status.read_text())[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
loss = objective(torch.randint(256, (batch, n)))
taken = peak() - before
print(activation_bytes(objective, batch, n), taken)
"""


@posix
@pytest.mark.parametrize("shape", [{}, {"attn_dropout": 0.1, "ff_dropout": 0.1, "layer_depth": 3, "num_kv_heads": 4}])
def test_the_estimate_is_near_what_a_process_takes(tmp_path, corpus_cache, shape):
    line = [sys.executable, "-c", MEASURE, json.dumps([shape, 1, 769])]
    env = environment(tmp_path, corpus_cache)
    done = subprocess.run(line, env=env, capture_output=True, text=True, timeout=120, check=True)
    counted, taken = map(int, done.stdout.split())
    assert 0.75 < counted / taken < 1.1, f"{counted:,} counted, {taken:,} taken"


@posix
def test_a_limit_of_the_process_counts_as_the_memory_there_is(tmp_path, corpus_cache):
    write_text(tmp_path / "text.txt")
    code = "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (8 * 2**30, 8 * 2**30)); "
    code += "from nyx.cli import train_main; raise SystemExit(train_main(sys.argv[1:]))"
    line = flags(RUN, SHAPE, out_dir="new", batch_size=40_000, seq_len=1000)
    env = environment(tmp_path, corpus_cache)
    done = subprocess.run([sys.executable, "-c", code, *line], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 2 and "lower batch_size from 40000" in done.stderr, done.stderr
    assert not (tmp_path / "new").exists()


CPU = "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), RuntimeError(CPU), MemoryError()],
    ids=["CUDA", "CPU", "Python"],
)
def test_memory_that_runs_out_later_stops_the_run_with_advice(call, folder, monkeypatch, error):
    true_loss, calls = NYX.loss, []

    def loss(self, tokens):
        calls.append(1)
        if len(calls) == 11:  # the first counts memory; then two for each update
            raise error
        return true_loss(self, tokens)

    monkeypatch.setattr(NYX, "loss", loss)
    done = call("train.py", *flags(SMALL, out_dir="part"))
    assert done.code == 1 and "Traceback" not in done.err
    assert "after update 4, out of memory" in done.err and "lower batch_size from 2" in done.err, done.err
    assert "checkpoint_3.pth holds the last checkpoint" in done.err
    monkeypatch.undo()
    os.chdir(folder)
    ends_like_the_whole(call, folder)


# numbers that are none


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_loss_that_is_no_number_keeps_the_last_good_state(call, folder, monkeypatch, value):
    true_batch, true_loss, at = Trainer.batch, NYX.loss, []

    def batch(self, micro):
        at[:] = [self.update, micro]
        return true_batch(self, micro)

    monkeypatch.setattr(Trainer, "batch", batch)
    monkeypatch.setattr(NYX, "loss", lambda self, t: true_loss(self, t) * (float(value) if at == [4, 1] else 1))
    done = call("train.py", *flags(SMALL, out_dir="part"))
    assert done.code == 1 and f"the loss became {value} at update 5" in done.err, done.err
    assert "checkpoint_3.pth holds the last checkpoint" in done.err
    monkeypatch.undo()
    os.chdir(folder)
    ends_like_the_whole(call, folder)


# strangers' files


@pytest.fixture
def ended(call, folder) -> dict:
    """The state of a run of adapters in `run`, for strangers to change."""
    small_model().save_pretrained(folder / "base")
    assert call("train.py", *flags(KINDS["lora"], out_dir="run")).code == 0
    return load_checkpoint(folder / "run" / "checkpoint_7.pth")


def poisoned(t: torch.Tensor) -> torch.Tensor:
    return torch.full_like(t, float("nan"))


FORGED = {  # what a stranger who knows the format writes, with a checksum that is right
    "NaN weights": (lambda s: s["model"].update({"norm.weight": poisoned(s["model"]["norm.weight"])}), "NaN"),
    "NaN momenta": (lambda s: s["optimizer"]["state"][0].update(exp_avg=poisoned(s["optimizer"]["state"][0]["exp_avg"])), "NaN"),
    "momenta of another shape": (lambda s: s["optimizer"]["state"][0].update(exp_avg=torch.zeros(3)), "does not hold"),
    "no momenta": (lambda s: s["optimizer"]["state"].clear(), "does not hold"),
    "weights of another shape": (lambda s: s["model"].update({"norm.weight": torch.ones(5)}), "does not hold"),
    "weights of another type": (lambda s: s["model"].update({"norm.weight": torch.ones(32, dtype=torch.int8)}), "does not hold"),
    "a weight too many": (lambda s: s["model"].update(extra=torch.ones(5)), "does not hold"),
    "a weight too few": (lambda s: s["model"].pop("norm.weight"), "does not hold"),
    "a shape beyond memory": (lambda s: s["model_config"].update(model_dim=60_000), "does not hold"),
    "an absurd shape": (lambda s: s["model_config"].update(layer_depth=10**9), "layer_depth"),
    "a rank beyond memory": (lambda s: s["notes"]["lora"].update(rank=10**12), "rank"),
    "an unknown setting": (lambda s: s["train_config"].update(run_this="rm"), "run_this"),
    "no processes": (lambda s: s.update(processes=0), "does not hold"),
}  # fmt: skip


@posix
def test_a_forged_checkpoint_is_refused_before_memory_is_spent(call, folder, ended):
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, (forge, words) in FORGED.items():
        state = load_checkpoint(folder / "run" / "checkpoint_7.pth")
        forge(state)
        save_checkpoint(folder / "forged.pth", state)
        resume = ["train.py", "--checkpoint_path", "forged.pth", "--filepath", "text.txt", "--out_dir", "new"]
        for line in (resume, ["test.py", "--sample_prompt", "a", "--weights", "forged.pth"]):
            done = call(*line)
            assert done.code == 2 and words in done.err and "forged.pth" in done.err, (name, done)
            assert "Traceback" not in done.err and not (folder / "new").exists()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kilobytes


WITH_LIMIT = """
import json, resource, sys
from nyx.cli import test_main, train_main
resource.setrlimit(resource.RLIMIT_AS, (8 * 2**30, 8 * 2**30))
for line in json.loads(sys.argv[1]):
    print(test_main(line) if "--sample_prompt" in line else train_main(line))
"""


@posix
def test_a_configuration_that_is_a_memory_bomb_is_refused_before_memory_is_spent(folder, tmp_path, corpus_cache):
    """A shape of 61 billion parameters, which a configuration may have, beside a small file of weights."""
    small_model().save_pretrained(folder / "bomb")
    bomb = asdict(replace(NYXConfig(), model_dim=16_000, layer_depth=10, ff_mult=8))
    (folder / "bomb" / "config.json").write_text(json.dumps(bomb))
    wide = small_model(model_dim=64)
    add_adapter(wide, "wide", wide.lora_targets("q"), rank=2)
    lines = [["--sample_prompt", "a", "--weights", "bomb"], flags(RUN, weights="bomb", out_dir="new")]
    lines += [flags(RUN, weights="bomb", out_dir="new", attn_dropout=0.1)]
    env = environment(tmp_path, corpus_cache)
    code = [sys.executable, "-c", WITH_LIMIT, json.dumps(lines)]
    done = subprocess.run(code, cwd=folder, env=env, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == ["2", "2", "2"], done.stderr
    assert len(re.findall(r"error: bomb/model.safetensors does not fit", done.stderr)) == 3, done.stderr


STRANGE = {
    "a tensor too many": (lambda t, c: t.update(extra=torch.ones(5)), "not expected 'extra'"),
    "a tensor too few": (lambda t, c: t.pop("norm.weight"), "missing 'norm.weight'"),
    "a tensor of another shape": (lambda t, c: t.update({"norm.weight": torch.ones(5)}), "of another shape 'norm.weight'"),
    "NaN": (lambda t, c: t.update({"norm.weight": poisoned(t["norm.weight"])}), "NaN or infinite"),
    "an unknown setting": (lambda t, c: c.update(run_this="rm"), "unknown settings 'run_this'"),
    "an absurd setting": (lambda t, c: c.update(layer_depth=10**9), "layer_depth was 1000000000"),
}  # fmt: skip


def test_strange_weights_are_refused(call, folder):
    for name, (change, words) in STRANGE.items():
        tensors, config = dict(small_model().state_dict()), asdict(small_model().config)
        change(tensors, config)
        (folder / name).mkdir()
        safetensors.torch.save_file(tensors, folder / name / "model.safetensors")
        (folder / name / "config.json").write_text(json.dumps(config))
        for line in (["test.py", "--sample_prompt", "a"], ["train.py", *flags(RUN, out_dir="new")]):
            done = call(*line, "--weights", name)
            assert done.code == 2 and words in done.err and "Traceback" not in done.err, (name, done)
    assert not (folder / "new").exists()


def test_an_adapter_that_does_not_fit_leaves_the_model_alone(folder):
    model = small_model()
    weights = {name: t.clone() for name, t in model.state_dict().items()}
    for number, changed in enumerate([{"model_dim": 64}, {"layer_depth": 2}]):
        other = small_model(**changed)
        add_adapter(other, "other", other.lora_targets("q"), rank=2)
        save_adapter(other, "other", folder / f"{number}.safetensors")
        with pytest.raises(ValueError, match=f"{number}.safetensors"):
            load_adapter(model, folder / f"{number}.safetensors")
        assert same(dict(model.state_dict()), weights)
    shutil.copy(folder / "0.safetensors", folder / "cut.safetensors")
    os.truncate(folder / "cut.safetensors", 200)
    with pytest.raises(ValueError, match="cut.safetensors"):
        load_adapter(model, folder / "cut.safetensors")
    assert same(dict(model.state_dict()), weights)
