"""What Stop finds: the page's own run, once, also when it was closed, and never that of an earlier click."""

from types import SimpleNamespace

import gradio as gr

from koala.ui.session import Session
from koala.ui.settings import FIELDS
from koala.ui.tabs.compare import Compare
from koala.ui.under_way import UnderWay


def test_stop_takes_the_pages_own_run_once():
    runs = UnderWay()
    runs.begin("one", "first")
    runs.begin("two", "other")
    assert runs.take("one") == "first"
    assert runs.take("one") is None and runs.take("two") == "other"


def test_a_run_that_ended_is_gone_and_a_later_one_is_not():
    runs, first, later = UnderWay(), object(), object()
    runs.begin("one", first)
    runs.begin("one", later)
    runs.end("one", first)
    assert runs.take("one") is later
    runs.begin("one", first)
    runs.end("one", first)
    assert runs.take("one") is None


def test_of_pages_that_were_left_the_oldest_go():
    runs = UnderWay()
    for k in range(100):
        runs.begin(str(k), k)
    assert len(runs) == 64
    assert runs.take("35") is None and runs.take("36") == 36 and runs.take("99") == 99


def begun(tab: Compare):
    """A page's comparison that has drawn its first step."""
    fields = {name: tab.fields[name].value for name in FIELDS} | {"prompt": "a red circle", "seed": "1"}
    updates = tab.run(SimpleNamespace(session_hash="one"), *fields.values(), False, [])
    while not next(updates)[tab.stage]["models"][0]["step"]:
        pass
    return updates


def test_compares_stop_answers_whether_the_run_was_closed_before_it_or_not():
    """Symptom: Gradio closed the run first, Stop found nothing, and the page went on running for ever."""
    with gr.Blocks():
        tab = Compare(Session(device="cpu").start())
    for closed in (True, False):
        updates = begun(tab)
        if closed:
            updates.close()
        shown = tab.halt(SimpleNamespace(session_hash="one"))
        assert shown["phase"] == "stopped" and "step" in shown["status"]
        assert list(updates) == []  # nothing that runs comes after Stop's answer
        assert len(tab.active) == 0
