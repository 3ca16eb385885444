"""Check that NYX is right on this machine's GPU, in less than 5 minutes; prints `N passed, N failed`, and exits with 1 if any failed.

    python benchmarks/gpu.py                   # on CUDA, else on an Apple GPU
    python benchmarks/gpu.py --device cpu      # what of it a CPU can do, with small shapes
    python benchmarks/gpu.py generation draft  # the checks whose names contain one of these words

Needs what the library itself needs, and no tool of the course. Results are held against the CPU's in float32. Everywhere
"equal to t" means: the largest difference, divided by the largest value, is at most t. Checks run one after the other in a
process of their own; one that fails, crashes it or hangs does not keep the others from running.
"""

import argparse
import configparser
import contextlib
import gc
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.pop("NYX_TYPECHECK", None)  # as in production
os.environ.setdefault("HF_HUB_OFFLINE", "1")

LIMIT = 240  # seconds for one check, and a quarter of it for each program that it starts
FLOAT32, GRADIENTS, LOSS = 1e-4, 1e-3, 1e-5  # tolerances in float32: of logits, of gradients, of the loss
BF16, BF16_LOSS = 0.05, 0.02  # of logits and gradients in bf16, and of the loss
NEAR_TIE = 1e-3  # a greedy token may be another one where the CPU's logits are that close, of the largest
HALF_PRECISION_TIE = 0.05  # the same for weights in bf16 or int8


def missing_packages() -> list[str]:
    """The requirements of the library that are not installed here."""
    settings = configparser.ConfigParser(delimiters=["="], interpolation=None)
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    asked = settings["DEFAULT"]["requirements"].split()
    names = {requirement: requirement.split(">=")[0].replace("-", "_") for requirement in asked}
    return [requirement for requirement, name in names.items() if importlib.util.find_spec(name) is None]


try:
    import numpy as np
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from nyx import NYX, NYXConfig
    from nyx.checkpoint import load_checkpoint
    from nyx.data import load_corpus, load_tokenizer
    from nyx.lora import (
        add_adapter,
        load_adapter,
        merge_adapters,
        remove_adapter,
        save_adapter,
        train_adapter,
        unmerge_adapters,
    )
    from nyx.memory import TooLittleMemory
    from nyx.training import TrainConfig, Trainer, TrainingError
except ModuleNotFoundError as error:
    lacking = " ".join(missing_packages()) or error.name
    print(f"{error.name} is not installed. Put wheels of these here, and install them with `pip install --no-deps`: {lacking}")
    print("0 passed, 1 failed")
    raise SystemExit(1) from None


class Skipped(Exception):
    """A check that this machine cannot make; the message says why."""


@dataclass
class Machine:
    """Where the checks run, and how large they are."""

    device: str
    folder: Path  # for files; a new one for each check

    @property
    def gpu(self) -> bool:
        return self.device != "cpu"

    @property
    def weights(self) -> str:
        """The shipped weights that generate here."""
        return str(ROOT / "weights" / ("nyx-30m" if self.gpu else "nyx-mini"))

    def models(self) -> tuple[NYX, NYX]:
        """The same trained model on the CPU and on the device."""
        return NYX.from_pretrained(self.weights).eval(), NYX.from_pretrained(self.weights).eval().to(self.device)

    def need_cuda(self, what: str) -> None:
        if self.device != "cuda":
            raise Skipped(f"{what} needs a CUDA GPU")


CHECKS: dict[str, Callable[[Machine], str]] = {}


def check(function: Callable[[Machine], str]) -> Callable[[Machine], str]:
    """A check: it returns what it measured, in words, and raises AssertionError with what is wrong."""
    CHECKS[function.__name__] = function
    return function


def distance(got: torch.Tensor, want: torch.Tensor) -> float:
    """The largest difference, divided by the largest value."""
    got, want = got.detach().cpu().double(), want.detach().cpu().double()
    assert got.isfinite().all(), "values are NaN or infinite"
    return ((got - want).abs().max() / want.abs().max()).item()


def within(name: str, value: float, tolerance: float) -> str:
    """The measured value in words; AssertionError if it is too large."""
    assert value <= tolerance, f"{name} differ by {value:.1e}, and {tolerance:.0e} is allowed"
    return f"{name} {value:.1e}"


