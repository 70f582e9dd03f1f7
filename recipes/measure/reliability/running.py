"""The app in a process of its own, and a visitor who speaks plain HTTP to it: any bytes may be sent."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from recipes.measure.hostile import QUICK, STUDENT

ROOT = Path(__file__).resolve().parents[3]
LONGEST = 120  # s that a start or an answer may take


class Refused(Exception):
    """The app's own words instead of an answer."""


class Visitor:
    """Plain HTTP to an app at `url`; `address` is who asks, as a proxy on this machine tells it."""

    def __init__(self, url: str, address: str = "192.0.2.1"):
        self.url, self.address = url, address

    def get(self, path: str) -> tuple[int, bytes]:
        """Status and body."""
        return self._ask(urllib.request.Request(self.url + path, headers={"X-Forwarded-For": self.address}))

    def post(self, path: str, body: bytes, kind: str = "application/json") -> tuple[int, bytes]:
        """Status and body."""
        headers = {"Content-Type": kind, "X-Forwarded-For": self.address}
        return self._ask(urllib.request.Request(self.url + path, data=body, headers=headers))

    def call(self, name: str, values: dict) -> list:
        """An endpoint's answer; Refused with its words where it has none."""
        status, body = self.post(f"gradio_api/call/v2/{name}", json.dumps(values).encode())
        if status != 200:
            raise Refused(f"{status} {body.decode(errors='replace')[:500]}")
        _, body = self.get(f"gradio_api/call/{name}/{json.loads(body)['event_id']}")
        kind, _, data = body.decode().rpartition("event: ")[2].partition("\ndata: ")
        if kind == "complete":
            return json.loads(data)
        words = json.loads(data)
        raise Refused(str(words.get("error") if isinstance(words, dict) else words))

    def draws(self, seed: int = 3) -> None:
        """A plain request is answered, for the seed that was asked."""
        _, result = self.call("generate", {"model": STUDENT, **QUICK, "seed": seed})
        if result["request"]["seed"] != seed:
            raise RuntimeError(f"asked for seed {seed}, got {result['request']['seed']}")

    def picture(self, answer: list) -> bytes:
        """The first PNG of an answer of /generate, fetched as a client does."""
        status, content = self.get(f"gradio_api/file={answer[0][0]['path']}")
        if status != 200:
            raise RuntimeError(f"a finished picture was answered with {status}")
        return content

    def _ask(self, request: urllib.request.Request) -> tuple[int, bytes]:
        try:
            with urllib.request.urlopen(request, timeout=LONGEST) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()


class App(Visitor):
    """A running app."""

    def __init__(self, url: str, process: subprocess.Popen, log: Path):
        super().__init__(url)
        self.process, self.log = process, log

    def visitor(self, number: int) -> Visitor:
        """One of up to 60,000 visitors, each with an address of its own."""
        return Visitor(self.url, f"10.1.{number // 250}.{number % 250 + 1}")

    def memory(self) -> int:
        """Bytes of RAM that the process holds."""
        return psutil.Process(self.process.pid).memory_info().rss

    def tracebacks(self) -> int:
        """How often something went wrong inside, by the log."""
        return self.log.read_text(errors="replace").count("Traceback")


@contextmanager
def served(folder: Path, *arguments: str, host: str = "0.0.0.0") -> Iterator[App]:
    """python app.py with a new folder for all that it writes; it is ready to draw when this yields."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder.mkdir(parents=True, exist_ok=True)
    names = {"GRADIO_TEMP_DIR": "files", "KOALA_RUNS": "runs", "KOALA_EXPORTS": "exports"}
    places = {variable: str(folder / name) for variable, name in names.items()}
    log = folder / "log.txt"
    command = [sys.executable, "app.py", "--host", host, "--port", str(port), *arguments]
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=ROOT, env=os.environ | places, stdout=file, stderr=subprocess.STDOUT)
    app = App(f"http://127.0.0.1:{port}/", process, log)
    try:
        _await(app)
        app.draws()
        yield app
    finally:
        process.terminate()
        process.wait(timeout=20)


def _await(app: App) -> None:
    begun = time.monotonic()
    while True:
        try:
            if app.get("")[0] == 200:
                return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            pass
        if app.process.poll() is not None or time.monotonic() - begun > LONGEST:
            raise RuntimeError(f"the app did not start:\n{app.log.read_text()}")
        time.sleep(0.1)


# --- What one attack on the app came to, in numbers that a page can show

SHOWN = 10  # failures that a report quotes; the rest are counted


@dataclass(frozen=True, kw_only=True)
class Trial:
    """`tried` attempts, of which `survived` ended as promised; `failures` says how the others ended."""

    what: str  # one sentence: what was tried
    tried: int
    survived: int
    figures: Mapping[str, object] = field(default_factory=dict)
    failures: tuple[str, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether nothing failed."""
        return self.survived == self.tried and not self.failures

    def to_dict(self) -> dict:
        """As the report has it."""
        return {
            "what": self.what,
            "tried": self.tried,
            "survived": self.survived,
            "figures": dict(self.figures),
            "failures": list(self.failures[:SHOWN]),
        }


TESTS = {
    "clients": "tests/safety/test_visitors.py",
    "hostile": "tests/safety/test_endpoints.py",
    "bodies": "tests/safety/test_body_limit.py",
    "memory": "tests/safety/test_sessions.py",
    "pages": "tests/ui/test_page_loads.py",
    "judge": "tests/shapes/test_judge_bounds.py",
    "kills": "tests/distill/test_killed.py",
    "flips": "tests/distill/test_damaged_resume.py",
    "sites": "tests/ui/test_other_pages_browser.py",
}
HEAD = """# Reliability

Attacks on the app, its server and its training runs, and how many of them they survived. One command measured every
row and wrote [this report](measurements/reliability.json), with machine, date and the weights' hashes; another wrote
this page:

```bash
python -m recipes.measure.reliability --out docs/measurements/reliability.json
python -m recipes.measure.reliability --page docs/reliability.md --out docs/measurements/reliability.json
```

The last column names the test that runs a short version of the attack by default. [SECURITY.md](../SECURITY.md) says
what is promised to whom. Times and memory were measured on a shared machine with two cores.

| attack | tried | survived | measured | test |
| --- | --: | --: | --- | --- |
"""


def markdown(report: Mapping) -> str:
    """The page."""
    rows = []
    for name, outcome in report["attacks"].items():
        rows.append(
            f"| {outcome['what']} | {outcome['tried']:,} | {outcome['survived']:,} | {_seen(outcome['figures'])} | "
            f"`{TESTS[name]}` |\n"
        )
    dates = sorted({outcome["date"] for outcome in report["attacks"].values()})
    machines = sorted({outcome["device"] for outcome in report["attacks"].values()})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    failed = [(name, failure) for name, outcome in report["attacks"].items() for failure in outcome["failures"]]
    summary = "Nothing failed." if not failed else "\n".join(["What failed:", "", *(f"- {n}: {f}" for n, f in failed)])
    return f"{HEAD}{''.join(rows)}\n{', '.join(machines)}, {when}. {summary}\n"


def _seen(figures: Mapping) -> str:
    return "; ".join(f"{name}: {_value(value)}" for name, value in figures.items())


def _value(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_value(part)}" for name, part in value.items())
    return f"{value:,}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)
