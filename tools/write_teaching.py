"""Fill in the tables of docs/teaching.md from the notebooks, nbs/times.json, and tests/exercises.toml.

    python tools/write_teaching.py

What stands between `<!-- name -->` and `<!-- end -->` is written; the rest is left alone.
"""

import json
import math
import re
import sys
import tomllib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from exercises import Exercise, exercises, without_marks
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
SESSIONS = {
    1: ["index", "data"],
    2: ["rotary"],
    3: ["attention"],
    4: ["lora", "model"],
    5: ["training"],
    6: ["sampling"],
}
LEVELS = ("warm-up", "medium", "hard")


def laws(exercise: Exercise) -> tuple[str, ...]:
    """What its checker verifies, by the checker's own words on the solution."""
    import nyx.lora
    import nyx.model
    from nyx import check

    names = {"torch": torch, "nn": nn, "F": F, "np": np, "math": math, "nyx": nyx}
    exec(without_marks(exercise.code), names)
    verdict = getattr(check, exercise.name)(names[exercise.argument])
    if not verdict:
        raise SystemExit(str(verdict))
    return verdict.verified


def sessions(found: list[Exercise], times: dict) -> str:
    """The plan: chapters, what the machine needs, what the exercises take."""
    rows = ["| session | chapters | to run | exercises | of these hard |", "|---|---|---|---|---|"]
    for number, chapters in SESSIONS.items():
        seconds = sum(times["notebooks"][c]["seconds"] for c in chapters)
        mine = [e for e in found if e.chapter in chapters]
        hard = sum(e.minutes for e in mine if e.level == "hard")
        linked = ", ".join(f"[{c}](../nbs/{c}.ipynb)" for c in chapters)
        rows.append(
            f"| {number} | {linked} | {seconds:.0f} s | {len(mine)}, {sum(e.minutes for e in mine)} minutes | {hard} minutes |"
        )
    m, peak = times["machine"], max(t["peak_mib"] for t in times["notebooks"].values()) / 1024
    measured = f"{m['cores']} cores, {m['memory_gib']} GiB of memory, Python {m['python']}, torch {m['torch']}"
    return "\n".join([*rows, "", f"Measured on {measured}; a notebook takes {peak:.1f} GiB at most."])


def tables(found: list[Exercise], cases: dict, verified: dict[str, tuple[str, ...]]) -> str:
    """For each exercise what is tested, and the wrong answers with what the checker says to them."""
    parts, chapter = [], ""
    for e in found:
        if e.chapter != chapter:
            parts.append(f"### {(chapter := e.chapter).capitalize()}\n")
        parts.append(
            f"**`{e.name}`**, {e.title}: {e.level}, {e.minutes} minutes. Verifies: {'; '.join(verified[e.name])}.\n"
        )
        rows = [f"| {m['mistake']} | … {m['says']} … |" for m in cases[e.name]["mutants"]]
        parts.append("\n".join(["| common wrong answer | the checker says |", "|---|---|", *rows]) + "\n")
    return "\n".join(parts).strip()


def filled(text: str, verified: dict[str, tuple[str, ...]] | None = None) -> str:
    """The document with its tables up to date."""
    chapters = [c for group in SESSIONS.values() for c in group if c != "index"]
    found = [e for chapter in chapters for e in exercises(ROOT / "nbs" / f"{chapter}.ipynb")]
    verified = {e.name: laws(e) for e in found} if verified is None else verified
    cases = tomllib.loads((ROOT / "tests" / "exercises.toml").read_text(encoding="utf-8"))
    times = json.loads((ROOT / "nbs" / "times.json").read_text(encoding="utf-8"))
    for name, block in (("sessions", sessions(found, times)), ("exercises", tables(found, cases, verified))):
        mark = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        if not mark.search(text):
            raise SystemExit(f"docs/teaching.md has no place for the {name}: write <!-- {name} --> and <!-- end -->")
        text = mark.sub(lambda m, block=block: f"{m[1]}\n{block}\n\n{m[2]}", text)
    return text


def main(file: Path = ROOT / "docs" / "teaching.md") -> int:
    """Rewrite the document."""
    file.write_text(filled(file.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
