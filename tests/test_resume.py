"""Interrupted is uninterrupted: wherever a run was stopped, it ends with the same bits once it is resumed."""

import os
import re
import shlex
import signal
import time

import pytest
import torch
from conftest import ROOT
from programs import RUN, SHAPE, call, finish, flags, folder, log_of, same, small_model, snapshot, start, write_text

import nyx.cli
import nyx.training
from nyx import NYX
from nyx.checkpoint import load_checkpoint
from nyx.cli import read_weights
from nyx.lora import load_adapter
from nyx.training import Trainer

__all__ = ["call", "folder", "start"]  # fixtures

posix = pytest.mark.skipif(os.name != "posix", reason="signals of this kind are POSIX only")
DROPOUT = {"attn_dropout": 0.2, "ff_dropout": 0.1}
LEARN = {"learning_rate": 3e-3, "num_batches": 7, "validate_every": 3, "generate_every": 3, "checkpoint_every": 3}
KINDS = {
    "plain": RUN | SHAPE | LEARN,
    "dropout": RUN | SHAPE | DROPOUT | LEARN,
    "bf16": RUN | SHAPE | DROPOUT | LEARN | {"precision": "bf16"},
    "lora": RUN | LEARN | {"weights": "base", "lora_rank": 2},
    "all of them": RUN | DROPOUT | LEARN | {"weights": "base", "lora_rank": 2, "precision": "bf16"},
}


def without_times(records: list[dict]) -> list[dict]:
    """What is the same in every run: the records, their times and paths aside."""
    clock = ("seconds", "data_seconds", "tokens_per_second", "path")
    return [{key: value for key, value in r.items() if key not in clock} for r in records]


def what_matters(state: dict) -> dict:
    """A checkpoint's state without the generators that NYX never draws from: Python's and NumPy's."""
    return state | {"random": [random["torch"] for random in state["random"]]}


def interrupt(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, update: int, micro: int | None = None) -> None:
    """Have SIGTERM sent to this process, once, when `owner.name` begins its work after the given update."""
    function, sent = getattr(owner, name), []

    def wrapped(trainer, *arguments, **options):
        if trainer.update == update and not sent and micro in (None, *arguments[:1]):
            sent.append(update)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)  # the signal has come
        return function(trainer, *arguments, **options)

    monkeypatch.setattr(owner, name, wrapped)


def resume_command(text: str) -> list[str]:
    """The arguments of the command that a stopped run prints."""
    found = re.search(r"go on with: (.*)", text)
    assert found, f"it does not say how to go on:\n{text}"
    words = shlex.split(found[1])
    return words[words.index("--checkpoint_path") :]


PLACES = {
    "between micro-batches": (Trainer, "batch", 4, 1),
    "at the start of an update": (Trainer, "batch", 3, 0),
    "in a validation": (nyx.training, "validate", 3, None),
    "in a sample": (nyx.training, "write_sample", 3, None),
    "while saving": (nyx.training, "save", 3, None),
}


@posix
@pytest.mark.parametrize(
    ("kind", "place"),
    [
        (kind, place)
        if "all of them" == kind or "between micro-batches" == place
        else pytest.param(kind, place, marks=pytest.mark.nightly)
        for kind in KINDS
        for place in PLACES
    ],
)
def test_an_interrupted_run_ends_with_the_same_bits(call, folder, monkeypatch, kind, place):
    small_model().save_pretrained(folder / "base")
    assert call("train.py", *flags(KINDS[kind], out_dir="whole")).code == 0
    with monkeypatch.context() as patch:
        interrupt(patch, *PLACES[place])
        done = call("train.py", *flags(KINDS[kind], out_dir="part"))
    assert done.code == 0 and "stopped after update" in done.out, done
    stopped = log_of(folder / "part")[-1]
    assert stopped["event"] == "stopped" and 3 <= stopped["update"] <= 4
    done = call("train.py", *resume_command(done.out))
    assert done.code == 0, done.err
    whole, part = (what_matters(load_checkpoint(folder / name / "checkpoint_7.pth")) for name in ("whole", "part"))
    assert same(whole, part), [key for key in whole if not same(whole[key], part[key])]
    first, second = (without_times(log_of(folder / name)) for name in ("whole", "part"))
    assert [r for r in first if r["event"] == "update"] == [r for r in second if r["event"] == "update"]
    kinds = ("validation", "sample", "final")
    assert [r for r in first if r["event"] in kinds] == [r for r in second if r["event"] in kinds]


