"""Whatever text comes in, none of it is dropped or misread silently, and a file that changes underneath gets a sentence."""

import bz2
import gzip
import io
import lzma
import os
import pickle
import random
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, tries
from hypothesis import given
from hypothesis import strategies as st
from programs import RUN, SHAPE, call, environment, finish, flags, folder, log_of, start, write_text

import nyx.data
from nyx.checkpoint import load_checkpoint, save_checkpoint
from nyx.data import ByteTokenizer, DataError, load_corpus, window_batch

__all__ = ["call", "folder", "start"]  # fixtures

ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-32", "cp1252")
PACKERS = {"gz": gzip.compress, "xz": lzma.compress, "bz2": bz2.compress}
TRAIN = RUN | SHAPE


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """A cache of its own for each test: what is left in it can be looked at."""
    monkeypatch.setenv("NYX_CACHE", str(tmp_path / "own cache"))
    return tmp_path / "own cache"


def whole(corpus) -> bytes:
    return bytes(corpus.train) + bytes(corpus.valid)


def texts_of(corpus) -> set[str]:
    """The documents of a folder's corpus."""
    return set(whole(corpus).decode().removesuffix("\n\n").split("\n\n"))


def sentence(call) -> str:
    """What a call that must be refused says."""
    with pytest.raises(DataError) as caught:
        call()
    said = str(caught.value)
    assert "\n" not in said and len(said) < 900
    return said


def archive(kind: str, members: dict[str, bytes]) -> bytes:
    """A .zip, or a .tar packed as `kind` says."""
    file = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
            for name, data in members.items():
                packed.writestr(name, data)
    else:
        with tarfile.open(fileobj=file, mode=f"w:{kind}") as packed:
            for name, data in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                packed.addfile(info, io.BytesIO(data))
    return file.getvalue()


ARCHIVES = {"a.zip": "zip", "a.tar": "", "a.tgz": "gz", "a.tar.gz": "gz", "a.tar.bz2": "bz2", "a.TXZ": "xz"}


# encodings


def mixed_folder(place: Path) -> set[str]:
    """The folder of the report: 5 files in UTF-8, 95 in cp1252, 3 in UTF-16, one .gz; returns their texts."""
    place.mkdir()
    texts = {f"“Text” number {i}: Ça va, là-bas? " + "x" * 150 for i in range(104)}
    for i, text in enumerate(sorted(texts)):
        encoding = "utf-8" if i < 5 else "cp1252" if i < 100 else "utf-16"
        (place / f"{i}.txt").write_bytes(text.encode(encoding))
        if i == 103:
            (place / f"{i}.txt").unlink()
            (place / f"{i}.txt.gz").write_bytes(gzip.compress(text.encode()))
    return texts


def test_a_folder_of_mixed_encodings_is_taken_whole_or_refused(tmp_path):
    texts = mixed_folder(tmp_path / "texts")
    said = sentence(lambda: load_corpus(tmp_path / "texts"))
    assert "95 of its 104 files" in said and "--encoding" in said and "'10.txt'" in said
    corpus = load_corpus(tmp_path / "texts", encoding="cp1252")
    assert texts_of(corpus) == texts
    assert corpus.notes == (
        "taken: 104 of 104 files, 95 converted from cp1252, 3 converted from utf-16; left out: none",
    )
    again = load_corpus(tmp_path / "texts", encoding="windows-1252")  # from the cache, under another of its names
    assert (again.sha256, again.size, again.notes) == (corpus.sha256, corpus.size, corpus.notes)
    some = load_corpus(tmp_path / "texts", encoding="utf-8")
    assert len(texts_of(some)) == 9 and "left out: 95 neither Unicode nor utf-8 ('10.txt', " in some.notes[0]


