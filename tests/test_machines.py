"""Machines that are not here, emulated: Apple's GPUs, CUDA's attention kernels, and Windows."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from conftest import GUARD, ROOT
from emulation import MATH, OnDevice, device
from programs import RUN, environment, small_model, write_text

from nyx import NYX
from nyx.checkpoint import load_checkpoint
from nyx.data import load_corpus, load_tokenizer
from nyx.lora import add_adapter, load_adapter, merge_adapters, save_adapter, train_adapter, unmerge_adapters
from nyx.training import TrainConfig, Trainer

DEVICES = ("mps", "cuda", "turing")


@pytest.fixture(params=DEVICES)
def machine(request):
    """A machine with one of these devices."""
    with device(request.param) as kind:
        yield kind


def on_both(kind, seed: int = 0, **changes: object) -> tuple[NYX, NYX]:
    """The same model on the CPU and on the device."""
    here = small_model(seed, **changes).eval()
    there = small_model(seed, **changes).eval().to(kind.name)
    return here, there


def tokens(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(1))


# devices


def test_the_emulation_refuses_what_a_device_would():
    with device("mps"):
        x = torch.ones(3, device="mps")
        assert isinstance(x, OnDevice) and x.device.type == "mps" and (x * 2).sum().item() == 6
        with pytest.raises(RuntimeError, match="same device"):
            x + torch.ones(3)
        with pytest.raises(TypeError, match="float64"):
            x.double()
        with pytest.raises(TypeError, match="float64"):
            torch.zeros(3, dtype=torch.float64).to("mps")
        with pytest.raises(NotImplementedError, match="hash_tensor"):
            torch.hash_tensor(x)
    with device("cuda") as kind:
        q, k = torch.ones(1, 4, 8, 16, device="cuda"), torch.ones(1, 1, 8, 16, device="cuda")
        torch.nn.functional.scaled_dot_product_attention(q, k, k, is_causal=True, enable_gqa=True)
        assert kind.chosen == [MATH]
    with device("turing"), pytest.raises(TypeError, match="bfloat16"):
        torch.ones(3, device="cuda").bfloat16()


def test_logits_loss_and_gradients_are_those_of_the_cpu(machine):
    here, there = on_both(machine)
    ids = tokens(2, 40)
    torch.testing.assert_close(there(ids.to(machine.name)).cpu(), here(ids))
    for model, place in ((here, "cpu"), (there, machine.name)):
        model.loss(ids.to(place)).backward()
    for a, b in zip(here.parameters(), there.parameters(), strict=True):
        assert b.grad.device.type == machine.name
        torch.testing.assert_close(b.grad.cpu(), a.grad)


@pytest.mark.parametrize("xpos_scale_base", [512, None])
def test_generation_is_that_of_the_cpu(machine, xpos_scale_base):
    here, there = on_both(machine, xpos_scale_base=xpos_scale_base)
    ids, lengths = tokens(3, 20), torch.tensor([20, 11, 5])
    for settings in ({}, {"lengths": lengths}):
        want = here.generate(ids, 12, temperature=0, precision="float32", **settings)
        got = there.generate(ids.to(machine.name), 12, temperature=0, precision="float32", **settings)
        assert got.device.type == machine.name
        torch.testing.assert_close(got.cpu(), want)


def test_generation_as_a_user_asks_for_it(machine):
    """Nothing is set but the prompt: the precision is one that the device has."""
    _, there = on_both(machine)
    assert there.generate(tokens(2, 20).to(machine.name), 6, seed=1).shape == (2, 6)
    assert len("".join(there.stream("To be", 12, seed=1)).encode(errors="replace")) >= 1


def test_int8_is_refused_off_the_cpu(machine):
    _, there = on_both(machine)
    with pytest.raises(ValueError, match="int8"):
        there.generate(tokens(1, 5).to(machine.name), 3, precision="int8")


@pytest.mark.parametrize("who", ["text", "model"])
def test_drafts_live_on_the_device(machine, who):
    here, there = on_both(machine)
    _, small = on_both(machine, seed=1)
    prompt = torch.tensor([list(b"one bird, one bird, one bird, one")])
    draft = "text" if who == "text" else small
    got = there.generate(prompt.to(machine.name), 12, temperature=0, precision="float32", draft=draft)
    torch.testing.assert_close(got.cpu(), here.generate(prompt, 12, temperature=0, precision="float32"))
    assert there.generate(prompt.to(machine.name), 12, seed=3, draft=draft).shape == (1, 12)


def test_what_changes_on_the_device_is_seen_at_the_next_call(machine):
    here, there = on_both(machine)
    ids = tokens(1, 20)
    there.generate(ids.to(machine.name), 4, temperature=0, precision="float32")
    for model in (here, there):
        with torch.no_grad():
            model.blocks[0].ff_out.weight.neg_()
            model.embedding.weight.copy_(model.embedding.weight.roll(1, 0))
    got = there.generate(ids.to(machine.name), 12, temperature=0, precision="float32")
    torch.testing.assert_close(got.cpu(), here.generate(ids, 12, temperature=0, precision="float32"))


def test_adapters_live_on_the_device(machine, tmp_path):
    ids, got = tokens(2, 30), []
    for model, place in zip(on_both(machine), ("cpu", machine.name), strict=True):
        torch.manual_seed(3)
        add_adapter(model, "mine", model.lora_targets("q", "attn_out"), rank=2, alpha=3.0)
        chosen = train_adapter(model, "mine")
        assert all(p.device.type == place for p in chosen)
        with torch.no_grad():
            for p in chosen:
                p.copy_(torch.linspace(-0.1, 0.1, p.numel()).view(p.shape).to(place))
        save_adapter(model, "mine", tmp_path / f"{place}.safetensors")
        before = model.blocks[0].in_proj.weight.detach().clone()
        merge_adapters(model)
        got.append(model(ids.to(place)).detach().cpu())
        unmerge_adapters(model)
        torch.testing.assert_close(model.blocks[0].in_proj.weight.detach().cpu(), before.cpu(), rtol=0, atol=0)
        got.append(model.generate(ids.to(place), 6, temperature=0, precision="float32").cpu())
    torch.testing.assert_close(got[2:], got[:2])
    _, fresh = on_both(machine)
    load_adapter(fresh, tmp_path / "cpu.safetensors")
    torch.testing.assert_close(fresh.generate(ids.to(machine.name), 6, temperature=0, precision="float32").cpu(), got[1])


def test_a_run_goes_to_its_end_and_is_resumed(machine, tmp_path, monkeypatch):
    """Updates, validations, samples and checkpoints on the device; what is saved there goes on here, and the other way."""
    monkeypatch.setattr(Accelerator, "device", property(lambda self: torch.device(machine.name)))
    monkeypatch.setattr("nyx.training.mixed_precision", lambda precision: "no", raising=False)
    monkeypatch.setattr("nyx.training.activation_bytes", lambda *_: 0)  # its fake tensors hold on to the weights
    corpus = load_corpus(write_text(tmp_path / "text.txt"), load_tokenizer("bytes"), 0.1)
    small = {name: RUN[name] for name in RUN if name not in ("filepath", "threads")}
    settings = TrainConfig.from_dict(small | {"precision": "float32"})
    trainer = Trainer(small_model(), corpus, settings, tmp_path / "there")
    assert all(p.device.type == machine.name for p in trainer.model.parameters())
    done = list(trainer.run())
    assert [r["event"] for r in done].count("sample") == 2 and done[-1]["event"] == "final"
    assert all(slot["exp_avg"].device.type == machine.name for slot in trainer.optimizer.state.values())
    half, end = (load_checkpoint(tmp_path / "there" / f"checkpoint_{n}.pth") for n in (2, 4))
    assert not any(isinstance(t, OnDevice) for t in half["model"].values())

    again = Trainer(small_model(1), corpus, settings, tmp_path / "again")
    again.resume(half)
    again_done = list(again.run())
    assert again_done[-1]["bits_per_byte"] == done[-1]["bits_per_byte"]
    for name, weight in load_checkpoint(tmp_path / "again" / "checkpoint_4.pth")["model"].items():
        torch.testing.assert_close(weight, end["model"][name], rtol=0, atol=0)

    monkeypatch.undo()
    on_cpu = Trainer(small_model(1), corpus, settings, tmp_path / "here")
    on_cpu.resume(half)
    assert list(on_cpu.run())[-1]["bits_per_byte"] == pytest.approx(done[-1]["bits_per_byte"], rel=1e-3)


SHAPES = [{}, {"num_attention_heads": 4, "num_kv_heads": 2}, {"num_kv_heads": 2}]


@pytest.mark.parametrize("kind", ["cuda", "turing"])
@pytest.mark.parametrize("shape", SHAPES, ids=["multi-query", "grouped", "multi-head"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_attention_on_cuda_stays_on_a_fused_kernel(kind, shape, dtype):
    """In training with dropout, in a batch of prompts of different lengths, and through a cache."""
    if kind == "turing" and dtype == torch.bfloat16:
        pytest.skip("this device has no bf16")
    with device(kind) as machine:
        model = small_model(**shape | {"attn_dropout": 0.1}).to("cuda", dtype)
        ids = tokens(2, 40).to("cuda")
        model.loss(ids).backward()
        model.eval()
        model(ids)
        cache = model.new_cache(2, 80)
        with torch.inference_mode():
            for n in (30, 10, 1):
                model(ids[:, :n], cache=cache)
        model.generate(ids, 3, lengths=torch.tensor([40, 23]), precision="float32")
        model.generate(ids, 3, precision="float32")
        assert machine.chosen and MATH not in machine.chosen


# Windows


@pytest.fixture
def windows(tmp_path, corpus_cache):
    """Run Python in a folder of its own, as on Windows: `windows("-c", code)`."""
    folder = tmp_path / "folder"
    folder.mkdir()
    path = os.pathsep.join([str(ROOT / "tests" / "windows"), str(ROOT)])
    env = environment(tmp_path, corpus_cache) | {"PYTHONPATH": path, "PYTHONUTF8": "0", "PYTHONIOENCODING": "cp1252"}

    def run(*command: object, timeout: float = 300, cwd: Path = folder) -> subprocess.CompletedProcess:
        command = [sys.executable, *map(str, command)]
        done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, timeout=timeout)
        return subprocess.CompletedProcess(command, done.returncode, done.stdout.decode("cp1252"), done.stderr.decode("cp1252"))

    return run


ASKED = """
import importlib, sys
def absent(module, name): return not hasattr(importlib.import_module(module), name)
for name in ("fcntl", "resource", "pwd"):
    try:
        __import__(name, {"__name__": "nyx.x"})
    except ImportError:
        print("no", name)