def test_the_same_seed_gives_the_same_run_and_another_another(call, folder):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert call("train.py", *flags(KINDS["dropout"], out_dir=name, seed=seed)).code == 0
    a, b, c = (without_times(log_of(folder / name)) for name in "abc")
    assert a == b != c


@posix
def test_sigterm_and_ctrl_c_save_and_say_how_to_go_on(start, call, folder):
    run = flags(KINDS["dropout"], num_batches=300, validate_every=100, generate_every=100, checkpoint_every=1000)

    def stopped(*command: object, number: int) -> str:
        program, seen = start(ROOT / "train.py", *command), ""
        while "update " not in seen:
            line = program.stdout.readline()
            assert line, program.stderr.read()
            seen += line
        other = call("train.py", *run, "--out_dir", "part")  # meanwhile, a second run in that folder
        assert other.code == 2 and ("in use by another run" in other.err or "is there already" in other.err)
        program.send_signal(number)
        done = finish(program)
        assert done.code == 0 and "Traceback" not in done.err, done
        assert done.err == ""
        return done.out

    go_on = resume_command(stopped(*run, "--out_dir", "part", number=signal.SIGTERM))
    first = log_of(folder / "part")[-1]["update"]
    go_on = resume_command(stopped(*go_on, number=signal.SIGINT))
    second = log_of(folder / "part")[-1]["update"]
    assert 1 <= first < second < 300  # both times in the middle
    assert call("train.py", *go_on, "--threads", 1).code == 0
    assert call("train.py", *run, "--out_dir", "whole").code == 0
    whole, part = (load_checkpoint(folder / name / "checkpoint_300.pth") for name in ("whole", "part"))
    assert same(whole["model"], part["model"]) and same(whole["optimizer"], part["optimizer"])
    losses = [[r["loss"] for r in log_of(folder / name, "update")] for name in ("whole", "part")]
    assert losses[0] == losses[1] and len(losses[0]) == 300


@posix
def test_a_second_ctrl_c_stops_at_once(call, folder, monkeypatch):
    function = nyx.training.validate

    def twice(trainer, *rest, **options):
        if trainer.update == 6:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.01)
        return function(trainer, *rest, **options)

    monkeypatch.setattr(nyx.training, "validate", twice)
    done = call("train.py", *flags(KINDS["dropout"], out_dir="part"))
    assert done.code == 130 and "Traceback" not in done.err
    assert load_checkpoint(folder / "part" / "checkpoint_3.pth")["update"] == 3
    assert not (folder / "part" / "checkpoint_6.pth").exists()
    monkeypatch.undo()
    os.chdir(folder)
    assert call("train.py", "--checkpoint_path", "part").code == 0  # the folder: its newest readable checkpoint
    assert [r["update"] for r in log_of(folder / "part", "update")] == [1, 2, 3, 4, 5, 6, 7]


@posix
def test_ctrl_c_skips_the_last_scoring_and_nothing_else(call, folder, monkeypatch):
    seen, true_model = [], NYX.forward

    def forward(self, *arguments, **options):  # the first batch of the last scoring is interrupted
        if (folder / "part" / "checkpoint_7.pth").exists():
            seen.append(1)
            if len(seen) == 1:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.01)
        return true_model(self, *arguments, **options)

    monkeypatch.setattr(NYX, "forward", forward)
    write_text(folder / "text.txt", lines=9000)  # much to score
    done = call("train.py", *flags(KINDS["dropout"], out_dir="part", export="exported"))
    assert "Traceback" not in done.err and len(seen) == 1, f"{len(seen)} batches were scored"
    assert same(dict(NYX.from_pretrained("exported").state_dict()), load_checkpoint("part/checkpoint_7.pth")["model"])


# what a resumed run takes from the file


