"""What every test shares: shape checks on, no network, and whole programs run as a user would run them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

os.environ["NYX_TYPECHECK"] = "1"  # before nyx is imported: its functions hold to their shapes
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent
GUARD = ROOT / "tests" / "guard"
sys.path.insert(0, str(GUARD))
import sitecustomize  # noqa: F401 - what guards the processes guards this one too

KEPT = ("PATH", "LANG", "LC_ALL", "TMPDIR", "SYSTEMROOT", "NYX_DATA", "TIKTOKEN_CACHE_DIR", "LD_LIBRARY_PATH")

COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]}
settings.register_profile("quick", derandomize=True, database=None, **COMMON)
settings.register_profile("nightly", print_blob=True, **COMMON)
EXAMPLES: dict[str, int] = {}  # how many each property is given in a nightly run


def tries(quick: int, nightly: int):
    """How many examples a property is given: few in every run, the same each time; many at night, new each time."""

    def decorate(test):
        EXAMPLES[test.__name__] = nightly
        at_night = settings.get_current_profile_name() == "nightly"
        return settings(max_examples=nightly if at_night else quick)(test)

    return decorate


def pytest_configure(config) -> None:
    settings.load_profile("nightly" if config.getoption("markexpr") == "nightly" else "quick")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items) -> None:
    """At night properties run too, with more examples."""
    if settings.get_current_profile_name() == "nightly":
        for item in items:
            if getattr(getattr(item, "obj", None), "is_hypothesis_test", False):
                item.add_marker(pytest.mark.nightly)


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A copy of what a user runs (programs, package, shipped weights), so that no test writes into the repository."""
    folder = tmp_path / "workspace"
    folder.mkdir()
    for name in ("train.py", "test.py", "settings.ini"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "nyx", folder / "nyx", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "weights").mkdir()
    for shipped in (ROOT / "weights").glob("*/config.json"):
        shutil.copytree(shipped.parent, folder / "weights" / shipped.parent.name, copy_function=os.symlink)  # 34 MB
    return folder


@pytest.fixture(scope="session")
def corpus_cache(tmp_path_factory) -> Path:
    """One cache of corpora for all programs of a test run: the built-in corpus is made once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def clean_env(tmp_path: Path, corpus_cache: Path) -> dict[str, str]:
    """An environment with a home of its own, one thread, shape checks on, and no network."""
    home = tmp_path / "home"
    home.mkdir()
    env = {name: os.environ[name] for name in KEPT if name in os.environ}
    env |= {"HOME": str(home), "USERPROFILE": str(home), "PYTHONPATH": str(GUARD), "PYTHONUTF8": "1"}
    env["NYX_CACHE"] = str(corpus_cache)
    return env | {"OMP_NUM_THREADS": "1", "NYX_TYPECHECK": "1", "HF_HUB_OFFLINE": "1"}


@pytest.fixture
def run_program(workspace: Path, clean_env: dict[str, str]):
    """Run a program of the repository in its copy: `run_program("train.py", "--num_batches", 2)`.

    Gives the finished process, with `returncode`, `stdout` and `stderr` as text. `env` adds variables (None removes
    one), `timeout` is in seconds, and `launcher` goes between Python and the program, as in
    `launcher=["-m", "torch.distributed.run"]`.
    """

    def run(
        program, *arguments, timeout=120, env=None, cwd=None, launcher=(), **options
    ) -> subprocess.CompletedProcess:
        variables = {k: v for k, v in (clean_env | (env or {})).items() if v is not None}
        path = workspace / program
        if not path.exists():
            pytest.fail(f"{program} is not in the repository")
        command = [sys.executable, *launcher, str(path), *map(str, arguments)]
        options = {"capture_output": True, "text": True, "encoding": "utf-8", "errors": "replace"} | options
        return subprocess.run(command, cwd=cwd or workspace, env=variables, timeout=timeout, **options)

    return run
