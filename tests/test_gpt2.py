"""GPT-2's vocabulary from end to end: the ids of another library, and runs that train, resume, are measured in bytes and write.

The runs use GPT-2's two files where they are (the cache, or `$NYX_DATA`), and a made vocabulary of the same size and form
where they are not; only what is about the published files themselves is skipped then.
"""

import hashlib
import json
import math
import os
import random
import re
import signal
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pytest
import torch
from conftest import ROOT
from programs import RUN, SHAPE, call, finish, flags, folder, log_of, same, small_model, snapshot, start
from test_resume import interrupt, resume_command, what_matters, without_times
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import nyx.data
from nyx import NYX
from nyx.checkpoint import load_checkpoint
from nyx.cli import read_weights
from nyx.data import GPT2Tokenizer, VocabularyUnavailable, builtin_files, encode_chunks, gpt2_folder
from nyx.training import Trainer, evaluate

__all__ = ["call", "folder", "start"]  # fixtures

WIDE = SHAPE | {"vocab_size": 50_257}
GPT2 = RUN | WIDE | {"tokenizer": "gpt2", "learning_rate": 3e-3, "num_batches": 6}


# the vocabulary


def pieces_of(folder: Path) -> Tokenizer:
    """The same two files, read by the tokenizers library."""
    files = folder / "encoder.json", folder / "vocab.bpe"
    other = Tokenizer(models.BPE.from_file(*map(str, files)))
    other.pre_tokenizer, other.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return other


def make_vocabulary(folder: Path) -> Path:
    """Two files of GPT-2's form and size: 256 bytes in its order, 50,000 pairs learned from Python's library, one mark."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    learner.train(
        sorted(map(str, builtin_files().values())),
        trainers.BpeTrainer(vocab_size=50_256, min_frequency=1, initial_alphabet=alphabet, show_progress=False),
    )
    pairs = json.loads(learner.to_str())["model"]["merges"]
    ranks = {piece: i for i, piece in enumerate([*sorted(alphabet), *("".join(pair) for pair in pairs)])}
    assert len(ranks) == 50_256
    folder.mkdir(parents=True)
    (folder / "encoder.json").write_text(json.dumps(ranks | {"<|endoftext|>": 50_256}), encoding="utf-8")
    text = "#version: 0.2\n" + "".join(" ".join(pair) + "\n" for pair in pairs)
    (folder / "vocab.bpe").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def published() -> Path:
    try:
        return gpt2_folder()
    except VocabularyUnavailable as e:
        pytest.skip(f"GPT-2's vocabulary is not here: {e}")


@pytest.fixture(scope="session")
def some_folder(tmp_path_factory) -> Path:
    """The published vocabulary where it is here, else a made one."""
    try:
        return gpt2_folder()
    except VocabularyUnavailable:
        return make_vocabulary(tmp_path_factory.mktemp("made") / "gpt2")


@pytest.fixture
def vocabulary(some_folder: Path, monkeypatch) -> Path:
    """A vocabulary that this process takes for GPT-2's, found through `NYX_DATA`."""
    files = {name: (some_folder / name).read_bytes() for name in nyx.data.GPT2_FILES}
    sums = {name: (len(data), hashlib.sha256(data).hexdigest()) for name, data in files.items()}
    monkeypatch.setattr(nyx.data, "GPT2_FILES", sums)
    monkeypatch.setenv("NYX_DATA", str(some_folder.parent))
    return some_folder


# ids

