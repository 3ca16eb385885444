"""Execute notebooks in place and keep their outputs, so that a second run changes nothing.

    python tools/run_notebooks.py nbs/rotary.ipynb            # one notebook
    python tools/run_notebooks.py nbs                         # all of them
    python tools/run_notebooks.py --times nbs                 # also record seconds and peak memory in nbs/times.json

Cells that start with `#| eval: false` or carry the tag `skip-execution` are not run and keep the outputs they have.
A notebook is written only when all of it ran, and only if no output names a folder of this machine.
"""

import argparse
import json
import os
import platform
import re
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from traitlets.config import Config

ROOT = Path(__file__).resolve().parent.parent
WIDGETS = "application/vnd.jupyter.widget-state+json"
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
PEAK = """import resource, sys
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))"""


class Refused(Exception):
    """A notebook that will not be written; the message says why."""


def has_directive(cell, pattern: str) -> bool:
    """Whether a line such as `#| slow` of a cell matches: a regular expression for what follows the mark."""
    lines = (line.strip() for line in cell.source.splitlines())
    return any(re.match(rf"#\|\s*(?:{pattern})\b", line, re.IGNORECASE) for line in lines)


def is_skipped(cell) -> bool:
    """Say whether a cell keeps its old outputs: `#| eval: false`, or the tag `skip-execution`."""
    return "skip-execution" in cell.metadata.get("tags", []) or has_directive(cell, r"eval:\s*false")


def find_notebooks(paths: list[str]) -> list[Path]:
    """Notebook files of the given files and folders, sorted, hidden and underscored folders left out."""
    found = []
    for path in map(Path, paths):
        if not path.exists():
            raise Refused(f"{path} does not exist; name a notebook or a folder of notebooks.")
        files = sorted(path.rglob("*.ipynb")) if path.is_dir() else [path]
        found += [f for f in files if not any(part.startswith((".", "_")) for part in f.relative_to(path).parts)]
    return found


def client_for(nb, folder: Path, timeout: int) -> NotebookClient:
    """A client, its kernel not started yet, that will run cells of `nb` in the working directory `folder`."""
    config = Config({"KernelManager": {"transport_encryption": "auto"}})
    client = NotebookClient(nb, timeout=timeout, kernel_name="python3", record_timing=False, config=config)
    client.resources = {"metadata": {"path": str(folder)}}
    client.reset_execution_trackers()
    return client


def execute(nb, folder: Path, timeout: int) -> int:
    """Run the cells of `nb` in `folder`, outputs stored in place; the peak memory of the kernel in bytes."""
    client = client_for(nb, folder, timeout)
    with client.setup_kernel():
        for index, cell in enumerate(list(nb.cells)):
            if cell.cell_type == "code" and not is_skipped(cell):
                client.execute_cell(cell, index)
        client.set_widgets_metadata()
        nb.cells.append(nbformat.v4.new_code_cell(PEAK))
        peak = client.execute_cell(nb.cells[-1], len(nb.cells) - 1)
        nb.cells.pop()
    return int(peak.outputs[0]["text"])


def merge_streams(nb) -> None:
    """Join neighbouring pieces of the same stream: where they were cut is chance."""
    for cell in nb.cells:
        merged = []
        for output in cell.get("outputs", []):
            if output.output_type == "stream" and merged and merged[-1].get("name") == output.name:
                merged[-1].text += output.text
            else:
                merged.append(output)
        for output in merged:
            if output.output_type == "stream":  # a carriage return starts the line again, as on a terminal
                output.text = re.sub(r"[^\n]*\r(?!\n)", "", output.text)
        if "outputs" in cell:
            cell.outputs = merged


def named_widgets(value) -> set[str]:
    """Model ids that a JSON value refers to: the view of an output, or IPY_MODEL_ references in a state."""
    if isinstance(value, dict):
        own = {value["model_id"]} if isinstance(value.get("model_id"), str) else set()
        return own.union(*map(named_widgets, value.values()))
    if isinstance(value, list):
        return set().union(*map(named_widgets, value))
    return set(re.findall(r"IPY_MODEL_(\w+)", value)) if isinstance(value, str) else set()


def kept_widgets(nb, old_state: dict) -> dict:
    """States, from the last run, of the widgets that skipped cells still show."""
    wanted, kept = set(), {}
    for cell in nb.cells:
        if cell.cell_type == "code" and is_skipped(cell):
            wanted |= named_widgets([dict(o.get("data", {})).get(WIDGET_VIEW) for o in cell.outputs])
    while wanted - kept.keys():
        for model_id in wanted - kept.keys():
            kept[model_id] = old_state.get(model_id, {})
            wanted |= named_widgets(kept[model_id])
    return {model_id: kept[model_id] for model_id in sorted(kept) if kept[model_id]}


def number_widgets(text: str, ids: list[str]) -> str:
    """Replace each widget's random id by its place in the order of creation."""
    if not ids:
        return text
    numbered = {old: f"{place:032x}" for place, old in enumerate(ids)}
    return re.sub("|".join(map(re.escape, ids)), lambda match: numbered[match.group()], text)


def machine_paths() -> dict[str, str]:
    """Folders of this machine that no output may name, with what they are."""
    named = {str(ROOT): "the repository", str(Path.home()): "the home folder", sys.prefix: "the environment"}
    named[tempfile.gettempdir()] = "the temporary folder"
    return {path: what for path, what in named.items() if len(path) > 1}


