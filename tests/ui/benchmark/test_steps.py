"""Score over steps in the Benchmark tab: the recorded report is there at once, and a visitor can measure another."""

import json
import re
import shlex
import time

import gradio as gr
import pytest
from playwright.sync_api import expect

from koala.cli.main import parser
from koala.evaluate.settings import Settings
from koala.models.measured import weights
from koala.models.registry import find
from koala.ui.benchmark.chart import status
from koala.ui.benchmark.steps import RECORDED, StepsScore, command, panel
from koala.ui.session import Session
from tests.ui.handlers import Visitor, named

pytestmark = pytest.mark.long


def rate(share: float) -> dict:
    return {"all": {"rate": share, "interval": [share - 0.1, share + 0.1], "count": 90}}


REPORT = {
    "metric": "shapes",
    "num_prompts": 90,
    "steps": [1, 4],
    "panels": {"one object": ["one_object", "all"]},
    "models": [
        {
            "model": "tiny-sdxl",
            "teacher": None,
            "parameters": 6_442_948,
            "guidance": 2.0,
            "points": [
                {"steps": 1, "unet_calls": 2, "picture_ms": 250.0, "scores": {"one_object": rate(0.5)}},
                {"steps": 4, "unet_calls": 8, "picture_ms": 1250.0, "scores": {"one_object": rate(0.75)}},
            ],
        }
    ],
    "device": "a <b>CPU</b>",
    "date": "2026-01-01",
    "command": "python -m koala eval",
}


def test_a_report_is_charts_and_a_table_of_every_score_and_time():
    html = panel(REPORT, "Measured <here>")
    cells = re.findall(r"<td>(.*?)</td>", html)
    assert cells == [
        "50.0 %<small>40 to 60</small>",
        "75.0 %<small>65 to 85</small>",
        "250 ms<small>2 calls</small>",
        "1.25 s<small>8 calls</small>",
    ]
    assert "tiny-sdxl<small>6.44 M parameters, guidance 2</small>" in html
    assert 'aria-label="one object, by the number of steps: tiny-sdxl 1: 50 %, 4: 75 %"' in html
    assert "<b>CPU" not in html and "<here>" not in html


def test_the_recorded_report_is_of_the_models_that_are_shipped():
    report = json.loads(RECORDED.read_text())
    names = [model["model"] for model in report["models"]]
    assert {"tiny-sdxl", "tiny-koala-lightning-700m"} <= set(names)
    assert report["weights"] == weights([find(name) for name in dict.fromkeys(names)])


def test_the_command_for_a_terminal_measures_the_same():
    settings = Settings(steps=(2, 4), num_prompts=7, also_unguided=True)
    args = parser().parse_args(shlex.split(command([find("tiny-sdxl")], settings))[3:])
    assert (args.model, args.suite, args.steps, args.num_prompts, args.also_unguided) == (
        ["tiny-sdxl"],
        "steps",
        [2, 4],
        7,
        True,
    )


@pytest.fixture(scope="module")
def tab():
    session = Session(device="cpu").start()
    with gr.Blocks():
        yield StepsScore(session)
    while not session.loader.settled or len(session.device.line):  # a process must not end in the middle of a run
        time.sleep(0.05)


def test_the_page_opens_with_what_was_recorded(tab):
    assert "Recorded: how many steps each model needs" in tab.panel.value
    offered = [name for _, name in tab.choices()]
    assert {"tiny-sdxl", "tiny-koala-700m"} <= set(offered) and "sdxl-base" not in offered


def test_a_visitor_scores_a_model_and_may_stop(tab):
    shown = [named(tab, update) for update in tab.run(Visitor, ["tiny-koala-700m"], [1], 1, False)]
    assert shown[-1]["status"] == status("Done.") and shown[-1]["start"].interactive
    (drawn,) = [update["panel"] for update in shown if "panel" in update]
    assert len(re.findall(r"<td>", drawn)) == 4 and "2 calls" in drawn  # three kinds and the time; guided
    texts = []
    for update in tab.run(Visitor, ["tiny-koala-700m"], [10, 25], 50, True):
        texts.append(str(named(tab, update).get("status")))
        tab.halt(Visitor)
    assert texts[-1] == status("Stopped.")


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (([], [1], 5, False), "hoose one to 4 models"),
        ((["tiny-sdxl"], [], 5, False), "at least one number of steps"),
        ((["tiny-sdxl"], [3], 5, False), "at least one number of steps"),
        ((["tiny-sdxl"], [1], None, False), "between 1 and 100 prompts"),
        ((["tiny-sdxl"], [1], 101, False), "between 1 and 100 prompts"),
        ((["sdxl-base"], [1], 5, False), "SDXL Base 1.0 does not draw the shapes world"),
    ],
)
def test_what_cannot_be_scored_is_refused(tab, given, reason):
    with pytest.raises(gr.Error, match=reason):
        next(tab.run(Visitor, *given))


def test_a_public_server_shows_the_recorded_scores_only():
    with gr.Blocks():
        public = StepsScore(Session(local=False))
    assert not public.start.interactive and "on your own machine" in public.status.value
    with pytest.raises(gr.Error, match="on your own machine"):
        next(public.run(Visitor, ["tiny-sdxl"], [1], 1, False))


@pytest.mark.slow
@pytest.mark.browser
def test_a_visitor_scores_two_models_in_the_browser(app, open_tab):
    with open_tab(app, "Benchmark") as page:
        page.locator("#kb-steps-steps").get_by_label("25").uncheck()
        page.locator("#kb-steps-prompts input").fill("1")
        page.locator("#kb-steps-start").click()
        expect(page.locator("#kb-steps-status")).to_have_text("Done.", timeout=120_000)
        assert page.locator("#kb-steps-panel h3").inner_text() == "Measured here"
