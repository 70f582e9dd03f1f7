"""The life of a run, from the click to its end, and the current run of each page, for its Stop button."""

import dataclasses
import queue
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from koala.errors import Cancelled


class Life:
    """A run's life. `stopped` means that the visitor pressed Stop, not that the run is over for another reason.

    `over` is for the thread that works: its result is no longer wanted, because the visitor pressed Stop, the page was
    closed or the run has ended.
    """

    def __init__(self) -> None:
        self.stopped = False
        self.over = threading.Event()
        self._events: queue.Queue = queue.Queue()

    def stop(self) -> None:
        """The visitor pressed Stop."""
        self.stopped = True
        self.end()
        self.wake()

    def end(self) -> None:
        """The result is no longer wanted."""
        self.over.set()

    def tell(self, event: object) -> None:
        """Add an event for `news`; not None."""
        self._events.put(event)

    def wake(self) -> None:
        """Make `news` return now."""
        self._events.put(None)

    def news(self, seconds: float) -> list:
        """All events since the last call; waits for `seconds` at most. Raises Cancelled once the run was stopped."""
        events = []
        try:
            events.append(self._events.get(timeout=seconds))
            while True:
                events.append(self._events.get_nowait())
        except queue.Empty:
            pass
        if self.stopped:
            raise Cancelled
        return [event for event in events if event is not None]


class UnderWay:
    """One run of a page at a time, by the page's session hash."""

    def __init__(self) -> None:
        self._runs: dict[str, Life] = {}

    def __len__(self) -> int:
        return len(self._runs)

    def __contains__(self, page: str) -> bool:
        return page in self._runs

    @contextmanager
    def run(self, page: str) -> Iterator[Life]:
        """A run of this page, over when the context ends. A later run of the page takes its place."""
        life = self._runs[page] = Life()
        try:
            yield life
        finally:
            life.end()
            if self._runs.get(page) is life:
                del self._runs[page]

    def stop(self, page: str) -> None:
        """The page's visitor pressed Stop; does nothing without a run."""
        if life := self._runs.get(page):
            life.stop()


# --- Updates of a run for its page, at least twice a second

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
