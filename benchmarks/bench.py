"""Measure NYX beside other libraries, in turns, and write results.json, results.md, results.png and README's rows.

    make bench                                    # everything, more than half an hour on two quiet cores; stopped, it goes on
    python benchmarks/bench.py inference training # some of it, anew; the rest of results.json stays
    python benchmarks/bench.py --quick --out /tmp/bench  # does it run? Tiny shapes, in seconds; the numbers mean nothing

Machines are noisy: bandwidth and matrix rate are measured in the same run, contenders take turns, and every number is a
median with its quartiles. Times come from torch.utils.benchmark, peak memory from processes of their own.
"""

import argparse
import contextlib
import copy
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
if __name__ == "__main__":  # a test that imports this keeps its own settings
    os.environ.pop("NYX_TYPECHECK", None)  # as in production
    warnings.filterwarnings("ignore")

import torch
from lion_pytorch import Lion
from torch.utils.benchmark import Timer
from tqdm import tqdm

from nyx import NYX
from nyx.sampling import prefill


@dataclass(frozen=True)
class Scale:
    """How large everything is, and how often it is repeated."""

    preset: str = "nyx-30m"
    wide: str = "nyx-gpt2"  # the preset with a wide vocabulary
    context: int = 1000  # tokens before the one that is decoded
    batches: tuple[int, ...] = (1, 32)
    rounds: tuple[int, ...] = (7, 3)  # for each of these batch sizes
    contexts: tuple[int, ...] = (128, 512, 1024, 2048, 4096, 8192)
    growing: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)  # batch sizes of decoding after `contexts[0]` tokens
    generated: int = 512  # tokens of a speculative run of nyx-mini
    prompts: tuple[int, int] = (20, 6)  # of nyx-mini, and of the weights that ship
    train: tuple[int, int] = (4, 1024)  # sequences of an optimizer step, and their length
    repeats: int = 5
    matrix: int = 4096
    ones: int = 2**28


FULL = Scale()
QUICK = Scale("nyx-mini", "nyx-mini", 24, (1, 3), (2, 2), (16, 24, 32), (1, 2, 3), 8, (2, 1), (2, 32), 2, 128, 2**16)
scale = FULL


# measuring


def seconds(run, number: int = 1) -> float:
    """Seconds of one call."""
    return Timer("run()", globals={"run": run}, num_threads=torch.get_num_threads()).timeit(number).mean


def in_turns(contenders: dict, rounds: int, number: int = 1) -> dict[str, list[float]]:
    """Seconds of each contender, all of them once in each round, after one call that does not count."""
    times = {name: [] for name in contenders}
    for round_ in tqdm(range(rounds + 1), leave=False, desc="rounds"):
        for name, run in contenders.items():
            took = seconds(run, number if round_ else 1)
            if round_:
                times[name].append(took)
    return times


