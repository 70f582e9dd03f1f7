"""What a run records of itself, validated as it is read: its status, and a line of its metrics."""

import json
import re
from dataclasses import dataclass, fields
from pathlib import Path

from koala.errors import UserError
from koala.files.reading import read_object

ENDED = ("done", "stopped", "failed")  # the states in which nothing runs any more
STATES = ("preparing", "running", *ENDED)
KINDS = {"train": "loss", "validation": "loss", "score": "one_object"}  # of lines, and the number that each has
_MOST = 10**15  # no count of a run is larger, and no time
_SPAN = re.compile(r"[0-9]{1,9}-[0-9]{1,9}")  # of timesteps


@dataclass(frozen=True, kw_only=True)
class Status:
    """status.json: the state of a run. Times are seconds since the epoch."""

    state: str  # preparing (cuts, encodes, loads), running, or how it ended
    step: int
    num_steps: int
    message: str = ""  # what is being done, or why it ended
    steps_per_second: float | None = None
    seconds_left: float | None = None
    pid: int = 0
    pid_started: float = 0.0  # tells this process from a later one of the same number: see koala.process.started
    started: float = 0.0
    updated: float = 0.0

    @classmethod
    def read(cls, file: Path, remedy: str) -> "Status":
        """The status of a file; UserError with the remedy where no run wrote it."""
        values = read_object(file, remedy)
        kinds = {field.name: field.type for field in fields(cls)}
        missing = [name for name in ("state", "step", "num_steps") if name not in values]
        wrong = [n for n, value in values.items() if n not in kinds or not _fits(n, value, kinds[n])]
        if missing or wrong:
            fault = f"{wrong[0]} is {values[wrong[0]]!r:.80}" if wrong else f"it has no {missing[0]}"
            raise UserError(f"{file} is damaged: {fault}; {remedy}")
        return cls(**values)


def _fits(name: str, value: object, kind: type) -> bool:
    if kind is str:
        return isinstance(value, str) and (name != "state" or value in STATES)
    if kind is int:
        return isinstance(value, int) and _is_number(value) and 0 <= value < (2**31 if name == "pid" else _MOST)
    most = 1e11 if name in ("started", "updated") else _MOST  # a date that a calendar has
    return value is None and kind is not float or _is_number(value) and 0 <= value < most


def _is_number(value: object) -> bool:
    """A number that fits a float: JSON's may have thousands of digits."""
    return isinstance(value, float) or isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1e300


def read_entry(line: bytes) -> dict | None:
    """The entry of a line of metrics.jsonl; None for one that no run wrote: half a line, or a damaged one.

    `step` is a whole number, everything else but `kind` and `timesteps` a number that may be infinite or NaN; only
    `peak_memory_bytes` may be None.
    """
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict) or not isinstance(entry.get("kind"), str) or entry["kind"] not in KINDS:
        return None
    step, numbers = entry.get("step"), {k: v for k, v in entry.items() if k not in ("kind", "step", "timesteps")}
    if not isinstance(step, int) or not _is_number(step) or not 0 <= step < _MOST:
        return None
    numbers = {name: value for name, value in numbers.items() if not (name == "peak_memory_bytes" and value is None)}
    if KINDS[entry["kind"]] not in numbers or not all(map(_is_number, numbers.values())):
        return None
    if not 0 <= numbers.get("seconds", 0) < _MOST:
        return None
    return entry if "timesteps" not in entry or _are_buckets(entry["timesteps"]) else None


def _are_buckets(value: object) -> bool:
    return isinstance(value, dict) and all(
        _SPAN.fullmatch(span) and isinstance(bucket, dict) and all(map(_is_number, bucket.values()))
        for span, bucket in value.items()
    )
