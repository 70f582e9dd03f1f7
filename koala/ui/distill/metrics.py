"""A run's metrics.jsonl as it grows: only new lines are read, and long curves are thinned for their figures."""

import math
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

from koala.distill.config import FEATURES
from koala.distill.run.folder import RunFolder
from koala.distill.run.records import read_entry
from koala.errors import UserError

MOST_POINTS = 240  # of a curve
TERMS = ("loss", "task", "output", *FEATURES)
PACE = ("learning_rate", "grad_norm", "pictures_per_second")

Curve = list[tuple[int, float]]  # (step, value), rising steps


@dataclass(kw_only=True)
class Metrics:
    """The logged entries by kind; the steps of each kind rise."""

    train: list[dict] = field(default_factory=list)
    validation: list[dict] = field(default_factory=list)
    score: list[dict] = field(default_factory=list)
    damaged: int = 0  # lines that cannot be read and are left out

    def curve(self, kind: str, name: str) -> Curve:
        """`name` in the entries of a kind (train, validation, score); entries without a finite number are left out."""
        values = ((e["step"], e.get(name)) for e in getattr(self, kind))
        return [(step, v) for step, v in values if isinstance(v, int | float) and math.isfinite(v)]

    def last(self, kind: str) -> dict | None:
        """The newest entry of a kind (train, validation, score); None where there is none yet."""
        entries = getattr(self, kind)
        return entries[-1] if entries else None


class Follower:
    """Reads one run's metrics from where it stopped the last time. Thread-safe: several pages may show one run."""

    def __init__(self, run: RunFolder) -> None:
        self._file = run.metrics_file
        self._lock = threading.Lock()
        self._begin()

    def _begin(self) -> None:
        self._place, self._inode = 0, None
        self.metrics = Metrics()

    def read(self) -> Metrics:
        """All metrics up to now. A file that was replaced, as by a resumed run, is read anew.

        UserError where it cannot be read.
        """
        with self._lock:
            try:
                with self._file.open("rb") as file:
                    self._read(file)
            except FileNotFoundError:
                self._begin()
            except OSError as error:
                raise UserError(f"{self._file} cannot be read ({error.strerror}); remove it") from error
            return self.metrics

    def _read(self, file: BinaryIO) -> None:
        status = os.fstat(file.fileno())
        if status.st_ino != self._inode or status.st_size < self._place:
            self._begin()
            self._inode = status.st_ino
        file.seek(self._place)
        whole, end, _ = file.read().rpartition(b"\n")  # the last line may still be written
        self._place += len(whole) + len(end)
        for line in whole.split(b"\n"):
            entry = read_entry(line)
            if entry is not None:
                getattr(self.metrics, entry["kind"]).append(entry)
            elif line.strip():
                self.metrics.damaged += 1


def thinned(curve: Curve, most: int = MOST_POINTS) -> Curve:
    """The curve in at most `most` points, each the mean of its neighbours; the last point is kept."""
    if len(curve) <= most:
        return curve
    size = -(-len(curve) // (most - 1))
    parts: Sequence[Curve] = [curve[i : i + size] for i in range(0, len(curve) - 1, size)]
    means = [(part[len(part) // 2][0], sum(v for _, v in part) / len(part)) for part in parts]
    return [*means, curve[-1]]
