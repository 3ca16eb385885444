"""A real browser, the built site over HTTP, and a folder for what the browser saw."""

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parent.parent.parent
HTML = ROOT / "_docs" / "html"
SEEN = ROOT / "_browser"
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"]
FLAGS += ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]  # the network is 127.0.0.1


class Quiet(SimpleHTTPRequestHandler):
    """Serves files and says nothing."""

    def log_message(self, *args):
        pass


@pytest.fixture(scope="session")
def site() -> Path:
    """The folder of the built site."""
    if not (HTML / "index.html").exists():
        pytest.fail("the site is not built: run `make docs` first, or `make test-browser`, which does")
    return HTML


@pytest.fixture(scope="session")
def served(site: Path):
    """The address at which the site is served."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="session")
def browser():
    """Chromium, without a window and without a network."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.fail("no chromium was found: on Debian, apt-get install chromium")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield launched
        launched.close()


@pytest.fixture(scope="session")
def screenshot():
    """Keep what a page looks like, in a folder that git ignores."""
    SEEN.mkdir(exist_ok=True)

    def keep(page, name: str) -> Path:
        path = SEEN / f"{name.replace('/', '-')}.png"
        page.screenshot(path=path)
        return path

    return keep


class Watched:
    """A page, and everything that went wrong on it."""

    def __init__(self, context, home: str):
        self.page, self.wrong = context.new_page(), []
        self.page.on("console", lambda m: self.wrong.append(f"console: {m.text}") if m.type == "error" else None)
        self.page.on("pageerror", lambda error: self.wrong.append(f"error: {error}"))
        self.page.on("requestfailed", self.failed)
        self.page.on("response", lambda r: self.wrong.append(f"{r.status}: {r.url}") if r.status >= 400 else None)
        local = (home, "data:", "blob:", "about:")
        self.page.on("request", lambda r: None if r.url.startswith(local) else self.wrong.append(f"left: {r.url}"))

    def failed(self, request) -> None:
        if request.failure != "net::ERR_ABORTED":  # taken back by the page: JupyterLab rewrites addresses in markdown
            self.wrong.append(f"failed: {request.url}")


@pytest.fixture
def watch(browser):
    """Open a page that is watched: `watch(home, width=390, color_scheme="dark")`."""
    contexts = []

    def open_page(home: str, width: int = 1200, height: int = 900, **options) -> Watched:
        contexts.append(browser.new_context(viewport={"width": width, "height": height}, **options))
        return Watched(contexts[-1], home)

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    """`make lab` in a copy of the course with a home of its own; its address and its folder."""
    folder = tmp_path_factory.mktemp("course")
    for name in ("Makefile", "requirements.txt", "constraints.txt", "setup.py", "settings.ini", "pyproject.toml"):
        shutil.copy2(ROOT / name, folder)
    for name in ("nbs", "nyx", "tools", ".jupyter", "assets", "weights", "docs"):
        skip = shutil.ignore_patterns("node_modules", "__pycache__", "*.pth")
        shutil.copytree(ROOT / name, folder / name, ignore=skip)
    (folder / "home").mkdir()
    environment = {**os.environ, "HOME": str(folder / "home"), "MAKEFLAGS": "", "NYX_TYPECHECK": ""}
    environment = {k: v for k, v in environment.items() if not k.startswith(("JUPYTER_", "PYTEST_"))}
    port = free_port()
    flags = f"--no-browser --allow-root --port {port} --IdentityProvider.token=browser-test"
    command = ["make", "lab", f"VENV={Path(sys.prefix)}", f"LAB_FLAGS={flags}"]
    log = (folder / "lab.log").open("w")
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_for(f"http://127.0.0.1:{port}/api", process, folder / "lab.log")
        yield f"http://127.0.0.1:{port}", folder
    finally:
        os.killpg(process.pid, 15)
        process.wait(20)


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(address: str, process: subprocess.Popen, log: Path, seconds: float = 60) -> None:
    """Until the address answers."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except OSError:
            time.sleep(0.3)
    pytest.fail(f"`make lab` did not answer:\n{log.read_text()[-3000:]}")
