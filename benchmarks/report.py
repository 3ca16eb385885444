"""The tables and the picture of results.json, and README's rows about them."""

import json
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt

LONG = "longest context, in reading times of its cache"
GROWTH, TRAINING = "growth", "training"
TARGETS = {  # what was aimed at: where the number stands, which way is good, the target, how it is written
    "best single stream, share of (bandwidth ÷ bytes of weights)": (lambda r: r[GROWTH]["share of bandwidth"], ">=", 0.2, "{:.0%}"),
    "best single stream, bytes/s, scaled to 50 GB/s": (
        lambda r: r[GROWTH]["best"] * 50e9 / r[GROWTH]["bandwidth"], ">=", 380, "{:.0f}",
    ),
    "8,192 bytes of context, in reading times of their cache": (lambda r: r[GROWTH][LONG], "<=", 3, "{:.1f}"),
    "batch of 32, share of its own matmuls": (lambda r: r[GROWTH]["share of matmuls at a large batch"], ">=", 0.5, "{:.0%}"),
    "speculative decoding (nyx-mini on Python, prompt look-up), times the plain path": (
        lambda r: r["speculation"]["times the plain path"]["nyx-mini, prompt look-up"]["median"], ">=", 1.2, "{:.2f}",
    ),
    "training in bf16, times palm-rlhf-pytorch": (lambda r: r[TRAINING]["times palm-rlhf-pytorch"], ">=", 1.25, "{:.2f}"),
    "training, share of the bf16 matmul rate": (lambda r: r[TRAINING]["share of the bf16 rate"], ">=", 0.7, "{:.0%}"),
    "training in bf16, memory against palm-rlhf-pytorch": (
        lambda r: r["memory"]["NYX, bf16"] / r["memory"]["palm-rlhf-pytorch, bf16"], "<=", 1, "{:.2f}",
    ),
    "nyx-gpt2, memory of an optimizer step, loss in chunks against plain": (
        lambda r: r["memory"]["nyx-gpt2, loss in chunks"] / r["memory"]["nyx-gpt2, loss plain"], "<=", 0.5, "{:.3f}",
    ),
    "`import nyx` on top of torch and huggingface_hub, seconds": (lambda r: r["imports"]["seconds"], "<=", 0.3, "{:.2f}"),
    "fetching windows, share of an optimizer step of nyx-mini": (lambda r: r["data"]["share"], "<=", 0.05, "{:.1%}"),
}  # fmt: skip
LIBRARIES = ("NYX", "x-transformers", "palm-rlhf-pytorch")
NOTE = (
    "Prefill of 1,000 bytes and the step that decodes the next one are timed apart: the model's calls alone, with the same threads. "
    "palm-rlhf-pytorch has no cache: each byte that it decodes is a forward pass over all before it. "
    "In bf16 the other libraries have bf16 weights and run under autocast."
)


# numbers


def short(value: float) -> str:
    """A number as people read it: one decimal below 10."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def span(s: dict, digits: str | None = None) -> str:
    """A median with its quartiles."""
    low, middle, high = (digits.format(s[k]) if digits else short(s[k]) for k in ("low", "median", "high"))
    return f"{middle} ({low} to {high})"


def precision(name: str) -> str:
    """The precision in a contender's name."""
    return name.split(", ")[1]


def of(speeds: dict, library: str, wanted: str | None = None) -> tuple[str, float]:
    """The name and the median of a library's contender in float32, or in whichever precision it was fastest."""
    plain = [
        n for n in speeds if n.split(", ")[0] == library and n.count(", ") == (2 if library.startswith("palm") else 1)
    ]
    name = max((n for n in plain if wanted in (None, precision(n))), key=lambda n: speeds[n]["median"])
    return name, speeds[name]["median"]


def gains(batch: dict) -> dict[str, float]:
    """How many times faster NYX decodes than palm-rlhf-pytorch, by what: the cache and what it allows, then the precision."""
    speeds = batch["decode"]
    (_, palm), (_, float32), (best, fastest) = (
        of(speeds, "palm-rlhf-pytorch", "float32"),
        of(speeds, "NYX", "float32"),
        of(speeds, "NYX"),
    )
    found = {"a cache, both in float32": float32 / palm}
    if "NYX, float32, no cache" in speeds:  # the same in three steps
        bare, plain = (speeds[f"NYX, float32, {n}"]["median"] for n in ("no cache", "the model itself"))
        found |= {
            "— NYX without a cache against palm-rlhf-pytorch": bare / palm,
            "— the cache, the model's own code with and without": plain / bare,
            "— packed weights and fewer operations": float32 / plain,
        }
    return found | {f"{precision(best)} in place of float32, both with a cache": fastest / float32}


