"""Run notebooks the way people do: from some other working directory, and cells more than once.

    python tools/rerun_notebooks.py                      # lessons that take under 20 s by nbs/times.json
    python tools/rerun_notebooks.py --all                # all lessons
    python tools/rerun_notebooks.py nbs/lora.ipynb       # this one

Each code cell is executed twice in a row in one kernel, whose working directory is an empty temporary folder. What is
left out: cells that `tools/run_notebooks.py` skips, and those with a flag that `nbdev_test` skips (tst_flags in
settings.ini). Nothing is written to the notebooks. Exits 1 if a cell failed, or left a file in the working directory.
"""

import argparse
import json
import os
import re
import sys
import tempfile
import time
from configparser import ConfigParser
from pathlib import Path
from typing import NamedTuple

import nbformat
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from run_notebooks import ROOT, Refused, client_for, find_notebooks, has_directive, is_skipped, set_environment

QUICK = 20  # seconds: what the check runs when it is not asked for all
ANSI = re.compile(r"\x1b\[[0-9;]*m")


class Result(NamedTuple):
    """What came of one notebook."""

    cells: int  # code cells that were run, each twice
    errors: list[str]
    seconds: float


def skipped_flags() -> str:
    """The flags of cells that `nbdev_test` leaves out, as a regular expression."""
    settings = ConfigParser(delimiters=["="], interpolation=None)
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    return "|".join(map(re.escape, settings["DEFAULT"]["tst_flags"].split()))


def lessons() -> list[Path]:
    """All lessons: the notebooks of nbs/ itself."""
    return [path for path in find_notebooks([str(ROOT / "nbs")]) if path.parent == ROOT / "nbs"]


def is_quick(path: Path) -> bool:
    """Whether a lesson takes under 20 s; one that was never measured does not count as quick."""
    times = json.loads((ROOT / "nbs" / "times.json").read_text(encoding="utf-8"))["notebooks"]
    return times.get(path.stem, {"seconds": QUICK})["seconds"] < QUICK


def rerun(path: Path, timeout: int = 900) -> Result:
    """Execute each code cell of a notebook twice, in a temporary folder; `timeout` is in seconds for one execution."""
    nb, started, errors, ran = nbformat.read(path, as_version=4), time.perf_counter(), [], 0
    here = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    with tempfile.TemporaryDirectory(prefix="elsewhere-", ignore_cleanup_errors=True) as folder:
        client = client_for(nb, Path(folder), timeout)
        try:
            with client.setup_kernel(env=os.environ | {"PYTHONPATH": here}):
                for index, cell in enumerate(nb.cells):
                    if cell.cell_type != "code" or is_skipped(cell) or has_directive(cell, skipped_flags()):
                        continue
                    ran += 1
                    for turn in ("first", "second"):
                        try:
                            client.execute_cell(cell, index)
                        except CellExecutionError as error:
                            message = ANSI.sub("", f"{error.ename}: {error.evalue}").splitlines()[0]
                            errors.append(f"cell {index} ({cell.id}), {turn} time: {message}")
        except (CellTimeoutError, DeadKernelError, RuntimeError) as error:
            errors.append(f"cell {index} ({cell.id}): {error}")
        errors += [f"left in the working directory: {left.name}" for left in sorted(Path(folder).iterdir())]
    return Result(ran, errors, time.perf_counter() - started)


def main(argv: list[str] | None = None) -> int:
    """Run what the command line names; 0 when no cell of any notebook failed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("paths", nargs="*", help="notebooks or folders (default: the lessons that take under 20 s)")
    parser.add_argument("--all", action="store_true", help="all lessons, however long they take")
    parser.add_argument("--timeout", type=int, default=900, help="seconds that one cell may take (default: 900)")
    parser.add_argument("--threads", type=int, default=2, help="threads that torch may use (default: 2)")
    args = parser.parse_args(argv)
    set_environment(args.threads)
    os.environ.setdefault("NYX_CACHE", str(ROOT / "data" / "cache"))  # corpora are made once, not in each folder
    try:
        notebooks = find_notebooks(args.paths) if args.paths else lessons()
    except Refused as refusal:
        print(refusal, file=sys.stderr)
        return 2
    failed = False
    for path in map(Path.resolve, notebooks):
        if not (args.paths or args.all or is_quick(path)):
            continue
        result = rerun(path, args.timeout)
        failed |= bool(result.errors)
        shown = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path
        print(f"{shown}: {result.cells} cells, {len(result.errors)} errors, {result.seconds:.0f} s", flush=True)
        for error in result.errors:
            print(f"  {error}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