SCRIPTS = {  # first and last letters of scripts
    "Latin": "az", "more Latin": "Àſ", "Greek": "Ͱϡ", "Cyrillic": "Ѐӹ", "Hebrew": "את", "Arabic": "ءي",
    "Devanagari": "अह", "Thai": "กฮ", "kana": "ぁヺ", "CJK": "一鿋", "Hangul": "가힣", "beyond 16 bits": "𐌰𐍊",
}  # fmt: skip
MARKS = "\u0301\u0308\u0327\u05b0\u064b\u093f\u094d\u20dd\u3099\ufe0f"
DIGITS = ["0", "42", "1234567890", "٣٤٥", "०१२", "１２", "²³", "½", "Ⅷ"]
SIGNS = list("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~¿«»…—„“”。、٫؟।€₹→∑") + ["...", "!!", "->", "''", "--"]
SPACES = [*" \t\n\r\v\f\x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000", *map(chr, range(0x2000, 0x200B))]
CONTROLS = [
    *map(chr, range(9)),
    *map(chr, range(14, 32)),
    "\x7f",
    "\u200b",
    "\u200d",
    "\ufeff",
    "\u2066",
    "\ufffd",
    "\U0010ffff",
]
EMOJI = ["🙂", "👍🏽", "👩🏿‍🚀", "👨‍👩‍👧‍👦", "🏳️‍🌈", "🇮🇳", "1️⃣", "❤️‍🔥", "🦔", "☃"]
ENDINGS = "'s 't 're 've 'm 'll 'd 'S 'RE ’s".split()
CODE = [
    "def f(x):\n    return x",
    "for (int i = 0; i < n; ++i) {",
    "\\frac{a}{b}",
    "</div>",
    "x != y && z",
    "0x7fFF",
    "a_b__c",
    "http://a.b/c?d=e&f#g",
]
WORDS = sorted(set(re.findall(r"[A-Za-z]{2,}", " ".join(topics.values()))))  # of Python's language reference
SPECIAL = ["<|endoftext|>", "<|startoftext|>", "<|im_start|>", "<|endoftext", "</s>", "[PAD]"]


def a_line(draw: random.Random) -> str:
    """A line that mixes scripts, spaces and signs; each piece may stand against the next."""

    def word() -> str:
        first, last = map(ord, draw.choice(list(SCRIPTS.values())))
        letters = [chr(draw.randint(first, last)) for _ in range(draw.randint(1, 8))]
        return "".join(c + (draw.choice(MARKS) if draw.random() < 0.1 else "") for c in letters)

    def gap() -> str:
        return "".join(draw.choices(SPACES if draw.random() < 0.5 else " \n\t", k=draw.randint(1, 6)))

    def english() -> str:
        return (
            draw.choice([" ", ""])
            + draw.choice([draw.choice(WORDS), "don", "we", "naïve", "HE"])
            + draw.choice(["", "", *ENDINGS])
        )

    kinds = [(word, 5), (english, 3), (gap, 4), (lambda: " ", 6)]
    kinds += [(lambda row=row: draw.choice(row), n) for row, n in
              ((DIGITS, 2), (SIGNS, 3), (CONTROLS, 1), (EMOJI, 2), (CODE, 1), (SPECIAL, 0.2))]  # fmt: skip
    return "".join(kind() for kind in draw.choices(*zip(*kinds), k=draw.randint(0, 24)))


def differing(ours: GPT2Tokenizer, other: Tokenizer, lines: list[str]) -> list[str]:
    """The lines for which two tokenizers give different ids."""
    ids = [encoding.ids for encoding in other.encode_batch(lines)]
    return [line for line, theirs in zip(lines, ids) if ours.encode(line).tolist() != theirs]


def ten_thousand_lines() -> list[str]:
    draw = random.Random(50_257)
    return [a_line(draw) for _ in range(10_000)]


def test_ids_are_those_of_another_library(published):
    """Equal ids on 10,000 lines, which come back as they were; and every token is used in the same sense."""
    ours, other, lines = GPT2Tokenizer(published), pieces_of(published), ten_thousand_lines()
    text = "".join(lines)
    assert all(c in text for c in (*SPACES, *CONTROLS, *EMOJI, *MARKS)) and len(set(lines)) > 9000
    assert (wrong := differing(ours, other, lines)) == [], wrong[:3]
    assert [line for line in lines if ours.decode(ours.encode(line)) != line] == []
    assert len({i for line in lines for i in ours.encode(line).tolist()}) > 3000
    valid = [i for i in range(50_257) if "\ufffd" not in ours.decode([i])]
    assert len(valid) > 49_000 and [i for i in valid if ours.decode([i]) != other.decode([i], False)] == []