def text_tokens(rows: int, length: int) -> torch.Tensor:
    """Rows of bytes from this repository's README."""
    text = (ROOT / "README.md").read_bytes()
    starts = np.linspace(0, len(text) - length - 1, rows).astype(int)
    return torch.tensor([list(text[start : start + length]) for start in starts])


def gradients(model: NYX, tokens: torch.Tensor, context: contextlib.AbstractContextManager) -> tuple[float, dict]:
    """The loss, and every gradient."""
    model.zero_grad()
    with context:
        loss = model.loss(tokens)
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters()}


def gap(model: NYX, prompt: torch.Tensor, new: torch.Tensor, lengths: torch.Tensor | None = None) -> float:
    """How far, at most, a generated token's logit lies below the best one, by `model` on the CPU; divided by the largest logit."""
    prompt, new, worst = prompt.cpu(), new.cpu(), 0.0
    for row in range(len(prompt)):
        before = prompt[row] if lengths is None else prompt[row, : lengths[row]]
        with torch.no_grad():
            logits = model(torch.cat((before, new[row]))[None, :-1])[0, len(before) - 1 :]
        chosen = logits.gather(-1, new[row][:, None])[:, 0]
        worst = max(worst, ((logits.amax(-1) - chosen).max() / logits.abs().max()).item())
    return worst


# the network


@check
def forward_loss_and_gradients_in_float32(machine: Machine) -> str:
    here, there = machine.models()
    tokens, plain = text_tokens(2, 513 if machine.gpu else 65), contextlib.nullcontext()
    with torch.no_grad():
        logits = distance(there(tokens.to(machine.device)), here(tokens))
    (want, grads), (got, others) = gradients(here, tokens, plain), gradients(there, tokens.to(machine.device), plain)
    worst = max(distance(others[name], grads[name]) for name in grads)
    said = [within("logits", logits, FLOAT32), within("losses", abs(got / want - 1), LOSS), within("gradients", worst, GRADIENTS)]
    return ", ".join(said)


@check
def forward_loss_and_gradients_in_bf16(machine: Machine) -> str:
    """Autocast, as in training, and weights in bf16."""
    here, there = machine.models()
    tokens = text_tokens(2, 513 if machine.gpu else 65)
    moved, autocast = tokens.to(machine.device), torch.autocast(machine.device, torch.bfloat16)
    want, grads = gradients(here, tokens, contextlib.nullcontext())
    got, others = gradients(there, moved, autocast)
    with torch.no_grad():
        logits = here(tokens)
        with autocast:
            mixed = distance(there(moved), logits)
        pure = distance(there.bfloat16()(moved), logits)
    whole = [torch.cat([g[name].cpu().double().flatten() for name in grads]) for g in (others, grads)]
    off = ((whole[0] - whole[1]).norm() / whole[1].norm()).item()
    said = [within("logits", mixed, BF16), within("logits with bf16 weights", pure, BF16), within("losses", abs(got / want - 1), BF16_LOSS)]
    return ", ".join([*said, within("gradients, by their norm,", off, 2 * BF16)])


