"""Names and values that come from elsewhere are shown escaped and cut; what is finite on disk and not in use is refused."""

import json
import math
import os
import sys
from collections.abc import Callable

import jaxtyping
import pytest
import torch
from programs import RUN, SHAPE, call, flags, folder, small_model
from safetensors.torch import load_file, save_file

from nyx import NYX, NYXConfig
from nyx.checkpoint import CheckpointError, load_checkpoint, load_tensors, read_header, save_checkpoint
from nyx.lora import Target, adapter_names, add_adapter, load_adapter, save_adapter, use_adapters
from nyx.model import preset
from nyx.training import TrainConfig

__all__ = ["call", "folder"]  # fixtures

LONGEST = 600  # characters of a message, the path of a test's folder among them
ODD = {"line break": "\n", "two lines": "a\nb\r\n", "escape": "a\x1b[31mred", "direction": "\u202egnp.exe", "half a pair": "\ud800", "NUL": "a\0b",
       "long": "x" * 5000}  # fmt: skip


@pytest.fixture(autouse=True)
def as_a_user():
    """Types are not checked, as in a user's hands: what is refused is refused by NYX itself."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def said(call: Callable, *arguments, error: type[Exception] = ValueError, **options) -> str:
    """The sentence with which a call is refused: one printable line, not too long."""
    with pytest.raises(error) as caught:
        call(*arguments, **options)
    text = str(caught.value)
    assert text.isprintable() and len(text) < LONGEST, text[:2000]
    return text


@pytest.mark.parametrize("name", ODD.values(), ids=ODD)
def test_an_odd_name_in_a_file_is_shown_on_one_line(tmp_path, name):
    small_model().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({name: None}))
    assert "unknown settings" in said(NYX.from_pretrained, tmp_path, error=CheckpointError)
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": name}))
    assert "vocab_size was" in said(NYX.from_pretrained, tmp_path, error=CheckpointError)
    (tmp_path / "config.json").write_text("{" + f"{json.dumps(name)}: 1, {json.dumps(name)}: 2" + "}")
    assert "given twice" in said(NYX.from_pretrained, tmp_path, error=CheckpointError)
    header = json.dumps({name: {"dtype": name, "shape": [1], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "t").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    assert "NYX reads" in said(read_header, tmp_path / "t", error=CheckpointError)
    header = json.dumps({name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "t").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    assert "not expected" in said(load_tensors, tmp_path / "t", {}, error=CheckpointError)


@pytest.mark.parametrize("name", ODD.values(), ids=ODD)
def test_an_odd_name_given_to_a_function_is_shown_on_one_line(name):
    model = small_model()
    calls = [
        (NYXConfig.from_dict, {name: 1}), (NYXConfig.from_dict, {"ff_dropout": name}), (NYXConfig.from_dict, {"rotary_base": name}),
        (TrainConfig.from_dict, {name: 1}), (TrainConfig.from_dict, {"keep": name}), (TrainConfig.from_dict, {"precision": name}),
        (TrainConfig.from_dict, {"clip": name}), (preset, name), (model.lora_targets, name), (add_adapter, model, name, model.lora_targets("q")),
        (add_adapter, model, "a", [Target(name)]), (add_adapter, model, "a", [Target("blocks.0.in_proj", name)]), (use_adapters, model, name),
        *(((lambda prompt, setting=setting: model.generate(prompt, **{"max_new": 1, setting: name})), torch.zeros(1, 1, dtype=torch.int64))
          for setting in ("max_new", "seed", "temperature", "top_k", "top_p", "min_p", "precision", "draft")),
    ]  # fmt: skip
    for function, *arguments in calls:
        said(function, *arguments)


@pytest.mark.parametrize("value", [10**5000, torch.zeros(40, 2), list(range(5000)), {"\n": ["\u202e"]}], ids=["digits", "tensor", "list", "dict"])
def test_an_odd_value_is_refused_by_name_on_one_line(value):
    for config_class, names in (
        (NYXConfig, ("vocab_size", "xpos_scale_base", "attn_dropout")),
        (TrainConfig, ("seed", "beta1", "compile")),
    ):
        for name in names:
            assert name in said(config_class.from_dict, {name: value})


@pytest.mark.parametrize("name", [name for name in ODD.values() if "\0" not in name], ids=[i for i, n in ODD.items() if "\0" not in n])
def test_an_odd_argument_is_shown_on_one_line(call, folder, name):
    small_model().save_pretrained(folder / "good")
    train, write = flags(RUN, SHAPE, out_dir="new"), ["--sample_prompt", "a", "--generate_length", "1"]
    lines = [
        ("train.py", *train, name), ("train.py", *train, f"--{name}"), ("train.py", *train, "--seed", name), ("train.py", *train, "--preset", name),
        ("train.py", *train, "--weights", name), ("train.py", *train, "--checkpoint_path", name), ("train.py", *train, "--filepath", name),
        ("test.py", *write, "--weights", name), ("test.py", *write, "--weights", "good", "--adapter", name),
        ("train.py", *flags(RUN, weights="good", out_dir="new", lora_rank=1, lora_name=f"{name}.")),
    ]  # fmt: skip
    for line in lines:
        done = call(*line)
        last = done.err.rstrip("\n").rpartition("error: ")[2]
        assert done.code == 2 and "Traceback" not in done.err and last, done
        assert last.isprintable() and len(last) < 2200, (line, last)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such names")
def test_odd_names_of_folders_are_listed_on_one_line(call, folder):
    for number, name in enumerate(("a\nb", "\x1b[2J", "\u202egnp")):
        (folder / "weights" / name).mkdir(parents=True)
        (folder / "weights" / name / "config.json").write_text("{}" if number else "broken")
    done = call("test.py", "--sample_prompt", "a", "--model_dim", "32")
    assert done.code == 2 and "a\\nb" in done.err and all(line.isprintable() for line in done.err.splitlines()), done.err
    assert [line.partition(":")[0] for line in done.err.splitlines()] == ["warning", "error"], done.err


# finite on disk, not finite in use


def spoilt(path: os.PathLike, value: float, name: str = "") -> None:
    """Give the tensors of a file, or those whose name holds `name`, one value everywhere."""
    tensors = {key: torch.full_like(t, value) if name in key else t for key, t in load_file(path).items()}
    _, notes = read_header(path)
    save_file(tensors, path, notes)


@pytest.mark.parametrize("value", [1e37, -3e38])
def test_an_adapter_that_overflows_is_refused_and_leaves_no_trace(tmp_path, value):
    model, tokens, path = small_model(), torch.arange(256)[:, None], tmp_path / "a.safetensors"
    before = model(tokens)
    add_adapter(model, "b", model.lora_targets("k"), rank=2)
    add_adapter(model, "a", model.lora_targets("q", "gate", "ff_out"), rank=2)
    save_adapter(model, "a", path)
    for layer in ("in_proj", "ff_out"):
        other = small_model()
        add_adapter(other, "b", other.lora_targets("k"), rank=2)
        save_adapter(model, "a", path)
        spoilt(path, value, layer)
        assert "overflow" in said(load_adapter, other, path, error=CheckpointError)
        assert adapter_names(other) == ["b"] and torch.equal(other(tokens), before)


def test_one_absurd_value_in_an_adapter_is_refused_or_harmless(tmp_path):
    model, path, tokens = small_model(), tmp_path / "a.safetensors", torch.arange(256)[:, None]
    add_adapter(model, "a", model.lora_targets("q"), rank=2)
    save_adapter(model, "a", path)
    tensors, (_, notes) = load_file(path), read_header(path)
    for power in range(39):
        for name in tensors:
            changed = {key: t.clone() for key, t in tensors.items()}
            changed[name].view(-1)[0] = 10.0**power
            save_file(changed, path, notes)
            other = small_model()
            try:
                load_adapter(other, path)
            except CheckpointError as e:
                assert power > 15 and "overflow" in str(e)
            assert other(tokens).isfinite().all()


@pytest.mark.parametrize("name", ["in_proj", "attn_out", "ff_out", "blocks.0.norm", "embedding"])
def test_weights_that_overflow_are_refused_from_a_folder_and_from_a_checkpoint(call, folder, name):
    run = flags(RUN, SHAPE, num_batches=1, seq_len=8, out_dir="run", export="w")
    assert call("train.py", *run).code == 0
    state = load_checkpoint(folder / "run" / "checkpoint_1.pth")
    spoilt(folder / "w" / "model.safetensors", 1e38, name)
    weights = load_file(folder / "w" / "model.safetensors")
    save_checkpoint(folder / "checkpoint_1.pth", state | {"model": weights})
    fresh = small_model()
    fresh.load_state_dict(weights)
    finite = bool(fresh(torch.arange(256)[:, None]).isfinite().all())
    for path in ("w", "checkpoint_1.pth"):
        done = call("test.py", "--sample_prompt", "a", "--generate_length", 1, "--weights", path)
        assert finite or (done.code == 2 and "overflow" in done.err and path in done.err), done
    done = call("train.py", "--checkpoint_path", "checkpoint_1.pth", "--num_batches", 2)
    assert finite or (done.code == 2 and "overflow" in done.err), done


@pytest.mark.parametrize("factor", [0, 1, 30, 1e3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_odd_weights_that_work_are_taken(tmp_path, factor, dtype):
    model = small_model()
    for p in model.parameters():
        p.data.mul_(factor).clamp_(-6e4, 6e4)  # what float16 can hold
    model.to(dtype).save_pretrained(tmp_path)
    assert math.isfinite(NYX.from_pretrained(tmp_path).float().loss(torch.arange(20)[None]).item())
