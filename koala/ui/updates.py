"""What a run tells its page: everything since the last time, at least twice a second."""

import dataclasses
import queue
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from koala.generate import Step
    from koala.result import GenerationResult

HEARTBEAT = 0.5  # s between updates of a run that has nothing to report, so that a closed page is noticed


@dataclass(frozen=True, kw_only=True)
class Update:
    """What happened since the last update: the newest step of each model that moved, and finished results."""

    steps: dict[int, "Step"] = field(default_factory=dict)
    results: dict[int, "GenerationResult"] = field(default_factory=dict)


def collect(events: queue.Queue) -> tuple[Update, Exception | bool]:
    """Everything that waits in the queue as one update, and how the run ended if it did."""
    update = Update()
    ended: Exception | bool = False
    try:
        waiting = [events.get(timeout=HEARTBEAT)]
        while not events.empty():
            waiting.append(events.get())
    except queue.Empty:
        waiting = []
    for event in waiting:
        if not isinstance(event, tuple):
            ended = event
            continue
        kind, position, what = event
        if kind == "result":
            update.results[position] = what
            continue
        older = update.steps.get(position)
        if older and not what.preview:
            what = dataclasses.replace(what, preview=older.preview)
        update.steps[position] = what
    return update, ended
