"""Bytes against GPT-2's vocabulary: the same text, the same seconds of training, measured in bits per byte.

    NYX_DATA=FOLDER python benchmarks/vocabularies.py                # 2 models × 2 seeds × 240 seconds, and their scoring
    NYX_DATA=FOLDER python benchmarks/vocabularies.py --seconds 10   # a try, which writes nothing
    NYX_DATA=FOLDER python benchmarks/vocabularies.py --try bytes "--learning_rate 5e-4"   # one model with other flags

FOLDER holds books-train.txt.xz, books-valid.txt.xz and gpt2/ with GPT-2's two files. Both models are trained by the flags of
train.py below, on as much of the training text as makes books-valid the last tenth of one file, which is what validates.
The shapes are such that an update takes about as long, and reads about as much text, with either. Seconds are those of
the updates alone: start, encoding (once) and scoring are not counted. The number of updates, which the learning rate's
schedule needs to know, comes from a few timed before. They are seconds of the processor, on one thread, so that other work on
the machine costs neither. Models take turns. Windows are counted in tokens, in training as in
scoring: the model of tokens has four times as much text before it.
"""

import argparse
import json
import lzma
import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from contextlib import closing
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
os.environ.pop("NYX_TYPECHECK", None)  # as in production
warnings.filterwarnings("ignore")

import torch
from flags import NEVER, seconds_per_update, trainer_of

from nyx.data import VocabularyUnavailable, gpt2_folder
from nyx.training import evaluate

HEADS = "--head_dim 32 --layer_depth 4"
MODELS = {
    "bytes": f"{HEADS} --model_dim 128 --num_attention_heads 4 --batch_size 2",
    "gpt2": f"{HEADS} --model_dim 96 --num_attention_heads 3 --batch_size 1 --vocab_size 50257 --tokenizer gpt2",
}
BOTH = "--seq_len 512 --gradient_accumulate_every 1 --learning_rate 1e-3 --weight_decay 1 --init_scale 0.1 --precision bf16 --validate_bytes 16384 --threads 1"
POINTS = 4  # validations of a run, evenly spread; the last is at its end
LAST = 65_536  # bytes scored there


def one_text(folder: Path, path: Path) -> int:
    """Write a file whose last tenth is books-valid; returns the bytes of that."""
    with lzma.open(folder / "books-valid.txt.xz") as file:
        valid = file.read()
    with lzma.open(folder / "books-train.txt.xz") as file:
        path.write_bytes(file.read(9 * len(valid)) + valid)
    return len(valid)


def train(name: str, seed: int, seconds: float, text: Path, out_dir: Path) -> dict:
    """One run: bits per byte against seconds."""
    words = f"{MODELS[name]} {BOTH}"
    often = max(1, round(seconds / POINTS / seconds_per_update(words, text, out_dir / "timed", time.process_time)))
    updates = POINTS * often
    trainer = trainer_of(words, text, out_dir / "run", num_batches=updates, validate_every=often, generate_every=NEVER,
                         checkpoint_every=NEVER, seed=seed)  # fmt: skip
    model, tokens_per_update = trainer.model, trainer.config.batch_size * trainer.config.seq_len
    bytes_per_token = trainer.corpus.valid_bytes / len(trainer.corpus.valid)
    spent, curve, clock = 0.0, [], time.process_time()
    with closing(trainer.run()) as records:
        for record in records:
            clock, before = time.process_time(), clock
            if record["event"] == "update":
                spent += clock - before
            if record["event"] != "validation":
                continue
            bits, last = record["bits_per_byte"], record["update"] == updates
            if last:
                bits = evaluate(
                    model, trainer.corpus.valid, trainer.corpus.tokenizer, round(LAST / bytes_per_token), batch_size=1
                )
            curve.append({"seconds": round(spent, 1), "bits_per_byte": round(bits, 4)})
            print(f"{name}, seed {seed}: {spent:.0f} s, {bits:.3f} bits per byte", file=sys.stderr, flush=True)
            if last:
                break
    return {
        "vocabulary": name, "seed": seed, "parameters": model.config.parameters, "in the embedding": model.embedding.weight.numel(),
        "updates": updates, "bytes seen": round(updates * tokens_per_update * bytes_per_token), "bytes per token": round(bytes_per_token, 3),
        "curve": curve,
    }  # fmt: skip


def table(results: dict) -> str:
    """The runs of each model in a row of a Markdown table: the mean of the seeds, and each of them at the end."""
    heads = ["vocabulary", "parameters (in the embedding)", "updates", "seconds", "MB of text seen"]
    heads += [f"bits per byte after {i + 1}/{POINTS} of the time" for i in range(POINTS - 1)] + [
        "at the end (each seed)"
    ]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name in MODELS:
        runs = [run for run in results["runs"] if run["vocabulary"] == name]
        curve = [statistics.mean(run["curve"][i]["bits_per_byte"] for run in runs) for i in range(POINTS)]
        ends = ", ".join(f"{run['curve'][-1]['bits_per_byte']:.3f}" for run in runs)
        spent = statistics.mean(run["curve"][-1]["seconds"] for run in runs)
        seen = statistics.mean(run["bytes seen"] for run in runs) / 1e6
        cells = [name, f"{runs[0]['parameters']:,} ({runs[0]['in the embedding']:,})"]
        cells += [f"{statistics.mean(run['updates'] for run in runs):.0f}", f"{spent:.0f}", f"{seen:.1f}"]
        cells += [*(f"{bits:.3f}" for bits in curve[:-1]), f"**{curve[-1]:.3f}** ({ends})"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=240, help="of training, for each run (default 240)")
    parser.add_argument(
        "--try", dest="other", nargs=2, metavar=("MODEL", "FLAGS"), help="one model alone, with flags behind its own"
    )
    parser.add_argument("--seeds", type=int, default=2, help="runs of each model (default 2)")
    asked = parser.parse_args()
    folder = Path(os.environ.get("NYX_DATA", ""))
    if not all((folder / f"books-{part}.txt.xz").is_file() for part in ("train", "valid")):
        sys.exit("NYX_DATA must name a folder with books-train.txt.xz and books-valid.txt.xz")
    try:
        gpt2_folder()
    except VocabularyUnavailable as e:
        sys.exit(str(e))
    with tempfile.TemporaryDirectory() as place:
        text = Path(place, "books.txt")
        valid = one_text(folder, text)
        if asked.other:
            name, more = asked.other
            MODELS[name] += f" {more}"
            print(more, json.dumps(train(name, 0, asked.seconds, text, Path(place, name))))
            return
        runs = [
            train(name, seed, asked.seconds, text, Path(place, f"{name}-{seed}"))
            for seed in range(asked.seeds)
            for name in MODELS
        ]
        trained = text.stat().st_size - valid
    machine = {
        "machine": platform.machine(),
        "threads": 1,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    flags = {name: f"{MODELS[name]} {BOTH}" for name in MODELS}
    results = {"seconds": asked.seconds, "machine": machine, "train bytes": trained, "flags": flags, "runs": runs}
    print(table(results))
    if asked.seconds >= 60:  # less than that is a try
        (HERE / "vocabularies.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