def quoted(r: dict) -> dict[str, str]:
    """README's rows: what its first cell begins with, and the row."""
    rows, n, most = {}, "nyx-30m", "in its best precision"
    for batch, words in (("batch 1", "one sequence"), ("batch 32", "32 sequences at once")):
        for what, unit in (("prefill", "prefill of 1,000 bytes"), ("decode", "decoding after 1,000 bytes")):
            if batch in r.get("inference", {}):
                speeds = r["inference"][batch][what]
                plain = "; ".join(f"{name} {short(of(speeds, name, 'float32')[1])}" for name in LIBRARIES)
                best = (of(speeds, name) for name in LIBRARIES)
                best = "; ".join(f"{name.split(', ')[0]} {short(v)} ({precision(name)})" for name, v in best)
                first = f"{unit} with `{n}`, {words}, bytes/s"
                rows[first] = (
                    f"| {first} | float32: {plain}. {most.capitalize()}: {best} | `make bench SECTIONS=inference` |"
                )
    if "batch 1" in r.get("inference", {}):
        first = "what makes that decoding faster than palm-rlhf-pytorch, which has no cache, one sequence"
        steps = [
            f"{words}: {short(g)} times" for words, g in gains(r["inference"]["batch 1"]).items() if words[0] != "—"
        ]
        rows[first] = f"| {first} | {'; '.join(steps)} | `make bench SECTIONS=inference` |"
    if "busy" in r:
        first = "generation with two busy processes beside it, default settings"
        share = r["busy"]["share of the quiet rate"]
        rows[first] = f"| {first} | {share['median']:.0%} of the quiet rate | `make bench SECTIONS=busy` |"
    if "training" in r:
        first = f"training `{n}` at 4 × 1,024 in bf16, tokens/s"
        speeds = {name: s["median"] for name, s in r["training"]["speeds"].items() if name.endswith("bf16")}
        said = "; ".join(f"{name.split(', ')[0]} {short(v)}" for name, v in speeds.items())
        share = f"{r['training']['share of the bf16 rate']:.0%} of the rate of bf16 matmuls"
        rows[first] = f"| {first} | {said}. NYX: {share} | `make bench SECTIONS=training` |"
    return rows


def quote(results: dict, readme: Path) -> None:
    """Bring README's rows about benchmarks up to date. Raises ValueError where a row is not there."""
    lines = readme.read_text(encoding="utf-8").split("\n")
    for first, row in quoted(results).items():
        places = [i for i, line in enumerate(lines) if line.startswith(f"| {first} |")]
        if len(places) != 1:
            raise ValueError(f"{readme} has {len(places)} rows that begin with '| {first} |': it must have one")
        lines[places[0]] = row
    readme.write_text("\n".join(lines), encoding="utf-8")


# tables


def table(head: str, rows: dict, digits: str | None = None) -> list[str]:
    """Two columns of a Markdown table."""
    rows = [f"| {name} | {span(s, digits)} |" for name, s in rows.items()]
    return [f"| {head} | median (quartiles) |", "|---|---|", *rows, ""]


def inference(r: dict) -> list[str]:
    """Prefill and decoding side by side, and where the gain comes from."""
    lines = []
    for name, batch in r.items():
        head = f"`nyx-30m` and its like, batch size {name.split()[1]}"
        lines += [f"| {head} | prefill, bytes/s | decoding, bytes/s |", "|---|---|---|"]
        lines += [f"| {who} | {span(s)} | {span(batch['decode'][who])} |" for who, s in batch["prefill"].items()]
        lines += [""]
        lines += [
            f"| NYX decodes faster than palm-rlhf-pytorch, batch size {name.split()[1]}, by | times |",
            "|---|---|",
        ]
        lines += [f"| {words} | {gain:.2f} |" for words, gain in gains(batch).items()] + [""]
    return [NOTE, "", *lines]


def targets(r: dict) -> list[str]:
    """What was aimed at, and what came of it, for the sections that were run."""
    lines = ["| what | target | measured | |", "|---|---|---|---|"]
    for name, (value, word, target, digits) in TARGETS.items():
        try:
            v = value(r)
        except KeyError:
            continue  # that section has not been run yet
        met = "met" if (v >= target if word == ">=" else v <= target) else "not met"
        limit = "at least" if word == ">=" else "at most"
        lines.append(f"| {name} | {limit} {digits.format(target)} | {digits.format(v)} | {met} |")
    return [*lines, ""]