def test_ids_of_a_made_vocabulary_are_those_of_another_library(vocabulary):
    """The same with whatever vocabulary is here, so that the code is compared on every machine."""
    ours, other = GPT2Tokenizer(vocabulary), pieces_of(vocabulary)
    assert (wrong := differing(ours, other, ten_thousand_lines()[:2000])) == [], wrong[:3]


def test_a_special_token_is_plain_text_to_both(vocabulary):
    """Text that spells the mark for an end is not the mark: who writes a text cannot end it. The mark is spelt out when it is written."""
    ours, other = GPT2Tokenizer(vocabulary), pieces_of(vocabulary)
    for text in ("<|endoftext|>", "a<|endoftext|>b <|endoftext|>", "<|startoftext|>"):
        ids = ours.encode(text).tolist()
        assert ids == other.encode(text).ids and 50_256 not in ids and ours.decode(ids) == text
    assert ours.decode([50_256]) == other.decode([50_256], False) == "<|endoftext|>"
    assert ours.byte_lengths([50_256]).tolist() == [13]


def test_no_gap_is_too_long(vocabulary):
    """More white space than tiktoken's regular expression can take; around the length from which it is set apart, nothing changes."""
    ours, other = GPT2Tokenizer(vocabulary), pieces_of(vocabulary)
    gaps = [
        space * n + tail
        for space in (" ", "\n", "\u3000")
        for n in (9998, 9999, 10_000, 10_001)
        for tail in ("x", ".", "\n", "")
    ]
    assert (wrong := differing(ours, other, ["a" + gap for gap in gaps])) == [], [len(w) for w in wrong]
    text = b"a" + b" " * 1_200_000 + b"b\xff" + b"\n" * 1_200_000 + b"\xff"
    assert ours.to_bytes(ours.encode(text)) == text


def test_a_file_in_pieces_has_the_ids_of_one_in_one(vocabulary):
    """A corpus is encoded piece by piece: where text has lines, no id depends on the cuts."""
    ours, draw = GPT2Tokenizer(vocabulary), random.Random(3)
    text = "".join(a_line(draw) + draw.choice(["\n", "\n\n", " \n", "\r\n"]) for _ in range(400)).encode()
    for size in (600, 2000):
        pieces = list(encode_chunks(np.frombuffer(text, np.uint8), ours, size))
        assert len(pieces) > 5 and np.concatenate(pieces).tolist() == ours.encode(text).tolist()


# runs


def mixed_text(path: Path, seed: int = 1) -> Path:
    """Sentences with words of several scripts, cut so that the validation split begins and ends inside a character."""
    words = "the cat sat on a mat naïve Ζεύς кошка 猫と犬 🦔 and saw one bird 👩🏿‍🚀 fly over water".split()
    draw = random.Random(seed)
    data = (
        "".join(" ".join(draw.choices(words, k=9)).capitalize() + ".\n" for _ in range(900)).encode()
        + "猫".encode()[:2]
    )
    while data[int(len(data) * 0.9)] & 0xC0 != 0x80:
        data = b"x" + data
    path.write_bytes(data)
    return path


@pytest.fixture
def mixed(folder: Path, vocabulary: Path) -> Path:
    return mixed_text(folder / "mixed.txt")


def ids_of(data: bytes, ours: GPT2Tokenizer, other: Tokenizer) -> list[int]:
    """Ids of bytes that may begin and end inside a character: the odd ones by themselves, the text between by the other library."""
    front = next(i for i, byte in enumerate(data) if byte & 0xC0 != 0x80)
    end = next(
        n for n in range(len(data), front, -1) if data[front:n].decode(errors="ignore").encode() == data[front:n]
    )
    odd = [ours.pieces.index(data[i : i + 1]) for i in (*range(front), *range(end, len(data)))]
    return odd[:front] + other.encode(data[front:end].decode()).ids + odd[front:]


