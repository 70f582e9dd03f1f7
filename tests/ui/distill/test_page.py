"""The page of the Distill tab shows what the run wrote, and its buttons do what they say."""

import dataclasses
import os
import re
import time

import gradio as gr
import pytest

from koala.distill.presets import PRESETS
from koala.distill.run import manager as runs
from koala.ui.distill import fields as distill_fields
from koala.ui.distill import panel as distill_panel
from tests.ui.distill.conftest import QUICK, living, look, with_samples, written
from tests.ui.handlers import Sent, Visitor, named


def test_the_first_visit_says_what_this_is(tab):
    shown = look(tab)
    assert "A student of your own" in shown["standing"] and shown["all"] == "" and shown["curves"] == ""
    assert (
        not any(shown[b]["visible"] for b in ("stop", "resume", "reuse", "ask_delete")) and not shown["timer"]["active"]
    )


@pytest.mark.parametrize("preset", [None, "", "nothing"])
def test_no_preset_leaves_the_fields_as_they_are(tab, preset):
    description, *fields = tab.fill(preset)
    assert "settings of an earlier run" in description and len(fields) == len(tab.fields)
    assert all(field == gr.skip() for field in fields)


def test_a_run_under_way_is_shown_and_can_only_be_stopped(tab):
    run = written(tab.runs.root, "a-1", **living(), steps_per_second=0.5, seconds_left=125.0, num_steps=40)
    written(tab.runs.root, "b-1")
    shown = look(tab)
    assert shown["chosen"] == "a-1" and shown["timer"]["active"]
    assert "2 min 5 s" in shown["standing"] and "width:50.0%" in shown["standing"]
    visible = {name for name in ("stop", "resume", "step", "reuse", "ask_delete") if shown[name]["visible"]}
    assert visible == {"stop", "reuse"} and not shown["start"]["interactive"]
    run.write_status(dataclasses.replace(run.status(), state="done"))
    after = look(tab, "a-1")
    assert (
        after["start"]["interactive"]
        and not after["timer"]["active"]
        and not after["stop"]["visible"]
        and after["ask_delete"]["visible"]
    )


def test_only_what_changed_is_sent_again(tab):
    run = written(tab.runs.root, "a-1", **living())
    first = look(tab)
    again = look(tab, "a-1", "", first["sent"])
    assert set(again) == {"chosen", "compared", "sent"}
    run.log({"kind": "train", "step": 21, "loss": 0.5})
    assert {"curves", "standing"} <= set(look(tab, "a-1", "", first["sent"])) - {"chosen", "compared", "sent"}


def test_a_reload_shows_the_run_that_was_chosen(tab):
    """The browser keeps its name; one that is gone makes way for the newest."""
    for age, name in enumerate(("a-1", "b-1")):
        os.utime(written(tab.runs.root, name).path / "config.json", (age, age))
    assert look(tab)["chosen"] == "b-1" and look(tab, "a-1")["chosen"] == "a-1" and look(tab, "gone")["chosen"] == "b-1"


def test_coming_back_to_the_tab_tells_all(tab):
    written(tab.runs.root, "a-1", **living())
    sent = look(tab)["sent"]
    assert "standing" not in named(tab, tab.look("a-1", "", sent))  # nothing is new
    back = named(tab, tab.turn("a-1", "", sent))
    assert back["timer"]["active"] and "standing" in back


def test_two_runs_curves_lie_over_each_other_until_asked_away(tab):
    for name in ("a-1", "b-1"):
        written(tab.runs.root, name)
    both = named(tab, tab.choose(Sent(compared="b-1"), "a-1", "", {}))
    assert both["compared"] == "b-1" and "chart-line kd-b" in both["curves"] and ">compared<" in both["all"]
    assert named(tab, tab.choose(Sent(compared="b-1"), "a-1", "b-1", {}))["compared"] == ""
    assert named(tab, tab.choose(Sent(run="b-1"), "a-1", "b-1", {}))["compared"] == ""  # with itself it is not compared


def test_teacher_before_and_the_newest_pictures_stand_together(tab):
    with_samples(written(tab.runs.root, "a-1"), "a <i>red</i> circle")
    html = look(tab)["pictures"]
    assert re.findall("<figcaption>(.*?)</figcaption>", html) == ["teacher", "before training", "step 20"]
    assert "<i>" not in html and html.count("data:image/webp") == 3


def test_whatever_a_run_wrote_is_escaped(tab):
    evil = "<img src=x onerror=alert(1)>"
    run = written(tab.runs.root, "a-1", dataclasses.replace(QUICK, data=evil), state="failed", message=evil)
    (run.path / "log.txt").write_text(evil)
    shown = look(tab)
    assert "<img" not in "".join(v for v in shown.values() if isinstance(v, str))
    assert "&lt;img" in shown["standing"] and "&lt;img" in shown["log"] and "&lt;img" in shown["about"]


