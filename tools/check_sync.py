"""Check that nyx/ is exactly what the notebooks export.

The notebooks are exported in a temporary folder and compared with nyx/; nothing of the working tree is touched.
"""

import difflib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("nbs", "settings.ini", "setup.py")
IGNORED = {"py.typed"}
EXPORT = "from nbdev.doclinks import nbdev_export; nbdev_export.__wrapped__()"


def export(root: Path, folder: Path) -> Path:
    """Export the notebooks of `root` inside `folder`; the package that came out."""
    for name in SOURCES:
        source = root / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns(".*", "_*", "__pycache__"))
        elif source.exists():
            shutil.copy(source, folder / name)
    done = subprocess.run([sys.executable, "-c", EXPORT], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"nbdev_export failed:\n{done.stderr}")
    return folder / "nyx"


def modules(package: Path) -> dict[str, str]:
    """The text of every file of a package, by its path inside it."""
    files = [p for p in package.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    return {f.relative_to(package).as_posix(): f.read_text(encoding="utf-8") for f in files if f.name not in IGNORED}


def differences(exported: dict[str, str], committed: dict[str, str]) -> list[str]:
    """What differs, one entry a file: a sentence, or a unified diff."""
    extra, missing = sorted(committed.keys() - exported.keys()), sorted(exported.keys() - committed.keys())
    report = [f"nyx/{name}: no notebook exports it" for name in extra]
    report += [f"nyx/{name}: exported by a notebook, but missing" for name in missing]
    for name in sorted(exported.keys() & committed.keys()):
        old, new = committed[name].splitlines(), exported[name].splitlines()
        if committed[name] != exported[name]:
            diff = difflib.unified_diff(old, new, f"nyx/{name}", f"notebooks' {name}", lineterm="", n=1)
            report.append("\n".join(diff) or f"nyx/{name}: differs in its line ends")
    return report


def main(root: Path = ROOT, shown: int = 40) -> int:
    """Compare and report; 0 when nyx/ is in sync."""
    with tempfile.TemporaryDirectory(prefix="nyx-sync-") as folder:
        exported = modules(export(root, Path(folder)))
    report = differences(exported, modules(root / "nyx"))
    if not report:
        print(f"In sync: nyx/ is what the notebooks export ({len(exported)} files).")
        return 0
    for entry in report:
        lines = entry.splitlines()
        print("\n".join(lines[:shown]))
        if len(lines) > shown:
            print(f"… and {len(lines) - shown} more lines")
    print(f"\nOut of sync: {len(report)} file(s). nyx/ is written by the notebooks alone: move any change made by hand")
    print("into the notebook, run `make export`, and commit the notebooks and nyx/ together.")
    return 1


if __name__ == "__main__":
    sys.exit(main())