def write(results: dict, folder: Path) -> None:
    """Write results.md and results.png beside results.json."""
    r, m = results, results["machine"]
    lines = [f"{m['cpu']}, {m['threads']} threads, torch {m['torch']}, Python {m['python']}; `make bench`.", ""]
    lines += targets(r)
    if "inference" in r:
        lines += inference(r["inference"])
    if "busy" in r:
        share = span(r["busy"]["share of the quiet rate"], "{:.0%}")
        lines += table("`nyx-30m` generates 64 bytes after 128, default settings, bytes/s", r["busy"]["speeds"])
        lines += [f"With two busy processes beside it: {share} of the quiet rate.", ""]
    if "training" in r:
        rate = r["training"]["bf16 rate"] / 1e9
        lines += [f"bf16 matmuls of 4,096 × 4,096 ran at {rate:.0f} GFLOP/s in this run.", ""]
        lines += table("an optimizer step of 4 × 1,024 tokens, tokens/s", r["training"]["speeds"])
    if "memory" in r:
        lines += ["| peak memory of an optimizer step of 4 × 1,024 tokens | MiB |", "|---|---|"]
        lines += [f"| {name} | {mib:,.0f} |" for name, mib in r["memory"].items()]
        lines.append("")
    if "growth" in r:
        g = r["growth"]
        lines += [
            f"Memory was read at {g['bandwidth'] / 1e9:.0f} GB/s in this run. What follows is decoding with default settings.",
            "",
        ]
        lines += table("bytes of context, milliseconds per byte", g["milliseconds by context"], "{:.2f}")
        lines += table("batch size, bytes/s in all, after 128 bytes", g["bytes/s by batch size"])
        lines += table("model, bytes/s after 128 bytes", g["bytes/s by model"])
    if "speculation" in r:
        lines += table(
            "speculative decoding at temperature 0.8, times the plain path",
            r["speculation"]["times the plain path"],
            "{:.2f}",
        )
    (folder / "results.md").write_text("\n".join(lines), encoding="utf-8")
    if {"inference", "busy", "growth", "training"} <= r.keys():
        picture(r, folder / "results.png")


# the picture

BLUE, ORANGE = "#0072B2", "#E69F00"


def colour(name: str) -> str:
    """One colour for NYX, one for all others; the names beside the marks say the same."""
    return ORANGE if name.split(", ")[0] in LIBRARIES[1:] else BLUE


def marks(ax, rows: dict, title: str, dots: bool = False) -> None:
    """A row for each contender with its number: bars from 0 or, where numbers lie far apart, dots on a log axis."""
    names, values = list(rows), [s["median"] for s in rows.values()]
    colours, ys = [colour(name) for name in names], range(len(names))
    if dots:
        for y, value, c in zip(ys, values, colours):
            ax.plot(value, y, "o" if c == BLUE else "s", color=c)
        ax.set(xscale="log", xlim=(min(values) / 2, max(values) * 4))
        ax.grid(axis="x", color="#dddddd", lw=0.6)
        ax.set_axisbelow(True)
    else:
        ax.barh(ys, values, color=colours, hatch=["" if c == BLUE else "//" for c in colours], edgecolor="white")
        ax.set(xlim=(0, max(values) * 1.2))
    for y, value in zip(ys, values):
        ax.annotate(short(value), (value, y), xytext=(7, 0), textcoords="offset points", va="center", fontsize=8)
    ax.set_yticks(ys, names, fontsize=8)
    ax.set_title(title, fontsize=9)
    ax.invert_yaxis()


def curve(ax, rows: dict, xlabel: str, title: str) -> None:
    """A number against what it grows with; the axis of values begins at 0."""
    x, y = [int(n) for n in rows], [s["median"] for s in rows.values()]
    ax.plot(x, y, "o-", color=BLUE)
    ax.set(xlabel=xlabel, xscale="log", xticks=x, xticklabels=list(rows), ylim=(0, 1.05 * max(y)))
    ax.set_title(title, fontsize=9)
    ax.minorticks_off()


def picture(r: dict, file: Path) -> None:
    """Prefill, decoding and training beside the peers, and how costs grow."""
    figure, axes = plt.subplots(4, 2, figsize=(11.5, 12.5), layout="constrained", height_ratios=(3, 2.6, 2.2, 2.6))
    for column, (name, batch) in enumerate(r["inference"].items()):
        size = name.split()[1]
        marks(axes[0, column], batch["decode"], f"decoding after 1,000 bytes, batch size {size}: bytes/s", dots=True)
        marks(axes[1, column], batch["prefill"], f"prefill of 1,000 bytes, batch size {size}: bytes/s")
    marks(axes[2, 0], r["training"]["speeds"], "training, 4 × 1,024: tokens/s")
    marks(axes[2, 1], r["busy"]["speeds"], "NYX generates, two busy processes beside it: bytes/s")
    curve(
        axes[3, 0],
        r["growth"]["milliseconds by context"],
        "bytes of context",
        "NYX decodes, default settings, batch size 1: ms per byte",
    )
    curve(
        axes[3, 1],
        r["growth"]["bytes/s by batch size"],
        "batch size",
        "NYX decodes, default settings, after 128 bytes: bytes/s",
    )
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
    m = r["machine"]
    where = f"{m['cpu']}, {m['threads']} threads, torch {m['torch']}. Blue circles and plain bars: NYX."
    figure.supxlabel(f"{where} Squares and hatched bars: other libraries.", fontsize=8)
    figure.savefig(file, dpi=100, metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    everything = json.loads((here / "results.json").read_text(encoding="utf-8"))
    write(everything, here)
    quote(everything, here.parent / "README.md")
