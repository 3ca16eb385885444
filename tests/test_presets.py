"""A preset is a shape and how to train it: its learning rate, weight decay and warm-up are the defaults of its shape."""

import re
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from conftest import ROOT
from programs import RUN, SHAPE, call, flags, folder, write_text

from nyx import NYX, NYXConfig
from nyx.cli import prepare, train_parser
from nyx.data import builtin_corpus
from nyx.model import PRESETS, preset
from nyx.training import RECIPES, TrainConfig, Trainer, recipe

__all__ = ["call", "folder"]  # fixtures

MINI = RECIPES["nyx-mini"]
MINI_SHAPE = "--model_dim 128 --layer_depth 2 --num_attention_heads 4 --head_dim 32 --ff_mult 2"
WEIGHTS = ROOT / "weights" / "nyx-mini"


def settings(line: str) -> TrainConfig:
    """The settings of the run that some flags of train.py ask for; MINI stands for the weights that ship."""
    words = [str(WEIGHTS) if word == "MINI" else word for word in line.split()]
    typed = train_parser().parse_args([*flags(RUN, out_dir="new"), *words])
    return prepare(vars(typed))[0].config


def test_every_preset_says_how_it_is_trained():
    assert RECIPES.keys() == PRESETS.keys()
    assert RECIPES["nyx-30m"] == {}, "the defaults are those of the first command line"
    for name, values in RECIPES.items():
        assert values.keys() <= {"learning_rate", "weight_decay", "beta1", "beta2", "warmup_batches"}
        assert recipe(preset(name)) == values and TrainConfig.for_preset(name) == TrainConfig(**values)
    assert TrainConfig.for_preset("nyx-mini", seed=3, learning_rate=0.5) == TrainConfig(**MINI | {"seed": 3, "learning_rate": 0.5})
    with pytest.raises(ValueError, match="no preset 'nyx-huge'"):
        TrainConfig.for_preset("nyx-huge")


def test_a_shape_that_is_no_preset_has_no_settings_of_its_own():
    for shape in (NYXConfig.from_dict(SHAPE), replace(preset("nyx-mini"), layer_depth=3), replace(preset("nyx-mini"), xpos_scale_base=None)):
        assert recipe(shape) == {}
    assert recipe(replace(preset("nyx-mini"), attn_dropout=0.1, ff_dropout=0.2)) == MINI


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("--preset nyx-mini", MINI),
        (MINI_SHAPE, MINI),
        ("--preset nyx-mini --ff_dropout 0.1", MINI),
        ("--preset nyx-4m", RECIPES["nyx-4m"]),
        ("--preset nyx-mini --learning_rate 1e-4", MINI | {"learning_rate": 1e-4}),
        ("--preset nyx-mini --weight_decay 0 --warmup_batches 7", MINI | {"weight_decay": 0.0, "warmup_batches": 7}),
        ("--preset nyx-mini --layer_depth 1", {}),
        (" ".join(flags(SHAPE)), {}),
        ("--weights MINI", MINI),
        ("--weights MINI --lora_rank 2", MINI),
        ("--weights MINI --lora_rank 2 --learning_rate 2e-3 --weight_decay 0", {"learning_rate": 2e-3, "weight_decay": 0.0}),
    ],
)  # fmt: skip
def test_a_run_takes_what_suits_its_shape_and_a_typed_flag_wins(folder, line, expected):
    run = settings(line)
    given = {name: value for name, value in RUN.items() if name in asdict(TrainConfig())}
    assert run == TrainConfig(**given | expected)


def test_a_resume_keeps_the_settings_of_its_run(folder, call):
    write_text(folder / "text.txt")
    run = flags(RUN, preset="nyx-mini", num_batches=2, seq_len=8, out_dir="run")
    for number, more in enumerate(([], ["--learning_rate", "0.0001", "--weight_decay", "0.1"])):  # what an older NYX took
        assert call("train.py", *run, "--out_dir", f"run{number}", *more).code == 0
        path = f"run{number}/checkpoint_2.pth"
        resumed = prepare(vars(train_parser().parse_args(["--checkpoint_path", path, "--num_batches", "3"])))[0].config
        kept = TrainConfig() if more else TrainConfig(**MINI)
        assert (resumed.learning_rate, resumed.weight_decay) == (kept.learning_rate, kept.weight_decay)


def test_help_says_which_preset_has_another_default():
    helps = {action.dest: action.help for action in train_parser()._actions}
    for name, values in RECIPES.items():
        for setting, value in values.items():
            assert f"; {name} {value}" in helps[setting] and f"(default {getattr(TrainConfig(), setting)}" in helps[setting]


def test_sixty_updates_with_default_settings_beat_byte_frequencies(corpus_cache, monkeypatch):
    """The small twin of README's first run: with the defaults of the largest preset, 60 updates end at 6.4."""
    monkeypatch.setenv("NYX_CACHE", str(corpus_cache))
    corpus = builtin_corpus()
    counts = np.bincount(corpus.train[: 2**20], minlength=256) + 1
    frequencies = -np.log2(counts / counts.sum())[corpus.valid].mean()
    run = TrainConfig.for_preset(
        "nyx-mini", num_batches=60, seq_len=256, gradient_accumulate_every=1, validate_bytes=8192, validate_every=1000,
        generate_every=1000, generate_length=1, precision="float32",
    )  # fmt: skip
    torch.manual_seed(run.seed)
    records = Trainer(NYX.from_preset("nyx-mini"), corpus, run).run()
    reached = next(r["bits_per_byte"] for r in records if r["event"] == "validation")
    assert reached < frequencies - 0.2, (reached, frequencies)


@pytest.mark.nightly
def test_the_first_training_line_of_the_readme_learns(run_program):
    line = "--preset nyx-mini --num_batches 200 --seq_len 256 --gradient_accumulate_every 1"
    assert f"python train.py {line} " in (ROOT / "README.md").read_text(encoding="utf-8")
    done = run_program("train.py", *line.split(), timeout=1800)
    assert done.returncode == 0, done.stderr
    assert float(re.search(r"done: ([\d.]+) bits per byte on the whole validation split", done.stdout)[1]) < 3.6
