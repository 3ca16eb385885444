"""Whatever comes in, there is an answer: a result that makes sense, or one sentence that says what was wrong.

Never a traceback, never silence, never a wait without an end. Each property is tried with a few examples in every run, and
with many new ones at night (`make test-nightly`); what a run of all of them amounts to is checked at the end.
"""

import contextlib
import gzip
import io
import json
import lzma
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
from dataclasses import asdict, fields
from pathlib import Path

import jaxtyping
import pytest
import torch
from conftest import EXAMPLES, ROOT, tries
from hypothesis import assume, given
from hypothesis import strategies as st
from programs import PROGRAMS, RUN, SHAPE, Done, environment, flags, small_model, write_text

import nyx.cli
from nyx import NYX, NYXConfig
from nyx.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from nyx.cli import test_parser as write_parser
from nyx.cli import train_parser
from nyx.data import (
    ByteTokenizer,
    DataError,
    GPT2Tokenizer,
    VocabularyUnavailable,
    eval_windows,
    load_corpus,
    token_ids,
    trim_utf8,
    unfinished_utf8,
    window_starts,
)
from nyx.lora import (
    Target,
    adapter_names,
    add_adapter,
    load_adapter,
    merge_adapters,
    remove_adapter,
    save_adapter,
    unmerge_adapters,
    use_adapters,
)
from nyx.model import LIMITS
from nyx.sampling import Sampling, stream_text
from nyx.training import TrainConfig

PARSERS = {"train.py": train_parser, "test.py": write_parser}
NAN, INF = math.nan, math.inf


class TooLong(BaseException):
    """An answer did not come in time. No `except Exception` of the code under test can swallow this."""


@contextlib.contextmanager
def answered(seconds: int = 30):
    """What is inside must end within some seconds; shapes are not checked, as in a user's hands."""

    def late(*_):
        raise TooLong(f"no answer within {seconds} seconds")

    before = signal.signal(signal.SIGALRM, late) if hasattr(signal, "SIGALRM") else None
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        if before is not None:
            signal.alarm(seconds)
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
        if before is not None:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)


