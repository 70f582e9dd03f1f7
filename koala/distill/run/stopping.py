"""When a run ends before its last step: on a signal, on a word in its folder, or when its time is over."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_ONE_PRESS = 0.3  # s in which a second Ctrl-C is still the first, sent by the terminal and by a launcher


class Stopped(Exception):
    """The run was asked to stop, or its time was over; everything was saved."""


class Interrupted(Exception):
    """What was being drawn or measured was given up, because the run is asked to stop."""


class StopSignal:
    """SIGTERM, SIGINT, a word and the time limit, as one flag that is looked at between pieces of work.

    `word` says whether another process asked. A run `alone`, without a launcher, ends at once on a second Ctrl-C.
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
                os.write(2, b"stopping: it saves after this piece of work; Ctrl-C again ends it at once, unsaved\n")
        self.reason = self.reason or f"stopped by {signal.Signals(number).name}"
        self._asked.set()

    def __call__(self) -> bool:
        if not self._asked.is_set():
            if self._deadline and time.monotonic() > self._deadline:
                self.reason = "stopped by its time limit"
            elif self._word():
                self.reason = "stopped as it was asked to"
            if self.reason:
                self._asked.set()
        return self._asked.is_set()