@pytest.fixture
def ended(call, folder) -> None:
    """A run of 4 updates in `run`."""
    done = call("train.py", *flags(RUN, SHAPE, out_dir="run"))
    assert done.code == 0, done.err


GO_ON = ["--checkpoint_path", "run/checkpoint_4.pth"]


def test_more_batches_may_be_asked_for(call, folder, ended):
    done = call("train.py", *GO_ON, "--num_batches", 6)
    assert done.code == 0, done.err
    assert [r["update"] for r in log_of(folder / "run", "update")] == [1, 2, 3, 4, 5, 6]
    assert load_checkpoint(folder / "run" / "checkpoint_6.pth")["train_config"]["num_batches"] == 6


def test_a_run_that_was_over_tells_its_end_once(call, folder, ended):
    assert call("train.py", *GO_ON).code == 0
    assert [r["update"] for r in log_of(folder / "run", "final")] == [4]
    assert call("train.py", *GO_ON, "--num_batches", 6).code == 0
    assert [r["update"] for r in log_of(folder / "run", "final")] == [4, 6]


def test_typed_settings_that_agree_are_welcome(call, folder, ended):
    done = call("train.py", *GO_ON, *flags(RUN, SHAPE, num_batches=5, lora_rank=None))
    assert done.code == 0, done.err
    state = load_checkpoint(folder / "run" / "checkpoint_5.pth")
    assert state["samples"] == 5 * 4


CONTRADICTIONS = [
    ("batch_size", 3, 2),
    ("seq_len", 31, 32),
    ("gradient_accumulate_every", 1, 2),
    ("learning_rate", 0.001, 0.0001),
    ("validate_bytes", 9, 256),
    ("keep", 9, 3),
    ("seed", 5, 0),
    ("num_batches", 3, 4),
    ("model_dim", 64, 32),
    ("num_kv_heads", 2, 1),
    ("attn_dropout", 0.5, 0.0),
    ("precision", "bf16", "auto"),
    ("tokenizer", "gpt2", "bytes"),
    ("preset", "nyx-mini", 32),
    ("lora_rank", 2, None),
]


def test_contradictions_are_refused_naming_both_values(call, folder, ended):
    before = snapshot(folder)
    for name, typed, held in CONTRADICTIONS:
        done = call("train.py", *GO_ON, f"--{name}", typed)
        assert done.code == 2 and "Traceback" not in done.err, (name, done)
        assert "checkpoint_4.pth" in done.err and str(held) in done.err, done.err
        assert (name in done.err and str(typed) in done.err) or name == "preset", done.err
    done = call("train.py", *GO_ON, "--weights", "run/checkpoint_2.pth")
    assert done.code == 2 and "--weights" in done.err and "--checkpoint_path" in done.err
    assert snapshot(folder) == before


def test_an_adapter_run_that_is_resumed_is_not_exported_either(call, folder):
    small_model().save_pretrained(folder / "base")
    assert call("train.py", *flags(RUN, weights="base", lora_rank=2, out_dir="run")).code == 0
    before = snapshot(folder)
    done = call("train.py", *GO_ON, "--num_batches", 6, "--export", "exported")
    assert done.code == 0 or (done.code == 2 and "--export" in done.err and snapshot(folder) == before), done


def test_other_data_is_refused_naming_the_way_to_start_anew(call, folder, ended):
    text = (folder / "text.txt").read_bytes()
    (folder / "longer.txt").write_bytes(text + b"x")
    (folder / "changed.txt").write_bytes(text[:-2] + b"!\n")  # of the same size
    (folder / "copy.txt").write_bytes(text)
    before = snapshot(folder)
    for name in ("longer.txt", "changed.txt"):
        done = call("train.py", *GO_ON, "--filepath", name)
        assert done.code == 2 and "--weights" in done.err and name in done.err and "text.txt" in done.err
        assert snapshot(folder) == before
    assert call("train.py", *GO_ON, "--num_batches", 5, "--filepath", "copy.txt").code == 0  # the bytes count
    (folder / "text.txt").unlink()
    done = call("train.py", "--checkpoint_path", "run/checkpoint_4.pth", "--out_dir", "elsewhere")
    assert done.code == 2 and "text.txt" in done.err and not (folder / "elsewhere").exists()