def spread(values: list[float]) -> dict[str, float]:
    """The median and the quartiles around it."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"median": middle, "low": low, "high": high}


def speeds(times: dict[str, list[float]], units: float) -> dict[str, dict[str, float]]:
    """Units per second of each contender."""
    return {name: spread([units / t for t in values]) for name, values in times.items()}


def limits() -> dict[str, float]:
    """What the machine can do right now: bytes per second from memory, and FLOP/s of matmuls in two precisions."""
    ones, n, rates = torch.ones(scale.ones), scale.matrix, {}
    bandwidth = ones.nbytes / min(seconds(ones.sum) for _ in range(5))
    del ones
    for name, dtype in (("float32", torch.float32), ("bf16", torch.bfloat16)):
        a = torch.randn(n, n).to(dtype)
        rates[name] = 2 * n**3 / min(seconds(lambda a=a: a @ a) for _ in range(3))
    return {"bandwidth": bandwidth, **rates}


# contenders


class Cached:
    """NYX with its key-value cache: a decoder in some precision, or the model itself."""

    def __init__(self, model):
        self.model, self.cache = model, None

    def prefill(self, tokens):
        """Logits after `tokens` (b, n), which are then in a new cache with room for one token more."""
        self.cache = self.model.new_cache(len(tokens), tokens.shape[1] + 2)
        return prefill(self.model, tokens, self.cache)

    def decode(self, tokens):
        """Logits after `tokens` (b, n + 1), of which the cache holds all but the last."""
        self.cache.rewind(tokens.shape[1] - 1)
        return self.model(tokens[:, -1:], cache=self.cache)[:, -1]


class Uncached:
    """A model without a cache, NYX or palm-rlhf-pytorch: each token costs a forward pass over all of them."""

    def __init__(self, model):
        self.model = model

    def prefill(self, tokens):
        """Logits after `tokens` (b, n)."""
        return self.model(tokens)[:, -1]

    decode = prefill


class XTransformers:
    """x-transformers with its key-value cache; `generate` there calls the network like this."""

    def __init__(self, model):
        self.model, self.cache = model.net, None

    def prefill(self, tokens):
        """Logits after `tokens` (b, n), and a new cache."""
        logits, self.cache = self.model(tokens, return_intermediates=True)
        return logits[:, -1]

    def decode(self, tokens):
        """Logits after `tokens` (b, n + 1); what is cached stays as it is, so that the step can be repeated."""
        logits, _ = self.model(tokens, return_intermediates=True, cache=self.cache)
        return logits[:, -1]


class InBf16:
    """A contender whose weights are bf16, under autocast: rotary embeddings and norms keep float32."""

    def __init__(self, contender):
        self.prefill, self.decode = (self.cast(f) for f in (contender.prefill, contender.decode))

    @staticmethod
    def cast(run):
        def in_bf16(tokens):
            with torch.autocast("cpu", torch.bfloat16):
                return run(tokens)

        return in_bf16


def palm():
    """palm-rlhf-pytorch, which has this very block; its fused attention on."""
    from palm_rlhf_pytorch import PaLM

    c = NYX.from_preset(scale.preset).config
    shape = {"dim": c.model_dim, "depth": c.layer_depth, "heads": c.num_attention_heads, "dim_head": c.head_dim}
    return PaLM(num_tokens=256, **shape, ff_mult=c.ff_mult, flash_attn=True, cross_entropy_ignore_index=-1)


def x_transformer():
    """x-transformers with a decoder of the same width, depth, heads and, nearly, parameters; its blocks are sequential."""
    from x_transformers import AutoregressiveWrapper, TransformerWrapper
    from x_transformers import Decoder as Layers

    c = NYX.from_preset(scale.preset).config
    block = {
        "ff_glu": True,
        "ff_swish": True,
        "ff_no_bias": True,
        "ff_mult": c.ff_mult,
        "rotary_xpos": True,
        "attn_one_kv_head": True,
        "attn_flash": True,
    }
    layers = Layers(
        dim=c.model_dim, depth=c.layer_depth, heads=c.num_attention_heads, attn_dim_head=c.head_dim, **block
    )
    return AutoregressiveWrapper(
        TransformerWrapper(
            num_tokens=256, max_seq_len=2048, attn_layers=layers, tie_embedding=True, use_abs_pos_emb=False
        )
    )


# For the gain in two steps: the fast path off, then the cache off. Measured for one sequence only.
PLAIN, NO_CACHE = "NYX, float32, the model itself", "NYX, float32, no cache"


def contenders() -> dict:
    """Every library in float32 and in what else it has; all with one interface, `prefill(tokens)` and `decode(tokens)`."""
    model = NYX.from_preset(scale.preset).eval()
    peer, other = palm().eval(), x_transformer().eval()
    return {
        "NYX, float32": Cached(model.decoder("float32")),
        "NYX, bf16": Cached(model.decoder("bf16")),
        "NYX, int8": Cached(model.decoder("int8")),
        PLAIN: Cached(model),
        NO_CACHE: Uncached(model),
        "palm-rlhf-pytorch, float32, no cache": Uncached(peer),
        "palm-rlhf-pytorch, bf16, no cache": InBf16(Uncached(copy.deepcopy(peer).bfloat16())),
        "x-transformers, float32": XTransformers(other),
        "x-transformers, bf16": InBf16(XTransformers(copy.deepcopy(other).bfloat16())),
    }


# sections


@torch.inference_mode()
def inference() -> dict:
    """Prefill and decoding, each on its own: for every library and precision, for one sequence and for many."""
    everyone, n, results = contenders(), scale.context, {}
    for batch, rounds in zip(scale.batches, scale.rounds):
        tokens = torch.randint(0, 256, (batch, n + 1))
        here = {name: c for name, c in everyone.items() if batch == 1 or name not in (PLAIN, NO_CACHE)}
        times = {what: {name: [] for name in here} for what in ("prefill", "decode")}
        for contender in here.values():  # what is made at the first call does not count
            contender.prefill(tokens[:, :16])
            contender.decode(tokens[:, :17])
        for _ in tqdm(range(rounds), desc=f"inference, batch size {batch}"):
            for name, contender in here.items():
                times["prefill"][name].append(seconds(lambda c=contender, t=tokens: c.prefill(t[:, :n])))
            for turn in range(3):
                for name, contender in here.items():
                    cached = "no cache" not in name
                    if cached or turn == 0:  # a step without a cache is a whole forward pass: once in a round
                        run = lambda c=contender, t=tokens: c.decode(t)
                        times["decode"][name].append(seconds(run, 8 if cached else 1))
        results[f"batch {batch}"] = {
            "prefill": speeds(times["prefill"], batch * n),
            "decode": speeds(times["decode"], batch),
        }
    return results


def step(decoder, context: int, rows: int = 1):
    """A function that computes one more token for each of some sequences after `context` tokens."""
    cache = decoder.new_cache(rows, context + 2)
    with torch.inference_mode():
        if context <= 1024:
            prefill(decoder, torch.randint(0, 256, (rows, context)), cache)
        else:  # what stands there does not matter for the time
            cache.keys.normal_(), cache.values.normal_()
            cache.length = context
    token = torch.zeros(rows, 1, dtype=torch.long)

    def run():
        with torch.inference_mode():
            cache.rewind(context)
            decoder(token, cache=cache)

    return run


BYTES = {"float32": 4, "bf16": 2, "int8": 1}  # of a weight


def growth() -> dict:
    """How a decoding step with default settings grows with context, with batch size and with the model."""
    model = NYX.from_preset(scale.preset).eval()
    c, decoder, few = model.config, model.decoder(), scale.contexts[0]
    contexts = {str(n): step(decoder, n) for n in scale.contexts}
    batches = {str(b): step(decoder, few, b) for b in scale.growing}
    many = scale.batches[-1]
    rows = (
        torch.randn(many, c.model_dim),
        torch.randn(many, c.num_attention_heads * c.head_dim + c.ff_mult * c.model_dim),
    )

    def matmuls():
        with torch.inference_mode():
            for into, out in decoder.layers:
                into(rows[0]), out(rows[1])

    models = {
        name: step(NYX.from_preset(name).eval().decoder(), few)
        for name in dict.fromkeys(("nyx-mini", scale.preset, scale.wide))
    }
    by_context, bandwidth = {name: [] for name in contexts}, []
    for _ in tqdm(range(scale.repeats), desc="growth"):
        bandwidth.append(limits()["bandwidth"])
        for name, values in in_turns(contexts, 3, number=5).items():
            by_context[name] += values
    by_batch = in_turns(batches | {"matmuls": matmuls}, scale.repeats + 2)
    short, long = (statistics.median(by_context[str(n)]) for n in (few, scale.contexts[-1]))
    best, rate = 1 / short, statistics.median(bandwidth)
    cached = c.layer_depth * 2 * c.num_kv_heads * c.head_dim * 4 * (scale.contexts[-1] - few)  # bytes, in float32
    share = statistics.median(by_batch["matmuls"]) / statistics.median(by_batch[str(many)])
    return {
        "precision": decoder.precision,
        "bandwidth": rate,
        "best": best,
        "share of bandwidth": best * c.parameters * BYTES[decoder.precision] / rate,
        "longest context, in reading times of its cache": (long - short) / (cached / rate),
        "share of matmuls at a large batch": share,
        "milliseconds by context": {name: spread([t * 1e3 for t in values]) for name, values in by_context.items()},
        "bytes/s by batch size": {name: spread([int(name) / t for t in by_batch[name]]) for name in batches},
        "bytes/s by model": speeds(in_turns(models, scale.repeats + 2, number=5), 1),
    }


BUSY = """import os, sys, threading
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()  # ends with its parent, whatever ends that
print("busy", flush=True)
while True: pass
"""


@contextlib.contextmanager
def busy_neighbours(count: int = 2):
    """Processes beside this one that compute all the time, each on one core; gone when the block ends."""
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            child = subprocess.Popen([sys.executable, "-c", BUSY], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            stack.callback(child.communicate)  # waits for its end; callbacks run last to first
            stack.callback(child.kill)
            child.stdout.readline()  # it has begun
        yield


def busy() -> dict:
    """Generation with default settings, with two busy processes beside it and without, in turns."""
    model = NYX.from_preset(scale.preset).eval()
    prompt, new = torch.randint(0, 256, (1, scale.contexts[0])), 64 if scale is FULL else 4
    generate = lambda: model.generate(prompt, new, seed=0)
    generate()
    times = {"alone": [], "two busy processes beside it": []}
    for _ in tqdm(range(scale.repeats + 2), desc="busy"):
        times["alone"].append(seconds(generate))
        with busy_neighbours():
            times["two busy processes beside it"].append(seconds(generate))
    result = speeds(times, new)
    shares = [quiet / other for quiet, other in zip(*times.values())]
    return {"speeds": result, "share of the quiet rate": spread(shares)}


def speculation() -> dict:
    """Speculative decoding against plain decoding: nyx-mini on text that it was not trained on, and nyx-30m on its own."""
    from nyx.data import builtin_corpus

    weights = HERE.parent / "weights"
    mini, valid, new, results = (
        NYX.from_pretrained(weights / "nyx-mini").eval(),
        builtin_corpus().valid,
        scale.generated,
        {},
    )

    def compare(model, prompts: list, new: int, precision: str, drafts: dict) -> dict:
        times = {name: [] for name in ("plain", *drafts)}
        for i, prompt in enumerate(tqdm(prompts, desc=f"speculation, {precision}", leave=False)):
            for name, draft in {"plain": None, **drafts}.items():
                options = {"temperature": 0.8, "seed": i, "precision": precision, "draft": draft}
                run = lambda model=model, prompt=prompt, new=new, options=options: model.generate(
                    prompt, new, **options
                )
                if not i:
                    run()
                times[name].append(seconds(run))
        return {name: spread([p / t for p, t in zip(times["plain"], times[name])]) for name in drafts}

    starts = [i * (len(valid) - 256) // scale.prompts[0] for i in range(scale.prompts[0])]
    prompts = [torch.tensor([[int(t) for t in valid[start : start + 256]]]) for start in starts]
    looked_up = compare(mini, prompts, new, "auto", {"prompt look-up": "text"})
    results["nyx-mini, prompt look-up"] = looked_up["prompt look-up"]
    large, small = (NYX.from_pretrained(weights / name).eval() for name in ("nyx-30m", "nyx-4m"))
    start = torch.tensor([list(b"It was ")])
    prompts = [
        torch.cat([start, large.generate(start, 192, seed=i, temperature=0.8)], 1) for i in range(scale.prompts[1])
    ]
    for precision in ("int8", "float32"):
        found = compare(large, prompts, min(192, new), precision, {"draft of nyx-4m": small, "prompt look-up": "text"})
        results |= {f"nyx-30m, {precision}, {name}": value for name, value in found.items()}
    return {"times the plain path": results}


def trainers() -> dict:
    """One optimizer step of each contender in bf16 and float32, Lion included."""
    ids = torch.randint(0, 256, (scale.train[0], scale.train[1] + 1))

    def trainer(make, loss, bf16: bool):
        model = make()
        optimizer = Lion(model.parameters(), lr=1e-4)

        def run():
            with torch.autocast("cpu", torch.bfloat16) if bf16 else contextlib.nullcontext():
                value = loss(model)
            value.backward()
            optimizer.step()
            optimizer.zero_grad()

        return run

    libraries = {
        "NYX": (lambda: NYX.from_preset(scale.preset), lambda m: m.loss(ids)),
        "palm-rlhf-pytorch": (palm, lambda m: m(ids, return_loss=True)),
        "x-transformers": (x_transformer, lambda m: m(ids)),
    }
    return {
        f"{name}, {precision}": partial(trainer, make, loss, precision == "bf16")
        for precision in ("bf16", "float32")
        for name, (make, loss) in libraries.items()
    }


def training() -> dict:
    """Tokens per second of one optimizer step."""
    contenders, measured = {name: make() for name, make in trainers().items()}, []
    times = {name: [] for name in contenders}
    for round_ in tqdm(range(scale.repeats), desc="training"):
        measured.append(limits())
        for name, run in contenders.items():
            took = seconds(run)
            if round_:  # the first one does not count
                times[name].append(took)
    c, n = NYX.from_preset(scale.preset).config, scale.train[1]
    result = {"speeds": speeds(times, scale.train[0] * n)}
    width = c.num_attention_heads * c.head_dim
    operations = 6 * c.parameters + c.layer_depth * 3 * 2 * n * width  # of a token, causal attention counted
    rate = statistics.median(m["bf16"] for m in measured)
    fast = result["speeds"]["NYX, bf16"]["median"]
    result |= {"bf16 rate": rate, "share of the bf16 rate": fast * operations / rate}
    result["times palm-rlhf-pytorch"] = fast / result["speeds"]["palm-rlhf-pytorch, bf16"]["median"]
    return result


def wide_loss(how: str) -> None:
    """One optimizer step of a model with a wide vocabulary, its loss in chunks or plain."""
    model = NYX.from_preset(scale.wide)
    model.activation_checkpointing = "checkpointed" in how
    ids = torch.randint(0, model.config.vocab_size, (scale.train[0], scale.train[1] + 1))
    optimizer = Lion(model.parameters(), lr=1e-4)
    if how == "plain":
        loss = torch.nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
    else:
        loss = model.loss(ids)
    loss.backward()
    optimizer.step()


WIDE = ("plain", "in chunks", "in chunks, activations checkpointed")


def memory() -> dict:
    """Peak memory of one optimizer step, in MiB: of each contender, and of nyx-gpt2 with its loss plain and in chunks."""
    cases = {name: f"train:{name}" for name in trainers()} | {f"nyx-gpt2, loss {how}": f"wide:{how}" for how in WIDE}
    return {name: peak_of(case) for name, case in tqdm(cases.items(), desc="memory")}


def peak_of(case: str) -> float:
    """MiB that a case takes at its peak, above what importing torch and nyx takes; in a process of its own."""
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}  # glibc hands freed memory back: the peak is what is in use
    command = [sys.executable, __file__, "--peak", case, *(["--quick"] if scale is QUICK else [])]
    run = subprocess.run(command, env=env, capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"{case} ended with {run.returncode}: {run.stderr[-2000:]}")
    return float(run.stdout.split()[-1])


def peak(case: str) -> None:
    """Run a case and print its peak memory in MiB."""
    before = high_water()
    kind, name = case.split(":", 1)
    update = partial(wide_loss, name) if kind == "wide" else trainers()[name]()
    update()
    update()
    print((high_water() - before) / 1024)


STATUS = Path("/proc/self/status")


def high_water() -> int:
    """KiB that this process has held at most (Linux; what getrusage says is inherited from the parent)."""
    return next(int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))


def imports() -> dict:
    """Seconds that `import nyx` takes on top of torch and huggingface_hub."""
    base, times = "import torch, huggingface_hub", {"without": [], "with": []}
    for _ in tqdm(range(scale.repeats), desc="imports"):
        for name, more in (("without", ""), ("with", ", nyx")):
            command = [sys.executable, "-c", base + more]
            times[name].append(seconds(lambda command=command: subprocess.run(command, cwd=HERE.parent, check=True)))
    return {"seconds": statistics.median(times["with"]) - statistics.median(times["without"])}


def data() -> dict:
    """The share of an optimizer step that goes into fetching its windows."""
    from nyx.data import builtin_corpus
    from nyx.training import TrainConfig, Trainer

    n = scale.train[1]
    run = TrainConfig(num_batches=6, seq_len=n, precision="float32", validate_every=100, generate_every=100)
    trainer = Trainer(NYX.from_preset("nyx-mini"), builtin_corpus(), run)
    records = [r for r, _ in zip((r for r in trainer.run() if r["event"] == "update"), range(5))]
    return {
        "share": statistics.median(r["data_seconds"] / r["seconds"] for r in records),
        "of": f"an optimizer step of nyx-mini, 4 × 4 × {n:,} bytes",
    }


# everything

SECTIONS = {f.__name__: f for f in (inference, busy, growth, speculation, training, memory, imports, data)}
if not STATUS.exists():
    del SECTIONS["memory"]  # only Linux says what a process held at most


def machine() -> dict:
    """What it ran on, in words that name no host."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return {
        "cpu": next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor()),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__.split("+")[0],
        "python": platform.python_version(),
    }


