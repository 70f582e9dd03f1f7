"""What a page load costs while captures are kept: time and memory, before and after they are recorded."""

import statistics
import time

from recipes.measure.reliability.running import App
from recipes.measure.reliability.trial import Trial
from recipes.measure.sessions import event

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
    kept = app.memory() - before
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
            "memory of the captures, MB": round(kept / 1e6),
            "a load, ms": {"without": round(1000 * plain), "with": round(1000 * after)},
            "memory added by the loads, MB": round(added / 1e6, 1),
        },
        failures=tuple(failures),
    )