def test_an_older_checkpoint_does_not_overwrite_newer_ones(call, folder, ended):
    before = snapshot(folder)
    done = call("train.py", "--checkpoint_path", "run/checkpoint_2.pth")
    assert done.code == 2 and "checkpoint_4.pth" in done.err and "--out_dir" in done.err and snapshot(folder) == before
    assert call("train.py", "--checkpoint_path", "run/checkpoint_2.pth", "--out_dir", "again").code == 0
    a, b = (what_matters(load_checkpoint(folder / name / "checkpoint_4.pth")) for name in ("run", "again"))
    assert same(a, b)


# starting from weights


def test_a_new_run_starts_from_old_weights(call, folder, ended):
    write_text(folder / "other.txt", seed=2)
    base = small_model(seed=3)
    base.save_pretrained(folder / "base")
    old = {"base": dict(base.state_dict()), "run/checkpoint_4.pth": load_checkpoint("run/checkpoint_4.pth")["model"]}
    for number, (path, weights) in enumerate(old.items()):
        ask = flags(RUN, filepath="other.txt", weights=path, out_dir=f"new{number}", learning_rate=1e-30)
        assert call("train.py", *ask).code == 0
        state = load_checkpoint(folder / f"new{number}" / "checkpoint_4.pth")
        assert same(state["model"], weights)  # at such a rate it does not move from there
        assert state["update"] == 4 and state["samples"] == 16


def test_dropout_may_be_chosen_for_old_weights(call, folder):
    small_model().save_pretrained(folder / "base")
    assert call("train.py", *flags(RUN, DROPOUT, weights="base", out_dir="new")).code == 0
    config = load_checkpoint(folder / "new" / "checkpoint_4.pth")["model_config"]
    assert {name: config[name] for name in DROPOUT} == DROPOUT


def test_an_adapter_is_trained_alone_and_used(call, folder):
    base = small_model()
    base.save_pretrained(folder / "base")
    ask = flags(RUN, weights="base", lora_rank=2, lora_name="rain", out_dir="tuned", learning_rate=1e-2)
    done = call("train.py", *ask)
    assert done.code == 0, done.err
    state = load_checkpoint(folder / "tuned" / "checkpoint_4.pth")
    adapters = {key: t for key, t in state["model"].items() if ".adapters." in key}
    assert same({key: t for key, t in state["model"].items() if key not in adapters}, dict(base.state_dict()))
    changed = [t for key, t in adapters.items() if key.endswith(".up")]
    assert len(changed) == 3 and all(t.abs().max() > 0 for t in changed)  # q, v and the attention output

    momenta = [t for slot in state["optimizer"]["state"].values() for t in slot.values() if isinstance(t, torch.Tensor)]
    trained = sum(t.numel() for t in adapters.values())
    assert sum(t.numel() for t in momenta) == trained == log_of(folder / "tuned", "start")[0]["trained"]
    assert f"{trained:,} of them trained" in done.out

    file = folder / "tuned" / "rain.safetensors"
    assert file.stat().st_size < 0.2 * (folder / "base" / "model.safetensors").stat().st_size
    tokens = torch.randint(256, (2, 19), generator=torch.Generator().manual_seed(0))
    tuned = NYX.from_pretrained("base")
    load_adapter(tuned, file)
    checkpoint = read_weights("tuned/checkpoint_4.pth", {})
    with torch.no_grad():
        torch.testing.assert_close(tuned(tokens), checkpoint(tokens), rtol=0, atol=0)
        assert (tuned(tokens) - base(tokens)).abs().max() > 1e-3

    ask = ["--sample_prompt", "The cat", "--generate_length", 24, "--temperature", 0, "--weights", "base"]
    plain, adapted = call("test.py", *ask), call("test.py", *ask, "--adapter", "tuned/rain.safetensors")
    assert plain.code == adapted.code == 0 and plain.out != adapted.out
    assert adapted.out == "The cat" + "".join(tuned.stream("The cat", 24, temperature=0)) + "\n"
