"""Say what works on this machine, and what to do about the rest.

    make doctor                  # or, without make: python tools/doctor.py

One line for each thing: [ok] it is as it should be, [--] the course works without it, [no] this must be put right.
The exit status is 1 if there is a [no]. Written for Python 3.8 too, so that an old one gets a sentence.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GIB = 2**30
PYTHONS = ((3, 11), (3, 13))
MAKE = shutil.which("make") is not None  # on Windows there is none
START = "run: make lab" if MAKE else "README.md says how, under 'Without make'"
KERNEL = """
import os
os.environ["JUPYTER_PLATFORM_DIRS"] = "1"
from jupyter_client.manager import start_new_kernel
manager, client = start_new_kernel(kernel_name="python3", startup_timeout=60)
try:
    reply = client.execute_interactive("import sys, torch", timeout=60, user_expressions={"where": "sys.prefix"})
    if reply["content"]["status"] != "ok":
        raise SystemExit("it cannot import torch: " + reply["content"]["evalue"])
    print(reply["content"]["user_expressions"]["where"]["data"]["text/plain"].strip("'"))
finally:
    client.stop_channels()
    manager.shutdown_kernel(now=True)
"""
IMPORTS = "import torch, nbdev.export, jupyterlab, ipywidgets, matplotlib, nyx; print(nyx.__file__)"
GPU = """
import torch
if torch.cuda.is_available():
    print(torch.cuda.get_device_name(0))
elif torch.backends.mps.is_available():
    print("Apple's, through MPS")
"""


class Finding:
    """One line of the report: `ok` is True, False, or None where the course works without."""

    def __init__(self, name, ok, sentence):
        self.name, self.ok, self.sentence = name, ok, sentence

    def __str__(self):
        mark = {True: "[ok]", False: "[no]", None: "[--]"}[self.ok]
        return f"{mark} {self.name:9} {self.sentence}"


def repair(python):
    """How to bring every package to its pin."""
    return f"run: {python} -m pip install -r requirements.txt"


def said(command, timeout=120):
    """Run a command: whether it went well, and its output, or else the last line of its complaint."""
    try:
        done = subprocess.run(command, cwd=str(ROOT), capture_output=True, timeout=timeout)
    except (OSError, subprocess.TimeoutExpired) as error:
        return False, str(error)
    good, out = done.returncode == 0, done.stdout.decode(errors="replace").strip()
    complaint = done.stderr.decode(errors="replace").strip().splitlines() or [f"it ended with {done.returncode}"]
    return good, out if good else complaint[-1]


def shown(number):
    """A number of bytes in words."""
    return f"{number / GIB:.1f} GiB"


def check_python(version=tuple(sys.version_info[:3])):
    """A Python that the pins support."""
    name, (low, high) = ".".join(map(str, version)), PYTHONS
    if low <= tuple(version[:2]) <= high:
        return Finding("Python", True, name)
    asked = f"NYX needs {low[0]}.{low[1]} to {high[0]}.{high[1]}"
    another = "make PYTHON=python3.12 lab" if MAKE else "py -3.12 -m venv .venv"
    return Finding("Python", False, f"{name}, but {asked}; name another: {another}")


def total_memory(cgroup="/sys/fs/cgroup/memory.max"):
    """Bytes of memory that this machine, or this container, may use; None where that is not said."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None
    try:
        limit = Path(cgroup).read_text(encoding="utf-8").strip()
    except OSError:
        limit = "max"
    return min(total, int(limit)) if limit.isdigit() else total


def peak_memory(file=None):
    """Bytes that the hungriest lesson was measured to need."""
    times = json.loads((file or ROOT / "nbs" / "times.json").read_text(encoding="utf-8"))
    return max(t["peak_mib"] for t in times["notebooks"].values()) * 2**20


