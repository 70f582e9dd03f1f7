"""The line of runs that wait for the device, in order of arrival: who comes next, and about when.

Gradio's own queue does not tell an event its position, so everything that draws waits here, from the page and from the
API alike. This is also where a request is refused if the line is full or its visitor's share is used up.
"""

import math
import statistics
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from koala.errors import UserError
from koala.words import about

PLACES = 20  # runs that wait; the one that has the device is not counted
MOST = 4  # requests of one visitor of a public app that wait or run
FULL = f"the queue is full: {PLACES} requests wait for the device already; try again in a moment"
TOO_MANY = (
    f"you have {MOST} requests here that wait or run, the most that this public server accepts from one visitor; "
    "wait until one of them is done, or stop it"
)
_REMEMBERED = 5  # runs of a kind whose pace is known
_FURTHEST = 4  # a run's pace predicts runs of up to 4 times its amount: fixed costs distort the pace of a short run
_ENOUGH = 0.1  # the share of a run after which its own pace predicts its end


@dataclass(frozen=True, kw_only=True)
class Work:
    """How much a run does. Runs of one kind share a pace, seconds per amount; `most` is a limit in seconds."""

    kind: str
    amount: float
    most: float = math.inf


@dataclass(eq=False, kw_only=True)
class Ticket:
    """A run's place in the line. `done` is the share of its work that is done, 0 to 1; the run itself sets it."""

    line: "Line"
    who: str
    work: Work
    moved: Callable[[], object]
    done: float = 0.0
    finished: bool = False  # the run was not interrupted, so its pace is worth remembering
    begun: float = math.nan  # when it got the device, and then when its models were loaded

    def begin(self) -> None:
        """The models are in memory; the pace counts from here."""
        self.begun = self.line.now()

    @property
    def called(self) -> bool:
        """Whether this run has the device."""
        return not self.line.place(self)[0]

    @property
    def status(self) -> str:
        """For example `Waiting: 1 before you, about 20 s`; empty once the run has the device."""
        before, seconds = self.line.place(self)
        if not before:
            return ""
        return f"Waiting: {before} before you" + (f", {about(seconds)}" if seconds else "")


class Line:
    """Runs in order of arrival; the first has the device. Safe to use from several threads.

    `share` is how many requests of one visitor may wait or run, None for any number; `elsewhere` counts those of a
    visitor that are not in the line.
    """

    def __init__(self, places: int = PLACES, clock: Callable[[], float] = time.monotonic):
        self.places, self.share = places, None
        self.elsewhere: Callable[[str], int] = lambda who: 0
        self.now = clock
        self._tickets: list[Ticket] = []
        self._others: Counter[str] = Counter()  # requests that run without the device, by visitor
        self._paces: dict[str, deque[tuple[float, float]]] = defaultdict(lambda: deque(maxlen=_REMEMBERED))
        self._lock = threading.RLock()

    def __len__(self) -> int:
        """Runs that wait or have the device."""
        return len(self._tickets)

    @contextmanager
    def join(self, who: str, work: Work, moved: Callable[[], object] = lambda: None) -> Iterator[Ticket]:
        """Wait in the line until the context ends; `moved` is called whenever a run before this one has left.

        UserError where the line is full or the visitor's share is used up.
        """
        ticket = Ticket(line=self, who=who, work=work, moved=moved)
        with self._lock:
            self._admit(who)
            if len(self) > self.places:
                raise UserError(FULL)
            self._tickets.append(ticket)
            self._call()
        try:
            yield ticket
        finally:
            self._leave(ticket)

    @contextmanager
    def without_device(self, who: str) -> Iterator[None]:
        """Count a request that needs no device within the context; UserError beyond the visitor's share."""
        with self._lock:
            self._admit(who)
            self._others[who] += 1
        try:
            yield
        finally:
            with self._lock:
                self._others[who] -= 1
                self._others += Counter()  # removes visitors at zero

    def of(self, who: str) -> int:
        """How many requests of this visitor wait or run here."""
        with self._lock:
            return sum(ticket.who == who for ticket in self._tickets) + self._others[who]

    def place(self, ticket: Ticket) -> tuple[int, float | None]:
        """Runs that come before this one, and seconds until it has the device by the pace of runs before.

        The run that has the device counts as one; the seconds are None if they cannot be predicted.
        """
        with self._lock:
            before = self._tickets[: self._tickets.index(ticket)]
            parts = [self._expected(t.work) if k else self._left(t) for k, t in enumerate(before)]
        return len(before), None if None in parts else sum(parts)

    def _admit(self, who: str) -> None:
        if self.share is not None and self.of(who) + self.elsewhere(who) >= self.share:
            raise UserError(TOO_MANY)

    def _call(self) -> None:
        """The first in the line has the device from now on, unless it already has."""
        if self._tickets and math.isnan(self._tickets[0].begun):
            self._tickets[0].begun = self.now()

    def _leave(self, ticket: Ticket) -> None:
        with self._lock:
            if ticket.finished and ticket.work.amount:
                pace = (self.now() - ticket.begun) / ticket.work.amount
                self._paces[ticket.work.kind].append((ticket.work.amount, pace))
            behind = self._tickets[self._tickets.index(ticket) + 1 :]
            self._tickets.remove(ticket)
            self._call()
        for other in behind:
            other.moved()

    def _expected(self, work: Work) -> float | None:
        paces = [pace for amount, pace in self._paces.get(work.kind, ()) if amount * _FURTHEST >= work.amount]
        return min(statistics.median(paces) * work.amount, work.most) if paces else None

    def _left(self, ticket: Ticket) -> float | None:
        """Seconds that the run with the device still takes; None once it has exceeded its expected time."""
        took = self.now() - ticket.begun
        if ticket.done >= _ENOUGH:
            return took * (1 - ticket.done) / ticket.done
        expected = self._expected(ticket.work)
        return None if expected is None or expected < took else expected - took
