"""What the Attention tab cannot do: it says what it can, and loses nothing."""

import html
import re
import shutil
from types import SimpleNamespace

import gradio as gr
import pytest

from koala.models.cards import EMBEDDED
from koala.ui.attention.recording import Store
from koala.ui.attention.tab import Attention
from koala.ui.session import Session

STEPS = 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stage": "DW-1"}, "there is no attention in DW-1; this capture has DW-2, DW-3, MID, UP-1, UP-2"),
        ({"stage": "UP-9"}, "there is no stage 'UP-9'"),
        ({"step": STEPS}, "step 4 is not in this capture; they count from 0 to 3"),
        ({"step": -1}, "step -1 is not in this capture"),
        ({"step": "<b>"}, "step '<b>' is not in this capture"),
        ({"layer": 3}, "layer 3 is not in this capture; they count from 0 to 0"),
        ({"head": 2}, "head 2 is not in this capture; they count from 0 to 1"),
        ({"head": True}, "head True is not in this capture"),
        ({"kind": "segments", "head": "max"}, "Segments is the mean of all heads"),
        ({"box": [1.2, 0, 1.2, 0]}, "outside the picture"),
        ({"box": [0.5, 0.5, 0.1, 0.1]}, "outside the picture"),
        ({"box": [float("nan")] * 4}, "outside the picture"),
        ({"box": None}, "outside the picture"),
        ({"brush": []}, "points within the picture; paint it again"),
        ({"brush": [[0.5, 1.0]]}, "points within the picture"),
        ({"brush": [[0.5]]}, "points within the picture"),
        ({"brush": [0.5, 0.5]}, "points within the picture"),
        ({"brush": [["x", 0.5]]}, "points within the picture"),
        ({"brush": [[0.1, 0.1]] * 20_000}, "points within the picture"),
        ({"kind": "word", "word": 99}, "word 99 is not in this capture"),
        ({"kind": "film"}, "there is no view 'film'"),
        ({"kind": ["row"]}, "there is no view"),
        ({"id": "0" * 32}, "no longer kept"),
        ({"id": None}, "no longer kept"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_question_that_cannot_be_answered_says_what_can_and_loses_nothing(tab, drawn, asked, change, message):
    answer = tab.look({"id": drawn["capture"]} | asked | change)
    assert message in answer["problem"]
    assert "problem" not in tab.look({"id": drawn["capture"]} | asked)


@pytest.mark.parametrize("nothing", [None, "row", 3, []], ids=str)
def test_a_question_that_is_none(tab, nothing):
    assert "reload it" in tab.look(nothing)["problem"] and "reload it" in tab.take(nothing)["problem"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": ""}, "prompt is empty"),
        ({"seed": ""}, "tick Random"),
        ({"stages": []}, "no stage is chosen"),
        ({"stages": ["MID"]}, "has no attention in MID"),
        ({"width": 250}, "256 is the nearest"),
        ({"first": "tiny-sdlx"}, "did you mean tiny-sdxl"),
        ({"steps": 200, "width": 2048, "height": 2048, "every": True}, "the budget is"),
        ({"second": "tiny-sdxl", "inputs": "same"}, "needs a teacher and a student"),
    ],
    ids=str,
)
def test_what_cannot_be_recorded_is_refused_and_the_capture_before_stays(tab, run, drawn, change, message):
    with pytest.raises(gr.Error, match="(?i)" + re.escape(message)):
        run(drawn["capture"], **change)
    assert tab.store.get(drawn["capture"])


@pytest.mark.parametrize("kept", [True, False])
def test_a_run_that_is_stopped_brings_the_capture_before_back(tab, drawn, fields, kept):
    before = drawn["capture"] if kept else ""
    updates = tab.run(SimpleNamespace(session_hash="one"), *fields(steps=40), before)
    assert [next(updates)[tab.viewer]["phase"], next(updates)[tab.viewer]["phase"]] == ["running"] * 2
    tab.halt(SimpleNamespace(session_hash="one"))
    (last,) = [u[tab.viewer] for u in updates]  # nothing that runs comes after it
    assert last["status"] == "Stopped." and not len(tab.active)
    assert (last["phase"], last.get("id")) == (("done", before) if kept else ("stopped", None))


@pytest.mark.parametrize("kept", [True, False])
def test_a_run_that_fails_says_why_and_keeps_the_capture_before(tab, drawn, fields, tmp_path, kept):
    """Symptom: a failed run said that it was stopped."""
    before = drawn["capture"] if kept else ""
    folder = shutil.copytree(EMBEDDED / "tiny-koala-700m", tmp_path / "cut")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    updates, shown = tab.run(SimpleNamespace(session_hash="one"), *fields(second=str(folder)), before), []
    with pytest.raises(gr.Error) as failed:
        shown.extend(u[tab.viewer] for u in updates)
    message = html.unescape(failed.value.message)
    assert "is not a whole safetensors file" in message
    if kept:
        assert (shown[-1]["phase"], shown[-1]["id"]) == ("done", before) and message in shown[-1]["problem"]
    else:
        assert (shown[-1]["phase"], shown[-1]["status"]) == ("failed", message)
    assert not len(tab.active) and not len(tab.session.device.line)


def test_strangers_keep_less(fields):
    session = Session(device="cpu", local=False)
    with gr.Blocks():
        tab = Attention(session, Store())
    forecast = tab.forecast(*fields(steps=200, every=True, width=512, height=512))
    assert "the budget is 0.20 GB" in forecast and "k-needs" in forecast
