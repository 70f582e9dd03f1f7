"""Sections within a time budget: the most important first, each with a share; one that fails does not stop the rest."""

import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from koala.hardware.shortage import release
from koala.words import clock_time

Say = Callable[[str], None]
_ROOT = Path(__file__).resolve().parents[2]
MINUTES = 9.0  # of a whole report at most
DONE, LEFT_OUT, NOT_HERE, FAILED = "done", "left out", "not here", "failed"


class NotHere(Exception):
    """This machine lacks what a section measures; the message says what is missing and how to install it."""


class Limit:
    """The seconds that a section may take, by the given clock."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic):
        self.seconds, self.clock, self.begun = seconds, clock, clock()

    @property
    def left(self) -> float:
        """Seconds left; negative afterwards."""
        return self.begun + self.seconds - self.clock()

    def allows(self, seconds: float) -> bool:
        """Whether that many seconds are left."""
        return seconds <= self.left


@dataclass(frozen=True, kw_only=True)
class Section:
    """One part of a report. `work` fills a dictionary as it measures: what came before an error is kept.

    Its `share` of the budget is in seconds, and so is the `least` time with which it is started at all.
    """

    name: str
    title: str
    share: float
    least: float
    work: Callable[[dict, Limit, Say], None]


@dataclass(kw_only=True)
class Outcome:
    """The outcome of a section: its status, one of the four words above, and the reason if it is not done."""

    title: str
    status: str
    reason: str | None = None
    where: tuple[str, ...] = ()  # lines of this project in the error's traceback, the last one last
    seconds: float = 0.0
    found: dict = field(default_factory=dict)


def measure(
    sections: Sequence[Section],
    *,
    say: Say,
    explain: Callable[[Exception], str] = str,
    after: Callable[[dict[str, Outcome]], None] = lambda outcomes: None,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Outcome]:
    """Every section in turn; the budget is the sum of their shares, and unused time goes to the sections that follow.

    A section that would end too late is left out; one that fails is described by `explain`, and the rest continue.
    `after` is called with all outcomes so far when a section is done.
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
            left_over = f"of {budget:.0f} s {max(left, 0):.0f} were left for it"
            outcome.reason = f"it takes at least {section.least:.0f} s, and {left_over}"
            progress(f"{number} of {len(sections)}, {section.title}: left out, {outcome.reason}")
        else:
            progress(f"{number} of {len(sections)}, {section.title}: {left:.0f} s at most")
            _run(section, outcome, Limit(left, clock), progress, explain)
        after(outcomes)
    return outcomes


def _run(section: Section, outcome: Outcome, limit: Limit, say: Say, explain: Callable[[Exception], str]) -> None:
    try:
        section.work(outcome.found, limit, say)
    except NotHere as error:
        outcome.status, outcome.reason = NOT_HERE, str(error)
    except Exception as error:  # whatever it is, the sections after it are measured
        outcome.status, outcome.reason, outcome.where = FAILED, explain(error), tuple(_lines_of(error))
        release(error)  # its frames hold every tensor of the run
    outcome.seconds = round(limit.seconds - limit.left, 1)
    if outcome.reason:
        say(f"{section.title}: {outcome.status}, {outcome.reason}")


def _lines_of(error: Exception) -> Iterator[str]:
    """file:line of each frame within the project, relative to its root: a report contains no paths of this machine."""
    for frame in traceback.extract_tb(error.__traceback__):
        file = Path(frame.filename)
        if file.is_relative_to(_ROOT) and (inside := file.relative_to(_ROOT)).parts[0] == "koala":
            yield f"{inside.as_posix()}:{frame.lineno}"
