"""When a run ends before its last step: on a signal, or when its time is over."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stopped(Exception):
    """The run was asked to stop, or its time was over; everything was saved."""


class StopSignal:
    """SIGTERM, SIGINT and the time limit, as one flag that is looked at between steps."""

    def __init__(self, minutes: float):
        self._asked = threading.Event()
        self._deadline = time.monotonic() + 60 * minutes if minutes else None
        self.reason = ""

    @contextmanager
    def listening(self) -> Iterator["StopSignal"]:
        """Signals set the flag for as long as the block lasts; in the main thread only, as signals are."""

        def ask(number, frame):
            self.reason = f"stopped by {signal.Signals(number).name}"
            self._asked.set()

        numbers = (signal.SIGTERM, signal.SIGINT) if threading.current_thread() is threading.main_thread() else ()
        before = {n: signal.signal(n, ask) for n in numbers}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def __call__(self) -> bool:
        if self._deadline and time.monotonic() > self._deadline:
            self.reason = "stopped by its time limit"
            self._asked.set()
        return self._asked.is_set()