@tries(quick=25, nightly=300)
@given(st.data())
def test_every_file_of_a_folder_is_taken_or_named(tmp_path_factory, data):
    place = tmp_path_factory.mktemp("texts")
    kinds = st.sampled_from([*ENCODINGS, "empty", "binary", "hidden", *PACKERS])
    taken, left = set(), 0
    for i, kind in enumerate(data.draw(st.lists(kinds, min_size=2, max_size=12))):
        text = f"é {i} " + data.draw(st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_categories=["Cc"])))
        name, body = f"{i}.txt", text.encode("cp1252" if kind == "cp1252" else "utf-8", "ignore")
        text = body.decode("cp1252" if kind == "cp1252" else "utf-8")
        if kind in ENCODINGS:
            body = text.encode(kind)
        elif kind in PACKERS:
            name, body = f"{name}.{kind}", PACKERS[kind](body)
        elif kind == "hidden":
            name = f".{name}"
        else:
            body = b"" if kind == "empty" else b"\x00\x01\x02" + body
        (place / name).write_bytes(body)
        taken, left = (taken, left + 1) if kind in ("empty", "binary", "hidden") else (taken | {text.strip()}, left)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NYX_CACHE", str(tmp_path_factory.mktemp("cache")))
        try:
            corpus = load_corpus(place, encoding="cp1252")
        except DataError as error:
            assert not taken and "holds no text" in str(error)
            return
    documents = [text.strip() for text in whole(corpus).decode().split("\n\n")]
    assert {text for text in documents if text} == taken
    assert corpus.notes[0].startswith(f"taken: {len(taken)} of {len(taken) + left} files")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "utf-8-sig", "cp1252", "shift_jis", "iso2022_jp"])
@pytest.mark.parametrize("pack", ["", *PACKERS])
def test_one_file_in_another_encoding_is_converted_or_said_to_be_raw(tmp_path, encoding, pack):
    text = "日本語\r\n" * 9 if "jp" in encoding or "jis" in encoding else "Ça va là-bas\r\n" * 9
    packed = PACKERS.get(pack, bytes)(text.encode(encoding))
    path = tmp_path / (f"text.{pack}" if pack else "text.txt")
    path.write_bytes(packed)
    told = load_corpus(path, encoding=encoding)
    assert whole(told) == text.encode() and told.size == len(text.encode())
    assert told.notes == (f"'{path}' was converted from {told.notes[0].split()[-3]} to UTF-8",)
    raw = load_corpus(path, encoding="bytes")
    assert whole(raw) == text.encode(encoding) and raw.notes == () and raw.sha256 != told.sha256
    found = load_corpus(path)
    if encoding in ("utf-16", "utf-32", "utf-8-sig"):  # a mark tells
        assert (whole(found), found.sha256, found.notes) == (whole(told), told.sha256, told.notes)
    elif encoding != "iso2022_jp":  # that one is plain ASCII to look at
        assert whole(found) == text.encode(encoding) and "taken as they are" in found.notes[0] and "--encoding" in found.notes[0]


def test_plain_text_is_taken_as_it_is(tmp_path, cache):
    path = write_text(tmp_path / "text.txt")
    for encoding in (None, "utf-8", "latin-1", "bytes"):
        corpus = load_corpus(path, encoding=encoding)
        assert whole(corpus) == path.read_bytes() and corpus.notes == ()
    assert not (cache / "unpacked").exists(), "nothing is copied"


@pytest.mark.parametrize("name", ["klingon", "", "hex", "rot13", "undefined", "a\0b", "\ud800", "x" * 900, "cp1252\n"])
def test_an_encoding_that_is_none_is_refused(tmp_path, name):
    path = write_text(tmp_path / "text.txt")
    try:
        load_corpus(path, encoding=name)
    except DataError as error:
        assert "no encoding is called" in str(error) and "cp1252" in str(error) and "\n" not in str(error)
    else:
        assert name == "cp1252\n"  # Python is lenient about white space


def test_a_named_encoding_that_does_not_fit_is_refused(tmp_path):
    (path := tmp_path / "a.txt").write_bytes(b"caf\x81 " * 9)
    assert "is not text in cp1252, nor Unicode" in sentence(lambda: load_corpus(path, encoding="cp1252"))
    (path := tmp_path / "b.png").write_bytes(bytes(range(256)))
    assert "is not text in iso8859-1" in sentence(lambda: load_corpus(path, encoding="latin-1"))
    assert "is known: leave it out" in sentence(lambda: load_corpus(encoding="latin-1"))


# archives


