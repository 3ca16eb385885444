"""What ships in weights/, and the records of the lessons that stand on it."""

import hashlib
import json
import math
import re
import sys
from functools import partial

import pytest
import torch
from ipywidgets import HTML, Dropdown
from ipywidgets.widgets.widget import _instances
from programs import ROOT, call, folder

from nyx import NYX, plot
from nyx.lora import load_adapter, use_adapters

sys.path += [str(ROOT / "tools"), str(ROOT / "benchmarks")]
import race
import record_finetune

__all__ = ["call", "folder"]  # fixtures
WEIGHTS = ROOT / "weights"
PROSE = "The old man shook his head, and for some time he did not speak. Then he rose, and went to the window."
VERSE = "KING:\nMy lord, I thank thee for thy love to me;\nBut what is he that comes so hastily?\n"


@torch.no_grad()
def bits(model: NYX, text: str) -> float:
    """Bits per byte."""
    return model.loss(torch.tensor([list(text.encode())])).item() / math.log(2)


def test_the_checksums_are_those_of_the_files():
    listed = dict(re.findall(r"^    ([0-9a-f]{64})  (\S+)$", (WEIGHTS / "README.md").read_text(), re.MULTILINE))
    listed = {name: digest for digest, name in listed.items()}
    there = {str(p.relative_to(WEIGHTS)) for p in WEIGHTS.glob("*/*") if p.suffix in (".json", ".safetensors")}
    assert there == listed.keys()
    for name, digest in listed.items():
        assert hashlib.sha256((WEIGHTS / name).read_bytes()).hexdigest() == digest, name


def test_every_folder_has_a_card_that_says_where_its_figures_come_from():
    for weights in sorted(p for p in WEIGHTS.iterdir() if (p / "config.json").exists()):
        card = (weights / "README.md").read_text()
        assert f"{NYX.from_pretrained(weights).config.parameters:,} parameters" in card
        for word in (
            "## Training",
            "## Measured",
            "## Samples, not picked",
            "## Limits",
            "python train.py",
            "seed",
            "xz -9",
        ):
            assert word in card, (weights.name, word)


def test_the_english_weights_find_english_likely_and_python_less():
    large, small, mini = (NYX.from_pretrained(WEIGHTS / name) for name in ("nyx-30m", "nyx-4m", "nyx-mini"))
    code = "def read(self, size=None):\n    if size is None:\n        return self._buffer\n"
    assert bits(large, PROSE) < 1.3 < bits(small, PROSE) < 2.2 < bits(mini, PROSE)
    assert bits(mini, code) < min(bits(large, code), bits(small, code))


def test_a_fresh_clone_writes_english(call, folder):
    (folder / "weights").symlink_to(WEIGHTS)
    done = call("test.py", "--sample_prompt", "AI is a power!", "--generate_length", 200, "--seed", 0)
    assert done.code == 0 and "weights/nyx-30m" in done.err
    words = re.findall(r"[a-z]+", done.out.lower())
    assert len({*words} & {"the", "and", "of", "to", "a", "in", "was", "it", "that", "he", "his", "i"}) >= 4, done.out


def test_the_adapter_changes_the_voice_and_is_small():
    model, file = NYX.from_pretrained(WEIGHTS / "nyx-4m"), WEIGHTS / "nyx-4m" / "shakespeare.safetensors"
    before = [bits(model, text) for text in (PROSE, VERSE)]
    load_adapter(model, file)
    after = [bits(model, text) for text in (PROSE, VERSE)]
    assert after[1] < before[1] and after[0] > before[0]
    use_adapters(model)
    assert [bits(model, text) for text in (PROSE, VERSE)] == before
    assert file.stat().st_size < 0.02 * 4 * model.config.parameters


def test_another_voice_is_switched_on_before_it_writes(monkeypatch):
    shown, voice = [], []

    class Echo:
        def stream(self, *args, **kwargs):
            yield f"written by {voice[-1]}"

    monkeypatch.setattr(plot, "display", lambda data, **kwargs: shown.append(data))
    plot.prompt_box(Echo(), "The ", voices={name: partial(voice.append, name) for name in ("first", "second")})
    bundle = shown[0]["application/vnd.jupyter.widget-view+json"]
    box = _instances[bundle["model_id"]]
    switch, page = (next(w for w in box.children if isinstance(w, kind)) for kind in (Dropdown, HTML))
    assert voice == ["first"] and "written by first" in page.value
    switch.value = "second"
    assert voice == ["first", "second"] and "written by second" in page.value


def test_the_records_were_made_with_the_flags_of_now():
    recorded = json.loads((ROOT / "nbs" / "finetune.json").read_text())["ways"]
    for way, words in record_finetune.WAYS.items():
        asked = f"{words} {record_finetune.BOTH}".replace("WEIGHTS", "weights/nyx-4m")
        assert recorded[way]["flags"] == asked, "record anew with `make finetune`"
    raced = json.loads((ROOT / "nbs" / "race.json").read_text())["recipe"]
    assert raced.split() == race.RECIPE, "record anew with `make race`"


def test_the_opponent_of_the_race_is_the_published_shape():
    model = race.GPT()
    assert sum(p.numel() for p in model.parameters()) - model.place.weight.numel() == 795_904
    ids = torch.zeros(1, 64, dtype=torch.long)
    assert model(ids).shape == (1, 64, 65)


@pytest.mark.parametrize("stride", [16, 32])
def test_the_race_scores_every_character_once(stride):
    class Even(torch.nn.Module):
        def forward(self, ids):
            return torch.zeros(*ids.shape, 65)

    ids = torch.randint(65, (517,), generator=torch.Generator().manual_seed(0))
    assert race.score(Even(), ids, 32, stride) == pytest.approx(math.log(65))


def test_windows_of_the_race_see_no_future():
    class Leak(torch.nn.Module):  # is sure of what it has just seen
        def forward(self, ids):
            return 50.0 * torch.nn.functional.one_hot(ids, 65).float()

    ids = torch.arange(65).repeat(8)
    assert race.score(Leak(), ids, 32, 16) > 40
