"""Hostile bodies at every door of the app, and hostile addresses."""

from recipes.measure.hostile import DOORS, PATHS, ask, attack
from recipes.measure.reliability.running import App
from recipes.measure.reliability.trial import Trial

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
