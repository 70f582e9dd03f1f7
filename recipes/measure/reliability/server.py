"""Many clients at once: each gets the very picture that it asked for, or is told why not and asks again."""

import http.client
import io
import statistics
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from urllib.parse import urlsplit

from PIL import Image

from koala.models.library import Library
from koala.request import GenerationRequest
from koala.sampling.generate import generate
from recipes.measure.hostile import DOORS, PATHS, QUICK, STUDENT, ask, attack
from recipes.measure.reliability.running import LONGEST, App, Refused, Trial
from recipes.measure.sessions import SETTLED, capture, event, generation, slope

PROMPTS = ("a red circle", "a blue square", "a green star", "a yellow triangle")
AGAIN = 0.5  # s before a client that was told of a full queue asks again


def asked(client: int) -> dict:
    """What client number `client` asks for: no two ask for the same picture."""
    return {"model": STUDENT, **QUICK, "prompt": PROMPTS[client % len(PROMPTS)], "seed": 1000 + client}


def at_once(app: App, clients: int) -> Trial:
    """`clients` ask at the same moment, each from an address of its own."""
    model = Library("cpu").get(STUDENT)
    expected = [generate(GenerationRequest(**asked(k)), model).images[0].tobytes() for k in range(clients)]
    refusals: list[str] = []

    def client(k: int) -> str:
        """Empty where the client got its own picture."""
        visitor, deadline = app.visitor(k), time.monotonic() + LONGEST
        while time.monotonic() < deadline:
            try:
                answer = visitor.call("generate", asked(k))
            except Refused as refused:
                if "full" not in str(refused):
                    return f"client {k} was refused: {refused}"
                refusals.append(str(refused))
                time.sleep(AGAIN)
                continue
            own = Image.open(io.BytesIO(visitor.picture(answer))).tobytes() == expected[k]
            return "" if own else f"client {k} got a picture that is not its own"
        return f"client {k} got nothing within {LONGEST} s"

    begun = time.monotonic()
    with ThreadPoolExecutor(clients) as pool:
        ended = list(pool.map(client, range(clients)))
    failures = tuple(filter(None, ended))
    return Trial(
        what=f"{clients} clients ask for {clients} different pictures at the same moment",
        tried=clients,
        survived=clients - len(failures),
        figures={
            "seconds": round(time.monotonic() - begun, 1),
            "answers that the queue is full": len(refusals),
            "pictures mixed up": sum("not its own" in failure for failure in failures),
        },
        failures=failures,
    )


# --- Bodies that are too large, with and without their length told: refused before they are read, others served

BODY_DOORS = (
    "gradio_api/call/v2/generate",
    "gradio_api/call/generate",
    "gradio_api/queue/join",
    "gradio_api/run/predict",
    "gradio_api/component_server",
    "gradio_api/reset",
    "gradio_api/cancel",
    "login",
)
PIECE = b"[],[]," * 10_000  # 60 kB
BROKEN = "the connection was closed"  # while the body was still being sent, which is a refusal, too


def send(app: App, path: str, pieces: int, *, chunked: bool) -> tuple[int | str, int]:
    """(status or BROKEN, bytes sent) of a body of `pieces` x 60 kB of JSON."""
    place = urlsplit(app.url)
    connection = http.client.HTTPConnection(place.hostname, place.port, timeout=60)
    sent = 0

    def body() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(pieces):
            sent += len(PIECE)
            yield PIECE

    headers = {"Content-Type": "application/json", "X-Forwarded-For": "192.0.2.66"}
    headers |= {} if chunked else {"Content-Length": str(pieces * len(PIECE))}
    try:
        with suppress(BrokenPipeError, ConnectionResetError):  # it has answered before the body was through
            connection.request("POST", f"/{path}", body(), headers, encode_chunked=chunked)
        return connection.getresponse().status, sent
    except ConnectionError:
        return BROKEN, sent
    finally:
        connection.close()


def too_large(app: App, megabytes: int) -> Trial:
    """Every door gets such a body twice, while another visitor asks for the page all the time."""
    waits: list[float] = []
    over = threading.Event()

    def visits() -> None:
        while not over.is_set():
            begun = time.perf_counter()
            app.visitor(1).get("gradio_api/info")
            waits.append(time.perf_counter() - begun)
            time.sleep(0.05)

    before, failures, tried = app.memory(), [], 0
    visitors = threading.Thread(target=visits)
    visitors.start()
    try:
        for path in BODY_DOORS:
            for chunked in (False, True):
                status, sent = send(app, path, round(megabytes * 1e6 / len(PIECE)), chunked=chunked)
                tried += 1
                if status not in (413, BROKEN):
                    header = "without" if chunked else "with"
                    failures.append(f"{path}, {header} its length: answered {status} after {sent / 1e6:.0f} MB")
    finally:
        over.set()
        visitors.join()
    app.draws()
    return Trial(
        what=f"bodies of {megabytes} MB at {len(BODY_DOORS)} doors, "
        "with and without their length, while another visits",
        tried=tried,
        survived=tried - len(failures),
        figures={
            "memory added, MB": round((app.memory() - before) / 1e6, 1),
            "the other visitor waited, ms": {
                "median": round(1000 * statistics.median(waits)),
                "most": round(1000 * max(waits)),
            },
        },
        failures=tuple(failures),
    )


