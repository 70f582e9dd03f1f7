"""Sections within a budget of seconds: the worthiest first, each with a share, and none that takes others down."""

import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from koala.hardware.shortage import release
from koala.words import clock_time

Say = Callable[[str], None]
_ROOT = Path(__file__).resolve().parents[2]
MINUTES = 9.0  # that a report takes at most
DONE, LEFT_OUT, NOT_HERE, FAILED = "done", "left out", "not here", "failed"


class NotHere(Exception):
    """This machine has not what a section measures; the message says what is missing, and what brings it."""


class Limit:
    """The seconds that a section may take, by this clock."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic):
        self.seconds, self.clock, self.begun = seconds, clock, clock()

    @property
    def left(self) -> float:
        """Seconds until it is up; below 0 afterwards."""
        return self.begun + self.seconds - self.clock()

    def allows(self, seconds: float) -> bool:
        """Whether so much more fits in."""
        return seconds <= self.left


@dataclass(frozen=True, kw_only=True)
class Section:
    """One part of a report. `work` fills a dictionary as it measures, so that what ends it leaves what there is.

    Its `share` of the budget is in seconds, and so is the `least` with which it is worth beginning.
    """

    name: str
    title: str
    share: float
    least: float
    work: Callable[[dict, Limit, Say], None]


@dataclass(kw_only=True)
class Outcome:
    """What became of a section: one of the four words above, and the reason where it is not done."""

    title: str
    status: str
    reason: str | None = None
    where: tuple[str, ...] = ()  # lines of this project that an error came through, the last one last
    seconds: float = 0.0
    found: dict = field(default_factory=dict)


def measure(
    sections: Sequence[Section],
    *,
    say: Say,
    told: Callable[[Exception], str] = str,
    after: Callable[[dict[str, Outcome]], None] = lambda outcomes: None,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Outcome]:
    """Every section in turn; the budget is the sum of their shares, and what one leaves is for those behind it.

    A section that would end too late is left out, one that fails is told by `told`, and the rest go on. `after` is
    called with all outcomes so far when one is done.
    """
    begun, ends, budget = clock(), 0.0, sum(s.share for s in sections)
    outcomes: dict[str, Outcome] = {}

    def progress(text: str) -> None:
        say(f"{clock_time(clock() - begun)} of {clock_time(budget)}  {text}")

    for number, section in enumerate(sections, 1):
        ends += section.share
        left = ends - (clock() - begun)
        outcome = outcomes[section.name] = Outcome(title=section.title, status=DONE)
        if left < section.least:
            outcome.status = LEFT_OUT
            there = f"of {budget:.0f} s {max(left, 0):.0f} were left for it"
            outcome.reason = f"it takes {section.least:.0f} s at the least, and {there}"
            progress(f"{number} of {len(sections)}, {section.title}: left out, {outcome.reason}")
        else:
            progress(f"{number} of {len(sections)}, {section.title}: {left:.0f} s at most")
            _run(section, outcome, Limit(left, clock), progress, told)
        after(outcomes)
    return outcomes


def _run(section: Section, outcome: Outcome, limit: Limit, say: Say, told: Callable[[Exception], str]) -> None:
    try:
        section.work(outcome.found, limit, say)
    except NotHere as error:
        outcome.status, outcome.reason = NOT_HERE, str(error)
    except Exception as error:  # whatever it is, the sections behind it are measured
        outcome.status, outcome.reason, outcome.where = FAILED, told(error), tuple(_lines_of(error))
        release(error)  # its frames hold every tensor of the run
    outcome.seconds = round(limit.seconds - limit.left, 1)
    if outcome.reason:
        say(f"{section.title}: {outcome.status}, {outcome.reason}")


def _lines_of(error: Exception) -> Iterator[str]:
    """file:line of each frame within the project, named from its root: a report tells no one's folders."""
    for frame in traceback.extract_tb(error.__traceback__):
        file = Path(frame.filename)
        if file.is_relative_to(_ROOT) and (inside := file.relative_to(_ROOT)).parts[0] == "koala":
            yield f"{inside.as_posix()}:{frame.lineno}"
