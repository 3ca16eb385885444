"""benchmarks/gpu.py: what of it a CPU can do, and that nothing but the library's own requirements is needed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import GUARD, ROOT
from programs import environment

SCRIPT = ROOT / "benchmarks" / "gpu.py"
COURSE = ("beartype", "nbdev", "fastcore", "IPython", "ipykernel", "matplotlib", "pytest", "hypothesis")


@pytest.fixture
def check(tmp_path, corpus_cache):
    """Run the script, or one like it, where the tools of the course are not installed: `check("--device", "cpu")`."""
    blocked = tmp_path / "blocked"
    for name in COURSE:
        (blocked / name).mkdir(parents=True)
        (blocked / name / "__init__.py").write_text(f"raise ModuleNotFoundError({name!r} + ' is blocked')", encoding="utf-8")
    env = environment(tmp_path, corpus_cache) | {"PYTHONPATH": os.pathsep.join([str(GUARD), str(blocked)])}

    def run(*arguments: object, script: Path = SCRIPT, timeout: float = 1800) -> subprocess.CompletedProcess:
        command = [sys.executable, str(script), *map(str, arguments)]
        options = {"capture_output": True, "text": True, "encoding": "utf-8", "errors": "replace", "timeout": timeout}
        return subprocess.run(command, cwd=tmp_path, env=env, **options)

    return run


def test_its_checks_pass_on_the_cpu(check):
    done = check("--device", "cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    last = re.fullmatch(r"(\d+) passed, 0 failed", done.stdout.splitlines()[-1])
    assert last and int(last[1]) >= 12
    skipped = [line for line in done.stdout.splitlines() if line.startswith("skipped")]
    assert skipped and all("GPU" in line for line in skipped), "what is skipped says why"
    assert f"{len(skipped)} skipped" in done.stdout


WRONG = """
import os, sys, time
sys.path.insert(0, {folder!r})
import gpu

gpu.LIMIT = 10
gpu.CHECKS.clear()

@gpu.check
def first(machine):
    return "fine"

@gpu.check
def raises(machine):
    return gpu.within("logits", 0.5, 0.1)

@gpu.check
def crashes(machine):
    os._exit(9)

@gpu.check
def talks(machine):
    print("a library says something")
    return "fine"

@gpu.check
def hangs(machine):
    time.sleep(1e6)

@gpu.check
def is_skipped(machine):
    machine.need_cuda("this")

@gpu.check
def last(machine):
    return "fine"

if __name__ == "__main__":
    sys.exit(gpu.main())
"""


def test_a_check_that_fails_crashes_or_hangs_does_not_stop_the_others(check, tmp_path):
    script = tmp_path / "wrong.py"
    script.write_text(WRONG.format(folder=str(SCRIPT.parent)), encoding="utf-8")
    done = check("--device", "cpu", script=script)
    assert done.returncode == 1, done.stderr
    found = dict(re.findall(r"^\w+ +[\d.]+ s  (\w[\w ]*): (.*)$", done.stdout, re.MULTILINE))
    assert list(found) == ["first", "raises", "crashes", "talks", "hangs", "is skipped", "last"]
    assert "logits differ by 5.0e-01, and 1e-01 is allowed" in found["raises"]
    assert "ended with 9" in found["crashes"] and found["is skipped"] == "this needs a CUDA GPU"
    assert done.stdout.splitlines()[-1] == "3 passed, 3 failed"


def test_a_wrong_model_fails_its_checks(check, tmp_path):
    """Each of these would be noticed: weights that differ, generation from old ones, and a device that is only announced."""
    script = tmp_path / "wrong.py"
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(SCRIPT.parent)!r})\nimport gpu, torch\n"
        "models, generate = gpu.Machine.models, gpu.NYX.generate\n"
        "def other(machine):\n"
        "    here, there = models(machine)\n"
        "    there.blocks[0].ff_out.weight.data.mul_(1.5)\n"
        "    return here, there\n"
        "gpu.Machine.models = other\n"
        "if __name__ == '__main__': sys.exit(gpu.main())\n",
        encoding="utf-8",
    )
    names = ("forward", "greedy", "every_precision", "drafts", "adapters", "whatever")
    done = check("--device", "cpu", *names, script=script)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "0 passed, 7 failed", done.stdout


def test_a_missing_requirement_is_named_in_a_sentence(check, tmp_path):
    (tmp_path / "blocked" / "einops").mkdir()
    (tmp_path / "blocked" / "einops" / "__init__.py").write_text("raise ModuleNotFoundError('gone', name='einops')", encoding="utf-8")
    done = check("--device", "cpu")
    assert done.returncode == 1 and not done.stderr
    assert "einops is not installed" in done.stdout and done.stdout.splitlines()[-1] == "0 passed, 1 failed"


def test_without_a_gpu_it_says_what_can_be_run():
    import torch

    if torch.cuda.is_available() or torch.backends.mps.is_available():
        pytest.skip("this machine has a GPU")
    env = os.environ | {"NYX_TYPECHECK": ""}
    done = subprocess.run([sys.executable, str(SCRIPT)], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and "--device cpu" in done.stderr
