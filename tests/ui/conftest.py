"""The real app, started as a person would start it, once for all tests that talk to it; and apps of a test's own."""

import itertools
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from koala.models.cards import CARDS
from koala.ui.main import main
from koala.ui.session import embedded_pair
from tests import forked

ROOT = Path(__file__).resolve().parents[2]
DESKTOP = {"width": 1280, "height": 1000}
PAIR = embedded_pair()  # what an app begins with, where nothing else is named
TITLES = tuple(CARDS[name].title for name in PAIR)
FAULTS = (Path(__file__).parent / "faults.js").read_text()


def serve_app(*arguments: str) -> int:
    return main(list(arguments))


# Below those that the system gives out: an app binds its port seconds later, when another server may have had it.
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_PORTS = itertools.cycle(range(20_000 + 1_000 * _WORKER, 21_000 + 1_000 * _WORKER))


def free_port() -> int:
    for port in _PORTS:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("0.0.0.0", port))
            except OSError:
                continue
            return port


class Server:
    """A running app: its address, and how long it took until the page was served."""

    def __init__(self, log: Path, *arguments: str, **environment: str):
        port = free_port()
        self.url = f"http://127.0.0.1:{port}/"
        self.log = log
        begun = time.perf_counter()
        self.process = self.start("--port", str(port), *arguments, **environment)
        try:
            while not self._answers():
                assert self.alive(), log.read_text()
                assert time.perf_counter() - begun < 120, log.read_text()
                time.sleep(0.1)
        except BaseException:
            self.stop()  # no fixture has it yet, and it would outlive the tests
            raise
        self.served_s = time.perf_counter() - begun
        self.served_cpu_s = self.cpu_s()

    def start(self, *arguments: str, **environment: str) -> BaseProcess:
        return forked.start(self.log, serve_app, *arguments, **environment)

    def alive(self) -> bool:
        return self.process.is_alive()

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(self.url, timeout=5) as answer:
                return answer.status == 200
        except (urllib.error.URLError, TimeoutError):
            return False

    def cpu_s(self) -> float | None:
        """Processor seconds that the app has used, so that a busy machine does not fail a time bar."""
        stat = Path(f"/proc/{self.process.pid}/stat")
        if not stat.exists():
            return None
        user, system = stat.read_text().rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        self.process.terminate()
        assert forked.end_of(self.process, 20) is not None


class Typed(Server):
    """One that was started as a person starts it: python app.py."""

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen:
        with open(self.log, "w") as file:
            return subprocess.Popen(
                [sys.executable, "app.py", *arguments],
                cwd=ROOT,
                env=os.environ | environment,
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def alive(self) -> bool:
        return self.process.poll() is None

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=20)


def places(folder: Path) -> dict[str, str]:
    """Where an app of the tests writes."""
    names = {"GRADIO_TEMP_DIR": "files", "KOALA_RUNS": "runs", "KOALA_EXPORTS": "exports"}
    return {variable: str(folder / name) for variable, name in names.items()}


@pytest.fixture(scope="session")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("app")
    server = Typed(folder / "log.txt", **places(folder))
    yield server
    server.stop()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Start an app of a test's own, with arguments."""
    servers = []

    def start(*arguments: str) -> Server:
        servers.append(Server(tmp_path / "log.txt", *arguments, **places(tmp_path)))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        expect.set_options(timeout=30_000)
        result = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield result
        result.close()


def watch(page: Page, server: Server) -> list[str]:
    """Everything that goes wrong on a page from now on: errors, dialogs, and what it asks of anybody else."""
    wrong: list[str] = []
    page.on("console", lambda m: wrong.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda e: wrong.append(e.stack or str(e)))
    page.on("dialog", lambda d: (wrong.append(f"dialog {d.message}"), d.dismiss()))
    page.on("request", lambda r: None if r.url.startswith((server.url, "data:", "blob:")) else wrong.append(r.url))
    return wrong


def faults(page: Page) -> list[str]:
    """What cannot be read on the page as it stands, in light and in dark: see faults.js."""
    result = []
    for theme in ("dark", "light"):
        page.emulate_media(color_scheme=theme)
        page.wait_for_function("dark => document.body.classList.contains('dark') === dark", arg=theme == "dark")
        result += [f"{theme}: {fault}" for fault in page.evaluate(FAULTS)]
    return result


@pytest.fixture
def open_tab(browser: Browser) -> Callable:
    """Opens a tab of an app; in the end the console must be free of errors, and nothing was fetched from elsewhere."""

    @contextmanager
    def opened(server: Server, name: str, viewport: dict = DESKTOP, *, query="", **settings) -> Iterator[Page]:
        context = browser.new_context(viewport=viewport, **settings)
        page = context.new_page()
        page.set_default_timeout(90_000)
        wrong = watch(page, server)
        page.goto(server.url + query)
        page.get_by_role("tab", name=name).click()
        yield page
        assert wrong == []
        context.close()

    return opened
