"""The table and the picture of results.json."""

import json
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt

LONG = "8,192 bytes of context, in reading times of their cache"
SAMPLING, GROWTH, TRAINING = "sampling", "growth", "training"
TARGETS = {  # what was aimed at: where the figure stands, which way is good, the target, how it is written
    "writing after 1,000 bytes, times palm-rlhf-pytorch": (lambda r: r[SAMPLING]["times palm-rlhf-pytorch"], ">=", 100, "{:.0f}"),
    "best single stream, share of (bandwidth ÷ bytes of weights)": (lambda r: r[SAMPLING]["share of bandwidth"], ">=", 0.2, "{:.0%}"),
    "best single stream, bytes a second, scaled to 50 GB/s": (
        lambda r: r[SAMPLING]["best"] * 50e9 / r[SAMPLING]["bandwidth"], ">=", 380, "{:.0f}",
    ),
    LONG: (lambda r: r[GROWTH][LONG], "<=", 3, "{:.1f}"),
    "batch of 32, share of its own matrix products": (lambda r: r[GROWTH]["share of its products at batch 32"], ">=", 0.5, "{:.0%}"),
    "guessing ahead (nyx-mini on Python), times the plain path": (
        lambda r: r["speculation"]["times the plain path"]["median"], ">=", 1.2, "{:.2f}",
    ),
    "training, times palm-rlhf-pytorch": (lambda r: r[TRAINING]["times palm-rlhf-pytorch"], ">=", 1.25, "{:.2f}"),
    "training, share of the bf16 matrix rate": (lambda r: r[TRAINING]["share of the bf16 rate"], ">=", 0.7, "{:.0%}"),
    "training, memory against palm-rlhf-pytorch": (
        lambda r: r["memory"]["NYX, bf16"] / r["memory"]["palm-rlhf-pytorch, bf16"], "<=", 1, "{:.2f}",
    ),
    "nyx-gpt2, memory of an update in chunks against plain": (
        lambda r: r["memory"]["nyx-gpt2, loss in chunks"] / r["memory"]["nyx-gpt2, loss plain"], "<=", 0.5, "{:.3f}",
    ),
    "`import nyx` on top of torch and huggingface_hub, seconds": (lambda r: r["imports"]["seconds"], "<=", 0.3, "{:.2f}"),
    "fetching windows, share of an update of nyx-mini": (lambda r: r["data"]["share"], "<=", 0.05, "{:.1%}"),
}  # fmt: skip


def span(s: dict, digits: str = "{:,.0f}") -> str:
    """A median with the middle half."""
    return f"{digits.format(s['median'])} ({digits.format(s['low'])} to {digits.format(s['high'])})"


def table(head: str, rows: dict, digits: str = "{:,.0f}") -> list[str]:
    """Two columns of a Markdown table."""
    return [
        f"| {head} | median (middle half) |",
        "|---|---|",
        *(f"| {name} | {span(s, digits)} |" for name, s in rows.items()),
        "",
    ]


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
        met = v >= target if word == ">=" else v <= target
        lines.append(
            f"| {name} | {'at least' if word == '>=' else 'at most'} {digits.format(target)} | {digits.format(v)} | {'met' if met else 'not met'} |"
        )
    lines.append("")
    if "sampling" in r:
        lines += [f"Memory read at {r['sampling']['bandwidth'] / 1e9:.0f} GB/s in this run.", ""]
        lines += table(
            "one stream after 1,000 bytes, 30 million parameters, bytes a second", r["sampling"]["speeds"], "{:,.1f}"
        )
    if "training" in r:
        rate = r["training"]["bf16 rate"] / 1e9
        lines += [
            f"bf16 products of 4,096 × 4,096 matrices ran at {rate:.0f} billion operations a second in this run.",
            "",
        ]
        lines += table("an update of 4 × 1,024 tokens, tokens a second", r["training"]["speeds"])
    if "memory" in r:
        lines += ["| peak memory of an update of 4 × 1,024 tokens | MiB |", "|---|---|"]
        lines += [f"| {name} | {mib:,.0f} |" for name, mib in r["memory"].items()]
        lines.append("")
    if "growth" in r:
        lines += table("context, milliseconds a byte", r["growth"]["milliseconds by context"], "{:.2f}")
        lines += table("texts at once, bytes a second", r["growth"]["bytes a second by batch"])
        lines += table("model, bytes a second", r["growth"]["bytes a second by model"])
    if "speculation" in r:
        kept = r["speculation"]["guesses kept in a step"]
        lines += [
            f"Guessing ahead kept {kept:.1f} guesses a step, over 20 prompts of 512 new bytes at temperature 0.8.",
            "",
        ]
    (folder / "results.md").write_text("\n".join(lines))
    if {"sampling", "growth", "training"} <= r.keys():
        picture(r, folder / "results.png")


def bars(ax, rows: dict, title: str, scale: str) -> None:
    """Horizontal bars, each with its number."""
    names, values = (
        [name.removesuffix(", 16 bytes with their prompt") for name in rows],
        [s["median"] for s in rows.values()],
    )
    drawn = ax.barh(names, values, color=["#0072B2" if n.startswith("NYX") else "#E69F00" for n in names])
    ax.bar_label(drawn, [f"{v:,.0f}" if v >= 10 else f"{v:.1f}" for v in values], padding=3, fontsize=8)
    ax.set(title=title, xscale=scale, xlim=(1 if scale == "log" else 0, max(values) * (4 if scale == "log" else 1.2)))
    ax.invert_yaxis()


def picture(r: dict, file: Path) -> None:
    """Speeds beside the peers, and how costs grow."""
    figure, axes = plt.subplots(2, 2, figsize=(11, 6.5), layout="constrained")
    bars(axes[0, 0], r["sampling"]["speeds"], "writing after 1,000 bytes: bytes a second", "log")
    bars(axes[0, 1], r["training"]["speeds"], "training, 4 × 1,024: tokens a second", "linear")
    for ax, key, label in (
        (axes[1, 0], "milliseconds by context", "bytes of context"),
        (axes[1, 1], "bytes a second by batch", "texts at once"),
    ):
        rows = r["growth"][key]
        x, y = [int(n) for n in rows], [s["median"] for s in rows.values()]
        ax.plot(x, y, "o-", color="#0072B2")
        ax.set(
            xlabel=label,
            ylabel=key.split(" by")[0],
            xscale="log",
            xticks=x,
            xticklabels=list(rows),
            ylim=(0, None),
            title=key,
        )
        ax.minorticks_off()
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=110, metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    write(json.loads((here / "results.json").read_text()), here)
