"""Put before everything else on a program's path, this makes NYX see a machine like Windows; what others import stays as it is.

- nyx, train.py and test.py find no `fcntl`, `resource` or `pwd`, no `os.fork`, `os.pread`, `os.getuid`, no SIGHUP or SIGKILL, and
  they find `msvcrt`, `os.name` "nt", `sys.platform` "win32" and a clock that moves every 15.6 ms;
- no process finds /proc or /sys, and a folder cannot be opened;
- a file that is open or mapped in this process cannot be replaced or deleted: Windows keeps it.
"""

import builtins
import errno
import io
import os
import runpy
import signal
import sys
import time
import types
from pathlib import Path

runpy.run_path(str(Path(__file__).resolve().parent.parent / "guard" / "sitecustomize.py"))  # the one of every test

ABSENT = ("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog", "posix", "readline", "curses", "crypt")
NO_OS = (
    "chown", "chroot", "confstr", "ctermid", "fchdir", "fchown", "fork", "forkpty", "getegid", "geteuid", "getgid", "getgroups", "getloadavg",
    "getpgid", "getpgrp", "getpriority", "getsid", "getuid", "initgroups", "killpg", "lchown", "lockf", "major", "makedev", "memfd_create", "minor",
    "mkfifo", "mknod", "nice", "openpty", "pathconf", "pipe2", "posix_fadvise", "posix_fallocate", "posix_spawn", "pread", "preadv", "pwrite",
    "pwritev", "readv", "register_at_fork", "sched_getaffinity", "sched_setaffinity", "sendfile", "setsid", "setuid", "splice", "statvfs",
    "sync", "sysconf", "tcgetpgrp", "ttyname", "uname", "wait", "wait3", "wait4", "writev", "O_CLOEXEC", "O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK",
    "O_SYNC", "WNOHANG", "environb", "getenvb", "fsencodeb",
)  # fmt: skip
NO_SIGNALS = (
    "SIGHUP", "SIGKILL", "SIGALRM", "SIGUSR1", "SIGUSR2", "SIGQUIT", "SIGPIPE", "SIGCHLD", "SIGCONT", "SIGSTOP", "SIGTSTP", "SIGTTIN", "SIGTTOU",
    "SIGBUS", "SIGWINCH", "SIGXCPU", "alarm", "pause", "setitimer", "getitimer", "siginterrupt", "sigwait", "sigpending", "pthread_kill",
    "pthread_sigmask", "ITIMER_REAL",
)  # fmt: skip
TICK = 1 / 64  # seconds between two values of Windows' clock


class Seen(types.ModuleType):
    """A module as Windows has it: without some names, with others, and for the rest the true one as it is at the time."""

    def __init__(self, module: types.ModuleType, *lacks: str, **more: object):
        super().__init__(module.__name__)
        self.__dict__.update(more | {"_module": module, "_lacks": lacks})

    def __getattr__(self, name: str) -> object:
        if name in self._lacks:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return getattr(self._module, name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self._module, name, value)


def locking(descriptor: int, mode: int, count: int) -> None:
    """msvcrt's lock; on all of the file here, rather than from its position on."""
    import fcntl

    kind = {0: fcntl.LOCK_UN, 1: fcntl.LOCK_EX, 2: fcntl.LOCK_EX | fcntl.LOCK_NB}[mode]
    try:
        fcntl.flock(descriptor, kind)
    except BlockingIOError:
        raise PermissionError(errno.EACCES, "Permission denied") from None


def refuse_signals(number: int, handler: object) -> object:
    """`signal.signal` as on Windows: only these six can be handled."""
    if number not in (signal.SIGABRT, signal.SIGFPE, signal.SIGILL, signal.SIGINT, signal.SIGSEGV, signal.SIGTERM):
        raise ValueError("invalid signal value")
    return signal.signal(number, handler)


true_import, true_open, true_os_open = builtins.__import__, io.open, os.open
msvcrt = types.ModuleType("msvcrt")
msvcrt.locking, msvcrt.LK_UNLCK, msvcrt.LK_LOCK, msvcrt.LK_NBLCK = locking, 0, 1, 2
OURS = {
    "os": Seen(os, *NO_OS, name="nt"),
    "signal": Seen(signal, *NO_SIGNALS, signal=refuse_signals, CTRL_C_EVENT=0, CTRL_BREAK_EVENT=1),
    "time": Seen(time, "tzset", monotonic=lambda: time.monotonic() // TICK * TICK),
    "sys": Seen(sys, platform="win32"),
    "msvcrt": msvcrt,
}


def windows_import(name, globals=None, locals=None, fromlist=(), level=0):
    """`import` as NYX's own files see it; everybody else's is the true one."""
    asks = (globals or {}).get("__name__", "")
    ours = asks == "nyx" or asks.startswith("nyx.") or asks == "__main__"
    if ours and level == 0:
        if name.split(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        if name in OURS:
            return OURS[name]
    return true_import(name, globals, locals, fromlist, level)


def outside(path: object) -> None:
    """Raise FileNotFoundError for what only Linux has."""
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else ""
    if isinstance(text, str) and text.startswith(("/proc", "/sys")):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", text)


def windows_open(file, *arguments, **options):
    outside(file)
    return true_open(file, *arguments, **options)


def windows_os_open(path, *arguments, **options):
    outside(path)
    if os.path.isdir(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))
    return true_os_open(path, *arguments, **options)


def in_use(path: object) -> bool:
    """Whether this process has the file open or mapped."""
    name = os.path.realpath(path)
    with true_open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        if any(line.rstrip("\n").endswith(f" {name}") for line in maps):
            return True
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{descriptor}") == name:
                return True
        except OSError:  # the one that listed them
            continue
    return False


def keeping(function):
    """A function of `os` that takes names of files away, which Windows refuses while they are in use."""

    def guarded(*paths, **options):
        for path in paths:
            if "dir_fd" not in options and isinstance(path, str | os.PathLike) and os.path.isfile(path) and in_use(path):
                raise PermissionError(errno.EACCES, "The process cannot access the file because it is being used by another process", str(path))
        return function(*paths, **options)

    return guarded


for taking in ("replace", "rename", "remove", "unlink"):
    setattr(os, taking, keeping(getattr(os, taking)))
os.open = windows_os_open
io.open = builtins.open = windows_open
builtins.__import__ = windows_import