os = __import__("os", {"__name__": "nyx.x"})
signal = __import__("signal", {"__name__": "nyx.x"})
print([name for name in ("fork", "pread", "sysconf") if hasattr(os, name)], hasattr(signal, "SIGHUP"), os.name)
try:
    open("/proc/meminfo")
except FileNotFoundError:
    print("no /proc")
import pathlib
file = open("held", "w")
try:
    pathlib.Path("held").unlink()
except PermissionError:
    print("kept")
file.close()
pathlib.Path("held").unlink()
"""


def test_the_emulation_of_windows_lacks_what_windows_lacks(windows):
    done = windows("-c", ASKED)
    assert done.stdout.split("\n")[:-1] == ["no fcntl", "no resource", "no pwd", "[] False nt", "no /proc", "kept"], done.stderr


def test_every_module_is_imported_on_windows(windows):
    names = [f"nyx.{p.stem}" for p in sorted((ROOT / "nyx").glob("[a-z]*.py"))]
    done = windows("-c", f"import importlib\nfor name in {names!r}: importlib.import_module(name)\nprint('done')")
    assert done.returncode == 0 and "done" in done.stdout, done.stderr


SMOKE = ["trains, samples, saves and exports", "killed is resumed", "continues a prompt"]


def test_a_run_is_killed_and_resumed_on_windows(windows):
    done = windows(ROOT / "tools" / "smoke.py", timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(words in done.stdout for words in SMOKE)


OVERWRITES = """
from nyx import NYX
model = NYX.from_preset("nyx-mini", layer_depth=1)
model.save_pretrained("mine")
for _ in range(2):
    model = NYX.from_pretrained("mine")
    model.save_pretrained("mine", int8=True)