def check_memory(total, needed):
    """Enough memory for JupyterLab, a browser, and the hungriest lesson."""
    if total is None:
        return Finding("memory", None, "this system does not say how much it has; the course needs 8 GiB")
    if total >= 7 * GIB:
        return Finding("memory", True, f"{shown(total)}; the hungriest lesson needs {shown(needed)}")
    enough = total >= needed + 2 * GIB
    advice = "close other programs, and run one notebook at a time (menu Kernel, Shut Down All Kernels)"
    return Finding("memory", None if enough else False, f"{shown(total)} where 8 GiB are advised: {advice}")


def usable_cores(cgroup="/sys/fs/cgroup/cpu.max"):
    """Cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path(cgroup).read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        return cores
    return min(cores, max(1, int(quota) // int(period))) if quota.isdigit() else cores


def check_cores(cores):
    """Two cores, as the times were measured on."""
    if cores >= 2:
        return Finding("cores", True, str(cores))
    return Finding("cores", None, "1; everything works, and takes about twice the times that the lessons name")


def check_compiler(names=("c++", "g++", "clang++")):
    """A C++ compiler that makes a program; only `train.py --compile` needs it."""
    places = "on Debian and Ubuntu: apt-get install g++; on macOS: xcode-select --install; on Windows: Visual Studio"
    advice = f"only --compile needs one ({places})"
    found = [name for name in names if shutil.which(name)]
    if not found:
        return Finding("compiler", None, f"no C++ compiler; {advice}")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "try.cpp"
        source.write_text("#include <vector>\nint main() { return std::vector<int>(1).at(0); }\n", encoding="utf-8")
        good, complaint = said([found[0], str(source), "-o", str(Path(folder) / "try")])
    if good:
        return Finding("compiler", True, f"{found[0]} makes programs")
    return Finding("compiler", None, f"{found[0]} is there and makes no program ({complaint}); {advice}")


def read_pins(*files):
    """The versions that files of requirements pin, by normalised name."""
    pins = {}
    for file in files:
        for line in file.read_text(encoding="utf-8").splitlines():
            pin = re.match(r"([\w.-]+)==([^\s;#]+)", line)
            if pin:
                pins[re.sub(r"[-_.]+", "-", pin.group(1)).lower()] = pin.group(2)
    return pins


def installed_versions():
    """The version of every installed package, by normalised name; the first on the path counts."""
    from importlib.metadata import distributions

    found = {}
    for package in distributions():
        name = package.metadata["Name"]
        if name:
            found.setdefault(re.sub(r"[-_.]+", "-", name).lower(), package.version)
    return found


def check_packages(asked, pins, installed, python=sys.executable):
    """Every package that requirements.txt asks for, and every one that constraints.txt pins, at its version."""
    if "torch" not in installed and "jupyterlab" not in installed:
        return Finding("packages", False, f"there is no environment yet; {START}")
    absent = sorted(name for name in asked if name not in installed)
    plain = {name: version.split("+")[0] for name, version in installed.items()}  # 2.13.0+cpu is a build of 2.13.0
    other = [f"{n} is {installed[n]}, pinned {v}" for n, v in sorted(pins.items()) if plain.get(n, v) != v]
    problems = (["not installed: " + few(absent)] if absent else []) + ([few(other)] if other else [])
    if problems:
        return Finding("packages", False, "{}; {}".format("; ".join(problems), repair(python)))
    count = sum(name in installed for name in pins)
    return Finding("packages", True, f"{count} packages, every one at its pinned version")


def few(items, limit=5):
    """The first few of a list, and how many more there are."""
    return ", ".join(items[:limit]) + (f" and {len(items) - limit} more" if len(items) > limit else "")


def check_imports(python=sys.executable):
    """What the course imports can be imported: packages may all be there and yet not fit each other."""
    good, words = said([python, "-c", IMPORTS])
    if not good:
        return Finding("imports", False, f"{words}; {repair(python)}, then {START}")
    if Path(words).resolve().parent != ROOT / "nyx":
        advice = f"run: {python} -m pip install --no-deps --no-build-isolation -e ."
        return Finding("imports", False, f"nyx comes from another folder than this one; {advice}")
    return Finding("imports", True, "torch, nbdev, JupyterLab and nyx can be imported")


def check_kernel(python=sys.executable):
    """A kernel that starts, computes, and is this environment's."""
    advice = f"run: {python} -m ipykernel install --sys-prefix"
    good, words = said([python, "-c", KERNEL])
    if not good:
        return Finding("kernel", False, f"no notebook can run, {words}; {advice}")
    if Path(words) != Path(sys.prefix):
        other = f"python3 is another environment's, in {words}; delete that kernel (jupyter kernelspec list), then"
        return Finding("kernel", False, f"{other} {advice}")
    return Finding("kernel", True, "python3 starts, and imports torch")


