"""Readable by all: every picture says in words what it shows, and says nothing by colour alone."""

import inspect
import json
import re
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from test_house import NOTEBOOKS, Images, each_notebook, load

from nyx import plot

WIDGETS = "application/vnd.jupyter.widget-state+json"
GENERIC = re.compile(r"^(image|picture|figure|plot|chart|img|png|<figure.*|.*\.(png|svg|jpg))$", re.IGNORECASE)

# words


def widget_images(nb: dict) -> list[str]:
    """Pictures without words in the stored state of widgets."""
    states = nb["metadata"].get("widgets", {}).get(WIDGETS, {}).get("state", {})
    values = [model["state"].get("value") for model in states.values()]
    return [bare for value in values if isinstance(value, str) for bare in Images(value).bare]


@each_notebook
def test_pictures_in_widgets_have_words(path):
    assert not (bare := widget_images(load(path))), bare


@each_notebook
def test_words_of_pictures_say_something(path):
    said = []
    for cell in load(path)["cells"]:
        said += re.findall(r"!\[([^\]]*)\]\(", "".join(cell["source"])) if cell["cell_type"] == "markdown" else []
        for output in cell.get("outputs", []):
            said += [
                words["alt"]
                for words in output.get("metadata", {}).values()
                if isinstance(words, dict) and "alt" in words
            ]
    empty = [alt for alt in said if GENERIC.match(alt.strip()) or len(alt.split()) < 3]
    assert not empty, f"these say too little: {empty}"


def test_pages_in_markdown_have_words():
    listed = subprocess.run(["git", "ls-files", "-z", "*.md"], cwd=ROOT, capture_output=True, text=True).stdout
    bare = []
    for name in filter(None, listed.split("\0")):
        text = (ROOT / name).read_text(encoding="utf-8")
        bare += [f"{name}: {hit}" for hit in re.findall(r"!\[\s*\]\([^)]{0,60}", text) + Images(text).bare]
    assert "README.md" in listed and not bare, bare


def test_the_words_can_be_missed():
    state = {
        "a": {"state": {"value": "<img src='x.png'>"}},
        "b": {"state": {"value": "<img alt='a falling curve' src=''>"}},
    }
    assert len(widget_images({"metadata": {"widgets": {WIDGETS: {"state": state}}}})) == 1
    assert GENERIC.match("image") and GENERIC.match("loss.png") and not GENERIC.match("a falling curve")
    with pytest.raises(ValueError, match="alt was empty"):
        plot.show(Figure(), " ")


# colours


def same_without_colour(figure: Figure) -> list[str]:
    """Pairs of entries of one legend that a greyscale print would not tell apart: same dash and marker, or same hatch."""
    found = []
    for ax in figure.axes:
        looks = {}
        handles, labels = ax.get_legend_handles_labels()
        for handle, label in zip(handles, labels):
            if isinstance(handle, BarContainer):
                look = ("bar", handle.patches[0].get_hatch() or "")
            else:
                look = ("line", handle.get_linestyle(), handle.get_marker())
            found += [f"{looks[look]} and {label}"] if look in looks else []
            looks[look] = label
    return found


def distribution(logits, temperature=1.0, top_k=None, top_p=None):
    return torch.softmax(logits / temperature, dim=-1)


def bytes_model(tokens):
    return torch.linspace(0, 3, 256).expand(*tokens.shape, 256)


UPDATES = [{"event": "update", "update": i, "bits_per_byte": 8 - i / 10} for i in range(5)]
RECORDS = [*UPDATES, {"event": "validation", "update": 4, "bits_per_byte": 7.5}]
CURVES = {name: np.linspace(1, 0, 20) ** power for power, name in enumerate(("one", "two", "three"), 1)}
PRESET = SimpleNamespace(layer_depth=1, model_dim=8, in_rows={"v": (0, 24)}, num_attention_heads=2, head_dim=4,
                         vocab_size=16, parameters=1000)  # fmt: skip
LEGENDS = {
    "score_over_distance": lambda: plot.score_over_distance(CURVES, "words"),
    "xpos_knobs": plot.xpos_knobs,
    "memory_curve": lambda: plot.memory_curve([1, 2, 4], [1, 4, 16], [1, 2, 4], "words"),
    "spectra": lambda: plot.spectra({name: np.diag(values) for name, values in CURVES.items()}, "words"),
    "two_curves": lambda: plot.two_curves(CURVES, "loss", "words"),
    "against_time": lambda: plot.against_time(
        {name: [list(enumerate(values))] for name, values in CURVES.items()}, "loss", "words"
    ),
    "sampling_knobs": lambda: plot.sampling_knobs(bytes_model, "To be", distribution),
    "roofline": lambda: plot.roofline(1e10, 1e11, {"one": 0.5, "two": 2, "three": 64}, "words"),
    "waterfall": lambda: plot.waterfall({"a": 1.0, "b": 0.1}, {"a": 2.0, "b": 0.2}, "words"),
    "memory_bars": lambda: plot.memory_bars({"a": (1e9, 2e9), "b": (2e9, 1e9)}, 8e9, "words"),
    "gate": lambda: plot.gate("words"),
    "parameter_bars": lambda: plot.parameter_bars({"a": PRESET, "b": PRESET}, "words"),
    "spread_curves": lambda: plot.spread_curves(
        {name: {1: [1.0, 2.0], 2: [1.5, 2.5]} for name in ("one", "two", "three", "four")}, "length", "bits", "words"
    ),
    "loss_curve": lambda: plot.show(plot.loss_curve(RECORDS, 5), "words"),
}


@pytest.fixture
def drawn(monkeypatch) -> list[Figure]:
    """The figures that were drawn, in place of showing them."""
    figures = []
    monkeypatch.setattr(plot, "_tag", lambda figure, alt: figures.append(figure) or ("", ""))
    monkeypatch.setattr(plot, "display", lambda *args, **options: None)
    return figures


def test_every_picture_with_a_legend_is_tried():
    functions = {name: f for name, f in vars(plot).items() if inspect.isfunction(f) and f.__module__ == plot.__name__}
    assert {name for name, f in functions.items() if ".legend(" in inspect.getsource(f)} == set(LEGENDS)


@pytest.mark.parametrize("name", LEGENDS)
def test_a_legend_can_be_read_without_colour(name, drawn):
    LEGENDS[name]()
    assert drawn and any(ax.get_legend() for figure in drawn for ax in figure.axes)
    assert not [pair for figure in drawn for pair in same_without_colour(figure)]


def test_two_lines_that_differ_in_colour_alone_are_found():
    figure, ax = plot.axes()
    ax.plot([1, 2], label="red", color="red")
    ax.plot([2, 1], label="green", color="green")
    ax.plot([3, 1], "--", label="blue", color="blue")
    ax.bar([0], [1], label="a", color="red")
    ax.bar([0], [1], label="b", color="green")
    assert same_without_colour(figure) == ["red and green", "a and b"]


def test_there_is_something_to_read():
    stored = sum(
        "image/png" in o.get("data", {}) for p in NOTEBOOKS for c in load(p)["cells"] for o in c.get("outputs", [])
    )
    assert stored > 20 and json.dumps(load(ROOT / "nbs" / "rotary.ipynb")["metadata"]).count("<img") >= 2
