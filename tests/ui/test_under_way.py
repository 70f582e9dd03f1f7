"""The life of a run: the visitor's Stop and any other end are told apart, and Stop finds the page's own run."""

import time
from types import SimpleNamespace

import gradio as gr
import pytest

from koala.errors import Cancelled
from koala.ui.compare.tab import Compare
from koala.ui.session import Session
from koala.ui.settings import FIELDS
from koala.ui.under_way import Life, UnderWay
from tests.ui.conftest import TITLES


def test_stop_stops_the_pages_own_run():
    runs = UnderWay()
    with runs.run("one") as mine, runs.run("two") as other:
        runs.stop("one")
        runs.stop("nobody")
        assert mine.stopped and mine.over.is_set() and not other.stopped and not other.over.is_set()
    assert len(runs) == 0


def test_a_run_that_ended_was_not_stopped():
    """Symptom: every failure was taken for the visitor's Stop, and the page went on loading for ever."""
    runs = UnderWay()
    with pytest.raises(ZeroDivisionError), runs.run("one") as life:
        raise ZeroDivisionError
    assert life.over.is_set() and not life.stopped
    assert life.news(0) == []


def test_an_end_leaves_the_pages_later_run_alone():
    runs = UnderWay()
    first, later = runs.run("one"), runs.run("one")
    first.__enter__()
    life = later.__enter__()
    first.__exit__(None, None, None)
    runs.stop("one")
    assert life.stopped
    later.__exit__(None, None, None)
    assert len(runs) == 0


def test_news_come_in_order_and_a_stop_is_heard_at_once():
    life = Life()
    life.tell(1)
    life.wake()
    life.tell(2)
    assert life.news(0) == [1, 2] and life.news(0) == []
    life.tell(3)
    life.stop()
    begun = time.monotonic()
    with pytest.raises(Cancelled):
        life.news(10)
    assert time.monotonic() - begun < 1


@pytest.fixture(scope="module")
def tab():
    with gr.Blocks():
        result = Compare(Session(device="cpu").start())
    return result


def pressed(tab: Compare, page: str, **change):
    """What the stage of a page shows after Generate."""
    fields = {name: tab.fields[name].value for name in FIELDS} | {"prompt": "a red circle", "seed": "1"} | change
    updates = tab.run(SimpleNamespace(session_hash=page), *fields.values(), False, [])
    return updates, (update[tab.stage] for update in updates)


def stop(tab: Compare, page: str) -> None:
    tab.halt(SimpleNamespace(session_hash=page))


def test_the_first_click_is_answered_while_the_models_load_and_stop_ends_it_at_once(tab):
    """Symptom: for the first seconds after the page was opened, neither Generate nor Stop had any effect."""
    begun = time.monotonic()
    _, shown = pressed(tab, "one")
    assert next(shown)["status"].startswith("Loading Tiny SDXL")
    assert time.monotonic() - begun < 1
    stop(tab, "one")
    assert [(one["phase"], one["status"]) for one in shown] == [("stopped", "Stopped.")]
    assert not len(tab.session.device.line) and not len(tab.active)


def test_compares_stop_ends_what_the_page_shows_whatever_the_thread_still_does(tab):
    """Symptom: a page whose run was stopped went on running for ever."""
    _, shown = pressed(tab, "one")
    while not any(model["step"] for model in next(shown)["models"]):
        pass
    stop(tab, "one")
    (last,) = shown  # nothing that runs comes after it
    assert last["phase"] == "stopped" and last["status"].startswith(f"Stopped at {TITLES[1]}: step ")
    assert not len(tab.active)


def test_a_page_that_waits_says_so_and_leaves_the_line_when_it_is_stopped_or_closed(tab):
    """Symptom: while another page drew, Generate gave no response, and Esc did not leave the queue."""
    ahead, drawn = pressed(tab, "one", steps_a=150)
    while not next(drawn)["models"][0]["step"]:
        pass
    for leave in ("stop", "close"):
        updates, shown = pressed(tab, "two")
        assert next(shown)["status"].startswith("Waiting: ")
        waiting = len(tab.session.device.line)
        if leave == "stop":
            stop(tab, "two")
            assert [(one["phase"], one["status"]) for one in shown] == [("stopped", "Stopped.")]
        else:
            updates.close()
        assert len(tab.session.device.line) == waiting - 1
    ahead.close()
