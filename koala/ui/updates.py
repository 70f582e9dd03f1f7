"""What a run tells its page: everything since the last time, at least twice a second."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from koala.sampling.generate import Step
    from koala.sampling.result import GenerationResult

HEARTBEAT = 0.5  # s between updates of a run that has nothing to report, so that a closed page is noticed


@dataclass(frozen=True, kw_only=True)
class Update:
    """What happened since the last update: the newest step of each model that moved, and finished results."""

    status: str = ""  # where the run stands before its first step
    steps: dict[int, "Step"] = field(default_factory=dict)
    results: dict[int, "GenerationResult"] = field(default_factory=dict)


def gather(news: Iterable) -> Update:
    """Everything that was told as one update; of the previews, those that came too late are dropped."""
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
