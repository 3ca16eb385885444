"""Measure NYX beside other libraries, in turns, and write results.json, results.md and results.png.

    make bench                                   # everything, about 15 minutes on two cores
    python benchmarks/bench.py sampling training # some of it; the rest of results.json stays

Machines are noisy: bandwidth and matrix rate are measured in the same run, contenders take turns, and every figure is a
median with the middle half of its values. Times come from torch.utils.benchmark, peak memory from processes of their own.
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
os.environ.pop("NYX_TYPECHECK", None)  # as in production
warnings.filterwarnings("ignore")

import torch
from lion_pytorch import Lion
from torch.utils.benchmark import Timer
from tqdm import tqdm

from nyx import NYX
from nyx.decode import Decoder, LookUp, speculate
from nyx.sampling import Sampling, prefill

CONTEXT = 1000  # bytes before the one that is timed
TRAIN = (4, 1024)  # windows and their length


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
    """The median, and the quarters around it."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"median": middle, "low": low, "high": high}


def speeds(times: dict[str, list[float]], units: float) -> dict[str, dict[str, float]]:
    """Units a second of each contender."""
    return {name: spread([units / t for t in values]) for name, values in times.items()}


def limits() -> dict[str, float]:
    """What the machine can do right now: bytes a second from memory, and operations a second in two precisions."""
    ones, rates = torch.ones(2**28), {}
    bandwidth = 2**30 / min(seconds(ones.sum) for _ in range(5))
    del ones
    for name, dtype in (("float32", torch.float32), ("bf16", torch.bfloat16)):
        a = torch.randn(4096, 4096).to(dtype)
        rates[name] = 2 * 4096**3 / min(seconds(lambda a=a: a @ a) for _ in range(3))
    return {"bandwidth": bandwidth, **rates}


def step(decoder, context: int, rows: int = 1):
    """A function that computes one more token for each of some rows after `context` tokens."""
    cache = decoder.new_cache(rows, context + 2)
    prompt = torch.randint(0, 256, (rows, context))
    with torch.inference_mode():
        if context <= 1024:
            prefill(decoder, prompt, cache)
        else:  # what stands there does not matter for the time
            cache.keys.normal_(), cache.values.normal_()
            cache.length = context
    token = torch.zeros(rows, 1, dtype=torch.long)

    def run():
        with torch.inference_mode():
            cache.rewind(context)
            decoder(token, cache=cache)

    return run


def palm():
    """palm-rlhf-pytorch, which has this very block; its fused attention on."""
    from palm_rlhf_pytorch import PaLM

    return PaLM(num_tokens=256, dim=512, depth=8, heads=8, dim_head=64, flash_attn=True, cross_entropy_ignore_index=-1)


def x_transformer():
    """x-transformers with a decoder of the same width, depth, heads and, nearly, parameters; its blocks are sequential."""
    from x_transformers import AutoregressiveWrapper, TransformerWrapper
    from x_transformers import Decoder as Layers

    block = {
        "ff_glu": True,
        "ff_swish": True,
        "ff_no_bias": True,
        "rotary_xpos": True,
        "attn_one_kv_head": True,
        "attn_flash": True,
    }
    layers = Layers(dim=512, depth=8, heads=8, attn_dim_head=64, **block)
    return AutoregressiveWrapper(
        TransformerWrapper(
            num_tokens=256, max_seq_len=2048, attn_layers=layers, tie_embedding=True, use_abs_pos_emb=False
        )
    )


def sampling() -> dict:
    """One stream after 1,000 bytes: NYX in three precisions, the plain model with its cache, and two libraries; and NYX at its best."""
    model, text = NYX.from_preset("nyx-30m").eval(), torch.randint(0, 256, (1, CONTEXT))
    contenders = {f"NYX, {p}": step(Decoder(model, p), CONTEXT) for p in ("int8", "bf16", "float32")}
    contenders["NYX, the model itself with its cache"] = step(model, CONTEXT)
    contenders["NYX, int8, after 128 bytes"] = step(Decoder(model, "int8"), 128)
    times = {name: [] for name in contenders}
    measured = []
    peer, other = palm().eval(), x_transformer().eval()

    def no_cache():
        with torch.inference_mode():
            peer(text)

    def cached():
        with torch.inference_mode():
            other.generate(text, 16, cache_kv=True)

    slow = {"palm-rlhf-pytorch (no cache)": no_cache, "x-transformers (cache), 16 bytes with their prompt": cached}
    times |= {name: [] for name in slow}
    for _ in tqdm(range(5), desc="sampling"):
        measured.append(limits())
        for name, values in in_turns(contenders, 5, number=8).items():
            times[name] += values
        for name, values in in_turns(slow, 2).items():
            times[name] += [t / 16 if "16 bytes" in name else t for t in values]
    bandwidth = statistics.median(m["bandwidth"] for m in measured)
    result = {"bandwidth": bandwidth, "speeds": speeds(times, 1)}
    middle = {name: speed["median"] for name, speed in result["speeds"].items()}
    result["times palm-rlhf-pytorch"] = middle["NYX, int8"] / middle["palm-rlhf-pytorch (no cache)"]
    result["best"] = middle["NYX, int8, after 128 bytes"]
    result["share of bandwidth"] = result["best"] * model.config.parameters / bandwidth
    return result