# --- Hostile bodies at every door of the app, and hostile addresses

BUSY = ("call/v2/generate", "call/v2/compare", "call/v2/attention", "queue/join", "component_server")  # that do work


def doors(app: App, count: int) -> Trial:
    """`count` bodies at each door behind which there is work, a fifth at the others; each is followed to its end."""
    counts = {door: count if door in BUSY else count // 5 for door in DOORS}
    reports = [attack(app.url, door, number, seed=place) for place, (door, number) in enumerate(counts.items())]
    faults = [fault for report in reports for fault in report.faults]
    for path in PATHS:
        status, text = ask(app.url + path)
        if status >= 500 or "Traceback" in text:
            faults.append(f"{status} <- /{path}")
    app.draws()
    tried = sum(report.tried for report in reports) + len(PATHS)
    return Trial(
        what=f"{count:,} hostile bodies at each endpoint and at two doors of the page, {count // 5:,} at each of "
        f"{len(DOORS) - len(BUSY)} other doors, with unknown and missing keys, and {len(PATHS)} hostile addresses",
        tried=tried,
        survived=tried - len(faults),
        figures={
            "answered with a result": sum(report.results for report in reports),
            "refused in words": sum(report.refusals for report in reports),
        },
        failures=tuple(faults),
    )


# --- What the server keeps of each session once it keeps as many as it may, and a page among a flood of sessions

EACH = 0.05  # MB of a session at most


def per_session(app: App, generations: int, captures: int) -> Trial:
    """Memory over requests, each in a session of its own."""
    growth = {
        "generation": slope(app.process.pid, lambda: generation(app.url), generations),
        "capture": slope(app.process.pid, lambda: capture(app.url), captures),
    }
    failures = tuple(f"a {name} adds {s.each_mb:.3f} MB" for name, s in growth.items() if s.each_mb > EACH)
    return Trial(
        what=f"{generations} generations and {captures} captures, each in a session of its own, after {SETTLED} of "
        "each: the server keeps as many sessions as it may, and its heap has settled",
        tried=generations + captures,
        survived=0 if failures else generations + captures,
        figures={f"memory added by a {name}, MB": round(s.each_mb, 4) for name, s in growth.items()}
        | {f"by the first {SETTLED} {name}s, MB": round(s.warm_up_mb, 1) for name, s in growth.items()},
        failures=failures,
    )


# --- What a page load costs while captures are kept: time and memory, before and after they are recorded

SLOWER = 1.5  # times as long, at most, as before there were captures
HELD = 20e6  # bytes that loads may add in all, which is far less than one capture


def record(app: App, number: int, *, size: int, steps: int) -> str:
    """A capture of every layer of both models, kept by a session of its own: empty, or why there is none."""
    asked = {"kv-seed": str(number), "kv-width": size, "kv-height": size, "kv-every": True}
    asked |= {"kv-steps-a": steps, "kv-steps-b": steps}
    status, text = event(
        app.url, "kv-start", "click", session=f"capture-{number}", address=app.visitor(number).address, values=asked
    )
    return "" if status == 200 and '"success":true' in text else f"{status} {text[-300:]}"


def loads(app: App, count: int) -> tuple[float, int]:
    """(median seconds of a load of page and config, bytes that all loads added)."""
    before, took = app.memory(), []
    for _ in range(count):
        begun = time.perf_counter()
        for path in ("", "config"):
            status, _ = app.get(path)
            if status != 200:
                raise RuntimeError(f"/{path} was answered with {status}")
        took.append(time.perf_counter() - begun)
    return statistics.median(took), app.memory() - before


def with_captures(app: App, captures: int, count: int = 20, *, size: int = 256, steps: int = 25) -> Trial:
    """`count` loads without and with captures."""
    loads(app, 3)
    plain, _ = loads(app, count)
    before = app.memory()
    failures = [f"capture {k}: {why}" for k in range(captures) if (why := record(app, k, size=size, steps=steps))]
    taken_bytes = app.memory() - before
    loads(app, 3)
    after, added = loads(app, count)
    if after > SLOWER * plain:
        failures.append(f"a load takes {1000 * after:.0f} ms, {1000 * plain:.0f} ms without captures")
    if added > HELD:
        failures.append(f"{count} loads added {added / 1e6:.0f} MB")
    return Trial(
        what=f"{count} loads of page and config without captures and with {captures}",
        tried=count,
        survived=0 if failures else count,
        figures={
            "memory of the captures, MB": round(taken_bytes / 1e6),
            "a load, ms": {"without": round(1000 * plain), "with": round(1000 * after)},
            "memory added by the loads, MB": round(added / 1e6, 1),
        },
        failures=tuple(failures),
    )
