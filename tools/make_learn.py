"""Make or refresh learn/, the learner's own copy of the notebooks.

    python tools/make_learn.py                    # copy what is new; never overwrite what the learner changed
    python tools/make_learn.py --chapter rotary   # start one chapter afresh; the old one is kept as rotary.old-1.ipynb

A chapter that changed on both sides comes beside the learner's own as X.new.ipynb, once. Exercises come as stubs, their
solutions folded away: nbs/ is the one source, and `exercises.learners_view` makes the other view of it.
"""

import argparse
import hashlib
import json
import os
import shutil
import sys
from pathlib import Path

from exercises import learners_bytes

ROOT = Path(__file__).resolve().parent.parent
MANIFEST = ".manifest.json"


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def digest_of_view(source: Path) -> str:
    """SHA-256 of what a source becomes in learn/."""
    return hashlib.sha256(learners_bytes(source)).hexdigest()


def sources(folder: Path) -> list[Path]:
    """Files to copy, relative to `folder`: all but hidden ones and caches."""
    files = (p.relative_to(folder) for p in sorted(folder.rglob("*")) if p.is_file())
    return [f for f in files if not any(part.startswith((".", "__")) for part in f.parts)]


def copy(source: Path, target: Path) -> None:
    """Write the learner's view of `source` in one step: the target is the old file or the new one, never half of it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    partial.write_bytes(learners_bytes(source))
    os.replace(partial, target)


def free_name(path: Path, mark: str) -> Path:
    """The first name like X.old-1.ipynb beside `path` that is not taken."""
    numbers = (n for n in range(1, sys.maxsize) if not path.with_name(f"{path.stem}.{mark}-{n}{path.suffix}").exists())
    return path.with_name(f"{path.stem}.{mark}-{next(numbers)}{path.suffix}")


def read_manifest(learn: Path) -> dict[str, dict[str, str]]:
    """What was copied before. Empty if the record can't be read: then every file that differs counts as changed."""
    try:
        read = json.loads((learn / MANIFEST).read_text(encoding="utf-8"))
        return {str(name): dict(entry) for name, entry in read.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def write_manifest(learn: Path, manifest: dict[str, dict[str, str]]) -> None:
    """Record what was copied."""
    learn.mkdir(parents=True, exist_ok=True)
    partial = learn / f"{MANIFEST}.partial"
    partial.write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(partial, learn / MANIFEST)


def offer(source: Path, target: Path, entry: dict[str, str]) -> str | None:
    """Put a newer version beside a file that the learner changed, once; the sentence to say."""
    now = digest_of_view(source)
    if now in (entry.get("copied"), entry.get("offered")):
        return None  # the course has not changed since the learner's copy, or this version was offered already
    beside = target.with_name(f"{target.stem}.new{target.suffix}")
    if beside.exists() and digest(beside) != entry.get("offered"):
        beside = free_name(target, "new")  # the learner has worked in the last one
    copy(source, beside)
    entry["offered"] = now
    return f"{target.name} is yours and was left alone; the newer version is beside it as {beside.name}."


def refresh(nbs: Path, learn: Path) -> list[str]:
    """Bring learn/ up to date without touching what the learner changed; sentences on what was done."""
    manifest, said, copied = read_manifest(learn), [], 0
    for name in sources(nbs):
        source, target, entry = nbs / name, learn / name, manifest.setdefault(name.as_posix(), {})
        untouched = target.exists() and digest(target) in (entry.get("copied"), digest_of_view(source))
        if target.exists() and not untouched:
            said += filter(None, [offer(source, target, entry)])
            continue
        if not target.exists() or digest(target) != digest_of_view(source):
            copy(source, target)
            copied += 1
        manifest[name.as_posix()] = {"copied": digest_of_view(source)}
    write_manifest(learn, manifest)
    return said + [f"learn/ is up to date: {copied} file(s) copied."]


def renew(nbs: Path, learn: Path, chapter: str) -> list[str]:
    """Start one chapter afresh and keep the old file; sentences on what was done."""
    name = Path(chapter).with_suffix(".ipynb")
    if not (nbs / name).is_file():
        known = ", ".join(sorted(p.stem for p in nbs.glob("*.ipynb")))
        raise SystemExit(f"There is no chapter {chapter!r}; the chapters are {known}.")
    source, target, said = nbs / name, learn / name, []
    if target.exists() and digest(target) != digest_of_view(source):
        kept = free_name(target, "old")
        shutil.copy2(target, kept)
        said.append(f"Your {target.name} is kept as {kept.name}.")
    copy(source, target)
    write_manifest(learn, read_manifest(learn) | {name.as_posix(): {"copied": digest_of_view(source)}})
    return [*said, f"{target.name} is fresh."]


def main(argv: list[str] | None = None, root: Path = ROOT) -> int:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--chapter", default="", help="renew this chapter alone, keeping the old file as X.old-N.ipynb")
    args = parser.parse_args(argv)
    nbs, learn = root / "nbs", root / "learn"
    print("\n".join(renew(nbs, learn, args.chapter) if args.chapter else refresh(nbs, learn)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
