"""How a run stops early, by a signal, a file in its folder or a time limit, and how it waits while the app draws."""

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from koala import process
from koala.distill.processes import Processes
from koala.distill.run.folder import RunFolder
from koala.distill.run.reporter import Reporter
from koala.distill.run.turns import give_way

_ONE_PRESS = 0.3  # s in which a second Ctrl-C is still the first, sent by the terminal and by a launcher


class Stopped(Exception):
    """The run was asked to stop, or its time was over; everything was saved."""


class Interrupted(Exception):
    """Drawing or measuring was abandoned, because the run is asked to stop."""


class StopSignal:
    """SIGTERM, SIGINT, a request and the time limit, as one flag that is checked between pieces of work.

    `word` returns whether another process asked. A run `alone`, without a launcher, quits at once on a second Ctrl-C.
    """

    def __init__(self, minutes: float, *, word: Callable[[], bool] = lambda: False, alone: bool = True):
        self._asked = threading.Event()
        self._deadline = time.monotonic() + 60 * minutes if minutes else None
        self._word, self._alone = word, alone
        self._pressed: float | None = None  # when Ctrl-C was
        self.reason = ""

    @contextmanager
    def listening(self) -> Iterator["StopSignal"]:
        """Signals set the flag for as long as the block lasts; in the main thread only, as signals are."""
        numbers = (signal.SIGTERM, signal.SIGINT) if threading.current_thread() is threading.main_thread() else ()
        before = {n: signal.signal(n, self._hear) for n in numbers}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _hear(self, number: int, frame: object) -> None:
        if number == signal.SIGINT and self._alone:
            now = time.monotonic()
            if self._pressed is not None and now - self._pressed > _ONE_PRESS:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
            elif self._pressed is None:
                self._pressed = now
                # print could meet a print that it interrupted
                os.write(
                    2, b"stopping: saving after this piece of work; press Ctrl-C again to quit at once without saving\n"
                )
        if not self.reason:  # Stop in the app leaves a word and sends a signal as well
            self.reason = "stopped on request" if self._word() else f"stopped by {signal.Signals(number).name}"
        self._asked.set()

    def __call__(self) -> bool:
        if not self._asked.is_set():
            if self._deadline and time.monotonic() > self._deadline:
                self.reason = "stopped at its time limit"
            elif self._word():
                self.reason = "stopped on request"
            if self.reason:
                self._asked.set()
        return self._asked.is_set()


_LOOKS = 0.05  # seconds between two checks whether the app draws, while a million files are read


class Pauses:
    """The pauses of one process of a run; all processes stop together."""

    def __init__(self, run: RunFolder, reporter: Reporter, processes: Processes, minutes: float):
        self.run, self.reporter, self.processes = run, reporter, processes
        pid, began = os.getpid(), process.started(os.getpid())
        alone = processes.number == 1
        self.asked = StopSignal(
            minutes, word=lambda: run.is_asked_to_stop(pid, began) or not alone and run.is_given_up(), alone=alone
        )
        self._looked = -math.inf

    def all_stop(self) -> bool:
        """Whether any process was asked to stop. Every process must call it."""
        return self.processes.any(self.asked())

    def may_stop(self, when: str) -> None:
        """Raises Stopped in all processes if one was asked to stop. Every process must call it."""
        if self.all_stop():
            raise self.stopped(when)

    def stopped(self, when: str) -> Stopped:
        """The run's end, in words."""
        return Stopped(f"{self.asked.reason or 'stopped'} {when}")

    def stops_or_waits(self) -> bool:
        """Whether this process is to stop; called between two files that are read and two pictures that are encoded."""
        if time.monotonic() - self._looked > _LOOKS:
            self.give_way()
            self._looked = time.monotonic()
        return self.asked()

    def between(self) -> None:
        """Called between two pieces of a validation; raises Interrupted where this process is to stop."""
        self.give_way()
        if self.asked():
            raise Interrupted(self.asked.reason)

    def give_way(self) -> None:
        """Wait while the app draws with the same cores."""
        if not self.processes.main or self.processes.device.type != "cpu":
            return
        before = self.reporter.status
        give_way(self.run.path.parent, self.asked, self.reporter.waits)
        if self.reporter.status is not before:
            self.reporter.say(before.state, before.message)
