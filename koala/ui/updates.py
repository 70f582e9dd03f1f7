"""Updates of a run for its page, at least twice a second."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from koala.sampling.generate import Step
    from koala.sampling.result import GenerationResult

HEARTBEAT = 0.5  # s between updates of a run without news, so that a closed page is noticed


@dataclass(frozen=True, kw_only=True)
class Update:
    """What happened since the last update: the newest step of each model that moved, and finished results."""

    status: str = ""  # before the first step
    steps: dict[int, "Step"] = field(default_factory=dict)
    results: dict[int, "GenerationResult"] = field(default_factory=dict)


def gather(news: Iterable) -> Update:
    """All events as one update, with only the newest preview of each model."""
    status, steps, results = "", {}, {}
    for event in news:
        if isinstance(event, str):
            status = event
            continue
        kind, position, what = event
        if kind == "result":
            results[position] = what
            continue
        older = steps.get(position)
        if older and not what.preview:
            what = dataclasses.replace(what, preview=older.preview)
        steps[position] = what
    return Update(status=status, steps=steps, results=results)