def outcome(function, *arguments, error=ValueError, **options):
    """What a call gives: (result, ""), or (None, the sentence of its error). Any other exception is the test's."""
    with answered(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return function(*arguments, **options), ""
        except error as e:
            assert re.search(r"\w+ \w+", str(e)) and "\n" not in str(e)[:200], f"no sentence: {e!r}"
            return None, str(e)


# values of every kind

WHOLE = st.one_of(
    st.sampled_from([-(10**30), -1, 0, 1, 2, 3, 7, 8, 64, 10**6 + 1, 10**13, 10**400]), st.integers(1, 40)
)
NUMBER = st.one_of(
    st.sampled_from([NAN, INF, -INF, -0.0, 0.0, 1.0, 5e-324, 1e-46, 1e-8, 1e300, 10**400]), st.floats(0, 1)
)
OTHER = st.one_of(st.none(), st.booleans(), st.text(max_size=4), st.lists(st.integers(), max_size=2), st.just({}))
ANYTHING = st.one_of(WHOLE, NUMBER, OTHER)
PLAIN = st.recursive(st.one_of(st.none(), st.booleans(), st.integers(-20, 20) | st.integers(2**62), st.floats(), st.text(max_size=5)),
                     lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
                     max_leaves=6)  # fmt: skip


def settings_of(config_class, numbers: tuple[str, ...], **right: st.SearchStrategy) -> st.SearchStrategy:
    """Some fields of a configuration: most of them right, a few of any kind, and now and then a field that is none."""
    good = {f.name: right.get(f.name, st.integers(1, 5)) for f in fields(config_class)}
    bad = {f.name: NUMBER | OTHER if f.name in numbers else ANYTHING for f in fields(config_class)} | {"colour": PLAIN}
    some = st.lists(st.sampled_from(sorted(bad)), max_size=2).flatmap(
        lambda n: st.fixed_dictionaries({k: bad[k] for k in n})
    )
    return st.builds(lambda a, b: a | b, st.fixed_dictionaries({}, optional=good), some)


# configurations

SHAPES = settings_of(
    NYXConfig, ("attn_dropout", "ff_dropout", "rotary_base", "xpos_scale_base"),
    head_dim=st.sampled_from([2, 4, 8]), attn_dropout=st.floats(0, 0.9), ff_dropout=st.floats(0, 0.9),
    rotary_base=st.floats(2, 1e6), xpos_scale_base=st.none() | st.floats(1, 1e6), vocab_size=st.integers(2, 500),
)  # fmt: skip
RUNS = settings_of(
    TrainConfig, ("learning_rate", "final_rate", "weight_decay", "clip"),
    learning_rate=st.floats(1e-9, 1), final_rate=st.floats(0, 1), weight_decay=st.floats(0, 100), clip=st.floats(1e-9, 1e9),
    precision=st.sampled_from(["auto", "float32", "bf16"]), compile=st.booleans(),
)  # fmt: skip


@tries(quick=60, nightly=2000)
@given(SHAPES)
def test_a_shape_is_a_model_or_is_refused_by_name(values):
    config, said = outcome(NYXConfig.from_dict, values)
    if config is None:
        assert any(name in said for name in (*values, "parameters")), (values, said)
        return
    assume(config.layer_depth < 100)
    with torch.device("meta"):
        model = NYX(config)
    assert sum(p.numel() for p in model.parameters()) == config.parameters
    if config.parameters < 100_000:
        logits, said = outcome(NYX(config), torch.tensor([[1, 0, 1]]))
        assert not said and logits.isfinite().all()
    assert NYXConfig.from_dict(json.loads(json.dumps(asdict(config)))) == config


@tries(quick=60, nightly=1500)
@given(RUNS)
def test_settings_of_a_run_are_taken_or_refused_by_name(values):
    config, said = outcome(TrainConfig.from_dict, values)
    if config is None:
        assert any(name in said for name in values), (values, said)
    else:
        assert TrainConfig.from_dict(asdict(config)) == config


def test_absurd_sizes_are_refused_one_by_one():
    for name, (low, high) in LIMITS.items():
        for value in (low - 1, high + 1, 10**400):
            assert name in outcome(NYXConfig.from_dict, {name: value})[1]
    for name in ("rotary_base", "xpos_scale_base"):
        for value in (0.9, -1, NAN, INF, 1e300, 10**400, "512"):
            assert name in outcome(NYXConfig.from_dict, {name: value})[1]


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    small_model().save_pretrained(folder := tmp_path_factory.mktemp("saved"))
    return folder


@tries(quick=40, nightly=600)
@given(st.binary(max_size=40) | PLAIN.map(lambda v: json.dumps(v).encode()) | st.dictionaries(
    st.sampled_from([f.name for f in fields(NYXConfig)]), WHOLE | NUMBER | PLAIN).map(
    lambda v: json.dumps({k: x for k, x in v.items() if x != 10**400}).encode()))  # fmt: skip
def test_a_config_file_fits_its_weights_or_is_refused(saved, data):
    (saved / "config.json").write_bytes(data)
    model, said = outcome(NYX.from_pretrained, saved, error=CheckpointError)
    assert said or model.config.parameters == small_model().config.parameters


# tokens

MODEL = small_model(seed=1)


@st.composite
def tensors(draw) -> torch.Tensor:
    shape = draw(st.lists(st.integers(0, 5), max_size=3) | st.just([1, 40]) | st.just([2, 3]))
    kind = draw(
        st.sampled_from([torch.int64] * 6 + [torch.int32, torch.uint8, torch.bool, torch.float32, torch.bfloat16])
    )
    low, high = draw(st.sampled_from([(0, 255)] * 3 + [(-3, 255), (0, 256), (-(2**63), 2**63 - 1)]))
    torch.manual_seed(draw(st.integers(0, 99)))
    return torch.randint(low, high, shape).to(kind)


@tries(quick=80, nightly=1500)
@given(tensors())
def test_tokens_get_logits_or_a_sentence(tokens):
    right = tokens.dim() == 2 and tokens.numel() > 0 and tokens.dtype in (torch.int64, torch.int32)
    right = right and 0 <= int(tokens.min()) and int(tokens.max()) < 256
    logits, said = outcome(MODEL, tokens)
    assert (logits is not None) == bool(right), said
    assert not right or (logits.shape == (*tokens.shape, 256) and logits.isfinite().all())
    loss, _ = outcome(MODEL.loss, tokens)
    assert (loss is not None) == bool(right and tokens.shape[1] > 1)
    new, _ = outcome(MODEL.generate, tokens, 2, seed=1)
    assert (new is not None) == bool(right)


@tries(quick=40, nightly=500)
@given(st.sampled_from(["max_new", "seed", "temperature", "top_k", "top_p", "min_p"]), ANYTHING)
def test_a_request_to_write_is_met_or_refused_by_name(name, value):
    assume(not (name == "max_new" and isinstance(value, int) and 40 < value <= 10**9))
    request = {"max_new": 3, "seed": 1} | {name: value}
    new, said = outcome(MODEL.generate, torch.tensor([[72, 105]]), **request)
    assert name in said if new is None else new.shape == (1, request["max_new"])


@tries(quick=25, nightly=500)
@given(st.lists(st.integers(-1, 7), min_size=1, max_size=4))
def test_lengths_of_prompts_are_met_or_refused(lengths):
    prompts = torch.arange(18).reshape(3, 6) + 65
    new, said = outcome(MODEL.generate, prompts, 2, lengths=torch.tensor(lengths), temperature=0)
    right = len(lengths) == 3 and all(1 <= n <= 6 for n in lengths)
    assert (new is not None) == right and (right or "lengths" in said)
    for i in range(3 if right else 0):
        alone = MODEL.generate(prompts[i : i + 1, : lengths[i]], 2, temperature=0)
        assert torch.equal(new[i : i + 1], alone)


# filters

LOGIT = st.one_of(
    st.integers(-300, 300).map(lambda tenths: tenths / 10), st.sampled_from([-INF, -INF, NAN, INF, 3e38, -3e38, 0.0])
)
TEMPERATURE = st.sampled_from([0, 1e-300, 1e-8, 0.7, 1, 30.0, 1e300])
CHOICE = st.builds(
    Sampling, TEMPERATURE, st.none() | st.integers(1, 9) | st.just(10**30),
    st.none() | st.floats(0, 1, exclude_min=True), st.none() | st.floats(0, 1, exclude_min=True),
)  # fmt: skip


@tries(quick=150, nightly=3000)
@given(st.lists(LOGIT, min_size=1, max_size=7), CHOICE, st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
def test_filters_leave_a_distribution_or_say_why_there_is_none(row, choice, kind):
    logits = torch.tensor([row], dtype=kind)
    found, said = outcome(choice.probabilities, logits)
    if not logits.amax().isfinite():  # a NaN or +inf anywhere, or -inf everywhere
        assert found is None and "logits hold" in said
        return
    assert found.shape == logits.shape and (found >= 0).all() and abs(found.double().sum().item() - 1) < 1e-5
    assert found[0].amax() == found[0, logits[0].argmax()], "the most probable token stays so"
    assert (found[logits == -INF] == 0).all(), "what is forbidden stays so"
    if choice.top_k is not None and 0 < choice.temperature < 100:
        assert (found[0] > 0).sum() <= (logits[0] >= logits[0].sort(descending=True).values[: choice.top_k][-1]).sum()
    drawn = choice.draw(logits, torch.Generator().manual_seed(1))
    assert found[0, drawn] > 0


def test_filters_on_the_rows_that_break_them():
    one = torch.tensor([[-INF, 2.0, -INF, -INF]])
    for choice in (
        Sampling(0),
        Sampling(1e-8),
        Sampling(1e300),
        Sampling(top_k=10**6),
        Sampling(top_p=1.0),
        Sampling(top_p=1e-320),
    ):
        assert choice.probabilities(one).tolist() == [[0, 1, 0, 0]], choice
    row = torch.randn(1, 9, generator=torch.Generator().manual_seed(3))
    for same in (Sampling(top_p=1.0), Sampling(top_k=9), Sampling(top_k=10), Sampling(min_p=1e-30)):
        torch.testing.assert_close(same.probabilities(row), row.softmax(-1))
    assert Sampling(1e-8).draw(row).item() == Sampling(0).draw(row).item() == row.argmax().item()
    for broken in (torch.tensor([[1.0, NAN]]), torch.full((1, 3), -INF), torch.tensor([[INF, 1.0]])):
        with pytest.raises(ValueError, match="the logits hold"):
            Sampling().draw(broken)


# tokenizers and text


@pytest.fixture(scope="module")
def gpt2():
    try:
        return GPT2Tokenizer()
    except VocabularyUnavailable as e:
        pytest.skip(f"GPT-2's vocabulary is not here: {e}")


def assert_whole(tokenizer, text: str | bytes) -> None:
    """Text goes in and comes out the same, and each token is counted with its bytes."""
    tokens, said = outcome(tokenizer.encode, text, error=DataError)
    if isinstance(text, str) and re.search("[\ud800-\udc7f\udd00-\udfff]", text):
        assert "surrogate" in said  # half a character that stands for no byte
        return
    whole = text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")
    assert tokenizer.to_bytes(tokens) == whole and tokenizer.byte_lengths(tokens).sum() == len(whole)
    assert tokenizer.decode(tokens) == whole.decode("utf-8", "replace")


ODD_TEXT = (
    st.binary(max_size=60) | st.text(st.characters(codec=None, categories=None), max_size=30) | st.text(max_size=30)
)


@tries(quick=60, nightly=1000)
@given(ODD_TEXT)
def test_any_text_is_whole_after_the_byte_tokenizer(text):
    assert_whole(ByteTokenizer(), text)


@tries(quick=40, nightly=1000)
@given(ODD_TEXT)
def test_any_text_is_whole_after_gpt2s_tokenizer(gpt2, text):
    assert_whole(gpt2, text)


@tries(quick=60, nightly=1000)
@given(st.lists(st.sampled_from([-1, 0, 7, 255, 256, 300]), max_size=3) | st.lists(ANYTHING, max_size=3) | tensors())
def test_token_ids_are_what_was_given_or_refused(tokens):
    plain = tokens.flatten().tolist() if isinstance(tokens, torch.Tensor) else tokens
    assume(plain)
    right = all(type(t) is int and 0 <= t < 256 for t in plain)
    ids, said = outcome(token_ids, tokens, 256)
    assert ids.tolist() == plain if right else said


@tries(quick=60, nightly=1000)
@given(ODD_TEXT, st.lists(st.integers(0, 90), max_size=6))
def test_text_that_comes_in_pieces_reads_as_in_one(text, cuts):
    data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    pieces = [data[a:b] for a, b in zip(edges, edges[1:])]
    assert "".join(stream_text(pieces)) == data.decode("utf-8", "replace")
    for piece in pieces:
        assert 0 <= unfinished_utf8(piece) <= 3 and trim_utf8(piece) in piece


PROMPTS = {
    "empty": b"", "emoji": "🙂🏳️‍🌈".encode(), "invalid UTF-8": b"\xff\xc3", "half a character": "é".encode()[:1],
    "NUL": b"\0\0a\0", "blank": b" ", "smuggled": "\udcff\udc80", "half a surrogate": "\ud800", "long": b"To be " * 900,
}  # fmt: skip


@pytest.mark.parametrize("name", PROMPTS)
def test_odd_prompts_are_continued_or_refused(name):
    text, said = outcome(lambda: "".join(MODEL.stream(PROMPTS[name], 3, seed=1)))
    if name in ("empty", "half a surrogate"):
        assert "empty" in said or "surrogate" in said
    else:
        assert 1 <= len(text) <= 3


@tries(quick=25, nightly=500)
@given(ODD_TEXT)
def test_any_prompt_is_continued_or_refused(prompt):
    text, said = outcome(lambda: "".join(MODEL.stream(prompt, 2, temperature=0)))
    assert (text is not None and len(text) <= 3) or "empty" in said or "surrogates" in said


# windows and corpora


@tries(quick=60, nightly=1000)
@given(st.integers(2, 4000), st.integers(2, 60), st.integers(1, 59), st.integers(1, 500), st.integers(-1, 2**70))
def test_windows_score_each_token_once_and_stay_inside(length, window, stride, sample, seed):
    windows, said = outcome(lambda: list(eval_windows(length, window, stride)))
    if stride >= window:
        assert "stride" in said
        return
    scored = [t for start, stop, first in windows for t in range(first, stop)]
    assert scored == list(range(1, length)) and all(0 <= a < f < b <= length for a, b, f in windows)
    assert {*eval_windows(length, window, stride, sample)} <= {*windows}
    starts, said = outcome(window_starts, seed, 3, 50, length, window)
    assert "no window" in said if length < window else 0 <= starts.min() <= starts.max() <= length - window


@tries(quick=30, nightly=400)
@given(st.binary(max_size=3000), st.sampled_from(["txt", "gz", "xz", "GZ"]), st.booleans(), st.floats(0.01, 0.9))
def test_any_file_is_a_corpus_or_is_refused(data, kind, pack, share):
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        patch.setenv("NYX_CACHE", f"{place}/cache")
        packer = {"gz": gzip.compress, "xz": lzma.compress}.get(kind.lower(), bytes) if pack else bytes
        (path := Path(place, f"a.{kind}")).write_bytes(packer(data))
        corpus, said = outcome(load_corpus, path, valid_fraction=share, error=DataError)
        marked = data.startswith((b"\xff\xfe", b"\xfe\xff", b"\xef\xbb\xbf"))  # then it may be converted, or hold nothing more
        assert said or marked or corpus.train.tobytes() + corpus.valid.tobytes() == data
        assert said or corpus.valid_bytes == len(corpus.valid)
        assert not said or not data or kind != "txt" or marked
        assert not pack or not data or not said or marked


# checkpoints and adapters


def changed(draw, data: bytes) -> bytes:
    """A file with some of its bytes changed, cut off, doubled or put in."""
    for _ in range(draw(st.integers(1, 3))):
        at, count = draw(st.integers(0, len(data))), draw(st.integers(1, 40))
        put = draw(st.one_of(st.just(b""), st.binary(max_size=8), st.just(data[at : at + count] * 2)))
        data = data[:at] + put + data[at + (count if draw(st.booleans()) else len(put)) :]
    return data


def equal(a, b) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@tries(quick=80, nightly=1500)
@given(st.data())
def test_a_changed_checkpoint_is_whole_or_is_refused(tmp_path_factory, data):
    state = {
        "weights": torch.arange(600.0).reshape(20, 30),
        "update": 3,
        "name": "x",
        "more": {"a": None, "b": [1.5, True]},
    }
    path = tmp_path_factory.getbasetemp() / "changed.pth"
    save_checkpoint(path, state)
    path.write_bytes(changed(data.draw, path.read_bytes()))
    found, said = outcome(load_checkpoint, path, error=CheckpointError)
    assert said or equal(found, state)


@tries(quick=60, nightly=1000)
@given(st.data())
def test_changed_weights_are_sound_or_are_refused(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "changed"
    model = small_model()
    model.save_pretrained(folder)
    path = folder / "model.safetensors"
    path.write_bytes(changed(data.draw, path.read_bytes()))
    found, said = outcome(NYX.from_pretrained, folder, error=CheckpointError)
    assert said or all(p.isfinite().all() for p in found.parameters())


@tries(quick=60, nightly=1000)
@given(st.data())
def test_a_changed_adapter_is_put_on_or_is_refused(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "changed.safetensors"
    model = small_model()
    add_adapter(model, "a", model.lora_targets("q"), rank=2)
    save_adapter(model, "a", path)
    remove_adapter(model, "a")
    path.write_bytes(changed(data.draw, path.read_bytes()))
    _, said = outcome(load_adapter, model, path)
    assert bool(said) != bool(adapter_names(model))
    assert model(torch.tensor([[1, 2, 3]])).isfinite().all()


@tries(quick=60, nightly=800)
@given(
    st.text(max_size=3) | st.sampled_from(["a", "b-1"]),
    st.sampled_from(["q", "k", "ff_out", "up"]),
    WHOLE,
    NUMBER,
    NUMBER,
)
def test_an_adapter_is_put_on_or_is_refused_and_comes_off_without_a_trace(name, part, rank, alpha, dropout):
    model = small_model()
    before, tokens = {k: v.clone() for k, v in model.state_dict().items()}, torch.tensor([[1, 2, 3]])
    targets, _ = outcome(model.lora_targets, part)
    _, said = outcome(add_adapter, model, name, targets or [Target("blocks.0.none", part)], rank, alpha, dropout)
    assert bool(said) != (adapter_names(model) == [name])
    if not said:
        assert "already" in outcome(add_adapter, model, name, targets, 1)[1]
        assert "no adapter named" in outcome(use_adapters, model, name + "x")[1]
        merge_adapters(model)
        assert "merged already" in outcome(merge_adapters, model)[1]
        unmerge_adapters(model)
        assert "nothing is merged" in outcome(unmerge_adapters, model)[1]
        remove_adapter(model, name)
    assert equal(before, dict(model.state_dict())) and model(tokens).isfinite().all()


def test_adapters_that_make_no_sense_are_refused_by_name():
    model = small_model()
    targets = model.lora_targets("q")
    wrong = {
        "rank": (0, -1, 17, 2.0, 10**400, None),
        "alpha": (0, -1.0, NAN, INF, 1e300, 10**400, "1"),
        "dropout": (1, -0.1, NAN),
    }
    for name, value in [(name, value) for name, values in wrong.items() for value in values]:
        assert f"{name} was" in outcome(add_adapter, model, "a", targets, **{name: value})[1]
    assert not adapter_names(model)


@tries(quick=25, nightly=300)
@given(st.sampled_from(["model_dim", "num_attention_heads", "head_dim", "layer_depth", "ff_mult"]), st.integers(1, 5))
def test_an_adapter_goes_onto_its_own_shape_alone(tmp_path_factory, name, times):
    path = tmp_path_factory.getbasetemp() / "shape.safetensors"
    source, other = small_model(), small_model(**{name: SHAPE[name] * times})
    add_adapter(source, "a", source.lora_targets("q", "ff_out"), rank=2)
    save_adapter(source, "a", path)
    _, said = outcome(load_adapter, other, path, error=CheckpointError)
    fits = times == 1 or name == "layer_depth"  # a deeper model has all the layers that the adapter names
    assert bool(said) != fits and bool(adapter_names(other)) == fits, said


# command lines


@pytest.fixture(scope="module")
def template(tmp_path_factory, corpus_cache) -> Path:
    """What a command line may name: a text, weights, an adapter, a finished run, and things that are none of these."""
    place = tmp_path_factory.mktemp("template")
    write_text(place / "text.txt", lines=60)
    model = small_model()
    model.save_pretrained(place / "good")
    add_adapter(model, "a", model.lora_targets("q", "v", "attn_out"), rank=2)
    save_adapter(model, "a", place / "a.safetensors")
    (place / "empty").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NYX_CACHE", str(corpus_cache))
        assert called("train.py", place, flags(SHORT, SHAPE, out_dir="run")).code == 0
    return place


SHORT = RUN | {"seq_len": 16, "num_batches": 2, "validate_bytes": 64, "threads": 1}


def called(program: str, place: Path, argv: list[str]) -> Done:
    """Call a program within this process in a folder, with a limit of time."""
    out, err, back, threads = io.StringIO(), io.StringIO(), os.getcwd(), torch.get_num_threads()
    show = warnings.showwarning
    os.chdir(place)
    try:
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            answered(60),
            pytest.MonkeyPatch.context() as patch,
        ):
            patch.setattr(nyx.cli, "loss_picture", lambda log, path: False)  # it takes longer than the run
            code = PROGRAMS[program](argv)
    except SystemExit as end:  # argparse
        code = end.code
    finally:
        os.chdir(back)
        torch.set_num_threads(threads)
        warnings.showwarning = show
    return Done(code, out.getvalue(), err.getvalue())


def assert_answered(done: Done, argv: list[str]) -> None:
    """The program did what was asked, and said so, or it said in one line what was wrong."""
    assert "Traceback" not in done.err, (argv, done.err)
    if done.code == 0:
        assert done.out, argv
    else:
        assert done.code in (1, 2), (argv, done)
        assert re.search(r"error: .{10,}", done.err.strip().splitlines()[-1], re.S) or "error: " in done.err, (
            argv,
            done.err,
        )


WORDS = st.text(st.characters(codec=None, categories=None, exclude_characters="/.~"), max_size=6)
NAMES = st.sampled_from(
    [
        "text.txt",
        "good",
        "run",
        "empty",
        "a.safetensors",
        "run/checkpoint_2.pth",
        "nowhere",
        "",
        ".",
        "a\0b",
        "x" * 300,
        "\udcff",
    ]
)
INTEGERS = st.sampled_from([-(10**30), -1, 0, 1, 2, 3, 7, 8, 33, 10**13, 10**30, "1e3", "٣", "0x10", " 2", "1_0"])
FLOATS = st.sampled_from([0, 1, 0.5, -1, 1e-8, 1e-300, 1e300, "nan", "inf", "-inf", "1e999", ".5"])


def values_for(action) -> st.SearchStrategy:
    """Values for a flag, of the right kind and of others."""
    if action.type in (int, float):
        return (INTEGERS if action.type is int else FLOATS) | WORDS
    return st.sampled_from(sorted(action.choices)) | WORDS if action.choices else NAMES | WORDS


def typed(program: str, dangerous: tuple[str, ...]) -> st.SearchStrategy:
    """A few flags with values, now and then one that is unknown or bare."""
    actions = {a.dest: a for a in PARSERS[program]()._actions if a.dest not in ("help", *dangerous)}
    one = st.sampled_from(sorted(actions)).flatmap(
        lambda n: st.tuples(st.just(f"--{n}"), values_for(actions[n]).map(str))
    )
    junk = st.tuples(WORDS) | st.sampled_from(
        [("--seed",), ("--sede", "1"), ("-x",), ("--",), ("--temperature=",), ("--seq_len=4",)]
    )
    return st.lists(one | one | one | junk, min_size=1, max_size=3).map(
        lambda parts: [word for part in parts for word in part]
    )


@tries(quick=40, nightly=1000)
@given(typed("train.py", ("compile", "generate_length")))
def test_any_command_line_trains_or_is_refused(template, corpus_cache, more):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("NYX_CACHE", str(corpus_cache))
        place = shutil.copytree(template, Path(folder, "place"))
        shape = {} if "--weights" in more or "--checkpoint_path" in more else SHAPE
        argv = [*flags(SHORT, shape, out_dir="new"), *more]
        assert_answered(called("train.py", place, argv), argv)


@tries(quick=60, nightly=1500)
@given(typed("test.py", ()))
def test_any_command_line_writes_or_is_refused(template, more):
    argv = ["--sample_prompt", "The", "--weights", "good", "--generate_length", "3", *more]
    assert_answered(called("test.py", template, argv), argv)


@tries(quick=25, nightly=400)
@given(st.data())
def test_a_run_goes_on_from_a_strange_checkpoint_or_says_why_not(template, corpus_cache, data):
    """One value somewhere in a checkpoint is another one; its checksum is right."""
    state = here = load_checkpoint(template / "run" / "checkpoint_2.pth")
    while True:
        keys = sorted(here, key=str) if isinstance(here, dict) else range(len(here))
        key = data.draw(st.sampled_from(list(keys)))
        if not (isinstance(here[key], dict | list) and len(here[key]) and data.draw(st.booleans())):
            break
        here = here[key]
    other = PLAIN | st.sampled_from([torch.zeros(2), torch.zeros(0, dtype=torch.int64), -1, 0, 10**13, [], {}])
    here[key] = data.draw(other)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("NYX_CACHE", str(corpus_cache))
        shutil.copy(template / "text.txt", folder)
        _, said = outcome(save_checkpoint, f"{folder}/checkpoint_2.pth", state, error=CheckpointError)
        assume(not said)
        argv = ["--checkpoint_path", "checkpoint_2.pth", "--num_batches", "3", "--out_dir", "new"]
        assert_answered(called("train.py", Path(folder), argv), argv)
        ask = ["--sample_prompt", "a", "--generate_length", "2", "--weights", "checkpoint_2.pth"]
        assert_answered(called("test.py", Path(folder), ask), ask)


STRANGE = {
    "update": [-5, 1.5, 2**70], "samples": [-1, None], "best": [3, {"update": 1}, torch.zeros(2)], "random": [3, [{}]],
    "optimizer": [None, {}, {"state": {}}, {"state": {0: {"exp_avg": torch.zeros(2)}}}], "data": [{}, [1]], "notes": [{}, 5],
}  # fmt: skip


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in STRANGE.items() for value in values])
def test_a_checkpoint_with_one_strange_value_is_refused(template, corpus_cache, tmp_path, monkeypatch, name, value):
    monkeypatch.setenv("NYX_CACHE", str(corpus_cache))
    shutil.copy(template / "text.txt", tmp_path)
    state = load_checkpoint(template / "run" / "checkpoint_2.pth")
    save_checkpoint(tmp_path / "checkpoint_2.pth", state | {name: value})
    argv = ["--checkpoint_path", "checkpoint_2.pth", "--num_batches", "3", "--out_dir", "new"]
    done = called("train.py", tmp_path, argv)
    assert done.code == 2 and re.search("checkpoint|random state", done.err) and not (tmp_path / "new").exists(), done


def test_a_checkpoint_of_a_run_with_fewer_settings_goes_on(template, corpus_cache, tmp_path, monkeypatch):
    """An older NYX had fewer settings; what it did not know has its default."""
    monkeypatch.setenv("NYX_CACHE", str(corpus_cache))
    shutil.copy(template / "text.txt", tmp_path)
    state = load_checkpoint(template / "run" / "checkpoint_2.pth")
    del state["train_config"]["keep"], state["model_config"]["ff_dropout"], state["notes"]["valid_fraction"]
    save_checkpoint(tmp_path / "checkpoint_2.pth", state)
    argv = ["--checkpoint_path", "checkpoint_2.pth", "--num_batches", "3", "--keep", "3", "--out_dir", "new"]
    assert called("train.py", tmp_path, argv).code == 0


def test_a_prompt_of_a_megabyte_is_refused_at_once(template):
    argv = ["--sample_prompt", "To be " * 170_000, "--weights", "good", "--generate_length", "1"]
    done = called("test.py", template, argv)
    assert done.code == 2 and "1,020,000" in done.err and done.out == "", done.err


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such file names")
def test_a_text_whose_name_no_checkpoint_can_hold_is_refused_before_the_run(
    template, corpus_cache, tmp_path, monkeypatch
):
    monkeypatch.setenv("NYX_CACHE", str(corpus_cache))
    shutil.copy(template / "text.txt", tmp_path / "caf\udce9.txt")
    done = called("train.py", tmp_path, flags(SHORT, SHAPE, filepath="caf\udce9.txt", out_dir="new"))
    assert done.code == 2 and "--filepath" in done.err and not (tmp_path / "new").exists(), done


PROCESSES = {
    "emoji": (["--sample_prompt", "🙂"], 0, "🙂"), "not UTF-8": (["--sample_prompt", b"\xff\xfe"], 0, "��"),
    "empty": (["--sample_prompt", ""], 2, "the prompt was empty"),
    "long": (["--sample_prompt", "To be " * 20_000], 2, "120,000"), "a name not UTF-8": (["--sample_prompt", "a", "--weights", b"\xff"], 2, "no folder"),
}  # fmt: skip


@pytest.mark.skipif(os.name != "posix", reason="arguments that are no text are POSIX only")
@pytest.mark.parametrize("case", PROCESSES)
def test_odd_arguments_reach_a_process(template, corpus_cache, case):
    argv, code, words = PROCESSES[case]
    command = [sys.executable, ROOT / "test.py", "--weights", "good", "--generate_length", "2", *argv]
    env = environment(template, corpus_cache)
    done = subprocess.run(command, cwd=template, env=env, capture_output=True, timeout=60)
    assert done.returncode == code, done.stderr.decode()
    assert words in (done.stderr if code else done.stdout).decode(errors="replace") and b"Traceback" not in done.stderr


def test_a_night_amounts_to_ten_thousand_examples():
    assert sum(EXAMPLES.values()) >= 10_000 and len(EXAMPLES) > 20
