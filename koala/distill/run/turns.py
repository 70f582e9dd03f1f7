"""The app goes first: on a shared processor a run waits between two pieces of its work while the app draws.

Together one of them would stall, since each has a thread on every core. The app holds a file lock in the
folder of the runs, which the system releases however the app ends; a run only checks whether it is held.
"""

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

_LOOKS = 0.05  # seconds between two checks of a waiting run


def _file(root: Path) -> Path:
    return root / ".drawing"


def _lock(root: Path) -> FileLock:
    return FileLock(_file(root), thread_local=False)  # the last thread that draws releases it


class Drawing:
    """Held while any thread of one app draws; a context manager for any number of threads."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._held, self._count, self._guard = _lock(root), 0, threading.Lock()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self._guard:
            self._count += 1
            if not self._held.is_locked and self.root.is_dir():  # without it there is no run
                # Of no use where another app holds it, for whom the runs wait already, or where nothing can be written,
                # so that no run is there: the picture matters more.
                with suppress(Timeout, OSError, NotImplementedError):
                    self._held.acquire(timeout=0.2, poll_interval=0.001)  # a run's check is far shorter
        try:
            yield
        finally:
            with self._guard:
                self._count -= 1
                if not self._count:
                    self._held.release()


def give_way(root: Path, ended: Callable[[], bool], waits: Callable[[], object]) -> float:
    """Wait until no app draws in `root`, or `ended` returns true; `waits` is called if it has to wait at all.

    Returns the seconds that it took.
    """
    begun = time.perf_counter()
    for looks in itertools.count():
        if ended() or not _file(root).exists():  # a run elsewhere leaves no file there
            break
        try:
            with _lock(root).acquire(timeout=0):
                break
        except Timeout:
            if looks == 0:
                waits()
            time.sleep(_LOOKS)
        except (OSError, NotImplementedError):  # it cannot be looked at, by another user or on this file system
            break
    return time.perf_counter() - begun
