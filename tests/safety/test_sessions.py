"""What the server keeps of each session: bounded, told when it goes, and no visitor takes the room of another."""

from contextlib import closing
from datetime import timedelta
from functools import partial
from types import SimpleNamespace
from urllib.request import Request, urlopen

import gradio as gr
import pytest

from koala.ui import sessions as module
from koala.ui.sessions import EACH, Sessions, bound, visiting
from recipes.measure import sessions as measure

GONE: list[str] = []


@pytest.fixture
def demo():
    GONE.clear()
    with gr.Blocks() as result:
        result.kept = gr.State("", delete_callback=GONE.append)
    return result


@pytest.fixture
def sessions(demo):
    result = Sessions(capacity=50, each=5)
    result.set_blocks(demo)
    return result


def visit(sessions: Sessions, name: str, who: str) -> None:
    """A request of this session, whose state holds something from now on."""
    token = visiting.set(who)
    sessions[name][sessions.blocks.kept._id] = name
    visiting.reset(token)


def test_an_open_page_survives_a_thousand_foreign_sessions(sessions):
    visit(sessions, "page", "here")
    with sessions.visit("page"):
        for k in range(1000):
            visit(sessions, f"foreign{k}", f"2001:db8::{k:x}")
        assert len(sessions.session_data) == 50 and "page" in sessions
        assert [f"foreign{k}" for k in range(951)] == GONE  # the oldest first, and each was told
    visit(sessions, "one more", "there")
    assert "page" not in sessions  # it was left, and it is the oldest


def test_open_pages_of_many_do_not_go_for_the_open_pages_of_one(sessions):
    for k in range(46):
        sessions.visit(f"page{k}").__enter__()
        visit(sessions, f"page{k}", f"visitor{k}")
    for k in range(30):
        sessions.visit(f"many{k}").__enter__()
        visit(sessions, f"many{k}", "greedy")
    assert all(f"page{k}" in sessions for k in range(46))
    assert [name for name in sessions.session_data if name.startswith("many")] == [f"many{k}" for k in range(26, 30)]


def test_a_visitor_keeps_the_open_pages_and_the_newest_of_the_others(sessions):
    with sessions.visit("open"):
        visit(sessions, "open", "me")
        for k in range(9):
            visit(sessions, f"left{k}", "me")
        assert list(sessions.session_data) == ["open", "left5", "left6", "left7", "left8"]


def test_a_session_with_a_run_under_way_stays(sessions, demo):
    event = SimpleNamespace(session_hash="busy", request=SimpleNamespace(headers={}), username="me")
    demo._queue.event_ids_to_events["one"] = event
    for name in ("busy", *map(str, range(9))):
        visit(sessions, name, "me")
    assert "busy" in sessions and len(sessions.session_data) == 5


def test_a_call_of_the_api_counts_as_its_senders(sessions, demo):
    """It has no session of its own until it runs, outside of every request."""
    for k in range(9):
        request = SimpleNamespace(headers={}, client=SimpleNamespace(host=f"198.51.100.{k // 8}"))
        event = SimpleNamespace(session_hash=f"call{k}", request=request, username=None)
        demo._queue.event_ids_to_events = {f"call{k}": event}
        visit(sessions, f"call{k}", "whoever started the queue")
    assert list(sessions.session_data) == ["call3", "call4", "call5", "call6", "call7", "call8"]


def test_a_page_that_comes_back_is_open_again(sessions):
    visit(sessions, "page", "me")
    with sessions.visit("page"):
        assert not sessions["page"].is_closed
    assert sessions["page"].is_closed
    with sessions.visit("page"):
        assert not sessions["page"].is_closed


def test_what_was_left_an_hour_ago_goes(sessions, monkeypatch):
    for name in ("left", "open"):
        visit(sessions, name, "me")
    monkeypatch.setattr(module, "LEFT", timedelta(0))
    with sessions.visit("open"):
        sessions.delete_all_expired_state()
    assert list(sessions.session_data) == ["open"] and GONE == ["left"]


def test_a_callback_that_fails_keeps_no_session_alive(demo, caplog):
    demo.kept.delete_callback = lambda value: 1 / 0
    result = Sessions(capacity=1, each=1)
    result.set_blocks(demo)
    for name in ("one", "two"):
        visit(result, name, "me")
    assert list(result.session_data) == ["two"] and "ZeroDivisionError" in caplog.text


def test_the_queue_forgets_what_has_no_session(sessions, demo):
    queue = demo._queue
    for k in range(30):
        queue.pending_messages_per_session[f"cancelled{k}"] = None
        queue.pending_event_ids_session[f"cancelled{k}"] = {str(k)}
    for k in range(9):
        visit(sessions, str(k), "me")
    assert not queue.pending_event_ids_session and not queue.pending_messages_per_session


def test_messages_that_nobody_reads_end_the_run(demo, monkeypatch):
    monkeypatch.setattr(module, "UNREAD", 3)
    sent = []
    demo._queue.send_message = lambda event, message: sent.append(message)
    bound(demo)
    event = SimpleNamespace(session_hash="page", alive=True)
    unread = SimpleNamespace(qsize=lambda: len(sent))
    demo._queue.pending_messages_per_session["page"] = unread
    for k in range(9):
        demo._queue.send_message(event, k)
    assert sent == [0, 1, 2] and not event.alive


def test_a_state_has_no_copy_of_the_page(sessions, demo):
    visit(sessions, "page", "me")
    state = sessions["page"]
    state._update_value_in_config(demo.kept._id, "x" * 10**6)
    assert not state.config_values and state[demo.kept._id] == "page"


# --- the running app; python -m recipes.measure.reliability asks for more of the same


def test_foreign_sessions_take_neither_memory_nor_a_page(public):
    """A page that is open has its last seed after hundreds of sessions of one address, and of many."""
    ask = partial(measure.event, public.url, session="a-page", address="203.0.113.5")
    heartbeat = Request(public.url + "gradio_api/heartbeat/a-page", headers={"X-Forwarded-For": "203.0.113.5"})
    with closing(urlopen(heartbeat, timeout=60)):
        small = {"k-model-a": "tiny-koala-700m", "k-steps-a": 1, "k-steps-b": 1, "k-seed": "4711", "k-random": False}
        status, text = ask("k-generate", "click", values=small)
        assert status == 200 and '"success":true' in text, text[-300:]
        measure.flood(public.url, 40)
        ten = partial(measure.flood, public.url, 10, address="203.0.113.6")
        grown = measure.slope(public.process.pid, ten, count=8, warm_up=EACH // 10 + 1)
        assert grown.each_mb / 10 < 0.05  # MB a session; Gradio's own keep 0.4
        assert '"4711"' in ask("k-reuse", "click")[1]
