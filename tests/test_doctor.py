"""`make doctor` on a healthy environment, and on ones that were broken for the purpose."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import doctor

GIB = doctor.GIB


def examine(env: dict[str, str], python: str = sys.executable, *flags: str) -> tuple[int, dict[str, tuple[str, str]]]:
    """The exit status of a doctor's visit, and for each thing its mark and its sentence."""
    command = [python, *flags, str(ROOT / "tools" / "doctor.py")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert not done.stderr, done.stderr
    lines = [re.match(r"\[(ok|no|--)\] (\w+) +(.+)", line) for line in done.stdout.splitlines()[:-1]]
    assert all(lines), done.stdout
    return done.returncode, {line[2]: (line[1], line[3]) for line in lines}


@pytest.fixture
def env(clean_env) -> dict[str, str]:
    return clean_env | {"NYX_TYPECHECK": ""}


def test_this_environment_is_healthy(env):
    status, found = examine(env)
    wrong = {name: told for name, told in found.items() if told[0] == "no"}
    assert (status, wrong) == (0, {})
    names = ["Python", "memory", "cores", "compiler", "disk", "packages", "imports", "kernel", "widgets", "GPU"]
    assert list(found) == names
    assert all(told[0] == "ok" for name, told in found.items() if name in ("packages", "imports", "kernel", "widgets"))


def test_a_broken_environment_is_told_what_to_do(env, tmp_path):
    """An older torch on the path, an nbdev that does not fit its helpers, and a kernel of a Python that is gone."""
    (tmp_path / "torch-2.0.0.dist-info").mkdir()
    (tmp_path / "torch-2.0.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.0.0\n")
    (tmp_path / "nbdev").mkdir()
    (tmp_path / "nbdev" / "__init__.py").write_text("raise ImportError('cannot import name L from fastcore')")
    kernel = tmp_path / "kernels" / "python3"
    kernel.mkdir(parents=True)
    argv = [str(tmp_path / "gone" / "python"), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "x", "language": "python"}))
    path = os.pathsep.join([env["PYTHONPATH"], str(tmp_path)])
    status, found = examine(env | {"PYTHONPATH": path, "JUPYTER_PATH": str(tmp_path)})
    assert status == 1
    assert {name for name, told in found.items() if told[0] == "no"} == {"packages", "imports", "kernel"}
    assert (
        "torch is 2.0.0, pinned" in found["packages"][1] and "pip install -r requirements.txt" in found["packages"][1]
    )
    assert "cannot import name L" in found["imports"][1]
    assert "no notebook can run" in found["kernel"][1] and "ipykernel install" in found["kernel"][1]


def test_a_bare_python_is_told_to_make_the_environment(env):
    """Without site-packages (-S), as a Python on which nothing was installed."""
    status, found = examine(env | {"PYTHONPATH": ""}, getattr(sys, "_base_executable", sys.executable), "-S")
    assert status == 1
    assert found["packages"] == ("no", "there is no environment yet; run: make lab")
    assert "kernel" not in found, "what cannot be examined yet is not judged"


