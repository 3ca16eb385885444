"""train.py and test.py as a user meets them: the command lines, what a run leaves behind, and what is refused.

Bad input gets a sentence and a non-zero exit, and nothing that was on disk before is touched.
"""

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from programs import RUN, SHAPE, Done, call, environment, flags, folder, log_of, same, small_model, snapshot, write_text

from nyx import NYX, NYXConfig
from nyx.checkpoint import RunLock, load_checkpoint, read_header, save_checkpoint
from nyx.cli import plan_new, prepare, train_parser, typed_shape
from nyx.cli import test_parser as write_parser
from nyx.data import load_corpus
from nyx.training import TrainConfig, evaluate

__all__ = ["call", "folder"]  # fixtures

# As the design orders them, letter for letter; DATA stands for <DATA FILE PATH>.
TRAIN = (
    "python train.py --filepath DATA --vocab_size 256 --model_dim 512 --layer_depth 8 --num_attention_heads 8 "
    "--num_batches 100000 --batch_size 4 --gradient_accumulate_every 4 --learning_rate 1e-4 --validate_every 100 "
    "--prime_length 128 --generate_every 500 --generate_length 512 --seq_len 1024"
)
WRITE = (
    'python test.py --sample_prompt "AI is a power!" --vocab_size 256 --model_dim 512 --layer_depth 8 '
    "--num_attention_heads 8 --generate_length 512"
)
RESUME = "python train.py --filepath DATA --checkpoint_path weights/checkpoint_15000.pth"
SMALL = flags(SHAPE)


def arguments(line: str, **values: object) -> list[str]:
    """What a shell hands to the program, with other values for some of the flags."""
    words = shlex.split(line)[2:]
    asked = zip(words[::2], words[1::2], strict=True)
    return [part for flag, value in asked for part in (flag, str(values.get(flag[2:], value)))]


# the command lines


def test_the_values_of_the_first_command_line_are_the_defaults():
    typed = vars(train_parser().parse_args(arguments(TRAIN)))
    asked = dict(zip(arguments(TRAIN)[::2], arguments(TRAIN)[1::2], strict=True))
    assert {f"--{name}" for name in typed} == asked.keys()  # every flag is known, and no other is set
    for name, value in typed.items():
        assert value == type(value)(asked[f"--{name}"])
    shape, run, notes = plan_new(typed)
    assert (shape, run) == (NYXConfig(), TrainConfig())
    assert notes["filepath"] == "DATA"
    assert (shape.parameters, run.num_batches, run.learning_rate) == (30_020_096, 100_000, 1e-4)


def test_the_second_command_line_says_what_there_is_and_how_to_train(call, folder):
    small_model().save_pretrained(folder / "weights" / "small")
    before = snapshot(folder)
    done = call("test.py", *arguments(WRITE))
    assert done.code == 2 and done.out == "" and snapshot(folder) == before
    assert "weights/small" in done.err and "model_dim 32" in done.err and "--weights" in done.err
    hint = re.search(r"python train\.py (.*?--filepath) FILE", done.err)
    assert hint, done.err
    shape, _, _ = plan_new(vars(train_parser().parse_args([*shlex.split(hint[1]), "DATA"])))
    assert shape == NYXConfig.from_dict(typed_shape(vars(write_parser().parse_args(arguments(WRITE)))))


def test_the_hint_trains_the_shape_that_was_asked_for(call, folder):
    done = call("test.py", "--sample_prompt", "a", *SMALL)
    assert done.code == 2
    hint = re.search(r"python train\.py (.*?--filepath) FILE", done.err)
    shape, _, _ = plan_new(vars(train_parser().parse_args([*shlex.split(hint[1]), "DATA"])))
    assert asdict(shape) == asdict(NYXConfig()) | SHAPE


def test_weights_that_differ_in_any_setting_are_told_apart(call, folder):
    small_model().save_pretrained(folder / "weights" / "small")
    done = call("test.py", "--sample_prompt", "a", *flags(SHAPE, head_dim=16))
    assert done.code == 2 and "head_dim 16" in done.err.partition("There is")[0] and "head_dim 8" in done.err


# a whole run


@pytest.fixture(scope="module")
def finished(tmp_path_factory, corpus_cache) -> tuple[Path, Done]:
    """The first command line with small values, as a process, in the folder where all its files then are."""
    place = tmp_path_factory.mktemp("finished")
    write_text(place / "text.txt")
    for name in ("train.py", "test.py"):
        shutil.copy(Path(__file__).parent.parent / name, place)
    small = RUN | SHAPE | {"learning_rate": "1e-2", "num_batches": 6}
    line = arguments(TRAIN, **small)
    rest = {name: value for name, value in small.items() if f"--{name}" not in line}
    command = [sys.executable, "train.py", *line, *flags(rest), "--export", "weights/small"]
    env = environment(place, corpus_cache)
    ended = subprocess.run(command, cwd=place, env=env, capture_output=True, text=True, timeout=120)
    return place, Done(ended.returncode, ended.stdout, ended.stderr)


