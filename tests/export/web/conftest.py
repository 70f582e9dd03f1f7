"""A site of the student, served on this machine, and a Chromium that may talk to nobody else."""

import dataclasses
import functools
import http.server
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from koala.export import manifest
from koala.export.gates.numbers import widen
from koala.export.web import packages, site
from koala.export.web.packages import Package
from koala.models.export_manifest import Exported
from koala.models.registry import find

DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
ALONE = ["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]  # no name of a host leads anywhere
NAMES = ("tiny-koala-1b", "tiny-koala-700m")  # of the site below: two names for one network
AXE = Package(
    name="axe-core",
    version="4.14.1",
    integrity="sha512-FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ==",
)


def cached_package(package: Package) -> Path:
    """A package's file; without it the test is skipped, and under CI=true it fails."""
    file = packages.cache() / package.file
    if file.is_file():
        return packages.fetched(package, file)
    message = f"{package.file} is not in {file.parent}; there run: npm pack {package.name}@{package.version}"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)


@pytest.fixture(scope="session")
def runtime() -> Path:
    """The npm package of ONNX Runtime Web."""
    return cached_package(packages.RUNTIME)


@pytest.fixture(scope="session")
def axe() -> str:
    """The source of axe, which looks for what some visitors could not use."""
    return packages.member(cached_package(AXE), "axe.min.js").decode()


def widened(export: Path, out: Path) -> None:
    """A copy of an export in fp32, with the very same weights."""
    shutil.copytree(export, out)
    result = Exported.read(out)
    components = dict(result.components)
    for part in ("unet", "text_encoder", "text_encoder_2"):
        file = out / part / "model.onnx"
        widen(export / part / "model.onnx", out / part / "wide.onnx")
        onnx.save(onnx.load(out / part / "wide.onnx"), file)
        for one in (out / part).glob("wide.onnx*"):
            one.unlink()
        components[part] = manifest.component(out, [file], "float32", components[part].parameters)
    dataclasses.replace(result, dtype="float32", stored_dtype="float32", components=components).write(out)


@pytest.fixture(scope="session")
def pages(once, exported_700m, runtime) -> Path:
    """A site with the student twice, under two names."""

    def make(folder: Path) -> None:
        first, second = exports = [folder.with_name(f"{folder.name}-{name}") for name in NAMES]
        widened(exported_700m, second)
        shutil.copytree(second, first)
        dataclasses.replace(Exported.read(first), model=NAMES[0], title=find(NAMES[0]).title).write(first)
        site.write(exports, folder, runtime=runtime)
        for export in exports:
            shutil.rmtree(export)

    return once("web-site", make)


class Server:
    """A static host of a folder; `isolated` with the headers that allow threads."""

    HEADERS = {
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Embedder-Policy": "require-corp",
        "Cross-Origin-Resource-Policy": "same-origin",
    }

    def __init__(self, folder: Path, *, isolated: bool = False):
        headers = self.HEADERS if isolated else {}

        class Handler(http.server.SimpleHTTPRequestHandler):
            def end_headers(self) -> None:
                for name, value in headers.items():
                    self.send_header(name, value)
                super().end_headers()

            def log_message(self, *_) -> None: ...

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder))
        self.url = f"http://127.0.0.1:{self.server.server_port}/"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@contextmanager
def served(folder: Path, **settings) -> Iterator[Server]:
    server = Server(folder, **settings)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def host(pages) -> Iterator[Server]:
    with served(pages) as server:
        yield server


@pytest.fixture(scope="module")
def chromiums(chromium: str) -> Iterator[Callable[..., Browser]]:
    """Starts a Chromium with these arguments."""
    with sync_playwright() as playwright:
        expect.set_options(timeout=60_000)
        result = []

        def start(*arguments: str) -> Browser:
            result.append(playwright.chromium.launch(executable_path=chromium, args=[*ALONE, *arguments]))
            return result[-1]

        yield start
        for one in result:
            one.close()


@pytest.fixture(scope="module")
def browser(chromiums: Callable[..., Browser]) -> Browser:
    return chromiums()


def watch(page: Page, url: str) -> list[str]:
    """Everything that goes wrong on a page from now on, and whatever it or its workers ask of another host."""
    wrong: list[str] = []
    page.on("console", lambda m: wrong.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda e: wrong.append(e.stack or str(e)))
    page.context.on(
        "request", lambda r: None if r.url.startswith((url, "data:", "blob:")) else wrong.append(f"asked {r.url}")
    )
    return wrong


@pytest.fixture
def visit(browser: Browser, host: Server) -> Iterator[Callable]:
    """Opens the page as a new visitor, at a link's fragment; in the end nothing went wrong, nobody else was asked."""
    contexts = []

    def opened(fragment: str = "", viewport: dict = DESKTOP, at: Server = host, **settings) -> Page:
        context = browser.new_context(viewport=viewport, **settings)
        page = context.new_page()
        page.set_default_timeout(90_000)
        contexts.append((context, watch(page, at.url)))
        page.goto(f"{at.url}{fragment}")
        return page

    yield opened
    for context, wrong in contexts:
        context.close()
        assert wrong == []


def ready(page: Page, name: str = NAMES[1]) -> None:
    """Wait until a model can draw."""
    page.locator(f"#state-{name}[data-state=ready]").wait_for()


def phase(page: Page, name: str) -> None:
    page.locator(f"html[data-phase={name}]").wait_for()


@pytest.fixture(scope="module")
def modules(browser: Browser, host: Server) -> Iterator[Page]:
    """A page of the site without the app: its modules can be imported there."""
    page = browser.new_page()
    page.goto(f"{host.url}site.json")
    yield page
    page.close()