def test_a_folder_that_cannot_be_read_says_so_and_can_be_deleted(tab):
    run = written(tab.runs.root, "a-1")
    (run.path / "config.json").write_text('{"no_such_field": 1}')
    shown = look(tab)
    assert "no_such_field" in shown["standing"] and shown["ask_delete"]["visible"] and not shown["resume"]["visible"]
    tab.remove("a-1", "", {})
    assert not run.path.exists()


def test_deleting_asks_first(tab):
    run = written(tab.runs.root, "a-1")
    row, question = tab.ask("a-1")
    assert row.visible and "Delete a-1 for good" in question and run.path.exists()
    shown = named(tab, tab.remove("a-1", "", {}))
    assert not run.path.exists() and "A student of your own" in shown["standing"] and not shown["sure"].visible
    with pytest.raises(gr.Error, match="no run 'a-1' any more"):
        tab.ask("a-1")


def test_a_stopped_run_offers_its_checkpoints(tab):
    run = written(tab.runs.root, "a-1", state="stopped", step=15, message="stopped by SIGTERM after step 15")
    shown = look(tab)
    assert shown["resume"]["value"] == "Start again"
    assert ">Stopped at step 15<" in shown["standing"] and "SIGTERM" not in shown["standing"]
    for step in (5, 10, 15):
        run.checkpoint(step).mkdir(parents=True)
    shown = look(tab)
    assert ">Stopped at step 15; it can be resumed<" in shown["standing"]
    assert shown["resume"]["value"] == "Resume" and shown["step"]["choices"] == ["last", "15", "10", "5"]


def test_a_run_that_its_time_limit_ended_says_so(tab):
    written(tab.runs.root, "a-1", state="stopped", step=15, message="stopped by its time limit after step 15")
    assert ">Stopped by its time limit after step 15<" in look(tab)["standing"]


def begin(tab, preset: str = "2-minutes", **change) -> dict:
    """The Start button."""
    config = dataclasses.replace(PRESETS[preset].config, **{"threads": 1} | change)
    values = distill_fields.shown(config, list(tab.fields))
    return named(tab, tab.begin(Visitor, preset, "", "", {}, *values))


def test_a_run_is_begun_seen_at_once_and_stopped(tab):
    shown = begin(tab)
    assert shown["chosen"] == "koala-700m-1" and ">preparing<" in shown["standing"] and shown["timer"]["active"]
    with pytest.raises(gr.Error, match="Koala-700m-1 is still running"):
        begin(tab)
    shown = named(tab, tab.halt(Visitor, "koala-700m-1", "", {}))
    ended = ">stopped<" in shown["standing"]  # a process that had not begun goes at once
    assert (ended or ">stopping<" in shown["standing"]) and not shown["stop"]["interactive"]
    run, end = tab.runs.find("koala-700m-1"), time.monotonic() + 60
    while runs.state(run).state != "stopped":
        assert time.monotonic() < end
        time.sleep(0.1)
    assert ">stopped<" in look(tab, run.name)["standing"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"teacher": "koala-700m"}, "is not on this machine"),
        ({"teacher": "no-such"}, "Unknown model"),
        ({"student_spec": "0,2"}, "is not a spec"),
        ({"student_spec": "0,2,12/-/12+12,2+2,0+0"}, "has 12 transformer blocks, tiny-sdxl only 10"),
        ({"features": ("CA",), "stages": ("DW-1",), "lf_at_ends": False}, "has no CA in DW-1"),
    ],
)
def test_what_cannot_run_is_refused_before_a_process_starts(tab, change, problem):
    with pytest.raises(gr.Error, match=problem):
        begin(tab, **change)
    assert not list(tab.runs.root.iterdir())


def test_an_estimate_says_time_and_memory_or_what_would_fit(tab):
    estimate = {"predicted_peak_bytes": 3e9, "budget_bytes": 24_000_000_000, "fits": True, "remedies": []}
    estimate |= {"batch_that_fits": 1200, "seconds": 95.0}
    assert "About 1 min 35 s of training here. At its peak it takes 3.0 GB of 24.0 GB" in distill_panel.takes(estimate)
    tight = estimate | {"fits": False, "remedies": ["accumulation=8"], "seconds": None}
    assert "too much. It fits with accumulation=8." in distill_panel.takes(tight)


@pytest.mark.slow
def test_an_estimate_is_measured_on_this_machine(tab):
    *_, shown = tab.forecast(
        "2-minutes", *distill_fields.shown(dataclasses.replace(QUICK, threads=1), list(tab.fields))
    )
    assert re.search(r"About .* of training here\. At its peak it takes \d\.\d GB of", shown), shown
    with pytest.raises(gr.Error, match="Unknown feature 'SB'"):
        values = dict(zip(tab.fields, distill_fields.shown(QUICK, list(tab.fields)), strict=True)) | {
            "features": ["SB"]
        }
        list(tab.forecast("2-minutes", *values.values()))
