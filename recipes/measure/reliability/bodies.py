"""Bodies that are too large, with and without their length told: refused before they are read, others served."""

import http.client
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from urllib.parse import urlsplit

from recipes.measure.reliability.running import App
from recipes.measure.reliability.trial import Trial

DOORS = ("gradio_api/call/v2/generate", "gradio_api/call/generate", "gradio_api/queue/join", "gradio_api/run/predict",
         "gradio_api/component_server", "gradio_api/reset", "gradio_api/cancel", "login")  # fmt: skip
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
    other = threading.Thread(target=visits)
    other.start()
    try:
        for path in DOORS:
            for chunked in (False, True):
                status, sent = send(app, path, round(megabytes * 1e6 / len(PIECE)), chunked=chunked)
                tried += 1
                if status not in (413, BROKEN):
                    told = "without" if chunked else "with"
                    failures.append(f"{path}, {told} its length: answered {status} after {sent / 1e6:.0f} MB")
    finally:
        over.set()
        other.join()
    app.draws()
    return Trial(
        what=f"bodies of {megabytes} MB at {len(DOORS)} doors, with and without their length, while another visits",
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
