"""The line for the device: order of arrival, forecasts of a run's place, and what is refused."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from koala.errors import UserError
from koala.ui.line import FULL, MOST, PLACES, TOO_MANY, Line, Work
from koala.words import about

SMALL = Work(kind="drawing", amount=2)


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def line(clock):
    return Line(clock=clock)


def finish(line: Line, clock: Clock, seconds: float, work: Work = SMALL) -> None:
    """A run that had the device for so long."""
    with line.join("", work) as ticket:
        clock.now += seconds
        ticket.finished = True


def test_whoever_came_first_has_the_device_and_the_others_move_up_when_one_leaves(line):
    with ExitStack() as rest:
        first = rest.enter_context(ExitStack())
        middle = rest.enter_context(ExitStack())
        moves = []
        tickets = [
            held.enter_context(line.join("", SMALL, lambda k=k: moves.append(k)))
            for k, held in enumerate((first, middle, rest))
        ]
        assert [t.called for t in tickets] == [True, False, False]
        assert [t.status for t in tickets] == ["", "Waiting: 1 before you", "Waiting: 2 before you"]
        middle.close()
        assert moves == [2] and tickets[2].status == "Waiting: 1 before you" and not tickets[2].called
        first.close()
        assert moves == [2, 2] and tickets[2].called and tickets[2].status == ""
    assert len(line) == 0


def test_the_forecast_is_the_pace_of_the_runs_before_times_the_work_of_those_that_wait(line, clock):
    for seconds in (8, 6, 100, 4, 6):  # for 2 units: the median is 3 s for each
        finish(line, clock, seconds)
    with (
        line.join("", Work(kind="drawing", amount=4)),
        line.join("", SMALL) as second,
        line.join("", SMALL) as third,
    ):
        assert second.status == "Waiting: 1 before you, about 15 s"
        assert third.status == "Waiting: 2 before you, about 20 s"
        clock.now += 5
        assert second.status == "Waiting: 1 before you, about 7 s"
        assert third.status == "Waiting: 2 before you, about 15 s"
        clock.now += 10  # it was due after 12
        assert (second.status, third.status) == ("Waiting: 1 before you", "Waiting: 2 before you")


def test_a_run_that_is_well_under_way_tells_by_itself_when_it_ends(line, clock):
    with line.join("", SMALL) as running, line.join("", SMALL) as ticket:
        clock.now += 10  # loading, which is no part of the pace
        running.begin()
        clock.now += 30
        running.done = 0.05
        assert ticket.status == "Waiting: 1 before you"
        running.done = 0.75
        assert ticket.status == "Waiting: 1 before you, about 10 s"


def test_a_tiny_run_tells_nothing_of_a_large_one(line, clock):
    """Symptom: after one picture of 64 px a comparison was to wait for 238 minutes."""
    with line.join("a", Work(kind="drawing", amount=1)) as ticket:
        clock.now += 8  # a warm-up, which a run of any size has
        ticket.finished = True
    with line.join("b", Work(kind="drawing", amount=1000)), line.join("c", Work(kind="drawing", amount=4)) as small:
        assert small.status == "Waiting: 1 before you"
    with line.join("d", Work(kind="drawing", amount=4)), line.join("e", Work(kind="drawing", amount=4)) as ticket:
        assert ticket.status == "Waiting: 1 before you, about 35 s"


def test_a_limit_in_seconds_bounds_the_forecast_and_other_kinds_have_their_own_pace(line, clock):
    finish(line, clock, 20)
    with line.join("", Work(kind="drawing", amount=8, most=60)), line.join("", SMALL) as ticket:
        assert ticket.status == "Waiting: 1 before you, about 60 s"
    with line.join("", Work(kind="benchmark", amount=1)), line.join("", SMALL) as ticket:
        assert ticket.status == "Waiting: 1 before you"


def test_runs_that_were_stopped_or_failed_teach_no_pace(line, clock):
    with line.join("", SMALL):
        clock.now += 1
    with pytest.raises(ZeroDivisionError), line.join("", SMALL):
        raise ZeroDivisionError
    with line.join("", SMALL), line.join("", SMALL) as ticket:
        assert ticket.status == "Waiting: 1 before you"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "about 1 s"), (3.4, "about 4 s"), (10, "about 10 s"), (11, "about 15 s"), (99, "about 100 s")]
    + [(100, "about 2 min"), (650, "about 11 min")],
)
def test_a_forecast_is_no_finer_than_it_can_be(seconds, text):
    assert about(seconds) == text


def test_twenty_wait_and_the_next_is_refused_until_one_has_left(line):
    with ExitStack() as held:
        inner = held.enter_context(ExitStack())
        for _ in range(PLACES):
            held.enter_context(line.join("", SMALL))
        inner.enter_context(line.join("", SMALL))
        with pytest.raises(UserError) as refused, line.join("", SMALL):
            pass
        assert str(refused.value) == FULL and "20 requests wait" in FULL
        inner.close()
        with line.join("", SMALL) as ticket:
            assert ticket.status == f"Waiting: {PLACES} before you"


def test_a_visitors_share_counts_whoever_waits_runs_or_looks(line):
    line.share, line.elsewhere = MOST, lambda who: int(who == "greedy")
    with ExitStack() as held:
        held.enter_context(line.without_device("greedy"))
        held.enter_context(line.join("greedy", SMALL))
        last = held.enter_context(ExitStack())
        last.enter_context(line.join("greedy", SMALL))
        for more in (line.join("greedy", SMALL), line.without_device("greedy")):
            with pytest.raises(UserError) as refused, more:
                pass
            assert str(refused.value) == TOO_MANY
        held.enter_context(line.join("other", SMALL))
        last.close()
        held.enter_context(line.without_device("greedy"))
    assert line.of("greedy") == line.of("other") == 0


def test_many_at_once_have_the_device_one_by_one(line):
    """Threads that come and go: never two with the device, none left behind."""
    inside, at_once, moved = [], [], threading.Condition()

    def wake() -> None:
        with moved:
            moved.notify_all()

    def draw(k: int) -> None:
        with line.join(str(k), SMALL, wake) as ticket, moved:
            assert moved.wait_for(lambda: ticket.called, timeout=20)
            inside.append(k)
            at_once.append(len(inside))
            inside.remove(k)

    with ThreadPoolExecutor(PLACES) as pool:
        list(pool.map(draw, range(200)))
    assert at_once == [1] * 200 and len(line) == 0