def growth() -> dict:
    """How a step grows with context, with batch and with the model."""
    model = NYX.from_preset("nyx-30m").eval()
    decoder = Decoder(model)
    contexts = {str(c): step(decoder, c) for c in (128, 512, 1024, 2048, 4096, 8192)}
    batches = {str(b): step(decoder, 128, b) for b in (1, 2, 4, 8, 16, 32, 64)}
    rows = torch.randn(32, 512), torch.randn(32, 2560)

    def products():
        with torch.inference_mode():
            for into, out in decoder.layers:
                into(rows[0]), out(rows[1])

    models = {name: step(NYX.from_preset(name).eval().decoder(), 128) for name in ("nyx-mini", "nyx-30m", "nyx-gpt2")}
    by_context, bandwidth = {name: [] for name in contexts}, []
    for _ in range(5):
        bandwidth.append(limits()["bandwidth"])
        for name, values in in_turns(contexts, 3, number=5).items():
            by_context[name] += values
    by_batch = in_turns(batches | {"products of 32": products}, 7)
    extra = statistics.median(by_context["8192"]) - statistics.median(by_context["128"])
    reading = 8 * 2 * 64 * 4 * (8192 - 128) / statistics.median(bandwidth)
    return {
        "milliseconds by context": {name: spread([t * 1e3 for t in values]) for name, values in by_context.items()},
        "8,192 bytes of context, in reading times of their cache": extra / reading,
        "bytes a second by batch": {name: spread([int(name) / t for t in by_batch[name]]) for name in batches},
        "share of its products at batch 32": statistics.median(by_batch["products of 32"])
        / statistics.median(by_batch["32"]),
        "bytes a second by model": speeds(in_turns(models, 7, number=5), 1),
    }


def speculation() -> dict:
    """Looking up the text so far, on prompts from the validation split that nyx-mini was not trained on."""
    from nyx.data import builtin_corpus

    model, valid = NYX.from_pretrained(HERE.parent / "weights" / "nyx-mini").eval(), builtin_corpus().valid
    decoder, settings, ratios, kept = model.decoder(), Sampling(temperature=0.8), [], []
    for i in tqdm(range(20), desc="speculation"):
        start = i * (len(valid) - 256) // 20
        prompt = torch.tensor([[int(t) for t in valid[start : start + 256]]])
        plain = seconds(lambda prompt=prompt, i=i: model.generate(prompt, 512, temperature=0.8, seed=i))
        ahead = seconds(
            lambda prompt=prompt, i=i: list(speculate(decoder, prompt, 512, LookUp(256), settings, i, kept))
        )
        ratios.append(plain / ahead)
    return {"times the plain path": spread(ratios), "guesses kept in a step": statistics.mean(kept)}


def trainers() -> dict:
    """One update of each contender at 4 × 1024 in bf16 (and NYX in float32), Lion included."""
    ids = torch.randint(0, 256, (TRAIN[0], TRAIN[1] + 1))

    def trainer(make, loss, bf16: bool = True):
        model = make()
        optimizer = Lion(model.parameters(), lr=1e-4)

        def run():
            with torch.autocast("cpu", torch.bfloat16) if bf16 else contextlib.nullcontext():
                value = loss(model)
            value.backward()
            optimizer.step()
            optimizer.zero_grad()

        return run

    nyx = lambda: NYX.from_preset("nyx-30m")
    return {
        "NYX, bf16": lambda: trainer(nyx, lambda m: m.loss(ids)),
        "palm-rlhf-pytorch, bf16": lambda: trainer(palm, lambda m: m(ids, return_loss=True)),
        "x-transformers, bf16": lambda: trainer(x_transformer, lambda m: m(ids)),
        "NYX, float32": lambda: trainer(nyx, lambda m: m.loss(ids), bf16=False),
    }


