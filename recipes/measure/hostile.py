"""Hostile bodies for every door of a running app: what each is answered, and what no answer may be.

An answer is a result, or a refusal in words. Status 500, an empty error and no answer within a minute are faults.
"""

import http.client
import json
import random
import string
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

SECONDS = 60
QUICK = {"prompt": "a red circle", "steps": 1, "guidance": 1.0, "width": 64, "height": 64}
STUDENT = "tiny-koala-700m"
CALLS = {
    "generate": {"model": STUDENT, **QUICK},
    "compare": {"models": [STUDENT, STUDENT], **QUICK},
    "attention": {"models": [STUDENT], "stages": ["UP-1"], **QUICK},
}
DOORS = (  # every address that takes a body
    *(f"call/{way}{name}" for way in ("v2/", "") for name in (*CALLS, "nothing")),
    "queue/join",
    "component_server",
    "reset",
    "cancel",
    "run/predict",
    "stream/e",
    "upload",
)
PATHS = (  # what may be asked for by its address alone
    "gradio_api/queue/data?session_hash=nobody",
    "gradio_api/queue/data",
    "gradio_api/call/generate/nothing",
    "gradio_api/call/v2/generate/nothing",
    "gradio_api/heartbeat",
    "gradio_api/file=/etc/passwd",
    "gradio_api/file=%00",
    "gradio_api/file=http://127.0.0.1:22/",
    "gradio_api/proxy=http://127.0.0.1:22/",
    "gradio_api/dev/reload",
    "gradio_api/deep_link?session_hash=h",
    "gradio_api/stream/h/r/1/playlist.m3u8",
    "gradio_api/custom_component/x/client/component/../../x",
    "gradio_api/info?all_endpoints=yes",
    "gradio_api/openapi.json",
    "gradio_api/theme.css?session_hash=h",
    "monitoring",
    "monitoring/x",
    "svelte/../../x",
    "static/../../x",
    "assets/%2e%2e/x",
    "pwa_icon/7",
    "pwa_icon/x",
    "manifest.json",
    "?__theme=x&view=api&deep_link=../../x",
    "nothing",
    "%ff%fe",
)
KEYS = ("prompt", "model", "models", "seed", "steps", "width", "images", "stages", "pixel", "step", "head", "lora")
FILE = {
    "path": "/etc/passwd",
    "url": "http://127.0.0.1:22/",
    "orig_name": "a.png",
    "meta": {"_type": "gradio.FileData"},
}
TEXTS = (
    "",
    "\x00",
    "\ud800",
    "<script>alert(1)</script>",
    "{{7*7}}",
    "../../../etc/passwd",
    "file:///etc/passwd",
    "http://127.0.0.1:22/",
    "x" * 3000,
    "🐨" * 200,
    "NaN",
)
NUMBERS = (-1, 0, 63, 201, 2**31, 2**63, 10**30, 10**400, -0.0, 0.5, 1e308, float("nan"), float("inf"))
WHOLE = (b"", b"null", b"[]", b"{", b"\xff\xfe", b'"text"', b"7", b"[" * 5000, b'{"data":' * 5000, b"NaN", b"{}" * 3)


@dataclass(kw_only=True)
class Report:
    """What a door's hostile bodies were answered: how many with a result, how many with words, and the faults."""

    door: str
    tried: int = 0
    results: int = 0
    refusals: int = 0
    faults: list[str] = field(default_factory=list)
    statuses: Counter = field(default_factory=Counter)


class Chance:
    """Hostile JSON, the same for the same seed."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)

    def value(self, depth: int = 0) -> Any:
        """Any JSON value: texts, numbers, what looks like a file, and nests of them."""
        kind = self.random.randrange(8 if depth < 4 else 5)
        if kind == 0:
            return self.random.choice((None, True, False))
        if kind == 1:
            return self.random.choice(NUMBERS)
        if kind == 2:
            return self.random.choice(TEXTS)
        if kind == 3:
            return "".join(self.random.choices(string.printable, k=self.random.randrange(20)))
        if kind == 4:
            file = dict(FILE)
            for name in self.random.sample(sorted(file), self.random.randrange(3)):
                file[name] = self.random.choice((None, 7, "", [], {"_type": "gradio.FileData"}, "x" * 300))
            return file
        if kind == 5:
            return [self.value(depth + 1) for _ in range(self.random.randrange(4))]
        if kind == 6:
            return {self.key(): self.value(depth + 1) for _ in range(self.random.randrange(3))}
        deep: Any = []
        for _ in range(self.random.choice((20, 200, 900))):
            deep = [deep] if self.random.random() < 0.5 else {"a": deep}
        return deep

    def key(self) -> str:
        """A name: one that is known, or any."""
        return self.random.choice((*KEYS, "colour", "", "__class__", "oauth_token", "session_hash", "x" * 300))

    def named(self, plain: dict) -> Any:
        """A call's values by name, with a few added, changed or left out."""
        values = dict(plain)
        for _ in range(self.random.randrange(1, 4)):
            if self.random.random() < 0.3 and values:
                del values[self.random.choice(sorted(values))]
            else:
                values[self.key()] = self.value()
        return values

    def body(self, plain: dict) -> bytes:
        """A body around the given values: some keys changed, or no such body at all."""
        if self.random.random() < 0.1:
            return self.random.choice(WHOLE)
        return json.dumps(self.named(plain)).encode()