from nyx.lora import add_adapter, load_adapter, remove_adapter, save_adapter
add_adapter(model, "a", model.lora_targets("q"), rank=2)
save_adapter(model, "a", "a.safetensors")
remove_adapter(model, "a")
load_adapter(model, "a.safetensors")
save_adapter(model, "a", "a.safetensors")
print("done")
"""


def test_weights_are_saved_over_those_they_came_from_on_windows(windows):
    """A file that is mapped cannot be replaced there: what is loaded is held in memory."""
    done = windows("-c", OVERWRITES)
    assert done.returncode == 0 and "done" in done.stdout, done.stderr


def test_the_library_notebooks_pass_on_windows(windows):
    """Those that deal with the system; as the workflow runs all of them there."""
    test = "import sys; from nbdev.test import test_nb; from pathlib import Path; sys.exit(not test_nb(Path(sys.argv[1]))[0])"
    for name in ("checkpoint", "cli", "memory"):
        done = windows("-c", test, ROOT / "nbs" / "lib" / f"{name}.ipynb", cwd=ROOT / "nbs" / "lib")
        assert done.returncode == 0, f"{name}: {done.stdout[-2000:]} {done.stderr[-2000:]}"


def test_a_run_is_killed_and_resumed_without_make():
    done = subprocess.run([sys.executable, str(ROOT / "tools" / "smoke.py")], capture_output=True, text=True, encoding="utf-8", timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(words in done.stdout for words in SMOKE)


CLOCK = """
import time
from types import SimpleNamespace
from nyx.cli import Report
time.monotonic = lambda: 1.0  # two readings within one tick of Windows' clock
config = SimpleNamespace(num_batches=4, validate_every=2)
corpus = SimpleNamespace(valid=[0])
report = Report(SimpleNamespace(config=config, out_dir=".", update=0, corpus=corpus))
report({"event": "update", "update": 1, "bits_per_byte": 8.0, "tokens_per_second": 1e4, "seconds": 0.01})
"""


def test_a_first_update_within_a_tick_of_the_clock_is_reported():
    """Windows' clock moves every 15.6 ms: a small model makes an update in less, and no speed is known yet."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(GUARD), str(ROOT)]), "NYX_TYPECHECK": ""}
    done = subprocess.run([sys.executable, "-c", CLOCK], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "update 1 of 4" in done.stdout, done.stderr


def text_calls(path: Path) -> list[str]:
    """Where a file of Python reads or writes text in whatever encoding the system has."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or any(k.arg == "encoding" for k in node.keywords):
            continue
        method, name = isinstance(node.func, ast.Attribute), ast.unparse(node.func).rsplit(".", 1)[-1]
        mode = next((a.value for a in node.args[not method :] if isinstance(a, ast.Constant)), "r")
        opens = name == "open" and (not method or (mode != "r" and set(str(mode)) <= set("rwxabt+")))
        if name in ("read_text", "write_text") or (opens and "b" not in str(mode) and "wb" not in ast.unparse(node)):
            found.append(f"{path.name}:{node.lineno}: {ast.unparse(node)[:80]}")
    return found


@pytest.mark.parametrize("folder", ["nyx", "tools"])
def test_text_is_read_and_written_in_a_named_encoding(folder):
    """Windows' own is not UTF-8."""
    assert not [call for path in sorted((ROOT / folder).glob("*.py")) for call in text_calls(path)]


def test_the_check_for_encodings_can_fail(tmp_path):
    wrong = tmp_path / "wrong.py"
    wrong.write_text("open('a')\nopen('a', 'w')\np.read_text()\np.open('w')\nopen('a', 'rb')\np.read_text(encoding='utf-8')\n", encoding="utf-8")
    assert [call.split(":")[1] for call in text_calls(wrong)] == ["1", "2", "3", "4"]


# the workflow


def steps(job: dict) -> list[str]:
    return [step["run"] for step in job["steps"] if "run" in step]


def test_the_workflow_tests_macos_and_windows_without_make():
    yaml = pytest.importorskip("yaml")
    flow = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8"))
    job = flow["jobs"]["without-make"]
    assert set(job["strategy"]["matrix"]["os"]) == {"macos-latest", "windows-latest"}
    ran = "\n".join(steps(job))
    assert "make" not in ran.split(), "Windows has no make"
    for words in ("requirements.txt", "nbdev_test --path nbs/lib", "tools/smoke.py"):
        assert words in ran
    for command in steps(job):
        files = [word for word in command.split() if word.endswith(".py")]
        assert all((ROOT / file).is_file() for file in files), f"{command} names a file that is not there"


@pytest.mark.parametrize("name", ["test.yml", "docs.yml"])
def test_a_workflow_is_well_formed(name):
    """GitHub's rules as far as these files use them; each job says where it runs and for how long at most."""
    yaml = pytest.importorskip("yaml")
    flow = yaml.safe_load((ROOT / ".github" / "workflows" / name).read_text(encoding="utf-8"))
    assert {"name", "jobs"} <= set(flow) <= {"name", True, "permissions", "concurrency", "jobs", "env"}  # True: YAML's `on`
    for job in flow["jobs"].values():
        assert {"runs-on", "steps", "timeout-minutes"} <= set(job)
        assert all(("run" in step) != ("uses" in step) for step in job["steps"])