def training() -> dict:
    """Tokens a second of one update."""
    contenders, measured = {name: make() for name, make in trainers().items()}, []
    times = {name: [] for name in contenders}
    for _ in tqdm(range(4), desc="training"):
        measured.append(limits())
        for name, run in contenders.items():
            if not times[name]:
                run()  # the first one does not count
            times[name].append(seconds(run))
    tokens = TRAIN[0] * TRAIN[1]
    result = {"speeds": speeds(times, tokens)}
    operations = 6 * 30_020_096 + 8 * 3 * 2 * TRAIN[1] * 512  # a token, causal attention counted
    rate = statistics.median(m["bf16"] for m in measured)
    fast = result["speeds"]["NYX, bf16"]["median"]
    result |= {"bf16 rate": rate, "share of the bf16 rate": fast * operations / rate}
    result["times palm-rlhf-pytorch"] = fast / result["speeds"]["palm-rlhf-pytorch, bf16"]["median"]
    return result


def wide_loss(how: str) -> None:
    """One update of nyx-gpt2 at 4 × 1024, its loss in chunks or plain."""
    model = NYX.from_preset("nyx-gpt2")
    model.activation_checkpointing = "checkpointed" in how
    ids = torch.randint(0, 50257, (TRAIN[0], TRAIN[1] + 1))
    optimizer = Lion(model.parameters(), lr=1e-4)
    if how == "plain":
        loss = torch.nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
    else:
        loss = model.loss(ids)
    loss.backward()
    optimizer.step()


WIDE = ("plain", "in chunks", "in chunks, activations checkpointed")


def memory() -> dict:
    """Peak memory of one update, in MiB: of each contender, and of nyx-gpt2 with its loss plain and in chunks."""
    contenders = {name: peak_of(f"train:{name}") for name in trainers()}
    return contenders | {f"nyx-gpt2, loss {how}": peak_of(f"wide:{how}") for how in WIDE}


def peak_of(case: str) -> float:
    """MiB that a case takes at its peak, above what importing torch and nyx takes; in a process of its own."""
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}  # glibc hands freed memory back: the peak is what is in use
    run = subprocess.run(
        [sys.executable, __file__, "--peak", case], env=env, capture_output=True, text=True, check=True
    )
    return float(run.stdout.split()[-1])


def peak(case: str) -> None:
    """Run a case and print its peak memory in MiB."""
    before = high_water()
    kind, name = case.split(":", 1)
    update = partial(wide_loss, name) if kind == "wide" else trainers()[name]()
    update()
    update()
    print((high_water() - before) / 1024)


def high_water() -> int:
    """KiB that this process has held at most (Linux; what getrusage says is inherited from the parent)."""
    return next(
        int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")
    )


def imports() -> dict:
    """Seconds that `import nyx` takes on top of torch and huggingface_hub."""
    base, times = "import torch, huggingface_hub", {"without": [], "with": []}
    for _ in range(5):
        for name, more in (("without", ""), ("with", ", nyx")):
            command = [sys.executable, "-c", base + more]
            times[name].append(seconds(lambda command=command: subprocess.run(command, cwd=HERE.parent, check=True)))
    return {"seconds": statistics.median(times["with"]) - statistics.median(times["without"])}


def data() -> dict:
    """The share of an update that goes into fetching its windows."""
    from nyx.data import builtin_corpus
    from nyx.training import TrainConfig, Trainer

    run = TrainConfig(num_batches=6, seq_len=1024, precision="float32", validate_every=100, generate_every=100)
    trainer = Trainer(NYX.from_preset("nyx-mini"), builtin_corpus(), run)
    records = [r for r, _ in zip((r for r in trainer.run() if r["event"] == "update"), range(5))]
    return {
        "share": statistics.median(r["data_seconds"] / r["seconds"] for r in records),
        "of": "an update of nyx-mini, 4 × 4 × 1,024 bytes",
    }


SECTIONS = {f.__name__: f for f in (sampling, growth, speculation, training, memory, imports, data)}


def machine() -> dict:
    """What it ran on, in words that name no host."""
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    return {
        "cpu": cpu,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__.split("+")[0],
        "python": platform.python_version(),
    }


def main() -> None:
    """Run the sections that were asked for and write what they gave."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "sections",
        nargs="*",
        default=list(SECTIONS),
        metavar="SECTION",
        help=f"of {', '.join(SECTIONS)} (default: all)",
    )
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.manual_seed(0)
    if args.peak:
        return peak(args.peak)
    if unknown := set(args.sections) - set(SECTIONS):
        parser.error(f"there is no section {', '.join(sorted(unknown))}: choose from {', '.join(SECTIONS)}")
    from report import write

    file = HERE / "results.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    for name in args.sections:
        results |= {name: SECTIONS[name](), "machine": machine()}
        file.write_text(json.dumps(results, indent=1) + "\n")
    write(results, HERE)


if __name__ == "__main__":
    main()