def find_machine_path(nb, paths: dict[str, str]) -> str | None:
    """One sentence on the first output, or widget state, that names a folder of this machine; None if none does."""
    patterns = [(re.compile(re.escape(path) + r"(?![\w-])"), what) for path, what in paths.items()]
    places = [(f"cell {i}", o) for i, cell in enumerate(nb["cells"]) for o in cell.get("outputs", [])]
    places.append(("the widget state", nb["metadata"].get("widgets", {})))
    for place, value in places:
        if isinstance(value.get("data"), dict):
            value = {**value, "data": {k: v for k, v in value["data"].items() if not k.startswith("image/png")}}
        text = re.sub(r"[A-Za-z0-9+/=]{200,}", "…", json.dumps(value, ensure_ascii=False))  # pictures are no paths
        for pattern, what in patterns:
            if hit := pattern.search(text):
                around = text[max(0, hit.start() - 40) : hit.end() + 40]
                return f"{place} stores {what} of this machine in its output: …{around}…"
    return None


def cleaned(text: str) -> str:
    """The notebook as `nbdev_clean` would write it."""
    from execnb.nbio import loads, nb2str
    from nbdev.clean import clean_nb
    from nbdev.config import get_config

    cfg, nb = get_config(path=ROOT), loads(text)
    nb["metadata"]["kernelspec"] = {"display_name": "python3", "language": "python", "name": "python3"}
    clean_nb(nb, False, cfg.allowed_metadata_keys.split(), cfg.allowed_cell_metadata_keys.split(), cfg.clean_ids)
    return nb2str(nb)


def write_atomically(path: Path, text: str) -> None:
    """Replace the file in one step, or leave it as it was."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def fold(nb) -> None:
    """Fold the source of housekeeping cells, so that JupyterLab shows a lesson and not its imports."""
    for cell in nb.cells:
        housekeeping = cell.cell_type == "code" and re.match(r"#\|\s*(hide|default_exp)\b", cell.source)
        if housekeeping:
            cell.metadata["jupyter"] = {"source_hidden": True}
        else:
            cell.metadata.pop("jupyter", None)


def run_notebook(path: Path, timeout: int = 900, paths: dict[str, str] | None = None) -> dict[str, float]:
    """Execute one notebook in place; its seconds and its kernel's peak memory in MiB. Raises Refused, file kept."""
    nb = nbformat.read(path, as_version=4)
    old_state = nb.metadata.pop("widgets", {}).get(WIDGETS, {}).get("state", {})
    started = time.perf_counter()
    try:
        peak = execute(nb, path.parent, timeout)
    except CellExecutionError as error:
        raise Refused(f"{path} stopped at an error and was not written:\n{error}") from None
    except (CellTimeoutError, DeadKernelError, RuntimeError) as error:
        raise Refused(f"{path} was not written: {error}") from None
    seconds = time.perf_counter() - started
    merge_streams(nb)
    fold(nb)
    fresh = nb.metadata.get("widgets", {}).get(WIDGETS, {}).get("state", {})
    kept = kept_widgets(nb, old_state)
    for model in fresh.values():
        model.get("state", {}).pop("msg_id", None)  # the id of one execution of one kernel
    if fresh or kept:
        state = {**fresh, **kept}
        nb.metadata["widgets"] = {WIDGETS: {"state": state, "version_major": 2, "version_minor": 0}}
    text = cleaned(number_widgets(nbformat.writes(nb), [*fresh, *kept]))
    if sentence := find_machine_path(json.loads(text), machine_paths() if paths is None else paths):
        raise Refused(f"{path} was not written: {sentence}")
    write_atomically(path, text)
    return {"seconds": float(f"{seconds:.2g}"), "peak_mib": round(peak / 2**20, -1)}


def machine() -> dict[str, str | int | float]:
    """What the times were taken on, in words that name no host."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    facts = {"cores": cores, "memory_gib": round(memory), "architecture": platform.machine()}
    return facts | {"python": platform.python_version(), "torch": version("torch").split("+")[0]}


def record_times(times: dict[str, dict[str, float]], file: Path) -> None:
    """Add the measured notebooks to the times file and leave the others as they were."""
    known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    known["machine"] = machine()
    known["notebooks"] = dict(sorted((known.get("notebooks", {}) | times).items()))
    write_atomically(file, json.dumps(known, indent=1) + "\n")


def set_environment(threads: int) -> None:
    """What kernels inherit, so that outputs are the same everywhere: threads, pictures, hashes, widths, the path."""
    os.environ |= {"OMP_NUM_THREADS": str(threads), "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    os.environ |= {"PYTHONHASHSEED": "0", "COLUMNS": "100", "JUPYTER_PLATFORM_DIRS": "1"}
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


def main(argv: list[str] | None = None) -> int:
    """Run what the command line names; 0 when every notebook was written."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("paths", nargs="*", default=[str(ROOT / "nbs")], help="notebooks or folders (default: nbs)")
    parser.add_argument("--times", action="store_true", help="record seconds and peak memory in nbs/times.json")
    parser.add_argument("--timeout", type=int, default=900, help="seconds that one cell may take (default: 900)")
    parser.add_argument("--threads", type=int, default=2, help="threads that torch may use (default: 2)")
    args = parser.parse_args(argv)
    set_environment(args.threads)
    failed, folder = [], ROOT / "nbs"
    try:
        notebooks = find_notebooks(args.paths)
    except Refused as refusal:
        print(refusal, file=sys.stderr)
        return 2
    for path in map(Path.resolve, notebooks):
        shown = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
        try:
            measured = run_notebook(path, args.timeout)
        except Refused as refusal:
            print(refusal, file=sys.stderr, flush=True)
            failed.append(str(shown))
            continue
        print(f"{shown}: {measured['seconds']:g} s, {measured['peak_mib']:g} MiB", flush=True)
        if args.times:
            name = path.relative_to(folder) if path.is_relative_to(folder) else Path(path.name)
            record_times({name.with_suffix("").as_posix(): measured}, folder / "times.json")
    if failed:
        print(f"Not written: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