def nats_one_by_one(model: NYX, ids: list[int]) -> float:
    """What a text costs: the first token as if nothing was known, each other with up to 1,023 before it and at least 512."""
    nats, scores = math.log(model.config.vocab_size), {}
    for t in range(1, len(ids)):
        start = 0 if t < 1024 else 512 * (t // 512 - 1)
        if start not in scores:
            with torch.inference_mode():
                scores = {start: model(torch.tensor([ids[start : start + 1023]]))[0].double().log_softmax(-1)}
        nats -= scores[start][t - 1 - start, ids[t]].item()
    return nats


def test_a_run_is_measured_in_bits_per_byte(call, folder, mixed, vocabulary):
    """The figure is the nats of the tokens, which another library made, over the bytes of the file; and it falls."""
    done = call("train.py", *flags(GPT2, filepath="mixed.txt", out_dir="run", num_batches=10, generate_every=10))
    assert done.code == 0, done.err
    data = mixed.read_bytes()
    valid = data[int(len(data) * 0.9) :]
    with pytest.raises(UnicodeDecodeError):
        valid.decode()
    ours = GPT2Tokenizer(vocabulary)
    ids = ids_of(valid, ours, pieces_of(vocabulary))
    assert len(ids) > 1600 and ours.to_bytes(ids) == valid
    model = read_weights(folder / "run" / "checkpoint_10.pth", {})
    expected = nats_one_by_one(model, ids) / len(valid) / math.log(2)
    final = log_of(folder / "run", "final")[0]["bits_per_byte"]
    assert final == pytest.approx(expected, rel=1e-5) and f"{final:.4f} bits per byte" in done.out
    torch.manual_seed(0)
    untrained = evaluate(NYX(model.config), np.array(ids), ours, batch_size=1)
    nothing = len(ids) * math.log2(50_257) / len(valid)  # an even guess over the vocabulary
    assert untrained == pytest.approx(nothing, rel=0.02) and final < untrained - 0.1
    first = log_of(folder / "run", "update")[0]["bits_per_byte"]
    assert first == pytest.approx(untrained, rel=0.1)  # what an update shows is in bits per byte too


@pytest.mark.skipif(os.name != "posix", reason="signals of this kind are POSIX only")
def test_an_interrupted_run_ends_with_the_same_bits(call, folder, mixed, monkeypatch):
    ask = flags(
        GPT2, {"attn_dropout": 0.2}, filepath="mixed.txt", validate_every=3, generate_every=3, checkpoint_every=3
    )
    assert call("train.py", *ask, "--out_dir", "whole").code == 0
    with monkeypatch.context() as patch:
        interrupt(patch, Trainer, "batch", 4, 1)
        done = call("train.py", *ask, "--out_dir", "parts")
    assert done.code == 0, done.err
    assert not (folder / "parts" / "checkpoint_6.pth").exists()
    done = call("train.py", *resume_command(done.out))
    assert done.code == 0, done.err
    whole, parts = (load_checkpoint(folder / name / "checkpoint_6.pth") for name in ("whole", "parts"))
    assert same(what_matters(whole), what_matters(parts)) and whole["notes"]["tokenizer"] == "gpt2"
    logs = [without_times(log_of(folder / name)) for name in ("whole", "parts")]
    assert [r for r in logs[1] if r["event"] not in ("start", "stopped", "checkpoint")] == [
        r for r in logs[0] if r["event"] not in ("start", "checkpoint")
    ]


def test_the_programs_train_stop_go_on_and_write(start, folder, published):
    """As a user would run them, with the published files: three processes, no flag for the tokenizer but the first."""
    mixed_text(folder / "mixed.txt")
    ask = flags(GPT2, filepath="mixed.txt", num_batches=30, validate_every=30, generate_every=30, checkpoint_every=30)
    program = start(ROOT / "train.py", *ask, "--out_dir", "run", "--export", "exported")
    while "update 1 of" not in (line := program.stdout.readline()):
        assert line or program.poll() is None, program.stderr.read()
    program.send_signal(signal.SIGTERM)
    done = finish(program)
    assert done.code == 0 and not (folder / "exported").exists(), done.err
    done = finish(start(ROOT / "train.py", *resume_command(done.out), "--export", "exported"))
    assert done.code == 0 and "bits per byte on the whole validation split" in done.out, done.err
    prompt = "The naïve 猫 🦔 saw"
    said = []
    for weights in ("run/checkpoint_30.pth", "exported"):
        done = finish(
            start(ROOT / "test.py", *flags(sample_prompt=prompt, weights=weights, generate_length=20, seed=3))
        )
        assert done.code == 0 and done.out.startswith(prompt) and len(done.out) > len(prompt) + 20, done
        said.append(done.out)
    assert said[0] == said[1]


# writing

SPLIT = "🦔 猫 naïve 👩🏿‍🚀 𐌰 e\u0301 — ﷽"


def test_characters_that_are_split_over_tokens_come_whole(call, folder, vocabulary, monkeypatch):
    """Whatever tokens come, what streams out is the text they stand for, a character at a time; the prompt may end inside one."""
    ours = GPT2Tokenizer(vocabulary)
    small_model(vocab_size=50_257).save_pretrained(folder / "small")
    monkeypatch.setattr(NYX, "new_tokens", lambda self, ids, *rest: iter(torch.tensor(coming)[:, None]))
    for split in (0, 1, 2, 3, 8):  # bytes of the text that are in the prompt
        prompt, rest = b"so " + SPLIT.encode()[:split], SPLIT.encode()[split:]
        coming = ours.encode(rest).tolist()
        assert sum("\ufffd" in ours.decode([i]) for i in coming) > 5
        pieces = list(NYX.from_pretrained(folder / "small").stream(prompt, 99, tokenizer=ours))
        ahead = prompt.decode(errors="ignore")
        assert len(pieces) > 5 and ahead + "".join(pieces) == "so " + SPLIT
        done = call("test.py", "--weights", "small", "--sample_prompt", prompt.decode(errors="surrogateescape"))
        assert (done.code, done.out) == (0, "so " + SPLIT + "\n"), done
    coming = ours.encode("🦔".encode()[:3]).tolist()  # and what never becomes whole is one mark
    done = call("test.py", "--weights", "small", "--sample_prompt", "\udcff 🦔")
    assert done.out == "\ufffd 🦔\ufffd\n", done


def test_every_way_of_writing_takes_a_wide_vocabulary(call, folder, vocabulary):
    """int8, bfloat16 and guessing ahead, from an emoji, from bytes that are no text, from a text that repeats."""
    small_model(vocab_size=50_257, seed=4).save_pretrained(folder / "small")
    again = ("the cat saw the bird, " * 6).strip()  # its end was there before, so that there is something to guess
    ask = {"weights": "small", "generate_length": 20, "seed": 1, "temperature": 0, "precision": "float32"}
    plain = call("test.py", *flags(ask, sample_prompt=again))
    for more in ({"draft": "text"}, {"draft": "small"}):
        done = call("test.py", *flags(ask, more, sample_prompt=again))
        assert (done.code, done.out) == (0, plain.out), (more, done)
    for prompt in ("👩🏿‍🚀", "\udcff\udcf0", "\0", "<|endoftext|>"):
        for precision in ("int8", "bf16"):
            done = call("test.py", *flags(ask, sample_prompt=prompt, precision=precision))
            assert done.code == 0 and len(done.out) > 20 and "Traceback" not in done.err, done


def test_lengths_count_tokens(call, folder, vocabulary, monkeypatch):
    """`prime_length` and `generate_length` are tokens, whatever a token is, and the help says so."""
    asked, true = [], NYX.new_tokens
    monkeypatch.setattr(
        NYX,
        "new_tokens",
        lambda self, ids, count, *rest: asked.append((ids.shape[1], count)) or true(self, ids, count, *rest),
    )
    ask = flags(GPT2, num_batches=1, prime_length=8, generate_length=5, out_dir="run")
    assert call("train.py", *ask).code == 0 and asked == [(8, 5)]
    out = " ".join(call("train.py", "--help").out.split())
    assert "new tokens in each sample" in out and "tokens of its prompt" in out and "bytes scored in each" in out


# which tokenizer


def test_the_vocabulary_says_which_tokenizer(call, folder, vocabulary):
    """No flag is needed where the size of the vocabulary says it: a preset, old weights, an adapter, a resumed run."""
    small = SHAPE | {"preset": "nyx-gpt2", "num_batches": 2}
    assert call("train.py", *flags(RUN, small, out_dir="run", export="exported")).code == 0
    assert load_checkpoint(folder / "run" / "checkpoint_2.pth")["notes"]["tokenizer"] == "gpt2"
    assert call("train.py", "--checkpoint_path", "run", "--num_batches", 3).code == 0
    for number, weights in enumerate(("run/checkpoint_3.pth", "exported")):
        ask = flags(RUN, weights=weights, lora_rank=2, lora_name="rain", num_batches=2, out_dir=f"tuned{number}")
        done = call("train.py", *ask)
        assert done.code == 0, done.err
        assert load_checkpoint(folder / f"tuned{number}" / "checkpoint_2.pth")["notes"]["tokenizer"] == "gpt2"
        adapter = f"tuned{number}/rain.safetensors"
        done = call("test.py", *flags(weights=weights, adapter=adapter, sample_prompt="Rain", generate_length=3))
        assert done.code == 0 and len(done.out) > 6, done.err


def test_a_tokenizer_that_does_not_fit_is_refused_naming_the_flags(call, folder, monkeypatch):
    """Before any text is read or encoded, and whether GPT-2's files are here or not."""
    monkeypatch.delenv("NYX_DATA", raising=False)
    monkeypatch.setenv("NYX_CACHE", str(folder / "cache"))
    small_model(vocab_size=50_257).save_pretrained(folder / "wide")
    small_model().save_pretrained(folder / "narrow")
    before = snapshot(folder)
    train, write = ["train.py", *flags(RUN, out_dir="new")], ["test.py", *flags(sample_prompt="The", generate_length=2)]
    shape = flags(SHAPE)
    for line, words in [
        ([*train, *shape, "--tokenizer", "gpt2"], ("--tokenizer gpt2", "--vocab_size 50257", "has 256")),
        (
            [*train, *shape, "--tokenizer", "bytes", "--vocab_size", 50_257],
            ("--tokenizer bytes", "--vocab_size 256", "has 50257"),
        ),
        ([*train, *shape, "--vocab_size", 300], ("vocab_size 300", "256", "50257")),
        ([*train, "--weights", "wide", "--tokenizer", "bytes"], ("--tokenizer bytes", "wide has 50257")),
        ([*train, "--weights", "narrow", "--tokenizer", "gpt2"], ("--tokenizer gpt2", "narrow has 256")),
        ([*write, "--weights", "wide", "--tokenizer", "bytes"], ("--tokenizer bytes", "wide has 50257")),
        ([*write, "--weights", "narrow", "--tokenizer", "gpt2"], ("--tokenizer gpt2", "narrow has 256")),
    ]:
        done = call(*line)
        assert done.code == 2 and done.out == "" and all(word in done.err for word in words), (line, done)
    assert snapshot(folder) == before


@pytest.mark.parametrize("wrong", [False, True])
def test_absent_and_wrong_files_are_named(call, folder, monkeypatch, wrong):
    """Nothing is fetched in tests; what is there and is not the published file is called that."""
    monkeypatch.setenv("NYX_DATA", str(folder / "here"))
    monkeypatch.setenv("NYX_CACHE", str(folder / "cache"))
    if wrong:
        (folder / "here" / "gpt2").mkdir(parents=True)
        (folder / "here" / "gpt2" / "encoder.json").write_text("{}")
    small_model(vocab_size=50_257).save_pretrained(folder / "wide")
    for line in (["train.py", *flags(GPT2, out_dir="new")], ["test.py", *flags(sample_prompt="The", weights="wide")]):
        done = call(*line)
        assert done.code == 2 and done.out == "" and not (folder / "new").exists(), done
        assert str(folder / "here" / "gpt2") in done.err and "encoder.json and vocab.bpe" in done.err, done.err
        assert ("encoder.json there: not the published one" in done.err) == wrong, done.err
