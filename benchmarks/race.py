"""A race on Tiny Shakespeare: nanoGPT's recipe for a CPU sets the time, and NYX has as much of it.

    make race                                                         # the race: the baseline and NYX in turn, five seeds each (half an hour)
    python benchmarks/race.py --try "--learning_rate 7e-4"            # the recipe with other flags, scored on the end of the training part

The last 10 % of the text (111,540 bytes) is scored, whole, and nothing else of it is looked at: settings were chosen with
--try. The clock of both runs from the start of the process until their last weights are there, NYX's on disk; what train.py
then takes to score them is in race.json as well ("to the end"). Both are scored alike, in nats a character: in windows as long
as those they were trained on, each of which adds its second half. The points along the curves are scored afterwards.
The baseline's last point, and so its result, is that of update 1,998 of 2,000.
Writes nbs/race.json.
"""

import argparse
import json
import math
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

START = time.perf_counter()  # of the baseline's process
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

SEEDS = 5
POINTS = 6  # along a curve
SPARE = 0.08  # of the time, for what varies from run to run
RECIPE = """--model_dim 128 --layer_depth 3 --num_attention_heads 4 --head_dim 16 --ff_mult 2 --init_scale 0.1 --precision float32
    --gradient_accumulate_every 1 --batch_size 4 --seq_len 192 --learning_rate 1.6e-3 --warmup_batches 50 --final_rate 0 --weight_decay 5.0""".split()
BASELINE = {"vocab": 65, "dim": 128, "depth": 4, "heads": 4, "block": 64, "batch": 12}
UPDATES, RATE, LEAST, WARMUP = 2000, 1e-3, 1e-4, 100  # of the baseline


class GPTBlock(nn.Module):
    """Attention, then a feed-forward layer, each on the normalised sum of what came before."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim, bias=False), nn.LayerNorm(dim, bias=False)
        self.qkv, self.back = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.wide, self.down = nn.Linear(dim, 4 * dim, bias=False), nn.Linear(4 * dim, dim, bias=False)

    def forward(self, x):
        q, k, v = rearrange(self.qkv(self.norm1(x)), "b n (three h d) -> three b h n d", three=3, h=self.heads)
        x = x + self.back(rearrange(F.scaled_dot_product_attention(q, k, v, is_causal=True), "b h n d -> b n (h d)"))
        return x + self.down(F.gelu(self.wide(self.norm2(x))))


class GPT(nn.Module):
    """GPT-2's architecture, 0.80 million parameters: learned positions, biases nowhere, tied embedding."""

    def __init__(self, c: dict = BASELINE):
        super().__init__()
        self.token, self.place = nn.Embedding(c["vocab"], c["dim"]), nn.Embedding(c["block"], c["dim"])
        self.blocks = nn.Sequential(*(GPTBlock(c["dim"], c["heads"]) for _ in range(c["depth"])))
        self.norm = nn.LayerNorm(c["dim"], bias=False)
        for name, weight in self.named_parameters():
            if weight.dim() > 1:
                residual = "back" in name or "down" in name
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * c["depth"]) if residual else 0.02)

    def forward(self, ids):
        x = self.token(ids) + self.place.weight[: ids.shape[1]]
        return self.norm(self.blocks(x)) @ self.token.weight.T


def read() -> tuple[np.ndarray, np.ndarray]:
    """Tiny Shakespeare's two splits, as bytes."""
    from nyx.data import load_corpus

    corpus = load_corpus("tinyshakespeare")
    return corpus.train, corpus.valid


@torch.no_grad()
def score(model: nn.Module, ids: torch.Tensor, block: int, stride: int) -> float:
    """Nats a character of all of `ids` but the first: windows of `block`, each after the first adding `stride` characters."""
    model.eval()
    nats, scored, starts = 0.0, 0, range(0, len(ids) - 1 - block + stride, stride)
    windows = [(start, min(start + block + 1, len(ids)), 0 if start == 0 else block - stride) for start in starts]
    full = [w for w in windows if w[1] - w[0] == block + 1 and w[0]]
    groups = [windows[:1], *(full[i : i + 64] for i in range(0, len(full), 64)), windows[1 + len(full) :]]
    for group in filter(None, groups):  # the first window, those that are whole, what is left at the end
        batch = torch.stack([ids[start:stop] for start, stop, _ in group])
        losses = F.cross_entropy(model(batch[:, :-1]).mT, batch[:, 1:], reduction="none")[:, group[0][2] :]
        nats, scored = nats + losses.double().sum().item(), scored + losses.numel()
    assert scored == len(ids) - 1
    return nats / scored