def test_a_run_says_how_it_goes(finished):
    _, done = finished
    assert done.code == 0, done.err
    assert "Traceback" not in done.err
    says = ["device (cpu|cuda)", "precision (float32|bf16)", r"\b12,864 parameters", r"\d tokens per second"]
    for words in (*says, r"\d\.\d+ bits per byte", r"\d:\d\d:\d\d left"):
        assert re.search(words, done.out), f"{words} is not in:\n{done.out}"


def test_a_run_keeps_a_log(finished):
    place, _ = finished
    records = log_of(place / "weights")
    assert [r["event"] for r in records][0] == "start" and [r["event"] for r in records][-1] == "final"
    at = {event: [r["update"] for r in records if r["event"] == event] for event in {r["event"] for r in records}}
    often = {"update": [1, 2, 3, 4, 5, 6], "validation": [2, 4, 6], "checkpoint": [2, 4, 6], "sample": [3, 6]}
    assert at == {"start": [0], "final": [6]} | often
    assert (records[0]["processes"], records[0]["parameters"], records[0]["trained"]) == (1, 12_864, 12_864)
    for record in records:
        if record["event"] in ("update", "validation", "final"):
            assert 5 < record["bits_per_byte"] < 9
    for sample in (r for r in records if r["event"] == "sample"):
        assert len(sample["prompt"]) == RUN["prime_length"] and sample["prompt"] in (place / "text.txt").read_text()
        assert 1 <= len(sample["text"]) <= RUN["generate_length"]
    updates = [r for r in records if r["event"] == "update"]
    assert updates[-1]["bits_per_byte"] < updates[0]["bits_per_byte"]  # it learns


