"""Checkpoints under force: kills, full disks, other users, other processes, and files made to hurt.

The law behind all of them: the last good file is still there, and a bad one costs neither memory nor safety.
"""

import json
import os
import random
import signal
import subprocess
import sys
import textwrap

import pytest
import torch

from nyx.checkpoint import (
    CheckpointError,
    RunLock,
    checkpoint_path,
    latest_checkpoint,
    list_checkpoints,
    load_checkpoint,
    random_state,
    save_checkpoint,
    set_random_state,
)

posix = pytest.mark.skipif(os.name != "posix", reason="signals and limits of this kind are POSIX only")
PRELUDE = "import os, sys, time, resource, torch; from nyx.checkpoint import *; torch.set_num_threads(1)\n"


def start(code: str, *arguments: object, **options) -> subprocess.Popen:
    """A Python process that runs `code` with the arguments in `sys.argv[1:]`."""
    command = [sys.executable, "-c", PRELUDE + textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def run(code: str, *arguments: object, **options) -> str:
    """What such a process prints; fails if the process does."""
    process = start(code, *arguments, **options)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return output


@posix
def test_kill_in_the_middle_of_a_write_leaves_the_old_file(tmp_path):
    path = checkpoint_path(tmp_path, 1)
    save_checkpoint(path, {"update": 1})
    code = """
        def half(file):
            file.write(b"new" * 100_000)
            file.flush()
            print("half", flush=True)
            time.sleep(60)
        atomic_write(sys.argv[1], half)
    """
    process = start(code, path)
    assert process.stdout.readline() == "half\n"
    process.kill()
    assert process.wait() == -signal.SIGKILL
    process.communicate()
    assert len(list(tmp_path.iterdir())) == 2  # the old file, and what was half-written
    assert latest_checkpoint(tmp_path, on_bad=pytest.fail) == (path, {"update": 1})
    with RunLock(tmp_path):
        assert sorted(p.name for p in tmp_path.iterdir()) == [".nyx.lock", path.name]


@posix
def test_twenty_kills_at_random_moments_never_cost_a_checkpoint(tmp_path):
    """Each child writes and prunes checkpoints as fast as it can, until it is killed; the next one resumes."""
    code = """
        import json, random, signal
        folder, chance, history = sys.argv[1], random.Random(11), []
        def child(said):
            with RunLock(folder):
                update = (latest_checkpoint(folder, on_bad=said) or (0, {"update": 0}))[1]["update"]
                os.write(ready, b"x")
                while True:
                    update += 1
                    state = {"update": update, "w": torch.full((100_000,), update)}
                    save_checkpoint(checkpoint_path(folder, update), state)
                    prune(folder, keep=2)
        for _ in range(20):
            started, ready = os.pipe()
            pid = os.fork()
            if pid == 0:
                child(said=lambda sentence: os._exit(3))
            os.read(started, 1)
            time.sleep(chance.uniform(0, 0.06))
            os.kill(pid, signal.SIGKILL)
            status = os.waitpid(pid, 0)[1]
            assert os.WIFSIGNALED(status), f"a child ended by itself ({status})"
            os.close(started), os.close(ready)
            found = latest_checkpoint(folder, on_bad=lambda sentence: sys.exit(sentence))
            if found:
                assert found[1]["w"].eq(found[1]["update"]).all()
                history.append(found[1]["update"])
        print(json.dumps(history))
    """
    history = json.loads(run(code, tmp_path))
    assert history == sorted(history) and history[-1] > 20
    with RunLock(tmp_path):
        assert 1 <= len(list_checkpoints(tmp_path)) <= 3
        assert not list(tmp_path.glob("*.nyx-tmp"))


@posix
def test_a_full_disk_keeps_what_was_there(tmp_path):
    """RLIMIT_FSIZE makes a write fail half-way, as a full disk does."""
    code = """
        folder = sys.argv[1]
        save_checkpoint(checkpoint_path(folder, 1), {"update": 1})
        save_tensors(folder + "/model.safetensors", {"w": torch.ones(3)}, {})
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        for call in [
            lambda: save_checkpoint(checkpoint_path(folder, 2), {"w": torch.zeros(1_000_000)}),
            lambda: save_checkpoint(checkpoint_path(folder, 1), {"w": torch.zeros(26_000)}),
            lambda: save_tensors(folder + "/model.safetensors", {"w": torch.zeros(1_000_000)}, {}),
        ]:
            try:
                call()
            except CheckpointError as error:
                print(error)
    """
    sentences = run(code, tmp_path).splitlines()
    assert len(sentences) == 3 and all("could not be written (File too large)" in line for line in sentences)
    assert "nothing was left behind" in sentences[0]
    assert all("the file that was there before is unchanged" in line for line in sentences[1:])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint_1.pth", "model.safetensors"]
    assert latest_checkpoint(tmp_path) == (checkpoint_path(tmp_path, 1), {"update": 1})


@posix
def test_one_run_per_folder_and_no_stale_lock(tmp_path):
    code = """
        with RunLock(sys.argv[1]):
            print("locked", flush=True)
            time.sleep(60)
    """
    process = start(code, tmp_path)
    assert process.stdout.readline() == "locked\n"
    with (
        pytest.raises(CheckpointError, match=rf"in use by another run \(process {process.pid}, started 20"),
        RunLock(tmp_path),
    ):
        pass
    process.kill()
    process.communicate()
    with RunLock(tmp_path):
        pass


@posix
@pytest.mark.skipif(os.name == "posix" and os.geteuid() != 0, reason="only root can become another user")
def test_files_of_another_user(tmp_path):
    """What may not be read or written is said in a sentence. The modules are loaded before root is given up."""
    save_checkpoint(tmp_path / "checkpoint_1.pth", {"update": 1})
    (tmp_path / "checkpoint_1.pth").chmod(0o600)
    for folder in [tmp_path, *tmp_path.parents[:2]]:
        folder.chmod(0o755)
    code = """
        os.setgid(65534), os.setuid(65534)
        folder = sys.argv[1]
        for call in [
            lambda: load_checkpoint(folder + "/checkpoint_1.pth"),
            lambda: save_checkpoint(folder + "/checkpoint_2.pth", {}),
            lambda: RunLock(folder).__enter__(),
        ]:
            try:
                call()
            except CheckpointError as error:
                print(error)
    """
    read, written, locked = run(code, tmp_path).splitlines()
    assert "may not be read by this user" in read
    assert "could not be written (Permission denied)" in written
    assert "may not be written by this user" in locked


def test_cut_at_every_thousandth_byte(tmp_path):
    whole, cut = tmp_path / "whole.pth", tmp_path / "cut.pth"
    save_checkpoint(
        whole, {"w": torch.randn(20_000), "half": torch.randn(9_999).bfloat16(), "n": [1, 2.5, "three", None]}
    )
    data = whole.read_bytes()
    for length in range(1000, len(data), 1000):
        cut.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match=r"cut short or damaged"):
            load_checkpoint(cut)


