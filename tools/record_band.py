"""Record the band of "Where should I be?": the loss of practice runs with several seeds, into nbs/band.json.

    python tools/record_band.py

The runs use the solution of the exercise `train_on`, as nbs/training.ipynb has it. About a minute on two cores.
"""

import json
import platform
import sys
from pathlib import Path

import torch
from exercises import exercises, without_marks

SEEDS = (1, 2, 3, 4, 5)
NBS = Path(__file__).resolve().parent.parent / "nbs"


def main() -> int:
    """Run and write."""
    from nyx import check

    code = next(e.code for e in exercises(NBS / "training.ipynb") if e.name == "train_on")
    exec(without_marks(code), names := {"nn": torch.nn})
    runs = []
    for seed in SEEDS:
        runs.append(check.practice(names["train_on"], seed))
        print(f"seed {seed}: {runs[-1].points()[-1]:.2f} bits per byte after {check.UPDATES} updates", flush=True)
    points = list(zip(*(run.points() for run in runs)))
    band = {"updates": check.UPDATES, "averaged": check.AVERAGED, "seeds": SEEDS, "python": platform.python_version()}
    band |= {"torch": torch.__version__.split("+")[0], "sha256": runs[0].sha256}
    band |= {"low": [round(min(p), 3) for p in points], "high": [round(max(p), 3) for p in points]}
    (NBS / "band.json").write_text(json.dumps(band) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