@pytest.mark.parametrize("name", ARCHIVES)
def test_an_archive_is_read_as_a_folder_is(tmp_path, name):
    members = {f"deep/{i}.txt": f"text {i}".encode("utf-16" if i % 3 else "utf-8") for i in range(12)}
    more = {"picture.png": bytes(range(256)), "none": b"", "../out.txt": b"text 12", "in.zip": b"PK", ".hidden": b"no"}
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / name
    path.write_bytes(archive(ARCHIVES[name], members | more))
    corpus = load_corpus(path)
    assert texts_of(corpus) == {f"text {i}" for i in range(13)} and len(corpus.valid)
    note = "taken: 13 of 17 files, 8 converted from utf-16; left out: 1 binary ('picture.png'), 1 empty ('none'), "
    assert corpus.notes == (note + "1 hidden ('.hidden'), 1 packed inside an archive ('in.zip')",)
    assert load_corpus(path).sha256 == corpus.sha256
    (tmp_path / "in" / "b.txt").write_text("beside it")
    both = load_corpus(tmp_path / "in")
    assert texts_of(both) == texts_of(corpus) | {"beside it"} and "taken: 14 of 18 files" in both.notes[0]
    assert not list(tmp_path.rglob("out.txt")) and not list(tmp_path.rglob("picture.png"))