def test_two_hundred_flipped_bits(tmp_path):
    """A flipped bit is noticed, or it lies in padding and the content is the same."""
    whole, flipped = tmp_path / "whole.pth", tmp_path / "flipped.pth"
    state = {
        "w": torch.randn(300),
        "settings": {"seed": 7, "rate": 1e-4, "name": "mini"},
        "m": {0: torch.randn(40).half()},
    }
    save_checkpoint(whole, state)
    data, chance, refused = whole.read_bytes(), random.Random(13), 0
    for _ in range(200):
        damaged = bytearray(data)
        damaged[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        flipped.write_bytes(damaged)
        try:
            loaded = load_checkpoint(flipped)
        except CheckpointError:
            refused += 1
        else:
            assert loaded["settings"] == state["settings"] and list(loaded) == list(state)
            assert torch.equal(loaded["w"], state["w"]) and torch.equal(loaded["m"][0], state["m"][0])
    assert refused > 50


@posix
def test_a_hostile_pickle_is_not_run_even_in_a_process_of_its_own(tmp_path):
    """Through every door: loading, resuming and pruning. The control shows that the pickle does work."""

    class Hostile:
        def __reduce__(self):
            return (os.system, (f"touch {tmp_path}/marker",))

    content = {"format": "nyx-checkpoint", "version": 1, "nyx_version": "0", "sha256": "", "state": {"x": Hostile()}}
    torch.save(content, checkpoint_path(tmp_path, 9))
    save_checkpoint(checkpoint_path(tmp_path, 3), {"update": 3})
    code = """
        folder = sys.argv[1]
        print(latest_checkpoint(folder, on_bad=print)[1])
        for call in [lambda: load_checkpoint(folder + "/checkpoint_9.pth"), lambda: prune(folder, keep=1)]:
            try:
                call()
            except CheckpointError as error:
                print(error)
    """
    lines = run(code, tmp_path).splitlines()
    assert "nothing of it was run. checkpoint_3.pth is tried instead." in lines[0] and lines[1] == "{'update': 3}"
    assert all("nothing of it was run" in line for line in lines[2:]) and len(lines) == 4
    assert not (tmp_path / "marker").exists() and checkpoint_path(tmp_path, 3).exists()
    torch.load(checkpoint_path(tmp_path, 9), weights_only=False)
    assert (tmp_path / "marker").exists()


@posix
def test_a_pipe_is_refused_without_waiting_for_it(tmp_path):
    os.mkfifo(tmp_path / "pipe.pth")
    with pytest.raises(CheckpointError, match=r"no ordinary file"):
        load_checkpoint(tmp_path / "pipe.pth")


@posix
def test_bombs_cost_no_memory(tmp_path):
    """Files that ask for gigabytes: a claimed size, an endless stride, a packed archive, a header, a configuration."""
    code = """
        import json, re, zipfile
        folder = sys.argv[1]
        save_checkpoint(folder + "/plain.pth", {"a": torch.zeros(30011)})
        count, many = b"M" + (30011).to_bytes(2, "little"), b"J\\x00\\x00\\x00\\x40"
        def altered(name, old, new, pack=zipfile.ZIP_STORED):
            with zipfile.ZipFile(folder + "/plain.pth") as source, zipfile.ZipFile(folder + name, "w", pack) as target:
                for entry in source.infolist():
                    data = source.read(entry)
                    if entry.filename.endswith("data.pkl"):
                        data = re.sub(old, new, data, flags=re.DOTALL)
                    target.writestr(entry.filename, data)
                if pack:
                    with target.open("archive/data/9", "w") as out:
                        for _ in range(300):
                            out.write(bytes(2**20))
        altered("/claim.pth", count + b"t", many + b"t")
        altered("/shape.pth", count + b"\\x85", many + b"\\x85")
        altered("/stride.pth", count + b"\\x85(q.)K\\x01\\x85", many + b"\\x85\\\\1K\\x00\\x85")
        altered("/packed.pth", b"", b"", zipfile.ZIP_DEFLATED)
        with zipfile.ZipFile(folder + "/memo.pth", "w") as target:  # a note to be kept in place 2**28 of a list
            target.writestr("archive/data.pkl", b"\\x80\\x02Nr\\x00\\x00\\x00\\x10.")
        header = json.dumps({"w": {"dtype": "F32", "shape": [2**20, 2**12], "data_offsets": [0, 2**34]}}).encode()
        for name, length in [("/size.safetensors", len(header)), ("/header.safetensors", 2**33)]:
            open(folder + name, "wb").write(length.to_bytes(8, "little") + header + bytes(100))
            with open(folder + name, "ab") as file:  # sparse: the bytes are there, but cost no disk
                file.truncate(2**34 if "header" in name else 2**20)
        open(folder + "/config.json", "w").truncate(2**34)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        refused = 0
        for call in [
            lambda: load_checkpoint(folder + "/claim.pth"),
            lambda: load_checkpoint(folder + "/shape.pth"),
            lambda: load_checkpoint(folder + "/stride.pth"),
            lambda: load_checkpoint(folder + "/packed.pth"),
            lambda: load_checkpoint(folder + "/memo.pth"),
            lambda: load_tensors(folder + "/size.safetensors", {"w": (2**20, 2**12)}),
            lambda: load_tensors(folder + "/header.safetensors", {"w": (2**20, 2**12)}),
            lambda: read_config(folder + "/config.json"),
        ]:
            try:
                call()
            except CheckpointError:
                refused += 1
        print(refused, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
    """
    refused, mebibytes = map(int, run(code, tmp_path).split())
    assert refused == 8
    assert mebibytes < 64


@pytest.mark.parametrize(
    ("generator", "part", "value"),
    [
        ("python", "words", torch.zeros(2, dtype=torch.int64)),
        ("python", "gauss", []),
        ("numpy", "keys", torch.zeros(2, dtype=torch.int64)),
        ("numpy", "keys", torch.tensor(0)),
        ("numpy", "rest", []),
        ("numpy", "rest", [1]),
        ("numpy", "name", 7),
    ],
)
def test_a_strange_random_state_is_refused_and_nothing_changes(generator, part, value):
    state, before = random_state(), random_state()
    state[generator][part] = value
    with pytest.raises(CheckpointError, match="random state"):
        set_random_state(state)
    after = random_state()
    assert str(after["python"]) == str(before["python"]) and torch.equal(
        after["numpy"]["keys"], before["numpy"]["keys"]
    )
