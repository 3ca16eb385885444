"""Train, kill, resume and sample, on any system: what a machine without make runs to see that NYX works there (a minute).

    python tools/smoke.py

Works in a temporary folder with a space and an accent in its name. Exit code 1, and a sentence, at the first thing that fails.
"""

import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 600  # seconds for each program, many times what it takes
SHAPE = "--model_dim 32 --layer_depth 1 --num_attention_heads 2 --head_dim 8 --ff_mult 1"
RUN = "--filepath text.txt --num_batches 200 --seq_len 32 --batch_size 2 --gradient_accumulate_every 2 --threads 1 --seed 1"
RARELY = "--checkpoint_every 20 --validate_every 100 --validate_bytes 500 --generate_every 100 --generate_length 8 --prime_length 8"


def program(name: str, *arguments: str) -> list[str]:
    """The command line of train.py or test.py."""
    return [sys.executable, str(ROOT / name), *arguments]


def run(folder: Path, command: list[str], env: dict[str, str]) -> str:
    """Run a program to its end; returns what it wrote, and ends with what it complained of if it failed."""
    options = {"capture_output": True, "text": True, "encoding": "utf-8", "errors": "replace"}
    done = subprocess.run(command, cwd=folder, env=env, timeout=LIMIT, **options)
    if done.returncode:
        raise SystemExit(f"FAILED {Path(command[1]).name} (exit code {done.returncode}): {done.stderr[-2000:] or done.stdout[-2000:]}")
    return done.stdout


def kill_after_a_checkpoint(folder: Path, command: list[str], env: dict[str, str]) -> None:
    """Start a training run, and kill it as soon as it says that it has saved."""
    options = {"text": True, "encoding": "utf-8", "errors": "replace", "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=folder, env=env, stderr=subprocess.STDOUT, **options) as started:
        watch = threading.Timer(LIMIT, started.kill)
        watch.start()
        said = []
        for line in started.stdout:
            said.append(line)
            if line.startswith("saved "):
                break
        started.kill()
        said += started.stdout.readlines()
        started.wait()
        watch.cancel()
    if not any(line.startswith("saved ") for line in said):
        raise SystemExit(f"FAILED train.py ended before its first checkpoint: {''.join(said)[-2000:]}")
    if any(line.startswith("done:") for line in said):
        raise SystemExit("FAILED the run was over before it could be killed")


def same_weights(*checkpoints: Path) -> bool:
    """Whether two checkpoints hold the same weights, bit for bit."""
    import torch

    from nyx.checkpoint import load_checkpoint

    a, b = (load_checkpoint(path)["model"] for path in checkpoints)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def main() -> int:
    sys.path.insert(0, str(ROOT))
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(ROOT)))), "PYTHONUTF8": "1"}
    with tempfile.TemporaryDirectory(prefix="nyx été ") as name:
        folder = Path(name)
        (folder / "text.txt").write_text("The cat sat on a mat, été, and saw one bird fly.\n" * 400, encoding="utf-8")
        line = [*RUN.split(), *SHAPE.split(), *RARELY.split()]
        said = run(folder, program("train.py", *line, "--out_dir", "whole", "--export", "exported"), env)
        if "done:" not in said:
            raise SystemExit(f"FAILED train.py did not say that it was done: {said[-2000:]}")
        print("ok      train.py trains, samples, saves and exports")
        kill_after_a_checkpoint(folder, program("train.py", *line, "--out_dir", "half"), env)
        run(folder, program("train.py", "--checkpoint_path", "half", "--threads", "1"), env)
        if not same_weights(*(folder / out / "checkpoint_200.pth" for out in ("whole", "half"))):
            raise SystemExit("FAILED a run that was killed and resumed ended with other weights than one that was not")
        print("ok      a run that was killed is resumed, and ends with the same bits")
        prompt = ["--sample_prompt", "The cat", "--generate_length", "16", "--seed", "1"]
        for weights in ("exported", str(Path("half") / "checkpoint_200.pth")):
            text = run(folder, program("test.py", "--weights", weights, *prompt), env)
            if not text.startswith("The cat") or len(text.strip()) <= len("The cat"):
                raise SystemExit(f"FAILED test.py --weights {weights} wrote {text!r}")
        print("ok      test.py continues a prompt, from a folder of weights and from a checkpoint")
    return 0


if __name__ == "__main__":
    sys.exit(main())