def test_make_doctor_needs_no_environment(env, tmp_path):
    done = subprocess.run(
        ["make", "-n", "doctor", f"VENV={tmp_path}"], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert "doctor.py" in done.stdout and "pip" not in done.stdout


@pytest.mark.parametrize("version", [(3, 8, 10), (3, 10, 14), (3, 14, 0), (2, 7, 18)])
def test_another_python_is_refused_by_number(version):
    found = doctor.check_python(version)
    assert found.ok is False and ".".join(map(str, version)) in found.sentence and "3.11 to 3.13" in found.sentence


def test_without_make_the_doctor_does_not_name_it(env, tmp_path):
    """As on Windows; what to do instead is in README."""
    python = getattr(sys, "_base_executable", sys.executable)
    command = [python, "-S", str(ROOT / "tools" / "doctor.py")]
    done = subprocess.run(
        command, env=env | {"PATH": str(tmp_path), "PYTHONPATH": ""}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 1 and "Without make" in done.stdout
    assert not re.search(r"\bmake (lab|PYTHON)", done.stdout)


def test_an_old_python_can_read_the_doctor():
    ast.parse((ROOT / "tools" / "doctor.py").read_text(encoding="utf-8"), feature_version=(3, 8))


@pytest.mark.parametrize("gib, ok", [(23.5, True), (7.6, True), (5.0, None), (2.0, False)])
def test_memory_is_held_against_the_hungriest_lesson(gib, ok, tmp_path):
    times = tmp_path / "times.json"
    times.write_text(json.dumps({"notebooks": {"a": {"peak_mib": 2048}, "b": {"peak_mib": 100}}}))
    assert doctor.peak_memory(times) == 2 * GIB
    assert doctor.check_memory(int(gib * GIB), doctor.peak_memory(times)).ok is ok


def test_a_container_may_use_less_than_its_machine_has(tmp_path):
    limit = tmp_path / "limit"
    limit.write_text(f"{GIB}\n")
    assert doctor.total_memory(limit) == GIB
    limit.write_text("max\n")
    assert doctor.total_memory(limit) == doctor.total_memory(tmp_path / "absent") > GIB
    limit.write_text("100000 100000\n")
    assert doctor.usable_cores(limit) == 1
    assert doctor.check_cores(1).ok is None and doctor.check_cores(2).ok


def test_a_missing_and_a_broken_compiler(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor.check_compiler().ok is None and "apt-get install g++" in doctor.check_compiler().sentence
    (tmp_path / "c++").write_text("#!/bin/sh\necho 'no such file: vector' >&2\nexit 1\n")
    (tmp_path / "c++").chmod(0o755)
    found = doctor.check_compiler()
    assert found.ok is None and "no such file: vector" in found.sentence


def test_packages_are_held_against_their_pins():
    pins = {"torch": "2.13.0", "einops": "0.8.2", "anyio": "4.16.0", "tzdata": "2026.6"}
    asked = {"torch", "einops"}
    good = {"torch": "2.13.0+cpu", "einops": "0.8.2", "anyio": "4.16.0"}  # tzdata is needed on other systems alone
    assert doctor.check_packages(asked, pins, good).ok
    wrong = doctor.check_packages(asked, pins, good | {"anyio": "4.15.0"})
    assert wrong.ok is False and "anyio is 4.15.0, pinned 4.16.0" in wrong.sentence
    del good["einops"]
    missing = doctor.check_packages(asked, pins, good)
    assert missing.ok is False and "not installed: einops" in missing.sentence


def test_the_pins_are_read_as_pip_reads_them():
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    asked = [Requirement(line) for line in lines if line and not line.startswith(("#", "-"))]
    pins = doctor.read_pins(ROOT / "requirements.txt")
    assert {canonicalize_name(r.name): str(r.specifier) for r in asked} == {n: f"=={v}" for n, v in pins.items()}


def test_widgets_need_their_extension_and_it_may_be_switched_off(tmp_path):
    share = tmp_path / "share/jupyter/labextensions/@jupyter-widgets/jupyterlab-manager"
    assert doctor.check_widgets(tmp_path).ok is False
    share.mkdir(parents=True)
    (share / "package.json").write_text("{}")
    assert doctor.check_widgets(tmp_path).ok is True
    config = tmp_path / "etc/jupyter/labconfig/page_config.json"
    config.parent.mkdir(parents=True)
    config.write_text(json.dumps({"disabledExtensions": {"@jupyter-widgets/jupyterlab-manager": True}}))
    assert doctor.check_widgets(tmp_path).ok is False and "switched off" in doctor.check_widgets(tmp_path).sentence


def test_disk_and_gpu():
    assert doctor.check_disk(3 * GIB, installed=True).ok and doctor.check_disk(3 * GIB, installed=False).ok is False
    assert doctor.check_disk(GIB // 2, installed=True).ok is False
    assert doctor.check_gpu(has_driver=False).ok is True
    hidden = doctor.check_gpu("no-such-python", has_driver=True)
    assert hidden.ok is None and "driver" in hidden.sentence


# the same pins, wherever the course is opened


def test_binder_installs_exactly_the_pins(env):
    """With no index to ask, pip is content only if this environment meets every line."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-index", "-r", ".binder/requirements.txt"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Would install" not in done.stdout and done.stdout.count("already satisfied") > 100
    runtime = (ROOT / ".binder" / "runtime.txt").read_text().strip()
    assert doctor.check_python(tuple(int(n) for n in runtime.removeprefix("python-").split("."))).ok
    assert os.access(ROOT / ".binder" / "postBuild", os.X_OK)


def test_the_devcontainer_uses_make_and_a_python_that_fits():
    settings = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text(encoding="utf-8"))
    docker = (ROOT / ".devcontainer" / settings["build"]["dockerfile"]).read_text(encoding="utf-8")
    version = re.search(r"^FROM python:(\d+)\.(\d+)", docker, re.MULTILINE)
    assert doctor.check_python((int(version[1]), int(version[2]))).ok
    goals = re.findall(r"make ([.\w/-]+)", settings["postCreateCommand"])
    assert goals
    done = subprocess.run(["make", "-n", *goals], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Path(settings["customizations"]["vscode"]["settings"]["python.defaultInterpreterPath"]).parts[0] == ".venv"