def fingerprint() -> str:
    """A hash of the code that is measured, and of the code that measures."""
    files = [Path(__file__), *sorted((HERE.parent / "nyx").glob("*.py"))]
    return hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()


def read(file: Path) -> dict:
    """What a file of results holds; nothing where there is none."""
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def store(results: dict, file: Path) -> None:
    """Write results, whole or not at all."""
    new = file.with_name(file.name + ".new")
    new.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    os.replace(new, file)


def main() -> None:
    """Run the sections that were asked for and write what they gave."""
    global scale
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "sections",
        nargs="*",
        metavar="SECTION",
        help=f"of {', '.join(SECTIONS)}: measured anew, the others stay (default: all; a run that was stopped goes on)",
    )
    parser.add_argument("--out", type=Path, default=HERE, help="the folder for results.* (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="tiny shapes, to see whether it runs; needs --out")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.manual_seed(0)
    scale = QUICK if args.quick else FULL
    if args.peak:
        return peak(args.peak)
    if unknown := set(args.sections) - set(SECTIONS):
        parser.error(f"there is no section {', '.join(sorted(unknown))}: choose from {', '.join(SECTIONS)}")
    if args.quick and args.out.resolve() == HERE:
        parser.error(f"--quick measures nothing that should stand in {HERE}: name another folder with --out")
    from report import quote, write

    args.out.mkdir(parents=True, exist_ok=True)
    file, unfinished = args.out / "results.json", args.out / "results.json.partial"
    results, here = {}, {"machine": machine(), "code": fingerprint()}
    if args.sections:
        results = read(file)
        if results and results["machine"] != here["machine"]:
            parser.error(f"{file} is from {results['machine']}, and this is {here['machine']}: measure all sections")
    elif {name: (kept := read(unfinished)).get(name) for name in here} == here:
        results = kept
    results |= here
    for name in args.sections or SECTIONS:
        if name in results and not args.sections:
            print(f"{name}: measured before this run was stopped", flush=True)
            continue
        start = time.perf_counter()
        results[name] = SECTIONS[name]()
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
        store(results, file if args.sections else unfinished)
    del results["code"]
    store(results, file)
    if not args.sections:
        unfinished.unlink()
    write(results, args.out)
    if args.out.resolve() == HERE:
        quote(results, HERE.parent / "README.md")


if __name__ == "__main__":
    main()
