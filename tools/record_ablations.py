"""Record the runs of nbs/ablations.ipynb, every idea from every seed, into nbs/ablations.json.

    python tools/record_ablations.py                 # about 15 minutes of one core; stopped, it goes on where it was
    python tools/record_ablations.py --minutes 5     # begins no run that would end later
    python tools/record_ablations.py --tiny --out F  # ten updates and few windows: to try the program

The code is that of the notebook's cells: those marked `#| record` are shared by all runs, and those marked `#| idea` make
one idea. A file that other shared code recorded is begun anew; of an idea that starts otherwise now, the runs are dropped.
"""

import argparse
import hashlib
import json
import math
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from run_notebooks import machine, write_atomically

NBS = Path(__file__).resolve().parent.parent / "nbs"
SEEDS = (1, 2)  # more may be added at any time: what is recorded stays
POINTS = 10  # of a curve over the updates
SHORT = 8  # a point of a curve is scored on an eighth of the sample


def marked_code(notebook: Path, *marks: str) -> str:
    """The cells that have one of the marks, as one program."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return "\n\n".join(text for text in sources if {f"#| {mark}" for mark in marks} & {*text.splitlines()}) + "\n"


def shared_code(notebook: Path) -> str:
    """The SHA-256 of what all runs share."""
    return hashlib.sha256(marked_code(notebook, "record").encode()).hexdigest()


def shrink(names: dict) -> None:
    """Ten updates and few windows."""
    from dataclasses import replace
    from functools import partial

    names["RUN"] = replace(names["RUN"], num_batches=POINTS, warmup_batches=1)
    names["length_windows"] = partial(names["length_windows"], count=2)


def next_rate(rates: Sequence[float], best: float) -> float | None:
    """The rate to try beyond the best one when that lies at an end of the row, three times as far; else None."""
    if min(rates) < best < max(rates):
        return None
    step = 1 if best == max(rates) else -1
    return float(f"{10 ** ((round(2 * math.log10(best)) + step) / 2):.0e}")


def next_run(runs: list[dict], names: dict) -> tuple[str, str, float, int] | None:
    """What to run next, as idea, optimizer, rate and seed: learning rates on the base first, then every idea, seed by seed."""
    done = {(r["idea"], r["optimizer"], r["rate"], r["seed"]) for r in runs}
    first, best = SEEDS[0], {}
    for optimizer, rates in names["RATES"].items():
        for rate in rates:
            if ("NYX", optimizer, rate, first) not in done:
                return "NYX", optimizer, rate, first
        best[optimizer] = names["best_rate"](runs, optimizer)
        tried = [rate for idea, o, rate, seed in done if (idea, o, seed) == ("NYX", optimizer, first)]
        if rate := next_rate(tried, best[optimizer]):
            return "NYX", optimizer, rate, first
    for seed in SEEDS:
        for idea, optimizer in [*((idea, "Lion") for idea in names["IDEAS"]), ("NYX", "AdamW")]:
            if (run := (idea, optimizer, best[optimizer], seed)) not in done:
                return run
    return None


def record(names: dict, idea: str, optimizer: str, rate: float, seed: int, sample: int) -> dict:
    """Train and measure once. Seconds are those of this process, the scoring left out."""
    model, losses = names["start"](idea, optimizer, rate, seed)
    every, seen, validation, seconds, began = names["RUN"].num_batches // POINTS, [], [], 0.0, time.process_time()
    for loss in losses:
        seen.append(loss)
        if idea in names["LITTLE"] and len(seen) % every == 0:
            seconds += time.process_time() - began
            validation.append(round(names["score"](model, sample // SHORT), 4))
            began = time.process_time()
    seconds += time.process_time() - began
    means = [round(sum(seen[i : i + every]) / every, 3) for i in range(0, len(seen), every)]
    found = {"idea": idea, "optimizer": optimizer, "rate": rate, "seed": seed}
    found |= {"bits": round(names["score"](model, sample), 4), "parameters": sum(p.numel() for p in model.parameters())}
    found |= {"seconds": round(seconds, 1), "first": [round(loss, 4) for loss in seen[:2]], "training": means}
    if validation:
        found["validation"] = validation
    if idea in names["POSITIONS"] and optimizer == "Lion":
        lengths, positions = names["by_length"](model)
        found["lengths"] = {factor: round(bits, 4) for factor, bits in lengths.items()}
        found["positions"] = [round(bits, 3) for bits in positions]
    return found


def write(path: Path, head: dict, runs: list[dict]) -> None:
    """The file, one run a line."""
    lines = ",\n".join(json.dumps(run) for run in runs)
    seconds = {"seconds": round(sum(run["seconds"] for run in runs))}
    write_atomically(path, f'{json.dumps(head | seconds)[:-1]}, "runs": [\n{lines}\n]}}\n')


def starts_alike(run: dict, names: dict) -> bool:
    """Whether the first two updates of a recorded run are what the code gives now."""
    if run["idea"] not in names["IDEAS"]:
        return False
    _, losses = names["start"](run["idea"], run["optimizer"], run["rate"], run["seed"])
    return all(abs(now - then) < 0.01 for now, then in zip(losses, run["first"]))


def read(path: Path, head: dict, names: dict) -> list[dict]:
    """The runs of a file that the same shared code recorded on the same text, of ideas that start as they did."""
    if not path.exists():
        return []
    known = json.loads(path.read_text(encoding="utf-8"))
    if other := [name for name in head if name != "machine" and known.get(name) != head[name]]:
        print(f"{path.name} was recorded with another {', '.join(other)}: beginning anew", flush=True)
        return []
    return [run for run in known["runs"] if starts_alike(run, names)]


def main(argv: list[str] | None = None, clock: Callable[[], float] = time.monotonic) -> int:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no run that would end later")
    parser.add_argument("--tiny", action="store_true", help="ten updates, few windows: to try the program")
    parser.add_argument("--out", type=Path, default=NBS / "ablations.json", help="where to write")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    notebook = NBS / "ablations.ipynb"
    exec(marked_code(notebook, "record", "idea"), names := {"__name__": "ablations"})
    if args.tiny:
        shrink(names)
    head = {"command": "python tools/record_ablations.py" + " --tiny" * args.tiny, "threads": 1, "machine": machine()}
    head |= {"python": platform.python_version(), "torch": torch.__version__.split("+")[0]}
    head |= {"sha256": names["corpus"].sha256, "code": shared_code(notebook)}
    runs, longest, until = read(args.out, head, names), 0.0, clock() + 60 * args.minutes
    while (wanted := next_run(runs, names)) and clock() + longest < until:
        began = clock()
        runs.append(record(names, *wanted, sample=1024 if args.tiny else 65_536))
        write(args.out, head, runs)
        longest = max(longest, clock() - began)
        print(f"{len(runs):3} {' '.join(map(str, wanted))}: {runs[-1]['bits']:.3f}", flush=True)
    print("all runs are recorded" if wanted is None else "not done yet: the same command goes on", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