@check
def attention_stays_on_a_fused_kernel(machine: Machine) -> str:
    """With the kernel that stores all scores forbidden, nothing in training, prefill, padding or generation complains."""
    tokens, fused = text_tokens(2, 200), [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
    if machine.device == "mps":
        raise Skipped("torch has one attention kernel on an Apple GPU")
    if machine.gpu:
        fused.append(SDPBackend.CUDNN_ATTENTION)
    tried = 0
    for kv_heads in (1, 2, 4):
        shape = NYXConfig(model_dim=128, layer_depth=2, num_attention_heads=4, num_kv_heads=kv_heads, attn_dropout=0.1 if machine.gpu else 0.0)
        model, moved = NYX(shape).to(machine.device), tokens.to(machine.device)
        for dtype in (None, torch.bfloat16):
            autocast = torch.autocast(machine.device, dtype) if dtype else contextlib.nullcontext()
            with sdpa_kernel(fused):
                with autocast:
                    model.train().loss(moved).backward()
                for precision in ("float32", "bf16"):
                    model.generate(moved, 3, precision=precision)
                    model.generate(moved, 3, lengths=torch.tensor([200, 120]), precision=precision)
            tried += 1
    return f"{tried} shapes and precisions"


# generation


@check
def greedy_generation_in_float32_is_that_of_the_cpu(machine: Machine) -> str:
    here, there = machine.models()
    prompt, lengths = text_tokens(3, 80), torch.tensor([80, 33, 7])
    new = there.generate(prompt.to(machine.device), 48, temperature=0, precision="float32")
    assert new.device.type == machine.device, f"the tokens are on {new.device}"
    padded = there.generate(prompt.to(machine.device), 48, lengths=lengths, temperature=0, precision="float32")
    worst = max(gap(here, prompt, new), gap(here, prompt, padded, lengths))
    same = (new.cpu() == here.generate(prompt, 48, temperature=0, precision="float32")).float().mean().item()
    return f"{same:.0%} of the tokens are the same, {within('the rest, near ties,', worst, NEAR_TIE)}"


@check
def generation_in_every_precision(machine: Machine) -> str:
    """bf16 and, on a CPU, int8 choose tokens that float32 nearly chooses; elsewhere int8 is refused in a sentence; `auto` goes."""
    here, there = machine.models()
    prompt, said = text_tokens(2, 80), []
    for precision in ("bf16", "auto", "int8"):
        try:
            new = there.generate(prompt.to(machine.device), 32, temperature=0, precision=precision)
        except ValueError as error:
            assert precision == "int8" and machine.gpu and "int8" in str(error), f"{precision}: {error}"
            said.append("int8 refused")
            continue
        assert precision != "int8" or not machine.gpu, "int8 was not refused"
        said.append(within(precision, gap(here, prompt, new), HALF_PRECISION_TIE))
    return ", ".join(said)


@check
def automatic_precision_is_what_the_hardware_has(machine: Machine) -> str:
    machine.need_cuda("choosing between bf16 and others")
    _, there = machine.models()
    prompt = text_tokens(2, 80).to(machine.device)
    native, chosen = torch.cuda.is_bf16_supported(including_emulation=False), there.decoder("auto").precision
    assert (chosen == "bf16") == native, f"auto is {chosen}, and this GPU {'has' if native else 'only emulates'} bf16"
    if native:
        tokens = [there.generate(prompt, 64, seed=1, precision=precision) for precision in ("auto", "bf16")]
        assert torch.equal(*tokens), "auto and bf16 generate other tokens"
    return chosen


@check
def the_same_seed_gives_the_same_text(machine: Machine) -> str:
    _, there = machine.models()
    settings = {"temperature": 0.9, "top_k": 40, "top_p": 0.95, "min_p": 0.01}
    texts = ["".join(there.stream("The night", 64, seed=seed, **settings)) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2], "a seed does not decide the text"
    prompt = torch.tensor([list(b"The night")], device=machine.device)
    new = there.generate(prompt, 64, seed=1, **settings)[0].tolist()
    assert bytes(new).decode(errors="replace") == texts[0], "stream and generate differ"
    return f"{texts[0][:24]!r}"


@check
def whatever_changes_in_the_model_is_generated_from(machine: Machine) -> str:
    """Edits that torch records, and one that it does not, on the device's weights."""
    here, there = machine.models()
    prompt = text_tokens(1, 60)
    for edit in (
        lambda model: model.blocks[0].ff_out.weight.neg_(),
        lambda model: model.embedding.weight.copy_(model.embedding.weight.roll(1, 0)),
        lambda model: model.blocks[1].attn_out.weight.data.mul_(0.5),
        lambda model: model.norm.weight.data[3:4].add_(0.5),
    ):
        there.generate(prompt.to(machine.device), 2, precision="float32")
        with torch.no_grad():
            edit(here), edit(there)
        new = there.generate(prompt.to(machine.device), 24, temperature=0, precision="float32")
        within("an edited model's tokens", gap(here, prompt, new), NEAR_TIE)
    return "4 edits"


@check
def drafts(machine: Machine) -> str:
    """From the text so far, and from a smaller model: greedy text is that without one."""
    here, there = machine.models()
    prompt = torch.tensor([list(b"one bird, one bird, one bird, one")])
    moved, said = prompt.to(machine.device), []
    torch.manual_seed(0)
    small = ROOT / "weights" / "nyx-4m"
    small = NYX.from_pretrained(small) if machine.gpu else NYX.from_preset("nyx-mini", layer_depth=1)
    for name, draft in (("text", "text"), ("a smaller model", small.to(machine.device))):
        new = there.generate(moved, 48, temperature=0, precision="float32", draft=draft)
        said.append(within(name, gap(here, prompt, new), NEAR_TIE))
        for precision in ("auto", "bf16"):
            sampled = there.generate(moved, 48, seed=2, precision=precision, draft=draft)
            assert sampled.shape == (1, 48) and sampled.device.type == machine.device
        again = there.generate(moved, 48, seed=2, precision="bf16", draft=draft)
        assert torch.equal(sampled, again), f"{name}: the same seed gives another text"
    return ", ".join(said)


@check
def adapters(machine: Machine) -> str:
    """Trained a step, merged, unmerged, saved and loaded on the device."""
    here, there = machine.models()
    prompt, tokens, path = text_tokens(1, 60), text_tokens(2, 65), machine.folder / "adapter.safetensors"
    add_adapter(there, "mine", there.lora_targets("q", "v", "attn_out"), rank=4, alpha=6.0)
    chosen = train_adapter(there, "mine")
    for _ in range(3):
        there.loss(tokens.to(machine.device)).backward()
        with torch.no_grad():
            for p in chosen:
                p.sub_(0.02 * p.grad.sign()), setattr(p, "grad", None)
    save_adapter(there, "mine", path)
    load_adapter(here, path)
    with torch.no_grad():
        plain = there(tokens.to(machine.device))
        said = within("logits", distance(plain, here(tokens)), FLOAT32)
        before = {name: p.clone() for name, p in there.state_dict().items()}
        merge_adapters(there)
        within("merged logits", distance(there(tokens.to(machine.device)), plain), FLOAT32)
        within("merged tokens", gap(here, prompt, there.generate(prompt.to(machine.device), 24, temperature=0, precision="float32")), NEAR_TIE)
        unmerge_adapters(there)
    assert all(torch.equal(p, before[name]) for name, p in there.state_dict().items()), "unmerging leaves other bits"
    within("tokens", gap(here, prompt, there.generate(prompt.to(machine.device), 24, temperature=0, precision="float32")), NEAR_TIE)
    remove_adapter(there, "mine")
    load_adapter(there, path)
    assert all(p.device.type == machine.device for p in there.parameters()), "a loaded adapter is elsewhere"
    return said


# training


SMALL = {"model_dim": 64, "layer_depth": 2, "num_attention_heads": 2, "head_dim": 32, "ff_mult": 2}
RUN = {"num_batches": 8, "batch_size": 2, "gradient_accumulate_every": 2, "seq_len": 64, "learning_rate": 1e-3, "validate_every": 4}
RUN |= {"validate_bytes": 2000, "generate_every": 4, "generate_length": 8, "prime_length": 8, "checkpoint_every": 2, "keep": 9, "seed": 1}


def write_text(machine: Machine) -> Path:
    """A text to train on, made from this repository's own; the same each time."""
    path = machine.folder / "text.txt"
    path.write_bytes((ROOT / "README.md").read_bytes()[:20_000])
    return path


def train(machine: Machine, out: str | None = None, on_cpu: bool = False, resume: Path | None = None, **changes: object) -> list[dict]:
    """The records of a run in this process, on the device or on the CPU."""
    from accelerate.state import AcceleratorState, PartialState

    AcceleratorState._reset_state(True), PartialState._reset_state()
    os.environ["ACCELERATE_USE_CPU"] = str(on_cpu or not machine.gpu).lower()
    torch.manual_seed(0)
    model, corpus = NYX(NYXConfig(**SMALL)), load_corpus(write_text(machine), load_tokenizer("bytes"), 0.1)
    trainer = Trainer(model, corpus, TrainConfig.from_dict(RUN | {"precision": "float32"} | changes), out and machine.folder / out)
    place = "cpu" if on_cpu else machine.device
    assert all(p.device.type == place for p in trainer.model.parameters()), f"the weights are not on {place}"
    if resume is not None:
        trainer.resume(load_checkpoint(resume))
    records = list(trainer.run())
    assert records[0]["device"].startswith(place), f"the run says that it is on {records[0]['device']}"
    return records


def losses(records: list[dict]) -> list[float]:
    return [r["loss"] for r in records if r["event"] == "update"]


@check
def training_learns_what_the_cpu_learns(machine: Machine) -> str:
    """Eight updates in float32; then in the precisions that the device has."""
    want, got = losses(train(machine, on_cpu=True)), losses(train(machine))
    said = [within("losses", max(abs(a / b - 1) for a, b in zip(got, want, strict=True)), 1e-3)]
    for precision in ("bf16", *(["fp16"] if machine.device == "cuda" else [])):
        mixed = losses(train(machine, precision=precision))
        said.append(within(precision, max(abs(a / b - 1) for a, b in zip(mixed, want, strict=True)), BF16))
    return ", ".join(said)


@check
def a_checkpoint_of_the_device_goes_on_on_the_cpu_and_back(machine: Machine) -> str:
    whole = train(machine, "whole")
    state = machine.folder / "whole" / "checkpoint_4.pth"
    said = []
    for name, on_cpu in (("there", False), ("here", True)):
        rest = train(machine, name, on_cpu, resume=state)
        pairs = zip(losses(rest), losses(whole)[4:], strict=True)
        said.append(within(f"losses of a run resumed {name}", max(abs(a / b - 1) for a, b in pairs), 1e-3))
    return ", ".join(said)


def flags(settings: dict) -> list[str]:
    return [part for name, value in settings.items() for part in (f"--{name}", str(value))]


def program(machine: Machine, name: str, *arguments: str, launcher: tuple[str, ...] = ()) -> subprocess.Popen:
    """Start train.py or test.py in the check's folder."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))), "PYTHONUTF8": "1"}
    env["ACCELERATE_USE_CPU"] = str(not machine.gpu).lower()
    if not machine.gpu:
        env |= {"CUDA_VISIBLE_DEVICES": ""}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "encoding": "utf-8", "errors": "replace"}
    return subprocess.Popen([sys.executable, *launcher, str(ROOT / name), *arguments], cwd=machine.folder, env=env, **pipes)


def finished(started: subprocess.Popen, code: int = 0) -> tuple[str, str]:
    """What a program wrote, to standard output and standard error; AssertionError if it ended with another code, or not at all."""
    try:
        out, err = started.communicate(timeout=LIMIT / 4)
    except subprocess.TimeoutExpired:
        started.kill()
        raise AssertionError(f"a program did not end: {started.communicate()[1][-500:]}") from None
    assert started.returncode == code, f"exit code {started.returncode}: {err[-800:] or out[-800:]}"
    return out, err


@check
def train_py_is_killed_and_resumed(machine: Machine) -> str:
    """On the device that it announces; the end is that of a run that was not killed.

    The same bits, or (CUDA adds up some gradients in any order, and Lion takes their signs) weights as near as steps can
    bring them, 2 · learning_rate · batches, and 1 % in the bits per byte of the whole validation split.
    """
    write_text(machine)
    rarely = {"num_batches": 60, "checkpoint_every": 20, "validate_every": 60, "generate_every": 60}
    line = flags(SMALL | RUN | rarely | {"filepath": "text.txt", "threads": 1, "precision": "float32", "learning_rate": 1e-4})
    out, _ = finished(program(machine, "train.py", *line, "--out_dir", "whole"))
    assert f"device {machine.device}" in out, f"train.py announces: {out.splitlines()[1:2]}"
    killed = program(machine, "train.py", *line, "--out_dir", "half")
    watch = threading.Timer(LIMIT / 4, killed.kill)
    watch.start()
    saved = any(said.startswith("saved") and "checkpoint_20" in said for said in killed.stdout)
    watch.cancel()
    killed.kill()
    killed.communicate()
    assert saved, "train.py saved no checkpoint"
    again, _ = finished(program(machine, "train.py", "--checkpoint_path", "half", "--threads", "1"))
    ends = [load_checkpoint(machine.folder / name / "checkpoint_60.pth")["model"] for name in ("whole", "half")]
    if all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0]):
        return "the same bits"
    farthest = max((ends[0][name] - ends[1][name]).abs().max().item() for name in ends[0])
    assert farthest <= 2 * 1e-4 * 60, f"weights differ by {farthest:.1e}"
    bits = [float(text.partition("done: ")[2].split()[0]) for text in (out, again)]
    return f"weights {farthest:.1e} apart, {within('bits per byte', abs(bits[1] / bits[0] - 1), 0.01)}"


MEASURED = """
import sys, torch
from nyx.cli import test_main
code = test_main(sys.argv[1:])
peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
print(f"allocated {peak}", file=sys.stderr)
raise SystemExit(code)
"""


@check
def test_py_uses_the_device_that_it_announces(machine: Machine) -> str:
    (machine.folder / "measured.py").write_text(MEASURED, encoding="utf-8")
    arguments = ["--weights", machine.weights, "--sample_prompt", "The night", "--generate_length", "24", "--seed", "1"]
    out, err = finished(program(machine, str(machine.folder / "measured.py"), *arguments))
    assert out.startswith("The night") and len(out.strip()) > len("The night"), f"test.py wrote {out!r}"
    if machine.gpu:
        assert machine.device in err, f"test.py does not say that it runs on {machine.device}: {err!r}"
    if machine.device == "cuda":
        allocated, size = int(err.rpartition("allocated ")[2]), 2 * NYX.from_pretrained(machine.weights).config.parameters
        assert allocated > size, f"{allocated:,} bytes of the GPU were used, and the weights alone are {size:,}"
        return f"{allocated / 1e6:.0f} MB on the GPU"
    return f"{out[:40]!r}"


SHARDED = """
import nyx.cli
from nyx.sharding import is_sharded

class Trainer(nyx.cli.Trainer):
    def run(self):
        print("sharded" if is_sharded(self.model) else "whole", flush=True)
        return super().run()

nyx.cli.Trainer = Trainer
raise SystemExit(nyx.cli.train_main())
"""


@check
def fsdp_with_one_process(machine: Machine) -> str:
    """`accelerate launch` with fsdp.yaml: the losses of a run without it, and a checkpoint of whole tensors."""
    machine.need_cuda("FSDP, as Accelerate starts it,")
    write_text(machine)
    line = flags(SMALL | RUN | {"filepath": "text.txt", "precision": "float32"})
    launcher = ("-m", "accelerate.commands.launch", "--config_file", str(ROOT / "fsdp.yaml"), "--num_processes", "1")
    (machine.folder / "sharded.py").write_text(SHARDED, encoding="utf-8")
    out, _ = finished(program(machine, str(machine.folder / "sharded.py"), *line, "--out_dir", "sharded", launcher=launcher))
    assert "sharded\n" in out, "the weights are not sharded"
    finished(program(machine, "train.py", *line, "--out_dir", "whole"))
    logs = []
    for name in ("sharded", "whole"):
        lines = (machine.folder / name / "log.jsonl").read_text(encoding="utf-8").splitlines()
        logs.append(losses([json.loads(record) for record in lines]))
    said = within("losses", max(abs(a / b - 1) for a, b in zip(*logs, strict=True)), 1e-3)
    state = load_checkpoint(machine.folder / "sharded" / "checkpoint_4.pth")
    assert {n: t.shape for n, t in state["model"].items()} == {n: t.shape for n, t in NYX(NYXConfig(**SMALL)).state_dict().items()}
    finished(program(machine, "train.py", "--checkpoint_path", "sharded/checkpoint_4.pth", "--out_dir", "on"))
    return f"{said}; its checkpoint goes on without it"


# memory


@check
def what_does_not_fit_is_refused(machine: Machine) -> str:
    """Before the first update, in a sentence that names the setting to lower."""
    if machine.device == "mps":
        raise Skipped("an Apple GPU does not say how much memory is free")
    try:
        train(machine, batch_size=500_000, seq_len=1024)
    except TooLittleMemory as error:
        assert "lower batch_size" in str(error) and "free" in str(error), str(error)
        return str(error)[:60]
    except ValueError as error:
        raise AssertionError(f"another refusal: {error}") from None
    raise AssertionError("it was not refused")


@check
def a_real_out_of_memory_leaves_the_last_state(machine: Machine) -> str:
    """Memory that another program takes in the middle of a run: the run ends with advice, and its checkpoint goes on."""
    machine.need_cuda("filling a GPU's memory")
    model = NYX(NYXConfig(model_dim=512, layer_depth=4, num_attention_heads=8))
    corpus = load_corpus(write_text(machine), load_tokenizer("bytes"), 0.1)
    settings = TrainConfig.from_dict(RUN | {"batch_size": 16, "seq_len": 1024, "validate_every": 100, "generate_every": 100})
    trainer, hog = Trainer(model, corpus, settings, machine.folder / "run"), None
    try:
        for record in trainer.run():
            if record["event"] == "checkpoint" and hog is None:
                torch.cuda.empty_cache()
                free, _ = torch.cuda.mem_get_info()
                hog = torch.empty(free - 2**28, dtype=torch.uint8, device="cuda")
        raise AssertionError("the memory was full, and the run went on")
    except TrainingError as error:
        assert "out of memory" in str(error) and "lower batch_size from 16" in str(error) and "checkpoint_2.pth" in str(error), str(error)
        said = str(error)
    hog = None
    gc.collect(), torch.cuda.empty_cache()
    trainer = Trainer(NYX(model.config), corpus, settings, machine.folder / "run")
    trainer.resume(load_checkpoint(machine.folder / "run" / "checkpoint_2.pth"))
    assert list(trainer.run())[-1]["event"] == "final", "the run did not go on to its end"
    return said[:60]


# running them


def work(device: str, names: list[str]) -> None:
    """Run checks one after the other; a line of JSON for each. Ends early if the device no longer answers."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    for name in names:
        start, result = time.monotonic(), {"name": name}
        with tempfile.TemporaryDirectory(prefix="nyx ", ignore_cleanup_errors=True) as folder:
            try:
                result |= {"outcome": "passed", "said": CHECKS[name](Machine(device, Path(folder)))}
            except Skipped as reason:
                result |= {"outcome": "skipped", "said": str(reason)}
            except Exception as error:
                last = traceback.extract_tb(error.__traceback__)[-1]
                place = f"{Path(last.filename).name}:{last.lineno}"
                result |= {"outcome": "failed", "said": f"{type(error).__name__} in {place}: {' '.join(str(error).split())[:900]}"}
        print(json.dumps(result | {"seconds": time.monotonic() - start}), flush=True)
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.synchronize()  # raises, and ends this process, where a check broke the device


def results(device: str, names: list[str]) -> Iterator[dict]:
    """The result of each check, made by a process that is started anew where it died or hung."""
    names = list(names)
    while names:
        command = [sys.executable, os.path.abspath(sys.argv[0]), "--device", device, "--work", *names]
        pipes = {"stdout": subprocess.PIPE, "text": True, "encoding": "utf-8", "errors": "replace"}
        with subprocess.Popen(command, env=os.environ | {"PYTHONUTF8": "1"}, **pipes) as worker:
            while names:
                watch = threading.Timer(LIMIT, worker.kill)
                watch.start()
                line = worker.stdout.readline()
                watch.cancel()
                if not line.startswith('{"name"'):
                    if line:  # what a library prints
                        continue
                    break
                names.pop(0)
                yield json.loads(line)
            worker.stdout.read()
        if names:
            said = f"its process ended with {worker.returncode}, after at most {LIMIT} seconds"
            yield {"name": names.pop(0), "outcome": "failed", "said": said, "seconds": 0.0}


def default_device() -> str:
    """CUDA, or an Apple GPU."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else ""


def main() -> int:
    parser = argparse.ArgumentParser(description="Check that NYX is right on this machine's GPU.")
    parser.add_argument("--device", choices=["cuda", "mps", "cpu"], help="default: the GPU that there is")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("words", nargs="*", help="run the checks whose names contain one of these words (default: all)")
    asked = parser.parse_args()
    device = asked.device or default_device()
    if not device:
        parser.error("there is no GPU that torch can use: --device cpu runs the checks that need none")
    if asked.work:
        work(device, asked.words)
        return 0
    chosen = [name for name in CHECKS if not asked.words or any(word in name for word in asked.words)]
    hardware = torch.cuda.get_device_name(0) if device == "cuda" else device
    print(f"{hardware}, torch {torch.__version__}, Python {sys.version.split()[0]}", flush=True)
    counts, start = {"passed": 0, "failed": 0, "skipped": 0}, time.monotonic()
    for result in results(device, chosen):
        counts[result["outcome"]] += 1
        print(f"{result['outcome']:7} {result['seconds']:5.1f} s  {result['name'].replace('_', ' ')}: {result['said']}", flush=True)
    print(f"{time.monotonic() - start:.0f} s, {counts['skipped']} skipped")
    print(f"{counts['passed']} passed, {counts['failed']} failed")
    return 1 if counts["failed"] or not chosen else 0


if __name__ == "__main__":
    sys.exit(main())