def test_a_run_draws_its_losses(finished):
    from matplotlib.image import imread

    place, _ = finished
    assert (place / "weights" / "loss.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    picture = imread(place / "weights" / "loss.png")
    assert min(picture.shape[:2]) > 100 and picture[..., :3].std() > 0.02


def test_a_run_keeps_checkpoints_named_after_their_updates(finished):
    place, _ = finished
    names = {path.name for path in (place / "weights").glob("*.pth")}
    assert names == {"checkpoint_2.pth", "checkpoint_4.pth", "checkpoint_6.pth"}
    state = load_checkpoint(place / "weights" / "checkpoint_6.pth")
    exported = NYX.from_pretrained(place / "weights" / "small").state_dict()
    assert same(dict(state["model"]), dict(exported))


def test_weights_are_exported_as_int8_and_a_share_validates(call, folder):
    settings = (
        RUN | SHAPE | {"num_batches": 2, "valid_fraction": 0.5, "beta1": 0.95, "out_dir": "run", "export": "small"}
    )
    assert call("train.py", *flags(settings), "--int8").code == 0
    state = load_checkpoint(folder / "run" / "checkpoint_2.pth")
    assert state["notes"]["valid_fraction"] == 0.5 and state["train_config"]["beta1"] == 0.95
    assert {group["betas"][0] for group in state["optimizer"]["param_groups"]} == {0.95}
    found, _ = read_header(folder / "small" / "model.safetensors")
    assert {dtype for name, (dtype, shape) in found.items() if len(shape) == 2} == {torch.int8}
    small = NYX.from_pretrained(folder / "small")
    for name, weight in small.state_dict().items():
        step = state["model"][name].abs().amax(-1, keepdim=True) / 127 if weight.dim() == 2 else 0
        assert ((weight - state["model"][name]).abs() <= 0.51 * step).all(), name
    small.load_state_dict(state["model"])
    corpus = load_corpus(folder / RUN["filepath"], valid_fraction=0.5)
    scored = evaluate(small, corpus.valid, corpus.tokenizer)
    assert log_of(folder / "run", "final")[0]["bits_per_byte"] == pytest.approx(scored, rel=1e-5)


def test_init_scale_changes_the_first_outputs_and_nothing_else(refused):
    plain, quiet = (
        prepare(vars(train_parser().parse_args(flags(RUN, SHAPE, out_dir="new", **more))))[0].model.state_dict()
        for more in ({}, {"init_scale": 0.1})
    )
    for name, weight in plain.items():
        expected = 0.1 * weight if name.endswith(("attn_out.weight", "ff_out.weight")) else weight
        assert torch.equal(quiet[name], expected), name
    assert "trained ones" in refused("train.py", *flags(RUN, weights="good", out_dir="new", init_scale=0.1))
    for wrong in (0, -1, "inf", "nan"):
        assert "init_scale was" in refused("train.py", *flags(RUN, SHAPE, out_dir="new", init_scale=wrong))


def test_int8_and_valid_fraction_need_what_they_speak_of(refused):
    assert "--export" in refused("train.py", *flags(RUN, SHAPE, out_dir="new"), "--int8")
    assert "--filepath" in refused("train.py", *flags(SHAPE, out_dir="new", valid_fraction=0.2))
    assert "valid_fraction is 1.5" in refused("train.py", *flags(RUN, SHAPE, out_dir="new", valid_fraction=1.5))


def test_the_exported_weights_write(finished, call, folder):
    place, _ = finished
    shutil.copytree(place / "weights" / "small", folder / "weights" / "small")
    before = snapshot(folder)
    line = arguments(WRITE, **SHAPE | {"generate_length": 7})
    done = call("test.py", *line, "--head_dim", 8, "--ff_mult", 1, "--temperature", 0)
    assert done.code == 0, done.err
    assert "weights/small" in done.err  # it says which weights
    model = NYX.from_pretrained("weights/small")
    assert done.out == "AI is a power!" + "".join(model.stream("AI is a power!", 7, temperature=0)) + "\n"
    assert snapshot(folder) == before


def test_the_newest_checkpoint_that_fits_is_preferred(finished, call, folder):
    place, _ = finished
    shutil.copytree(place / "weights", folder / "weights")
    ask = ["--sample_prompt", "The", "--generate_length", 3]
    assert "weights/checkpoint_6.pth" in call("test.py", *ask).err
    (folder / "weights" / "checkpoint_6.pth").write_bytes(b"")  # damaged: a warning, and the one before
    done = call("test.py", *ask)
    assert done.code == 0 and "warning" in done.err and "weights/checkpoint_4.pth" in done.err
    assert "weights/small" in call("test.py", *ask, "--weights", "weights/small").err


def test_a_broken_folder_beside_good_weights_is_passed_over(call, folder):
    small_model().save_pretrained(folder / "weights" / "small")
    (folder / "weights" / "broken").mkdir()
    (folder / "weights" / "broken" / "config.json").write_text("{")
    done = call("test.py", "--sample_prompt", "The", "--generate_length", 3)
    assert done.code == 0 and "weights/small" in done.err
    assert "warning" in done.err and "weights/broken" in done.err


def test_the_same_seed_writes_the_same_text(call, folder):
    small_model().save_pretrained(folder / "small")
    ask = ["--sample_prompt", "The", "--generate_length", 12, "--weights", "small", "--seed"]
    texts = [call("test.py", *ask, seed).out for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_terminal_without_unicode_gets_what_it_can_show(call, folder, monkeypatch, encoding):
    small_model().save_pretrained(folder / "small")
    for line in (
        ["train.py", *flags(RUN, weights="small", generate_every=1, out_dir="new")],
        ["test.py", "--sample_prompt", "字 🙂", "--generate_length", 9, "--weights", "small"],
    ):
        plain = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        monkeypatch.setattr(sys, "stdout", plain)
        done = call(*line)
        assert done.code == 0, done.err
        plain.flush()
        assert len(plain.buffer.getvalue().decode(encoding)) > 9


@pytest.mark.parametrize("prompt", ["é 🙂 字", "\udcff\udc80", "\0", " "])
def test_odd_prompts_are_continued(call, folder, prompt):
    small_model().save_pretrained(folder / "small")
    done = call("test.py", "--sample_prompt", prompt, "--generate_length", 3, "--weights", "small")
    assert done.code == 0, done.err
    assert done.out.startswith(prompt.encode(errors="surrogateescape").decode(errors="replace"))


def test_the_third_command_line_resumes(finished, tmp_path, corpus_cache):
    source, _ = finished
    place = tmp_path / "resumed"
    (place / "weights").mkdir(parents=True)
    shutil.copy(source / "text.txt", place / "DATA")
    shutil.copy(source / "train.py", place)
    state = load_checkpoint(source / "weights" / "checkpoint_4.pth")  # pretend that it took long to get here
    state |= {"update": 15_000, "best": None, "train_config": state["train_config"] | {"num_batches": 15_002}}
    save_checkpoint(place / "weights" / "checkpoint_15000.pth", state)
    command, env = [sys.executable, *shlex.split(RESUME)[1:]], environment(place, corpus_cache)
    done = subprocess.run(command, cwd=place, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert [r["update"] for r in log_of(place / "weights", "update")] == [15_001, 15_002]
    assert load_checkpoint(place / "weights" / "checkpoint_15002.pth")["update"] == 15_002


# help


BOTH = {"preset": "nyx-30m", "tokenizer": "bytes", "threads": "torch's choice"} | {
    name: value for name, value in asdict(NYXConfig()).items() if name not in ("rotary_base", "xpos_scale_base")
}
DEFAULTS = {
    "train.py": BOTH
    | {name: value for name, value in asdict(TrainConfig()).items() if type(value) is not bool}
    | {"filepath": "the built-in corpus", "out_dir": "weights", "lora_name": "adapter"},
    "test.py": BOTH | {"weights": "the newest checkpoint", "generate_length": 512, "temperature": 0.8},
}


@pytest.mark.parametrize(("program", "parser"), [("train.py", train_parser), ("test.py", write_parser)])
def test_help_explains_every_flag_with_its_default(call, program, parser):
    done = call(program, "--help")
    assert done.code == 0
    defaults = {name: f"{value:,}" if type(value) is int else str(value) for name, value in DEFAULTS[program].items()}
    for action in parser()._actions[1:]:  # --help aside
        assert re.search(rf"--{action.dest}\s", done.out)
        assert action.help and action.help.strip(), f"--{action.dest} is not explained"
        default = defaults.pop(action.dest, "")
        assert re.search(rf"default:? {re.escape(default)}", action.help) or not default, action.help
    assert not defaults, f"{program} has no {', '.join(defaults)}"


# bad input


def damage(folder: Path) -> None:
    """Files of every bad kind, and weights and a checkpoint that are good."""
    small_model().save_pretrained(folder / "good")
    small_model(model_dim=64).save_pretrained(folder / "wide")
    (folder / "empty.txt").touch()
    (folder / "short.txt").write_bytes(b"ten bytes.")
    (folder / "empty").mkdir()
    (folder / "pictures").mkdir()
    (folder / "pictures" / "a.png").write_bytes(bytes(range(256)) * 4)
    (folder / "cut.gz").write_bytes(b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03abc")
    (folder / "notes").mkdir()
    (folder / "notes" / "config.json").write_text("not JSON")
    (folder / "absurd").mkdir()
    (folder / "absurd" / "config.json").write_text(json.dumps(SHAPE | {"model_dim": 10**12}))
    (folder / "cut").mkdir()
    shutil.copy(folder / "good" / "config.json", folder / "cut")
    (folder / "cut" / "model.safetensors").write_bytes((folder / "good" / "model.safetensors").read_bytes()[:-100])
    (folder / "mixed").mkdir()
    shutil.copy(folder / "wide" / "config.json", folder / "mixed")
    shutil.copy(folder / "good" / "model.safetensors", folder / "mixed")
    (folder / "text.pth").write_text("no checkpoint at all")
    (folder / "empty.pth").touch()
    with zipfile.ZipFile(folder / "zip.pth", "w") as archive:
        archive.writestr("a.txt", "text")
    torch.save({"model": dict(small_model().state_dict())}, folder / "plain.pth")
    save_checkpoint(folder / "strange.pth", {"update": 3})
    if hasattr(os, "mkfifo"):
        os.mkfifo(folder / "pipe")


@pytest.fixture(scope="module")
def damaged(tmp_path_factory, finished) -> Path:
    """A folder with every kind of bad file beside a finished run, `weights/`."""
    place = tmp_path_factory.mktemp("damaged")
    source, _ = finished
    shutil.copytree(source / "weights", place / "weights")
    whole = (place / "weights" / "checkpoint_6.pth").read_bytes()
    (place / "half.pth").write_bytes(whole[: len(whole) // 2])
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    (place / "flipped.pth").write_bytes(flipped)
    state = load_checkpoint(place / "weights" / "checkpoint_6.pth")
    state["model"]["norm.weight"] = torch.ones(5)
    save_checkpoint(place / "other_shape.pth", state)
    write_text(place / "text.txt")
    damage(place)
    return place


@pytest.fixture
def refused(damaged, call, monkeypatch):
    """Call a program with bad input in the damaged folder: gives its complaint, one sentence."""
    monkeypatch.chdir(damaged)
    before = snapshot_without_pipes(damaged)

    def ask(program: str, *arguments: object) -> str:
        done = call(program, *arguments)
        after = snapshot_without_pipes(damaged)
        if after != before:  # let no other test suffer
            changed = sorted(set(after) ^ set(before)) or sorted(n for n in before if before[n] != after[n])
            for name in sorted(set(after) - set(before), reverse=True):
                (damaged / name).rmdir() if (damaged / name).is_dir() else (damaged / name).unlink()
            pytest.fail(f"the failed run changed {changed}; it said: {done.err}")
        assert done.code == 2, done
        assert "Traceback" not in done.err
        complaint = done.err.strip().splitlines()[-1]
        assert re.match(r"(.*\.py: )?error: .{15,500}$", complaint), complaint
        if "usage:" not in done.err:
            assert all(line.startswith(("weights ", "error: ")) for line in done.err.strip().splitlines()), done
        assert done.out == "", done
        return complaint

    return ask


def snapshot_without_pipes(place: Path) -> dict:
    return {name: about for name, about in snapshot(place).items() if name != "pipe"}


BASE = flags(RUN, SHAPE, out_dir="new")
DATA = {
    "missing": ("nowhere.txt", "nowhere.txt"),
    "no name": ("", "not there"),
    "empty": ("empty.txt", "is empty"),
    "too short": ("short.txt", "too short"),
    "an empty folder": ("empty", "no text"),
    "a folder without text": ("pictures", "no text"),
    "a cut archive": ("cut.gz", "cut.gz"),
    "a pipe": ("pipe", "neither a file nor a folder"),
    "a device": ("/dev/zero", "neither a file nor a folder"),
    "a name too long": ("x" * 5000, "too long"),
    "a NUL in its name": ("a\0b", "not there"),
}


@pytest.mark.parametrize("case", DATA)
def test_data_that_cannot_be_used_is_refused(refused, case):
    path, words = DATA[case]
    assert words in refused("train.py", *BASE, "--filepath", path)


@pytest.mark.skipif(os.name != "posix", reason="permissions of this kind are POSIX only")
def test_unreadable_data_is_refused(refused, damaged, monkeypatch):
    if os.geteuid() == 0:  # root may read anything: let the system say no in its place
        monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "text.txt")
    else:
        monkeypatch.setattr(os, "access", os.access)
        (damaged / "text.txt").chmod(0)
    try:
        assert "text.txt" in refused("train.py", *BASE)
    finally:
        if os.geteuid() != 0:
            (damaged / "text.txt").chmod(0o644)


SETTINGS = {
    "seq_len": [0, -1, 1.5, "nan", 10**9],
    "num_batches": [0],
    "batch_size": [0, 10**20],
    "gradient_accumulate_every": [0],
    "validate_every": [0],
    "validate_bytes": [0],
    "generate_every": [0],
    "generate_length": [0],
    "prime_length": [0],
    "checkpoint_every": [0],
    "keep": [0],
    "warmup_batches": [-1],
    "seed": [-1, 10**25],
    "learning_rate": ["nan", "inf", 0, -0.5, "fast"],
    "clip": ["nan", 0],
    "weight_decay": ["nan", -1],
    "final_rate": [2, "nan"],
    "vocab_size": [1, 100],
    "model_dim": [0, 999_999_999],
    "layer_depth": [0, 10**30],
    "num_attention_heads": [0],
    "head_dim": [7, 0],
    "num_kv_heads": [0, 3],
    "ff_mult": [0],
    "attn_dropout": [1, "nan"],
    "ff_dropout": [-0.1],
    "threads": [0, -2, 10**10],
    "preset": ["nyx-huge"],
    "precision": ["int4"],
    "tokenizer": ["words"],
}


def each(table: dict[str, list]) -> list[tuple]:
    """Every name in a table with each of its values."""
    return [(name, value) for name, values in table.items() for value in values]


@pytest.mark.parametrize(("name", "value"), each(SETTINGS))
def test_bad_settings_are_refused_by_name(refused, name, value):
    complaint = refused("train.py", *flags(RUN, SHAPE, out_dir="new", **{name: value}))
    assert name in complaint and str(value) in complaint.replace(",", "")


def test_a_text_of_just_one_window_is_enough(call, folder):
    (folder / "one.txt").write_bytes(b"abc" * 20)  # 54 bytes to learn from, 6 to measure on
    ask = flags(RUN, SHAPE, filepath="one.txt", out_dir="new")
    assert call("train.py", *ask, "--seq_len", 53).code == 0
    done = call("train.py", *ask, "--seq_len", 54, "--out_dir", "other")
    assert done.code == 2 and "54" in done.err and not (folder / "other").exists()


def test_heads_that_kv_heads_do_not_divide_are_refused(refused):
    complaint = refused("train.py", *flags(RUN, SHAPE, out_dir="new", num_attention_heads=8, num_kv_heads=3))
    assert "num_kv_heads was 3" in complaint and "num_attention_heads, 8" in complaint


def test_unknown_and_shortened_flags_are_refused(refused):
    assert "--batchsize" in refused("train.py", *BASE, "--batchsize", 2)
    assert "--checkpoint" in refused("train.py", *BASE, "--checkpoint", "weights")
    assert "--generate" in refused("test.py", "--sample_prompt", "a", "--generate", 2)


def test_half_precision_without_a_gpu_is_refused(refused):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU, which computes in fp16")
    assert "fp16" in refused("train.py", *flags(RUN, SHAPE, out_dir="new", precision="fp16"))


def test_a_larger_vocabulary_than_bytes_trains_or_is_refused_at_the_start(call, folder):
    done = call("train.py", *flags(RUN, SHAPE, vocab_size=300, out_dir="new"))
    assert done.code == 0 or not (folder / "new").exists(), done  # but it does not die at the first sample


def test_a_fine_tuning_that_cannot_be_is_refused(refused):
    lora = {"weights": "good", "lora_rank": 2, "out_dir": "new"}
    wrong = [({"lora_rank": rank}, f"rank was {rank}") for rank in (0, -1, 99)]
    wrong += [({"lora_name": "../a"}, "../a"), ({"lora_name": ""}, "name"), ({"weights": None}, "--weights")]
    for more, words in wrong:
        assert words in refused("train.py", *flags(RUN, lora, more))
    assert "--lora_rank" in refused("train.py", *flags(RUN, lora, lora_rank=None, lora_name="a"))


CHECKPOINTS = {
    "missing.pth": "missing.pth",
    "half.pth": "is cut short",
    "flipped.pth": "is damaged",
    "text.pth": "not a checkpoint",
    "empty.pth": "is empty",
    "zip.pth": "not a checkpoint",
    "plain.pth": "another program",
    "strange.pth": "strange.pth",
    "other_shape.pth": "other_shape.pth",
    "pictures": "pictures",
    "a\0b.pth": "NUL|null",
}


@pytest.mark.parametrize("path", CHECKPOINTS)
@pytest.mark.parametrize("flag", ["resume", "train weights", "test weights"])
def test_what_is_no_checkpoint_is_refused(refused, flag, path):
    ask = {
        "resume": ["train.py", "--checkpoint_path", path, "--filepath", "text.txt", "--out_dir", "new"],
        "train weights": ["train.py", *flags(RUN, out_dir="new", weights=path)],
        "test weights": ["test.py", "--sample_prompt", "a", "--weights", path],
    }[flag]
    words = CHECKPOINTS[path]
    assert re.search(words, refused(*ask))


WEIGHTS = {
    "missing": "missing",
    "nobody/nothing": "nobody/nothing",
    "empty": "config.json",
    "notes": "not valid JSON",
    "absurd": "model_dim",
    "cut": "cut short",
    "mixed": "does not fit",
    "good/model.safetensors": "not a checkpoint",
}


@pytest.mark.parametrize("path", WEIGHTS)
def test_what_are_no_weights_is_refused(refused, path):
    assert WEIGHTS[path] in refused("test.py", "--sample_prompt", "a", "--weights", path)
    assert WEIGHTS[path] in refused("train.py", *flags(RUN, out_dir="new", weights=path))


def test_weights_of_another_shape_are_refused(refused):
    for path in ("good", "weights/checkpoint_6.pth"):
        for ask in (["test.py", "--sample_prompt", "a"], ["train.py", *flags(RUN, out_dir="new")]):
            complaint = refused(*ask, "--weights", path, "--model_dim", 64)
            assert "model_dim 64" in complaint and "model_dim 32" in complaint and path in complaint


def test_a_folder_that_cannot_hold_a_run_is_refused(refused):
    for place in ("text.txt", "text.txt/inside"):
        assert "text.txt" in refused("train.py", *flags(RUN, SHAPE, out_dir=place))
        assert "text.txt" in refused("train.py", *flags(RUN, SHAPE, out_dir="new", export=place))


def test_fine_tuning_and_export_together_work_or_are_refused_at_the_start(call, folder):
    small_model().save_pretrained(folder / "good")
    done = call("train.py", *flags(RUN, weights="good", lora_rank=2, out_dir="new", export="merged"))
    if done.code == 0:
        assert NYX.from_pretrained("merged").config == NYXConfig.from_dict(SHAPE)
    else:
        assert not (folder / "new").exists(), done


def test_another_run_is_never_overwritten(refused):
    complaint = refused("train.py", *flags(RUN, SHAPE, out_dir="weights"))
    assert "weights/checkpoint_6.pth" in complaint and "--out_dir" in complaint and "--checkpoint_path" in complaint
    assert "--out_dir" in refused("train.py", *flags(RUN, out_dir="weights", weights="good"))


def test_a_resumed_run_goes_into_no_folder_of_another_run(call, folder, finished):
    source, _ = finished
    (folder / "a").mkdir()
    (folder / "b").mkdir()
    shutil.copy(source / "weights" / "checkpoint_4.pth", folder / "a")
    for update in (1, 2, 4):
        shutil.copy(source / "weights" / "checkpoint_2.pth", folder / "b" / f"checkpoint_{update}.pth")
    before = snapshot(folder)
    done = call("train.py", "--checkpoint_path", "a/checkpoint_4.pth", "--out_dir", "b")
    assert done.code == 2 and snapshot(folder) == before, done


def test_two_runs_at_once_in_one_folder_are_refused(call, folder):
    with RunLock(folder / "new"):
        before = snapshot(folder)
        done = call("train.py", *BASE)
        assert done.code == 2 and "in use by another run" in done.err and snapshot(folder) == before
    assert call("train.py", *BASE).code == 0


WRITING = {
    "sample_prompt": ["", None, "\ud800"],
    "generate_length": [0, -5, "all"],
    "temperature": [-1, "nan", "inf"],
    "top_p": [0, 1.5, "nan"],
    "top_k": [0, 2.5],
    "min_p": [0, 2, "nan"],
    "seed": [10**25],
    "threads": [0],
    "preset": ["nyx-huge"],
    "tokenizer": ["words", "gpt2"],
    "adapter": ["missing", "text.txt", "good/model.safetensors"],
    "weights": ["missing"],
    "model_dim": [999_999_999],
    "vocab_size": [100],
}


@pytest.mark.parametrize(("name", "value"), each(WRITING))
def test_bad_requests_to_write_are_refused(refused, name, value):
    asked = {"sample_prompt": "The", "weights": "good", "generate_length": 3} | {name: value}
    complaint = refused("test.py", *flags(asked))
    if name == "sample_prompt":
        assert ("surrogate" if value else "prompt") in complaint and "codec" not in complaint
    else:
        assert name in complaint or str(value) in complaint


def test_settings_that_only_just_make_sense_are_taken(call, folder):
    small_model().save_pretrained(folder / "good")
    ask = {"sample_prompt": "The", "weights": "good", "generate_length": 3}
    odd = [{"temperature": value} for value in (0, 1e-300, 1e300)] + [{"top_p": 1}, {"top_k": 10**30}, {"min_p": 1}]
    for more in odd:
        done = call("test.py", *flags(ask, more))
        assert done.code == 0 and len(done.out) >= len("The\n"), (more, done.err)
    done = call("train.py", *flags(RUN, SHAPE, seq_len=1, num_batches=1, prime_length=10**6, out_dir="new"))
    assert done.code == 0, done.err


def test_an_adapter_of_another_shape_is_refused(call, folder):
    from nyx.lora import add_adapter, save_adapter

    wide = small_model(model_dim=64)
    add_adapter(wide, "wide", wide.lora_targets("q"), rank=2)
    save_adapter(wide, "wide", folder / "wide.safetensors")
    small_model().save_pretrained(folder / "good")
    done = call("test.py", *flags(sample_prompt="a", weights="good", adapter="wide.safetensors"))
    assert done.code == 2 and "wide.safetensors" in done.err and done.out == ""


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_checkpoint(call, folder, monkeypatch):
    true_loss = NYX.loss

    def loss(self, tokens):  # the first window of update 4 is beyond all measure
        broken = (folder / "new" / "checkpoint_2.pth").exists() and len(log_of(folder / "new", "update")) == 3
        return true_loss(self, tokens) * (float("nan") if broken else 1)

    monkeypatch.setattr(NYX, "loss", loss)
    done = call("train.py", *flags(RUN, SHAPE, num_batches=6, out_dir="new"))
    assert done.code == 1 and "update 4" in done.err and "checkpoint_2.pth" in done.err and "Traceback" not in done.err
    monkeypatch.undo()
    os.chdir(folder)
    assert load_checkpoint(folder / "new" / "checkpoint_2.pth")["update"] == 2


class CompilerMissing(RuntimeError):
    """What torch raises is often a class of its own, such as this one."""


@pytest.mark.parametrize("error", [CompilerMissing("no C++ compiler"), NotImplementedError("no kernel for this")])
def test_only_a_lack_of_memory_is_called_one(call, folder, monkeypatch, error):
    def fail(self, tokens):
        raise error

    monkeypatch.setattr(NYX, "loss", fail)
    try:
        done = call("train.py", *BASE)
    except type(error):
        return  # what nobody foresaw may show its traceback
    assert done.code != 0 and "memory" not in done.err and str(error) in done.err, done


# in production, where nothing checks types for us

PRODUCTION = """
import json, resource, sys
resource.setrlimit(resource.RLIMIT_AS, (6 * 2**30, 6 * 2**30))  # a machine with little memory
import torch
torch.set_num_threads(1)
from nyx import NYX, NYXConfig
from nyx.cli import test_main, train_main
from nyx.data import load_corpus
from nyx.training import TrainConfig, evaluate

def tried(function):
    try:
        return ["fine", str(function())]
    except Exception as error:
        return [type(error).__name__, str(error)]

small = NYX(NYXConfig(**json.loads(sys.argv[1])))
small.save_pretrained("small")
found = {code: tried(lambda: eval(code)) for code in json.loads(sys.argv[2])}
for name, line in json.loads(sys.argv[3]).items():
    kind, said = tried(lambda: (train_main if "--filepath" in line else test_main)(line))
    found[name] = [kind, said]
    print("after", name, file=sys.stderr)
open("found.json", "w").write(json.dumps(found))
"""
TYPES = {
    "NYXConfig(num_attention_heads=8.0)": "num_attention_heads",
    "NYXConfig(model_dim='512')": "model_dim",
    "NYXConfig(layer_depth=True)": "layer_depth",
    "NYXConfig(head_dim=None)": "head_dim",
    "NYXConfig(attn_dropout='0.1')": "attn_dropout",
    "NYXConfig(rotary_base=float('nan'))": "rotary_base",
    "NYXConfig(xpos_scale_base='512')": "xpos_scale_base",
    "TrainConfig(batch_size=2.5)": "batch_size",
    "TrainConfig(num_batches='10')": "num_batches",
    "TrainConfig(seed=None)": "seed",
    "TrainConfig(learning_rate='1e-4')": "learning_rate",
    "TrainConfig(clip=None)": "clip",
    "TrainConfig(precision=16)": "precision",
    "TrainConfig(compile='yes')": "compile",
    "small(torch.tensor([[256]]))": "0 to 255",
    "small(torch.tensor([[3, -1]]))": "-1",
    "small.loss(torch.tensor([[3, 256]]))": "0 to 255",
    "small(torch.zeros(1, 0, dtype=torch.long))": "at least one",
    "small.generate(torch.tensor([[999]]), 3)": "0 to 255",
    "small.generate(torch.zeros(1, 0, dtype=torch.long), 3)": "empty",
    "''.join(small.stream('', 3))": "empty",
}
LARGE = {
    "a model beyond memory": ["train.py", {"vocab_size": 1_000_000, "model_dim": 65_536}],
    "a batch beyond memory": ["train.py", {"batch_size": 10**9}],
    "a sample beyond memory": ["train.py", {"generate_length": 10**12}],
    "a sample beyond numbers": ["train.py", {"generate_length": 10**20}],
    "a validation beyond numbers": ["train.py", {"validate_bytes": 10**400}],
    "a text beyond memory": ["test.py", {"generate_length": 10**12}],
    "a text beyond numbers": ["test.py", {"generate_length": 10**20}],
}


@pytest.fixture(scope="module")
def production(tmp_path_factory, corpus_cache) -> tuple[dict, str]:
    """What happens in a process without shape checks and with little memory, and what it writes to standard error."""
    place = tmp_path_factory.mktemp("production")
    write_text(place / "text.txt")
    lines = {}
    for i, (name, (program, more)) in enumerate(LARGE.items()):
        base = flags(RUN, SHAPE, {"generate_every": 1, "out_dir": f"run{i}"}, more)
        lines[name] = base if program == "train.py" else flags({"sample_prompt": "a", "weights": "small"}, more)
    code = [sys.executable, "-c", PRODUCTION, json.dumps(SHAPE), json.dumps(list(TYPES)), json.dumps(lines)]
    env = environment(place, corpus_cache)
    done = subprocess.run(code, cwd=place, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads((place / "found.json").read_text()), done.stderr


@pytest.mark.parametrize("code", TYPES)
def test_wrong_types_get_a_sentence_in_production(production, code):
    kind, said = production[0][code]
    assert kind == "ValueError" and TYPES[code] in said, (kind, said)


@pytest.mark.parametrize("case", LARGE)
@pytest.mark.skipif(os.name != "posix", reason="limits of this kind are POSIX only")
def test_requests_beyond_all_memory_get_a_sentence(production, case):
    kind, said = production[0][case]
    ends_the_run = case != "a sample beyond memory"  # a sample that fails is a warning
    assert kind == "fine" and said in (("1", "2") if ends_the_run else ("0",)), f"a traceback: {kind}: {said}"
    complaint = production[1].partition(f"after {case}\n")[0].splitlines()[-1]
    start = "error" if ends_the_run else "warning: the sample after update 4 failed"
    assert re.match(rf"{start}.{{15,500}}$", complaint), complaint
