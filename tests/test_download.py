"""Downloads against a server on 127.0.0.1 that drops, corrupts, redirects, refuses, is slow, and ignores Range.

The law behind all of them: `path` holds the whole, right file, or it does not exist.
"""

import gzip
import hashlib
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from nyx import data
from nyx.cli import train_main
from nyx.data import DataError, download, load_corpus, unzip

BODY = random.Random(0).randbytes(300_007)
SHA = hashlib.sha256(BODY).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Each path misbehaves in its own way; `server.ranges` notes the Range header of every request."""

    def log_message(self, *args):
        pass

    def send(self, body, status=200, length=None, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if length is not False:
            self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def send_range(self, body, upto=None):
        """Answer as a good server does, but stop after `upto` bytes of the body."""
        found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(found[1]) if found else 0
        if start >= len(body):
            return self.send(b"", 416, Content_Range=f"bytes */{len(body)}")
        rest = body[start:]
        headers = {"Content_Range": f"bytes {start}-{len(body) - 1}/{len(body)}"} if found else {}
        self.send(rest[:upto], 206 if found else 200, len(rest), **headers)

    def do_GET(self):
        self.server.ranges.append(self.headers.get("Range"))
        try:
            getattr(self, "do_" + self.path.strip("/"))()
        except (BrokenPipeError, ConnectionResetError):
            pass
        self.close_connection = True

    def do_whole(self):
        self.send_range(BODY)

    def do_drop(self):
        self.send_range(BODY, upto=100_000)

    def do_always(self):
        self.connection.close()

    def do_corrupt(self):
        self.send_range(BODY[:1000] + bytes([BODY[1000] ^ 1]) + BODY[1001:])

    def do_ignores(self):
        self.send(BODY)

    def do_shifted(self):
        if self.headers.get("Range"):
            self.send(BODY[5:], 206, Content_Range=f"bytes 5-{len(BODY) - 1}/{len(BODY)}")
        else:
            self.send(BODY)

    def do_unnamed(self):
        if self.headers.get("Range"):
            self.send(BODY[5:], 206)
        else:
            self.send(BODY)

    def do_redirect(self):
        self.send(b"", 302, Location="/whole")

    def do_far(self):
        hop = int(self.headers.get("X-Hop", 0)) + len(self.server.ranges)
        self.send(b"", 307, Location="/far" if hop < 5 else "/whole")

    def do_loop(self):
        self.send(b"", 302, Location="/loop")

    def do_astray(self):
        self.send(b"", 302, Location="http://[")

    def do_nowhere(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.send(b"", 302, Location=f"http://127.0.0.1:{free.getsockname()[1]}/whole")

    def do_downpour(self):
        """A redirect whose own body never ends."""
        self.send(b"", 302, length=False, Location="/whole")
        while True:
            self.wfile.write(b"x" * 65536)

    def do_elsewhere(self):
        self.send(b"", 302, Location="file:///etc/hostname")

    def do_missing(self):
        self.send(b"not here", 404)

    def do_broken(self):
        self.send(b"oh no", 500)

    def do_portal(self):
        self.send(b"<html>please log in</html>", Content_Type="text/html")

    def do_garbage(self):
        self.wfile.write(b"\0\xff no HTTP at all\r\n\r\n")

    def do_unsized(self):
        self.send_response(200)
        self.send_header("Content-Length", "many")
        self.end_headers()
        self.wfile.write(BODY)

    def do_packed(self):
        """Compressed, although it was asked not to be."""
        self.send(gzip.compress(BODY), length=False, Content_Encoding="gzip")

    def do_chunked(self):
        """In chunks, and the connection ends inside one of them."""
        self.send(b"", length=False, Transfer_Encoding="chunked")
        self.wfile.write(b"%x\r\n" % len(BODY) + BODY[:100_000])

    def do_past(self):
        """A part that is said to begin where it should, of a file of another size."""
        at = int(self.headers["Range"][6:-1])
        self.send(BODY[at:], 206, Content_Range=f"bytes {at}-{len(BODY)}/{len(BODY) + 1}")

    def do_endless(self):
        self.send(b"", length=False)
        while True:
            self.wfile.write(b"x" * 65536)

    def do_silent(self):
        time.sleep(3)

    def do_trickle(self):
        self.send_range(BODY, upto=50_000)
        for byte in BODY[50_000:50_200]:
            self.wfile.write(bytes([byte]))
            time.sleep(0.02)

    def do_slow(self):
        found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(found[1]) if found else 0
        self.send_range(BODY, upto=10_000)
        for at in range(start + 10_000, len(BODY), 10_000):
            time.sleep(0.05)
            self.wfile.write(BODY[at : at + 10_000])


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.ranges = []
        server.url = f"http://127.0.0.1:{server.server_address[1]}/"
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NYX_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("NYX_DATA", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path / "cache"


def get(server, name, path, **options):
    options = {"progress": False, "timeout": 5.0} | options
    return download(server.url + name, path, SHA, len(BODY), **options)


def fails(server, name, path, **options):
    """The sentence with which the download fails, after checking that nothing passes for the file."""
    with pytest.raises(DataError) as error:
        get(server, name, path, **options)
    assert not path.exists()
    return str(error.value)


def part(path):
    return path.with_name(path.name + ".part")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file.bin"


def test_a_good_server_gives_the_file_once(server, path):
    assert get(server, "whole", path) == path
    assert path.read_bytes() == BODY and not part(path).exists()
    get(server, "whole", path)
    assert server.ranges == [None], "a file that is whole is not asked for again"


def test_a_wrong_file_under_the_name_is_replaced(server, path):
    path.write_bytes(BODY[:-1] + b"?")
    get(server, "whole", path)
    assert path.read_bytes() == BODY


def test_a_dropped_connection_is_continued_within_one_call(server, path):
    get(server, "drop", path)
    assert path.read_bytes() == BODY
    assert server.ranges == [None, "bytes=100000-", "bytes=200000-", "bytes=300000-"]


def test_a_later_call_continues_where_an_earlier_one_stopped(server, path):
    sentence = fails(server, "drop", path, attempts=1)
    assert "100,000 of 300,007 bytes are here" in sentence and "a later try continues" in sentence
    assert part(path).read_bytes() == BODY[:100_000]
    get(server, "whole", path)
    assert path.read_bytes() == BODY and server.ranges == [None, "bytes=100000-"]


@pytest.mark.parametrize("name", ["ignores", "shifted", "unnamed"])
def test_a_server_that_cannot_continue_makes_it_start_anew(server, path, name):
    part(path).write_bytes(BODY[:100_000])
    get(server, name, path)
    assert path.read_bytes() == BODY and server.ranges[0] == "bytes=100000-"


def test_a_part_that_is_too_long_is_thrown_away(server, path):
    part(path).write_bytes(BODY + b"more")
    get(server, "whole", path)
    assert path.read_bytes() == BODY and server.ranges == [None]


def test_a_part_that_is_whole_needs_no_server(server, path):
    part(path).write_bytes(BODY)
    get(server, "missing", path)
    assert path.read_bytes() == BODY and server.ranges == []


@pytest.mark.parametrize("before", [b"", b"something else" * 1000])
def test_a_wrong_checksum_is_told_and_nothing_kept(server, path, before):
    part(path).write_bytes(before)
    sentence = fails(server, "whole" if before else "corrupt", path)
    assert SHA in sentence and len(re.findall(r"\b[0-9a-f]{64}\b", sentence)) == 2
    assert not part(path).exists()
    get(server, "whole", path)
    assert path.read_bytes() == BODY


def test_redirects_are_followed_and_keep_the_range(server, path):
    part(path).write_bytes(BODY[:7])
    get(server, "redirect", path)
    assert path.read_bytes() == BODY and server.ranges == ["bytes=7-", "bytes=7-"]


def test_redirects_are_followed_five_times(server, path, monkeypatch):
    get(server, "far", path)
    assert path.read_bytes() == BODY and len(server.ranges) == 6


def test_the_body_of_a_redirect_is_never_read(server, path):
    since = time.monotonic()
    get(server, "downpour", path)
    assert path.read_bytes() == BODY and time.monotonic() - since < 5


STRANGE = {
    "loop": "circles", "elsewhere": "file:", "astray": "no address", "nowhere": "the connection failed",
    "missing": "404", "broken": "500", "garbage": "the connection failed", "unsized": "many bytes",
    "past": "another file",
}  # fmt: skip


@pytest.mark.parametrize("name, words", STRANGE.items())
def test_answers_that_are_no_file(server, path, name, words):
    part(path).write_bytes(BODY[:1000])
    assert words in fails(server, name, path)
    assert part(path).read_bytes() == BODY[:1000], "what had come is kept"


def test_a_compressed_answer_does_not_pass_for_the_file(server, path):
    assert "another file" in fails(server, "packed", path, attempts=1)


def test_chunks_that_break_off_are_kept_and_continued(server, path):
    assert "100,000 of 300,007 bytes are here" in fails(server, "chunked", path, attempts=1)
    get(server, "whole", path)
    assert path.read_bytes() == BODY and server.ranges[-1] == "bytes=100000-"


def test_another_file_is_noticed_before_it_is_written(server, path):
    part(path).write_bytes(BODY[:1000])
    assert "another file" in fails(server, "portal", path)
    assert part(path).read_bytes() == BODY[:1000]


def test_an_endless_answer_never_writes_more_than_the_size(server, path, monkeypatch):
    longest, stream = [0], data.stream_into

    def watched(response, file, *rest):
        write = file.write

        class Watch:
            tell, truncate = file.tell, file.truncate

            def write(self, chunk):
                count = write(chunk)
                longest[0] = max(longest[0], file.tell())
                return count

        return stream(response, Watch(), *rest)

    monkeypatch.setattr(data, "stream_into", watched)
    assert "more than the 300,007 bytes" in fails(server, "endless", path)
    assert 0 < longest[0] <= len(BODY)


def test_a_refused_connection(path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}/x"
    with pytest.raises(DataError, match="the connection failed.*a later try continues"):
        download(address, path, SHA, len(BODY), progress=False, timeout=2.0)
    assert not path.exists()


@pytest.mark.parametrize("name", ["silent", "trickle"])
def test_a_stalled_server_is_given_up_in_time(server, path, name):
    since = time.monotonic()
    assert "a later try continues" in fails(server, name, path, timeout=0.5, attempts=1)
    assert time.monotonic() - since < 2.5
    if name == "trickle":
        assert part(path).stat().st_size >= 50_000


def test_a_killed_process_leaves_a_part_and_the_next_one_continues(server, path):
    code = (
        "import sys; from nyx.data import download; "
        "download(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), progress=False)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, server.url + "slow", str(path), SHA, str(len(BODY))])
    while not (part(path).exists() and part(path).stat().st_size):
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    have = part(path).stat().st_size
    assert not path.exists() and 0 < have < len(BODY)
    get(server, "whole", path)
    assert path.read_bytes() == BODY and server.ranges[-1] == f"bytes={have}-"


def test_of_two_at_once_one_fetches_and_the_other_waits(server, path):
    threads = [threading.Thread(target=get, args=(server, "slow", path)) for _ in range(2)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert path.read_bytes() == BODY and len(server.ranges) == 1


@pytest.fixture
def archive(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("member", BODY)
        packed.writestr("bomb", b"\0" * 50_000_000)
    return tmp_path / "a.zip"


def test_an_archive_member_is_unpacked_and_checked(archive, path):
    assert unzip(archive, "member", path, len(BODY), SHA).read_bytes() == BODY


@pytest.mark.parametrize(
    "member, size, sha",
    [
        ("member", len(BODY), "0" * 64),
        ("member", len(BODY) + 1, SHA),
        ("bomb", len(BODY), SHA),
        ("absent", len(BODY), SHA),
    ],
)
def test_a_wrong_archive_member_leaves_nothing(archive, path, member, size, sha):
    with pytest.raises(DataError):
        unzip(archive, member, path, size, sha)
    assert not path.exists() and not list(path.parent.glob("*.part"))


def test_a_bomb_is_not_unpacked_beyond_the_size(archive, path, monkeypatch):
    written, write = [], data.write_atomic

    def watched(path, chunks):
        return write(path, (written.append(len(chunk)) or chunk for chunk in chunks))

    monkeypatch.setattr(data, "write_atomic", watched)
    with pytest.raises(DataError, match="not the file that was expected"):
        unzip(archive, "bomb", path, 2_500_000, SHA)
    assert 0 < sum(written) <= 2_500_000


def test_a_file_that_is_no_archive(path):
    (path.parent / "a.zip").write_bytes(BODY)
    with pytest.raises(DataError, match="does not hold"):
        unzip(path.parent / "a.zip", "member", path, len(BODY), SHA)
    assert not path.exists()


def test_a_named_corpus_is_fetched_once_and_split(server, monkeypatch):
    here = {"url": server.url + "whole", "file": "text.txt", "size": len(BODY), "sha256": SHA}
    monkeypatch.setitem(data.DOWNLOADS, "tinyshakespeare", here)
    for _ in range(2):
        corpus = load_corpus("tinyshakespeare")
        assert bytes(corpus.train) + bytes(corpus.valid) == BODY and corpus.sha256 == SHA
        assert len(corpus.valid) == 30_001
    assert len(server.ranges) == 1


def test_enwik8_comes_out_of_its_archive_in_three_splits(server, archive, monkeypatch, cache):
    with zipfile.ZipFile(cache.parent / "e.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("enwik8", BODY)
    packed = (cache.parent / "e.zip").read_bytes()
    monkeypatch.setattr(Handler, "do_zip", lambda self: self.send_range(packed), raising=False)
    sha = hashlib.sha256(packed).hexdigest()
    here = {"url": server.url + "zip", "file": "enwik8.zip", "size": len(packed), "sha256": sha}
    monkeypatch.setitem(data.DOWNLOADS, "enwik8", here)
    monkeypatch.setattr(data, "ENWIK8", {"size": len(BODY), "sha256": SHA})
    corpus = load_corpus("enwik8")
    assert bytes(corpus.train) + bytes(corpus.valid) + bytes(corpus.test) == BODY
    assert [len(corpus.train), len(corpus.valid), len(corpus.test)] == [270_006, 15_000, 15_001]
    os.remove(cache / "enwik8.zip")
    assert load_corpus("enwik8").size == len(BODY) and len(server.ranges) == 1, "the unpacked file is enough"


def test_a_full_disk_while_fetching_is_told(server, path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(data, "stream_into", full)
    assert "No space left" in fails(server, "whole", path, attempts=1)


@pytest.mark.parametrize("name, words", [("corrupt", SHA), ("missing", "404")])
def test_a_program_that_cannot_have_its_corpus_says_why(server, cache, monkeypatch, capsys, name, words):
    here = {"url": server.url + name, "file": "text.txt", "size": len(BODY), "sha256": SHA}
    monkeypatch.setitem(data.DOWNLOADS, "tinyshakespeare", here)
    folder = cache.parent / "new"
    assert train_main(["--filepath", "tinyshakespeare", "--out_dir", str(folder)]) == 2
    said = capsys.readouterr()
    assert words in said.err.splitlines()[-1] and said.out == ""
    assert not (cache / "text.txt").exists() and not folder.exists()
