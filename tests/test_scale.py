"""The shapes of the scale lesson divide among its machines, and what it says of them follows."""

import ast
import json

import pytest
from conftest import ROOT

from nyx import NYXConfig

CELLS = [
    "".join(cell["source"]) for cell in json.loads((ROOT / "nbs" / "scale.ipynb").read_text(encoding="utf-8"))["cells"]
]


def defined(name: str):
    """What the lesson sets `name` to."""
    (cell,) = [cell for cell in CELLS if cell.startswith(f"{name} = ")]
    space = {"NYXConfig": NYXConfig}
    exec(ast.unparse(ast.parse(cell).body[0]), space)
    return space[name]


@pytest.mark.parametrize("name", ["30M", "1B", "70B"])
def test_blocks_divide_among_the_machines(name):
    config, machines = defined("sizes")[name], defined("machines")[name]
    assert config.layer_depth % machines == 0, f"{config.layer_depth} blocks on {machines} machines"


@pytest.mark.parametrize(("name", "near"), [("30M", 30e6), ("1B", 1e9), ("70B", 70e9)])
def test_a_size_is_near_its_name(name, near):
    assert abs(defined("sizes")[name].parameters / near - 1) < 0.06


def test_the_lesson_names_what_large_runs_use():
    text = " ".join(CELLS).lower()
    for words in ("activation checkpointing", "tensor parallelism", "mixed precision", "second moment ", "idle("):
        assert words in text, words
    assert "second momentum" not in text and "more traffic, no idling" not in text
