"""What a running app keeps of each session: its memory over many requests, each in a session of its own.

Used by `recipes.measure.reliability` and, with smaller numbers, by the tests.
"""

import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from recipes.measure.hostile import QUICK, STUDENT, ask

# Requests before memory is read. The server keeps 20 sessions of one visitor, and the allocator's heap settles over
# about a hundred captures: their tensors differ in size, so the first ones leave gaps that later ones fill.
SETTLED = 120


@dataclass(frozen=True, kw_only=True)
class Slope:
    """A server's memory over requests, in MB: what the first ones added, and the slope by least squares after them."""

    requests: int
    warm_up: int
    warm_up_mb: float
    each_mb: float
    readings_mb: tuple[float, ...]


def slope(pid: int, request: Callable[[], object], count: int, warm_up: int = SETTLED) -> Slope:
    """Call `request` `warm_up` times, so that all is full, then `count` times, reading the memory after each."""
    process = psutil.Process(pid)
    begun = process.memory_info().rss / 1e6
    for _ in range(warm_up):
        request()
    settled = process.memory_info().rss / 1e6
    readings = []
    for _ in range(count):
        request()
        readings.append(process.memory_info().rss / 1e6)
    middle, mean = (count - 1) / 2, sum(readings) / count
    spread = sum((k - middle) ** 2 for k in range(count))
    each = sum((k - middle) * (y - mean) for k, y in enumerate(readings)) / spread
    return Slope(
        requests=count,
        warm_up=warm_up,
        warm_up_mb=settled - begun,
        each_mb=each,
        readings_mb=tuple(round(y, 2) for y in readings),
    )


def generation(url: str, address: str = "192.0.2.55") -> None:
    """One picture by the API, which is a session of its own; AssertionError where there is none."""
    body = json.dumps({"model": STUDENT, **QUICK, "seed": secrets.randbelow(2**31)}).encode()
    status, text = ask(f"{url}gradio_api/call/v2/generate", body, address=address)
    assert status == 200, text
    _, text = ask(f"{url}gradio_api/call/generate/{json.loads(text)['event_id']}", address=address)
    assert "event: complete" in text, text[-500:]


def capture(url: str, address: str = "192.0.2.56") -> None:
    """One recorded attention in a session of its own, as the Attention tab's page begins it."""
    status, text = event(
        url,
        "kv-start",
        "click",
        session=secrets.token_hex(8),
        address=address,
        values={"kv-prompt": "a red circle", "kv-width": 64, "kv-height": 64, "kv-steps-a": 1, "kv-steps-b": 1},
    )
    assert status == 200 and '"success":true' in text, text[-500:]


def event(
    url: str, elem_id: str, trigger: str, *, session: str, address: str = "", values: dict | None = None
) -> tuple[int, str]:
    """A page's event with the values that its fields begin with, changed by elem_id: status and all its messages."""
    config = json.loads(ask(url + "config")[1])
    parts = {c["id"]: c["props"] for c in config["components"]}
    (button,) = (i for i, p in parts.items() if p.get("elem_id") == elem_id)
    handler = next(d for d in config["dependencies"] if [button, trigger] in d["targets"])
    data = [(values or {}).get(parts[i].get("elem_id"), parts[i].get("value")) for i in handler["inputs"]]
    body = {"data": data, "fn_index": handler["id"], "session_hash": session, "trigger_id": button, "event_data": None}
    status, text = ask(f"{url}gradio_api/queue/join", json.dumps(body).encode(), address=address)
    if status != 200:
        return status, text
    return ask(f"{url}gradio_api/queue/data?session_hash={session}", address=address)


def flood(url: str, count: int, *, address: str | None = None) -> None:
    """Begin `count` sessions that nobody ever had, from one address or each from its own."""
    config = json.loads(ask(url + "config")[1])
    part = next(c["id"] for c in config["components"] if c["props"].get("server_fns"))
    for k in range(count):
        body = {"data": {"id": "0" * 32}, "component_id": part, "session_hash": secrets.token_hex(8), "fn_name": "look"}
        where = address or f"2001:db8:{k // 65536:x}::{k % 65536:x}"
        status, text = ask(f"{url}gradio_api/component_server", json.dumps(body).encode(), address=where)
        assert status == 200, text
