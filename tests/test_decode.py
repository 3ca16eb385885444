"""Writing from packed weights: as long as a text gets, as a program, and what training keeps in memory."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nyx import NYX
from nyx.memory import activation_bytes
from nyx.training import Objective


@pytest.mark.parametrize(
    "shape", [{"layer_depth": 1}, pytest.param({}, marks=pytest.mark.nightly)], ids=["small", "nyx-30m"]
)
def test_sixteen_thousand_bytes_are_those_of_one_full_forward(shape):
    """16,384 bytes through the cache, the last ones a byte at a time, give the logits of a single pass."""
    torch.manual_seed(0)
    model = NYX.from_preset("nyx-mini" if shape else "nyx-30m", **shape).eval()
    text = torch.randint(0, 256, (1, 16_384))
    decoder = model.decoder("float32")
    cache = decoder.new_cache(1, text.shape[1])
    pieces = [*text[:, :16_000].split(512, 1), *text[:, 16_000:].split(1, 1)]
    ends, logits = [], []
    for piece in pieces:
        logits.append(decoder(piece, cache)[0, -1])
        ends.append(cache.length - 1)
    with torch.inference_mode():
        whole = model.hidden(text)[0, ends] @ model.embedding.weight.T
    assert cache.length == 16_384
    torch.testing.assert_close(torch.stack(logits), whole, rtol=0, atol=1e-3)


def test_guessing_ahead_writes_the_same_greedy_text(run_program):
    """`--draft` changes nothing of a greedy text: neither with the text itself nor with a model as guesser."""
    texts = {}
    for draft in ((), ("--draft", "text"), ("--draft", "weights/nyx-mini")):
        done = run_program(
            "test.py",
            "--weights",
            "weights/nyx-mini",
            "--sample_prompt",
            "def area(",
            "--generate_length",
            80,
            "--temperature",
            0,
            *draft,
        )
        assert done.returncode == 0, done.stderr
        texts[draft] = done.stdout
    assert len(set(texts.values())) == 1, texts


@pytest.mark.parametrize("precision", ["float32", "bf16", "int8"])
def test_each_precision_writes(run_program, precision):
    """Every precision writes words of Python after a prompt of Python."""
    done = run_program(
        "test.py",
        "--weights",
        "weights/nyx-mini",
        "--sample_prompt",
        "import ",
        "--generate_length",
        120,
        "--precision",
        precision,
        "--seed",
        3,
    )
    assert done.returncode == 0 and sum(c.isascii() for c in done.stdout) > 120, (done.stdout, done.stderr)


@pytest.mark.parametrize(
    ("flags", "words"),
    [(("--draft", "nowhere"), "no folder nowhere"), (("--precision", "int4"), "invalid choice"), (("--draft", ""), "")],
    ids=["a draft that is not there", "an unknown precision", "an empty draft"],
)
def test_wrong_requests_get_a_sentence(run_program, flags, words):
    """What cannot write is refused with exit code 2 before a byte is written."""
    done = run_program("test.py", "--weights", "weights/nyx-mini", "--sample_prompt", "a", *flags)
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr and not done.stdout


def test_a_draft_with_other_tokens_is_refused():
    """A guesser must know the same tokens."""
    model, other = NYX.from_preset("nyx-mini"), NYX.from_preset("nyx-mini", vocab_size=300)
    with pytest.raises(ValueError, match="300 tokens and this model 256"):
        model.generate(torch.zeros(1, 3, dtype=torch.long), 4, draft=other)
    with pytest.raises(ValueError, match="one text at a time"):
        model.generate(torch.zeros(2, 3, dtype=torch.long), 4, draft="text")
    with pytest.raises(ValueError, match='give "text"'):
        model.generate(torch.zeros(1, 3, dtype=torch.long), 4, draft="magic")


def test_checkpointed_activations_train_the_same(run_program, workspace):
    """A run that computes activations twice has the losses of one that keeps them."""
    losses = []
    for name, flags in (("kept", ()), ("twice", ("--activation_checkpointing",))):
        done = run_program(
            "train.py", "--filepath", "nyx/model.py", "--preset", "nyx-mini", "--num_batches", 4, "--seq_len", 32, "--batch_size", 2,
            "--gradient_accumulate_every", 1, "--generate_length", 4, "--prime_length", 4, "--out_dir", name, *flags,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        records = map(json.loads, (workspace / name / "log.jsonl").read_text().splitlines())
        losses.append([r["loss"] for r in records if r["event"] == "update"])
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-5)


class PlainLoss(nn.Module):
    """The loss with all logits at once."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, tokens):
        return F.cross_entropy(self.model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


def test_a_wide_vocabulary_is_no_memory_bill():
    """Of nyx-gpt2 at 4 × 1,024, the chunked loss keeps no logits, and checkpointing less than a fifth of what is left."""
    with torch.device("meta"):
        model = NYX.from_preset("nyx-gpt2")
    model = model.to_empty(device="cpu")
    plain, chunked = (activation_bytes(loss(model), 4, 1025) for loss in (PlainLoss, Objective))
    logits = 4 * 1024 * 50_257 * 4
    assert plain - chunked >= logits, (plain, chunked)
    model.activation_checkpointing = True
    assert activation_bytes(Objective(model), 4, 1025) < chunked / 5


@pytest.mark.nightly
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_compiled_run_has_the_losses_of_a_plain_one(run_program, workspace, precision):
    """`--compile` changes no loss beyond rounding (needs a C++ compiler, and a minute for it)."""
    losses = []
    for name, flags in (("plain", ()), ("compiled", ("--compile",))):
        done = run_program(
            "train.py", "--filepath", "nyx/model.py", "--preset", "nyx-mini", "--layer_depth", 1, "--num_batches", 3, "--seq_len", 64,
            "--batch_size", 2, "--gradient_accumulate_every", 1, "--generate_length", 4, "--prime_length", 4, "--validate_bytes", 64,
            "--precision", precision, "--out_dir", name, *flags, env={"NYX_TYPECHECK": ""}, timeout=550,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        records = map(json.loads, (workspace / name / "log.jsonl").read_text().splitlines())
        losses.append([r["loss"] for r in records if r["event"] == "update"])
    torch.testing.assert_close(losses[1], losses[0], rtol=0, atol=1e-4 if precision == "float32" else 2e-2)