def check_widgets(prefix=sys.prefix):
    """The half of ipywidgets that lives in JupyterLab: without it sliders are only words."""
    share = Path(prefix) / "share" / "jupyter" / "labextensions" / "@jupyter-widgets" / "jupyterlab-manager"
    advice = f"run: {sys.executable} -m pip install --force-reinstall --no-deps -c constraints.txt jupyterlab_widgets"
    if not (share / "package.json").exists():
        return Finding("widgets", False, f"JupyterLab lacks the extension that draws sliders; {advice}")
    config = Path(prefix) / "etc" / "jupyter" / "labconfig" / "page_config.json"
    disabled = json.loads(config.read_text(encoding="utf-8")).get("disabledExtensions", {}) if config.exists() else {}
    if disabled.get("@jupyter-widgets/jupyterlab-manager") if isinstance(disabled, dict) else False:
        extension = "--level=sys_prefix @jupyter-widgets/jupyterlab-manager"
        advice = f"run: {sys.executable} -m jupyter labextension enable {extension}"
        return Finding("widgets", False, f"the extension that draws sliders is switched off; {advice}")
    return Finding("widgets", True, "JupyterLab can draw sliders")


def check_disk(free, installed):
    """Room for what is still to come: packages if there are none yet, corpora and checkpoints."""
    needed = (1 if installed else 4) * GIB
    if free >= needed:
        return Finding("disk", True, f"{shown(free)} free")
    what = "corpora and checkpoints" if installed else "packages, corpora and checkpoints"
    return Finding("disk", False, f"{shown(free)} free, and {what} need {shown(needed)}: make room")


def check_gpu(python=sys.executable, has_driver=None):
    """A GPU that torch can use. None is needed."""
    driver = shutil.which("nvidia-smi") is not None if has_driver is None else has_driver
    good, name = said([python, "-c", GPU])
    if good and name:
        return Finding("GPU", True, f"{name}; train.py and test.py use it")
    if driver:
        return Finding(
            "GPU", None, "there is an NVIDIA driver, but this torch does not see a GPU; the course needs none"
        )
    return Finding("GPU", True, "none, and none is needed")


def examine():
    """Everything, in the order in which things need each other."""
    yield check_python()
    yield check_memory(total_memory(), peak_memory())
    yield check_cores(usable_cores())
    yield check_compiler()
    asked, pins = read_pins(ROOT / "requirements.txt"), read_pins(ROOT / "requirements.txt", ROOT / "constraints.txt")
    installed = installed_versions()
    yield check_disk(shutil.disk_usage(str(ROOT)).free, "torch" in installed)
    yield check_packages(asked, pins, installed)
    if {"torch", "jupyterlab", "ipykernel"} <= set(installed):
        yield check_imports()
        yield check_kernel()
        yield check_widgets()
        yield check_gpu()


def main():
    """Print the report; 1 if something must be put right."""
    wrong = 0
    for finding in examine():
        print(finding, flush=True)
        wrong += finding.ok is False
    print(f"All is well; {START}" if not wrong else f"To put right: {wrong}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
