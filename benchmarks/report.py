"""The table and the picture of results.json."""

import json
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt

TARGETS = {  # what was aimed at, and how to tell
    "sampling after 1,000 bytes, times palm-rlhf-pytorch": (lambda r: r["sampling"]["times palm-rlhf-pytorch"], "at least", 100, "{:.0f}"),
    "share of (bandwidth ÷ bytes of weights)": (lambda r: r["sampling"]["share of bandwidth"], "at least", 0.2, "{:.0%}"),
    "bytes a second, at 50 GB/s": (lambda r: r["sampling"]["speeds"]["NYX, int8"]["median"] * 50e9 / r["sampling"]["bandwidth"], "at least", 380, "{:.0f}"),
    "8,192 bytes of context, in reading times of their cache": (lambda r: r["growth"]["8,192 bytes of context, in reading times of their cache"], "at most", 3, "{:.1f}"),
    "batch of 32, share of its own matrix products": (lambda r: r["growth"]["share of its products at batch 32"], "at least", 0.5, "{:.0%}"),
    "guessing ahead (nyx-mini on Python), times the plain path": (lambda r: r["speculation"]["times the plain path"]["median"], "at least", 1.2, "{:.2f}"),
    "training, times palm-rlhf-pytorch": (lambda r: r["training"]["times palm-rlhf-pytorch"], "at least", 1.25, "{:.2f}"),
    "training, share of the bf16 matrix rate": (lambda r: r["training"]["share of the bf16 rate"], "at least", 0.7, "{:.0%}"),
    "training, memory against palm-rlhf-pytorch": (lambda r: r["training"]["memory"]["NYX, bf16"] / r["training"]["memory"]["palm-rlhf-pytorch, bf16"], "at most", 1, "{:.2f}"),
    "nyx-gpt2, memory of an update in chunks against plain": (lambda r: r["wide"]["in chunks"] / r["wide"]["plain"], "at most", 0.5, "{:.2f}"),
    "`import nyx` on top of torch and huggingface_hub, seconds": (lambda r: r["imports"]["seconds"], "at most", 0.3, "{:.2f}"),
    "fetching windows, share of an update of nyx-mini": (lambda r: r["data"]["share"], "at most", 0.05, "{:.1%}"),
}


def span(s: dict, digits: str = "{:,.0f}") -> str:
    """A median with the middle half."""
    return f"{digits.format(s['median'])} ({digits.format(s['low'])} to {digits.format(s['high'])})"


def table(head: str, rows: dict, digits: str = "{:,.0f}") -> list[str]:
    """Two columns of a Markdown table."""
    return [f"| {head} | median (middle half) |", "|---|---|", *(f"| {name} | {span(s, digits)} |" for name, s in rows.items()), ""]


def write(results: dict, folder: Path) -> None:
    """Write results.md and results.png beside results.json."""
    r, m = results, results["machine"]
    lines = [f"{m['cpu']}, {m['threads']} threads, torch {m['torch']}, Python {m['python']}; `make bench`.", ""]
    lines += ["| what | target | measured | |", "|---|---|---|---|"]
    for name, (value, word, target, digits) in TARGETS.items():
        try:
            v = value(r)
        except KeyError:
            continue  # that section has not been run yet
        met = v >= target if word == "at least" else v <= target
        lines.append(f"| {name} | {word} {digits.format(target)} | {digits.format(v)} | {'met' if met else 'not met'} |")
    lines.append("")
    if "sampling" in r:
        lines += [f"Memory read at {r['sampling']['bandwidth'] / 1e9:.0f} GB/s in this run.", ""]
        lines += table("one stream after 1,000 bytes, 30 million parameters, bytes a second", r["sampling"]["speeds"], "{:,.1f}")
    if "training" in r:
        lines += [f"bf16 products of 4,096 × 4,096 matrices ran at {r['training']['bf16 rate'] / 1e9:.0f} billion operations a second in this run.", ""]
        lines += table("an update of 4 × 1,024 tokens, tokens a second", r["training"]["speeds"])
        lines += ["| peak memory of an update | MiB |", "|---|---|"]
        lines += [f"| {name} | {mib:,.0f} |" for name, mib in (r["training"]["memory"] | {f"nyx-gpt2, loss {k}": v for k, v in r.get("wide", {}).items()}).items()]
        lines.append("")
    if "growth" in r:
        lines += table("context, milliseconds a byte", r["growth"]["milliseconds by context"], "{:.2f}")
        lines += table("texts at once, bytes a second", r["growth"]["bytes a second by batch"])
        lines += table("model, bytes a second", r["growth"]["bytes a second by model"])
    if "speculation" in r:
        lines += [f"Guessing ahead kept {r['speculation']['guesses kept in a step']:.1f} guesses a step, over 20 prompts of 512 new bytes at temperature 0.8.", ""]
    (folder / "results.md").write_text("\n".join(lines))
    if {"sampling", "growth", "training"} <= r.keys():
        picture(r, folder / "results.png")


def bars(ax, rows: dict, title: str) -> None:
    """Horizontal bars on a logarithmic axis, each with its number."""
    names = [n.split(",")[0] + (", " + n.split(", ")[1] if n.startswith("NYX") else "") for n in rows]
    values = [s["median"] for s in rows.values()]
    drawn = ax.barh(names, values, color=["#0072B2" if n.startswith("NYX") else "#E69F00" for n in rows], hatch=None)
    ax.bar_label(drawn, [f"{v:,.0f}" if v >= 10 else f"{v:.1f}" for v in values], padding=3, fontsize=8)
    ax.set(title=title, xscale="log", xlim=(min(values) / 2, max(values) * 4))
    ax.invert_yaxis()


def picture(r: dict, file: Path) -> None:
    """Speeds beside the peers, and how costs grow."""
    figure, axes = plt.subplots(2, 2, figsize=(11, 6.5), layout="constrained")
    bars(axes[0, 0], r["sampling"]["speeds"], "writing after 1,000 bytes: bytes a second")
    bars(axes[0, 1], r["training"]["speeds"], "training, 4 × 1,024: tokens a second")
    for ax, key, label in ((axes[1, 0], "milliseconds by context", "bytes of context"), (axes[1, 1], "bytes a second by batch", "texts at once")):
        rows = r["growth"][key]
        x, y = [int(n) for n in rows], [s["median"] for s in rows.values()]
        ax.plot(x, y, "o-", color="#0072B2")
        ax.set(xlabel=label, ylabel=key.split(" by")[0], xscale="log", xticks=x, xticklabels=list(rows), ylim=(0, None), title=key)
        ax.minorticks_off()
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=110, metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    write(json.loads((here / "results.json").read_text()), here)