def baseline(seed: int) -> None:
    """Train it as published, with the estimates that the recipe makes on the way; print what came of it as JSON."""
    c = BASELINE
    raw = read()
    table = np.zeros(256, np.int64)
    table[sorted(set(raw[0].tolist()) | set(raw[1].tolist()))] = range(c["vocab"])
    train, valid = (torch.from_numpy(table[split]) for split in raw)
    torch.manual_seed(seed)
    model = GPT()
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.99))

    def loss(ids):
        starts = torch.randint(len(ids) - c["block"], (c["batch"],))
        windows = torch.stack([ids[i : i + c["block"] + 1] for i in starts])
        return F.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())

    kept = []
    for update in range(UPDATES + 1):
        if update % (UPDATES // POINTS) == 0:
            with torch.no_grad():
                for ids in (train, valid):
                    sum(loss(ids).item() for _ in range(20))
            kept.append((time.perf_counter() - START, {name: t.clone() for name, t in model.state_dict().items()}))
        if update == UPDATES:
            break
        part = (update - WARMUP) / (UPDATES - WARMUP)
        cosine = LEAST + (RATE - LEAST) * (1 + math.cos(math.pi * part)) / 2
        for group in optimizer.param_groups:
            group["lr"] = RATE * (update + 1) / (WARMUP + 1) if update < WARMUP else cosine
        loss(train).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    curve = []
    for seconds, weights in kept:
        model.load_state_dict(weights)
        curve.append([round(seconds, 2), round(score(model, valid, c["block"], c["block"] // 2), 4)])
    parameters = sum(p.numel() for p in model.parameters())
    print(json.dumps({"parameters": parameters, "seconds": curve[-1][0], "nats": curve[-1][1], "curve": curve}))


def train(flags: list[str], seed: int, updates: int, filepath: str, folder: Path) -> float:
    """Run train.py; returns the seconds that its process took."""
    given = {"filepath": filepath, "num_batches": updates, "seed": seed, "out_dir": folder}
    quiet = {"validate_every": updates, "validate_bytes": 1, "generate_every": updates, "generate_length": 1}
    settings = given | quiet | {"checkpoint_every": max(1, math.ceil(updates / POINTS)), "keep": POINTS}
    command = [
        sys.executable,
        str(HERE.parent / "train.py"),
        *flags,
        *(f"--{name}={value}" for name, value in settings.items()),
    ]
    begun = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - begun


def nyx(flags: list[str], seed: int, updates: int, filepath: str) -> dict:
    """A run of train.py, and what its checkpoints are worth."""
    from nyx.cli import read_weights
    from nyx.data import load_corpus

    corpus, curve = load_corpus(filepath), []
    valid, seq_len = torch.from_numpy(corpus.valid.astype(np.int64)), int(dict(zip(flags, flags[1:]))["--seq_len"])
    with tempfile.TemporaryDirectory() as folder:
        begun = time.time()
        seconds = train(flags, seed, updates, filepath, Path(folder))
        for path in sorted(Path(folder).glob("checkpoint_*.pth"), key=lambda p: int(p.stem.split("_")[1])):
            model = read_weights(path, {})
            curve.append([round(path.stat().st_mtime - begun, 2), round(score(model, valid, seq_len, seq_len // 2), 4)])
    known = {"seed": seed, "updates": updates, "parameters": model.config.parameters, "seconds": curve[-1][0]}
    known |= {"to the end": round(seconds, 2)}
    return known | {"nats": curve[-1][1], "curve": curve}


def updates_for(flags: list[str], budget: float, filepath: str) -> int:
    """How many updates fit, from a short run: between its first checkpoint and its last are updates, the rest is start."""
    with tempfile.TemporaryDirectory() as folder:
        begun = time.time()
        train(flags, 0, 300, filepath, Path(folder))
        times = sorted((int(p.stem[11:]), p.stat().st_mtime - begun) for p in Path(folder).glob("checkpoint_*.pth"))
    (first, early), (last, late) = times[0], times[-1]
    each = (late - early) / (last - first)
    return max(1, int(((1 - SPARE) * budget - (late - each * last)) / each))


def run_baseline(seed: int) -> dict:
    """Its run, in a process of its own."""
    command = [sys.executable, __file__, "--baseline", "--seed", str(seed)]
    result = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return {"seed": seed} | result


def write_training_part() -> str:
    """A file with the training part alone: its own last 10 % is what settings are chosen on."""
    path = Path(tempfile.gettempdir(), "nyx-race-training-part.txt")
    path.write_bytes(read()[0].tobytes())
    return str(path)


def race(path: Path) -> None:
    """Five times the baseline and then NYX, since machines change from minute to minute; what came of them goes into a file."""
    pairs = []
    for seed in range(SEEDS):
        other = run_baseline(1337 + seed)
        print(f"baseline: {other['nats']} nats in {other['seconds']} s", flush=True)
        updates = updates_for(RECIPE, other["seconds"], "tinyshakespeare")
        pairs.append((other, nyx(RECIPE, seed, updates, "tinyshakespeare")))
        print(f"NYX, seed {seed}: {pairs[-1][1]['nats']} nats in {pairs[-1][1]['seconds']} s", flush=True)
    versions = {"python": platform.python_version(), "torch": torch.__version__.split("+")[0]}
    machine = {"cores": os.cpu_count(), "architecture": platform.machine(), **versions}
    result = {"command": "make race", "machine": machine, "recipe": shlex.join(RECIPE)}
    for name, runs in zip(("baseline", "nyx"), zip(*pairs)):
        nats, seconds = ([run[what] for run in runs] for what in ("nats", "seconds"))
        print(
            f"{name}: median {statistics.median(nats)} ({min(nats)} to {max(nats)}) in {min(seconds)} to {max(seconds)} s"
        )
        result |= {f"{name}_median": statistics.median(nats), name: runs}
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Do what the flags say."""
    parser = argparse.ArgumentParser(description="A race on Tiny Shakespeare.")
    parser.add_argument("--try", dest="other", metavar="FLAGS", help="flags of train.py, put behind the recipe's")
    parser.add_argument("--seconds", type=float, default=97.0, help="the time that a --try has (default 97)")
    parser.add_argument("--baseline", action="store_true", help="the baseline alone")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    os.environ.pop("NYX_TYPECHECK", None)  # as in production
    if args.baseline:
        baseline(args.seed)
    elif args.other is not None:
        flags, text = [*RECIPE, *shlex.split(args.other)], write_training_part()
        print(nyx(flags, args.seed, updates_for(flags, args.seconds, text), text))
    else:
        race(HERE.parent / "nbs" / "race.json")


if __name__ == "__main__":
    main()
