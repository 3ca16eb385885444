"""Record the runs of nbs/finetune.ipynb into nbs/finetune.json, and keep the adapter as weights/nyx-4m/shakespeare.safetensors.

    python tools/record_finetune.py                                    # three ways to learn Shakespeare, as long each (about 8 minutes)
    python tools/record_finetune.py --try LoRA "--learning_rate 3e-3"  # one of them with other flags, scored on the end of the training part

Every way is a run of train.py with the flags below, on Tiny Shakespeare, with as many updates as fit into the time. Only updates
are counted, not start and scoring. A curve is bits per byte on a sample of the validation split, its end is scored on all of it;
settings were chosen with --try, and the validation split was left alone.
"""

import argparse
import json
import shlex
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

from flags import NEVER, seconds_per_update, trainer_of
from race import write_training_part
from run_notebooks import machine, write_atomically

from nyx.lora import save_adapter
from nyx.training import Trainer, evaluate

NBS = Path(__file__).resolve().parent.parent / "nbs"
WEIGHTS = NBS.parent / "weights" / "nyx-4m"
SECONDS, POINTS, SAMPLE = 120.0, 8, 16_384
BOTH = "--batch_size 4 --seq_len 256 --gradient_accumulate_every 1 --precision bf16 --warmup_batches 30 --final_rate 0"
WAYS = {
    "from nothing": "--preset nyx-4m --learning_rate 5e-4 --weight_decay 5",
    "all weights": "--weights WEIGHTS --learning_rate 2e-4 --weight_decay 1",
    "LoRA": "--weights WEIGHTS --lora_rank 8 --lora_name shakespeare --learning_rate 2e-3 --weight_decay 0",
}


def run(words: str, seconds: float, filepath: str, folder: str) -> tuple[dict, Trainer]:
    """One way: how many updates fit, and then the run."""
    typed = words.replace("WEIGHTS", shlex.quote(str(WEIGHTS)))
    often = max(1, round(seconds / POINTS / seconds_per_update(typed, filepath, f"{folder}/timed", time.perf_counter)))
    rare = {"generate_every": NEVER, "checkpoint_every": NEVER, "validate_every": often, "validate_bytes": SAMPLE}
    trainer = trainer_of(typed, filepath, f"{folder}/run", num_batches=POINTS * often, **rare)
    valid, tokenizer = trainer.corpus.valid, trainer.corpus.tokenizer
    curve, spent = [[0.0, round(evaluate(trainer.model, valid, tokenizer, SAMPLE), 4)]], 0.0
    with closing(trainer.run()) as records:
        for record in records:
            spent += record["seconds"] if record["event"] == "update" else 0
            if record["event"] == "validation":
                curve.append([round(spent, 1), round(record["bits_per_byte"], 4)])
    last = round(record["bits_per_byte"], 4)  # of the whole split
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    facts = {"flags": words.replace("WEIGHTS", "weights/nyx-4m"), "updates": POINTS * often, "trained": trained}
    return facts | {"bits_per_byte": last, "curve": curve}, trainer


def main() -> None:
    """Record, or try."""
    parser = argparse.ArgumentParser(description="Three ways to learn Shakespeare.")
    parser.add_argument(
        "--try", dest="other", nargs=2, metavar=("WAY", "FLAGS"), help=f"one of {', '.join(WAYS)}; and flags"
    )
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"for each way (default {SECONDS:.0f})")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.other:
            way, more = args.other
            print(more, run(f"{WAYS[way]} {BOTH} {more}", args.seconds, write_training_part(), folder)[0])
            return
        ways = {}
        for way, words in WAYS.items():
            ways[way], trainer = run(f"{words} {BOTH}", args.seconds, "tinyshakespeare", f"{folder}/{len(ways)}")
            print(way, ways[way], flush=True)
        save_adapter(trainer.model, "shakespeare", WEIGHTS / "shakespeare.safetensors")
    result = {"command": "make finetune", "machine": machine(), "ways": ways}
    write_atomically(NBS / "finetune.json", json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
