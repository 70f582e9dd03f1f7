"""What every test relies on: no network, one thread per worker, the embedded models, and a Chromium to drive."""

import os

# Read when torch, huggingface_hub, tokenizers and gradio are imported, so they are set before any of those.
if "PYTEST_XDIST_WORKER" in os.environ:  # torch's threads; two workers of two each would wait for each other
    os.environ["OMP_NUM_THREADS"] = "1"  # set, since a worker inherits what the process that began it has set below
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # HF_HUB_OFFLINE=0 python -m pytest -m network
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import errno
import gc
import ipaddress
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock

# A tenth of the tests' time was Python's search for garbage in cycles, most of it among what was just imported. Seldom
# is enough: what is large is freed without it.
gc.set_threshold(20_000, 10, 10)

WORKER = os.environ.get("PYTEST_XDIST_WORKER")  # None with -n0
ROOT = Path(__file__).resolve().parents[1]

CHROMIUMS = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)
INSTALL_CHROMIUM = "sudo apt-get install chromium"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first: begun last, one of them would leave the other worker with nothing to do."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


def pytest_collection_finish() -> None:
    """What is imported by now stays: no later collection of garbage looks through its half a million objects again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory) -> None:
    """What the program keeps in the user's cache lies among the tests' own files, for their child processes as well."""
    from koala.files.outputs import user_cache

    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    os.environ.setdefault("HF_HOME", str(caches / "huggingface"))  # what was downloaded stays in reach
    os.environ.setdefault("KOALA_PACKAGES", str(user_cache() / "npm"))  # those of npm, too
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def embedded() -> Path:
    """The folder of the shipped models."""
    return ROOT / "koala" / "embedded"


@pytest.fixture(scope="module")
def library():
    """The models of one file of tests, on the CPU: what is put into them is in no other file's."""
    from koala.models.library import Library

    return Library("cpu")


@pytest.fixture(scope="session")
def once(tmp_path_factory) -> Callable[[str, Callable[[Path], object]], Path]:
    """name, make -> a folder that the first worker to ask makes for all; a test that changes it takes a copy."""
    own = tmp_path_factory.getbasetemp()
    root = own.parent if WORKER else own

    def folder(name: str, make: Callable[[Path], object]) -> Path:
        result, partial = root / name, root / f"{name}.partial"
        result.parent.mkdir(exist_ok=True)
        with FileLock(root / f"{name.replace('/', '-')}.lock"):
            if not result.is_dir():
                shutil.rmtree(partial, ignore_errors=True)
                make(partial)
                partial.rename(result)
        return result

    return folder


@pytest.fixture(scope="session")
def exported_700m(once) -> Path:
    """tiny-koala-700m as ONNX files in fp16, the whole pipeline."""
    from koala.export.folder import export, plan

    return once("exports/tiny-koala-700m", lambda folder: export(plan("tiny-koala-700m"), folder))


def find_chromium() -> str | None:
    """The executable of any Chromium: one on the path, else the one that playwright downloaded."""
    for name in CHROMIUMS:
        if result := shutil.which(name):
            return result
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
    return own if Path(own).exists() else None


@pytest.fixture(scope="session")
def chromium() -> str:
    """The executable of a Chromium; without one the test is skipped, and under CI=true it fails."""
    if result := find_chromium():
        return result
    message = f"no Chromium found; install one with: {INSTALL_CHROMIUM}"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)


def is_loopback(family: int, address: object) -> bool:
    """Whether a socket address is on this machine."""
    if family not in (socket.AF_INET, socket.AF_INET6):
        return True  # a Unix socket
    host = address[0].partition("%")[0]  # an IPv6 zone
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # another name
        return False


@pytest.fixture(scope="session", autouse=True)
def loopback_only() -> Iterator[SimpleNamespace]:
    """Refuse to connect to another machine, exactly as a machine without a network does, while `closed`."""
    guard = SimpleNamespace(closed=True)
    connect, connect_ex = socket.socket.connect, socket.socket.connect_ex

    def guarded(self: socket.socket, address: object) -> None:
        if guard.closed and not is_loopback(self.family, address):
            raise OSError(errno.ENETUNREACH, f"tests are offline: {address} (mark the test `network`)")
        connect(self, address)

    def guarded_ex(self: socket.socket, address: object) -> int:
        if guard.closed and not is_loopback(self.family, address):
            return errno.ENETUNREACH
        return connect_ex(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded)
        patch.setattr(socket.socket, "connect_ex", guarded_ex)
        yield guard


@pytest.fixture(autouse=True)
def network_where_marked(request: pytest.FixtureRequest, loopback_only: SimpleNamespace) -> Iterator[None]:
    """Only a test marked `network` may leave this machine."""
    loopback_only.closed = request.node.get_closest_marker("network") is None
    yield
    loopback_only.closed = True
