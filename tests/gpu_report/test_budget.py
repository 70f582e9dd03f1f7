"""Sections within a time budget, by a clock of the test's own, and what the full report measures."""

import gc
import weakref

import pytest
import torch

from koala.gpu_report.budget import DONE, FAILED, LEFT_OUT, NOT_HERE, Limit, NotHere, Section, measure
from koala.gpu_report.report import sections
from koala.gpu_report.scale import FULL, OOM, ROWS, alike
from koala.gpu_report.tables import TABLES
from koala.models.cards import CARDS
from koala.unet.specs import KOALA_700M, SDXL


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def section(name: str, clock: Clock, takes: float, share: float = 100, least: float = 10, ends=None) -> Section:
    """One that takes so many seconds of the clock and notes what it was allowed."""

    def work(results: dict, limit: Limit, say) -> None:
        results["allowed"] = limit.left
        clock.now += takes
        if ends:
            raise ends

    return Section(name=name, title=name.title(), share=share, least=least, work=work)


def budget(clock: Clock, *chosen: Section, **more) -> tuple[dict, list[str]]:
    message: list[str] = []
    return measure(chosen, say=message.append, clock=clock, **more), message


def test_what_a_section_leaves_is_for_those_behind_it():
    clock = Clock()
    outcomes, message = budget(clock, section("a", clock, 30), section("b", clock, 0), section("c", clock, 150))
    assert [o.status for o in outcomes.values()] == [DONE] * 3
    assert [o.found["allowed"] for o in outcomes.values()] == [100, 170, 270]
    assert outcomes["a"].seconds == 30 and outcomes["c"].seconds == 150
    assert message == [
        "0:00 of 5:00  1 of 3, A: 100 s at most",
        "0:30 of 5:00  2 of 3, B: 170 s at most",
        "0:30 of 5:00  3 of 3, C: 270 s at most",
    ]


def test_a_section_that_would_end_too_late_is_left_out_with_the_reason_and_the_next_has_its_own_share():
    clock = Clock()
    outcomes, message = budget(clock, section("a", clock, 195), section("b", clock, 1), section("c", clock, 1))
    assert [o.status for o in outcomes.values()] == [DONE, LEFT_OUT, DONE]
    assert outcomes["b"].reason == "it takes at least 10 s, and of 300 s 5 were left for it"
    assert outcomes["b"].found == {} and outcomes["c"].found == {"allowed": 105}
    assert "3:15 of 5:00  2 of 3, B: left out, it takes at least 10 s" in message[1]


def test_a_section_that_fails_is_told_and_the_rest_go_on():
    clock = Clock()
    chosen = [
        section("a", clock, 5, ends=ValueError("no such kernel")),
        section("b", clock, 5, ends=NotHere("no TensorRT")),
        section("c", clock, 5),
    ]
    saved: list[list[str]] = []
    output = lambda error: f"{type(error).__name__}: {error}"  # noqa: E731
    outcomes, message = budget(clock, *chosen, explain=output, after=lambda outcomes: saved.append(list(outcomes)))
    assert [o.status for o in outcomes.values()] == [FAILED, NOT_HERE, DONE]
    assert [o.reason for o in outcomes.values()] == ["ValueError: no such kernel", "no TensorRT", None]
    assert outcomes["a"].found == {"allowed": 100} and outcomes["a"].seconds == 5  # what was measured before it failed
    assert saved == [["a"], ["a", "b"], ["a", "b", "c"]]
    assert any("A: failed, ValueError: no such kernel" in line for line in message)


def test_a_section_that_failed_holds_nothing_any_more():
    """Its frame holds the error and the error its frame, so that the tensor would stay until the next collection."""
    clock, held = Clock(), []

    def work(results, limit, say) -> None:
        tensor = torch.zeros(3)
        held.append(weakref.ref(tensor))
        error = RuntimeError("CUDA error: out of memory")
        raise error

    gc.disable()
    try:
        budget(clock, Section(name="a", title="A", share=10, least=1, work=work))
        assert held[0]() is None
    finally:
        gc.enable()


def test_whoever_stops_the_report_stops_it():
    clock = Clock()
    with pytest.raises(KeyboardInterrupt):
        budget(clock, section("a", clock, 1, ends=KeyboardInterrupt()))


def test_the_full_report_ends_within_nine_minutes_and_begins_with_the_latencies():
    chosen = sections(FULL, torch.device("cpu"), exports=None)
    assert sum(s.share for s in chosen) == pytest.approx(500)  # and 40 to begin, and to end what is under way
    longer = sections(FULL, torch.device("cpu"), exports=None, minutes=30)
    assert sum(s.share for s in longer) == pytest.approx(30 * 60 - 40)
    assert [s.least for s in longer] == [s.least for s in chosen]
    assert all(s.least <= s.share for s in chosen)
    assert [s.name for s in chosen] == list(TABLES)


# --- what is measured at full size


def test_every_full_size_model_of_the_registry_is_measured_once():
    names = [name for group in FULL.groups for name in group]
    full = {card.name for card in CARDS.values() if card.spec.channels == SDXL.channels}
    assert len(set(names)) == len(names) and set(names) <= full
    assert {*names, *(other for name in names for other in alike(name))} == full
    assert FULL.groups[0] == ("sdxl-base", "koala-1b", "koala-700m")
    assert alike("sdxl-turbo") == ["sdxl-lightning-4step"] and alike("sdxl-base") == []
    assert {len({CARDS[n].spec for n in group}) for group in FULL.groups} <= {2, 3}  # U-Nets in memory at once


def test_the_papers_rows_are_of_models_that_are_measured():
    assert set(ROWS) <= {name for group in FULL.groups for name in group}
    assert ROWS["koala-lightning-700m"].cells == ((0.66, 8.3), (1.94, 8.2), (2.88, 6.8))
    assert ROWS["sdxl-base"].cells[2] == OOM
    assert all(row.size == CARDS[name].width for name, row in ROWS.items())


def test_the_student_of_the_full_report_is_koala():
    assert KOALA_700M.name == FULL.student and set(FULL.plan_models) <= set(CARDS)