def ask(url: str, body: bytes | None = None, kind: str = "application/json", address: str = "") -> tuple[int, str]:
    """Status and text of an answer; TimeoutError where there is none."""
    headers = {"Content-Type": kind} | ({"X-Forwarded-For": address} if address else {})
    request = urllib.request.Request(url, data=body, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            return answer.status, answer.read().decode(errors="replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")


def plain(url: str, door: str) -> dict:
    """A body of the form that a door takes."""
    if door.startswith("call/v2/"):
        return CALLS.get(door.rpartition("/")[2], QUICK)
    if door.startswith("call/"):
        return {"data": list(CALLS.get(door.rpartition("/")[2], {}).values())}
    config = json.loads(ask(url + "config")[1])
    served = [c["id"] for c in config["components"] if c["props"].get("server_fns")]
    return {
        "component_server": {
            "data": {"id": "0" * 32},
            "component_id": served[0],
            "session_hash": "h",
            "fn_name": "look",
        },
        "reset": {"event_id": "e"},
        "cancel": {"session_hash": "h", "fn_index": 0, "event_id": "e"},
    }.get(door, {"data": [], "fn_index": 0, "session_hash": "h", "trigger_id": 1})


def joins(url: str, chance: Chance) -> Iterator[bytes]:
    """Bodies for the queue: every event of the page in turn, with as many values as it takes or any number."""
    config = json.loads(ask(url + "config")[1])
    while True:
        for event in config["dependencies"]:
            count = len(event["inputs"]) if chance.random.random() < 0.8 else chance.random.randrange(4)
            body = {
                "data": [chance.value() for _ in range(count)],
                "fn_index": event["id"]
                if chance.random.random() < 0.95
                else chance.random.choice((-1, 10**9, "0", None)),
                "session_hash": f"hostile{chance.random.randrange(30)}",
                "trigger_id": chance.random.choice((event["targets"][0][0] if event["targets"] else None, None, 10**9)),
                "event_data": chance.random.choice((None, {"id": 1}, chance.value())),
            }
            if chance.random.random() < 0.2:
                body[chance.random.choice(sorted(body))] = chance.value()
            yield json.dumps(body).encode()


def attack(url: str, door: str, count: int, seed: int = 0, address: str = "192.0.2.66") -> Report:
    """Send `count` hostile bodies to one of DOORS and follow each to its end."""
    chance, report = Chance(seed), Report(door=door)
    form = plain(url, door)
    stream = joins(url, chance) if door in ("queue/join", "run/predict") else iter(lambda: chance.body(form), None)
    for _ in range(count):
        body = next(stream)
        kind = "application/json"
        if door == "upload" or chance.random.random() < 0.03:
            kind = chance.random.choice(("multipart/form-data; boundary=b", "multipart/form-data", "text/plain", ""))
        report.tried += 1
        try:
            status, text = ask(f"{url}gradio_api/{door}", body, kind, address)
            fault = _judge(url, door, body, status, text, report, address)
        except (OSError, http.client.HTTPException) as error:
            fault = f"no answer: {error}"
        if fault:
            report.faults.append(f"{fault} <- {door} {body[:300]!r}")
    return report


def _judge(url: str, door: str, body: bytes, status: int, text: str, report: Report, address: str) -> str | None:
    report.statuses[status] += 1
    if status >= 500 and status != 503:
        return f"{status} {text[:200]}"
    if status != 200:
        report.refusals += 1
        return None if len(text) > 5 and "Traceback" not in text else f"{status} without words"
    event = json.loads(text).get("event_id") if text.startswith('{"event_id"') else None
    if event is None:
        report.results += 1
        return None
    if door == "queue/join":
        session = json.loads(body)["session_hash"]
        _, text = ask(f"{url}gradio_api/queue/data?session_hash={session}", address=address)
        lines = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]
        ends = [m for m in lines if m.get("event_id") == event and m["msg"] == "process_completed"]
        error = (ends[-1]["output"] or {}).get("error") if ends and not ends[-1]["success"] else ""
        failed = not ends or not ends[-1]["success"]
    else:
        _, text = ask(f"{url}gradio_api/{door.replace('v2/', '')}/{event}", address=address)
        kind, _, data = text.rpartition("event: ")[2].partition("\ndata: ")
        failed, error = kind != "complete", data
    if not failed:
        report.results += 1
    elif not error or error.strip() == "null" or "Traceback" in error:
        return f"an error without words: {text[-300:]}"
    else:
        report.refusals += 1
    return None