@pytest.mark.parametrize("name", [*ARCHIVES, *(f"a.{kind}" for kind in PACKERS)])
def test_a_damaged_archive_is_refused_by_name(tmp_path, name):
    body = random.Random(1).randbytes(5000).hex().encode()
    good = archive(ARCHIVES[name], {"a.txt": body, "b.txt": body}) if name in ARCHIVES else PACKERS[name[2:]](body)
    path = tmp_path / name
    for data in (good[: len(good) // 2], good[:-600] if name == "a.tar" else good[:-9], b"not packed at all " * 99):
        path.write_bytes(data[:10240] if name == "a.tar" and len(data) > 10240 else data)
        for source in (path, tmp_path):
            said = sentence(lambda source=source: load_corpus(source))
            assert name in said and "is not a whole" in said
    path.write_bytes(b"")
    assert "is empty" in sentence(lambda: load_corpus(path))


@pytest.mark.parametrize("name", ["a.zst", "a.tar.zst", "a.7z", "a.rar"])
def test_what_cannot_be_unpacked_is_refused_or_named(tmp_path, name):
    (path := tmp_path / name).write_bytes(b"(\xb5/\xfd" * 99)
    assert "unpack it yourself" in sentence(lambda: load_corpus(path))
    write_text(tmp_path / "a.txt")
    assert f"1 packed in a way that is not read here ('{name}')" in load_corpus(tmp_path).notes[0]


def test_an_archive_that_claims_too_much_or_is_locked_is_refused(tmp_path, cache):
    info = tarfile.TarInfo("bomb.txt")
    info.size = 2**42
    (path := tmp_path / "bomb.tar").write_bytes(info.tobuf() + b"a" * 512)
    assert "would unpack to more than" in sentence(lambda: load_corpus(path))
    locked = bytearray(archive("zip", {"a.txt": b"secret text"}))
    for mark, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        locked[locked.index(mark) + at] |= 1
    (path := tmp_path / "locked.zip").write_bytes(locked)
    assert "is encrypted" in sentence(lambda: load_corpus(path))
    assert not [f for f in cache.rglob("*") if f.suffix in (".part", ".bin")]


# folders


def test_what_is_excluded_is_no_data(tmp_path):
    for name in ("a.txt", "b.txt", "run/log.jsonl", "run/deep/x.txt", "c.txt"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_text(f"text of {name}")
    out = [tmp_path / "in" / "run", Path(tmp_path, "in", "run", "..", "c.txt"), tmp_path / "elsewhere"]
    corpus = load_corpus(tmp_path / "in", exclude=out)
    assert texts_of(corpus) == {"text of a.txt", "text of b.txt"} and "2 excluded ('c.txt', 'run')" in corpus.notes[0]
    (tmp_path / "in" / "run" / "log.jsonl").write_text("longer than before")
    assert load_corpus(tmp_path / "in", exclude=out).sha256 == corpus.sha256
    assert "holds no text" in sentence(lambda: load_corpus(tmp_path / "in", exclude=[tmp_path / "in" / n for n in ("a.txt", "b.txt", *out)]))


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_links_are_followed_to_files_and_others_are_named(tmp_path):
    write_text(tmp_path / "text.txt")
    for name in ("in", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "in" / "a.txt").symlink_to(tmp_path / "text.txt")
    (tmp_path / "in" / "folder").symlink_to(tmp_path / "other")
    (tmp_path / "in" / "lost").symlink_to(tmp_path / "nowhere")
    corpus = load_corpus(tmp_path / "in")
    assert whole(corpus) == (tmp_path / "text.txt").read_bytes()
    assert "left out: 2 links to folders or no plain files ('folder', 'lost')" in corpus.notes[0]


@pytest.mark.skipif(os.name == "nt", reason="no such name on Windows")
def test_odd_names_are_shown_escaped_and_cut(tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a\nb\x1b[31m", "y" * 200):
        (tmp_path / "in" / name).write_bytes(b"caf\xe9")
    said = sentence(lambda: load_corpus(tmp_path / "in"))
    assert r"'a\nb\x1b[31m'" in said and "y" * 60 not in said
    assert r"a\nb\x1b" in load_corpus(tmp_path / "in" / "a\nb\x1b[31m").notes[0]


# the command line


def test_an_encoding_travels_with_the_run(call, folder):
    text = (folder / "text.txt").read_text()
    (folder / "text.txt").write_bytes(text.replace("cat", "chaté").encode("latin-1"))
    raw = call("train.py", *flags(TRAIN, out_dir="raw"))
    assert raw.code == 0 and "taken as they are" in raw.out
    done = call("train.py", *flags(TRAIN, encoding="latin-1", out_dir="run"))
    assert done.code == 0 and "was converted from iso8859-1 to UTF-8" in done.out, done.err
    path = folder / "run" / "checkpoint_2.pth"
    assert load_checkpoint(path)["notes"]["encoding"] == "iso8859-1"
    for more in ([], ["--encoding", "latin1"]):
        assert call("train.py", "--checkpoint_path", path, "--out_dir", f"again{len(more)}", *more).code == 0
    other = call("train.py", "--checkpoint_path", path, "--encoding", "cp1252")
    assert other.code == 2 and "--encoding cp1252 contradicts" in other.err
    unknown = call("train.py", *flags(TRAIN, encoding="klingon", out_dir="new"))
    assert unknown.code == 2 and "no encoding is called 'klingon'" in unknown.err and not (folder / "new").exists()
    alone = call("train.py", *flags(TRAIN, encoding="latin-1", filepath=None, out_dir="new"))
    assert alone.code == 2 and "--encoding is for text of your own" in alone.err
    state = load_checkpoint(folder / "raw" / "checkpoint_2.pth")  # as an older NYX wrote it
    del state["notes"]["encoding"]
    save_checkpoint(folder / "old.pth", state)
    assert call("train.py", "--checkpoint_path", folder / "old.pth", "--out_dir", "older").code == 0
    state["notes"]["encoding"] = 7
    save_checkpoint(folder / "odd.pth", state)
    assert call("train.py", "--checkpoint_path", folder / "odd.pth").code == 2


def test_a_run_says_what_it_took(call, folder):
    mixed_folder(folder / "texts")
    refused = call("train.py", *flags(TRAIN, filepath="texts", out_dir="run"))
    assert refused.code == 2 and "--encoding cp1252" in refused.err and not (folder / "run").exists()
    done = call("train.py", *flags(TRAIN, filepath="texts", out_dir="run", encoding="cp1252", num_batches=1))
    assert done.code == 0 and "taken: 104 of 104 files, 95 converted from cp1252" in done.out, done.err


# files that change while they are read


def test_a_file_cut_short_while_training_is_named(start, folder):
    program = start(ROOT / "train.py", *flags(TRAIN, num_batches=10**6, out_dir="run", generate_every=10**6))
    for line in program.stdout:
        if line.startswith("saved"):
            break
    os.truncate(folder / "text.txt", 5)
    done = finish(program)
    assert done.code in (1, 2), f"the process ended with {done.code}"
    assert "text.txt" in done.err and "has become shorter" in done.err and ": 5 bytes are left" in done.err
    assert "Traceback" not in done.err and log_of(folder / "run", "update")


READER = """
import os, sys
import numpy as np
from nyx.data import ByteTokenizer, DataError, load_corpus, window_batch
corpus = load_corpus(sys.argv[1])
os.truncate(sys.argv[2] or sys.argv[1], 100)
for read in (lambda: window_batch(corpus.train, [8000], 16), lambda: corpus.valid[:10], lambda: bytes(corpus.train)):
    try:
        read()
    except DataError as error:
        print(error)
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_shorter_file_is_an_error_and_no_signal(tmp_path, kind, cache):
    (tmp_path / "in").mkdir()
    for name in ("a.txt", "b.txt"):
        write_text(tmp_path / "in" / name, seed=ord(name[0]))
    source = tmp_path / "in" / ("a.txt" if kind == "file" else "")
    load_corpus(source)
    cut = "" if kind == "file" else str(next(cache.rglob("train.bin")))
    env = environment(tmp_path, cache)
    done = subprocess.run([sys.executable, "-c", READER, source, cut], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, (done.returncode, done.stderr)
    assert done.stdout.count("has become shorter while it was being read: 100 bytes are left") == (3 if kind == "file" else 2)


def test_a_file_that_grows_or_is_replaced_is_read_as_it_was(tmp_path):
    path = write_text(tmp_path / "text.txt")
    before, corpus = path.read_bytes(), load_corpus(path)
    with open(path, "ab") as file:
        file.write(b"more")
    assert whole(corpus) == before
    if os.name != "nt":  # there an open file cannot be replaced
        (tmp_path / "new").write_bytes(b"new")
        os.replace(tmp_path / "new", path)
        assert whole(corpus) == before


def test_tokens_in_a_file_are_the_array_that_they_would_be_in_memory(tmp_path, monkeypatch):
    path = write_text(tmp_path / "text.txt")
    corpus, data = load_corpus(path), np.frombuffer(path.read_bytes(), np.uint8)
    x, y = corpus.train, data[: len(corpus.train)]
    for _ in range(2):
        assert len(x) == len(y) and x.dtype == y.dtype and x.shape == y.shape
        assert x[5] == y[5] and x[-1] == y[-1] and x.astype(np.int64).tolist() == y.tolist()
        assert all((x[s] == y[s]).all() for s in (slice(3, 70), slice(-9, None), slice(None, None, 3), slice(9, 2)))
        assert (np.bincount(x) == np.bincount(y)).all() and (np.arange(256)[x] == y).all() and ((x == 32) == (y == 32)).all()
        assert torch.equal(window_batch(x, [0, 7, len(x) - 9], 9), window_batch(y, [0, 7, len(y) - 9], 9))
        assert ByteTokenizer().to_bytes(x) == y.tobytes() and (pickle.loads(pickle.dumps(x))[:] == y).all()
        with pytest.raises(IndexError):
            x[len(x)]
        monkeypatch.delattr(os, "pread", raising=False)  # Windows has none


# no home


def test_without_a_home_folder_the_cache_is_in_the_working_directory(tmp_path, monkeypatch):
    def homeless(*_):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.setattr(Path, "expanduser", lambda self: homeless() if str(self).startswith("~") else self)
    monkeypatch.delenv("NYX_CACHE")
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path / "text.txt")
    assert nyx.data.cache_dir() == tmp_path / "data" / "cache"
    assert load_corpus("text.txt").size and (tmp_path / "data" / "cache").is_dir()
    monkeypatch.setenv("NYX_CACHE", "~nobody/x")
    assert "NYX_CACHE" in sentence(nyx.data.cache_dir)


HOMELESS = """
import pwd, sys
def nobody(user):
    raise KeyError(f"getpwuid(): uid not found: {user}")
pwd.getpwuid = nobody
from nyx.cli import train_main
sys.exit(train_main(sys.argv[1:]))
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no list of users in a file")
def test_a_user_without_a_home_can_train(tmp_path):
    env = environment(tmp_path, tmp_path / "x")
    del env["HOME"], env["NYX_CACHE"]
    write_text(tmp_path / "text.txt")
    command = [sys.executable, "-c", HOMELESS, *flags(TRAIN, num_batches=1, out_dir="run")]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "data" / "cache").is_dir() and log_of(tmp_path / "run", "final")
