"""Downloads of the Attention tab: strips, films, figures, and the page that opens with no server."""

import base64
import html
import io
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from koala.attention import page
from koala.attention.capture import Capture, Side
from koala.attention.record import record
from koala.attention.render import MARK
from koala.ui.attention import files as attention_files
from koala.ui.theme import COLOURS, VIEWER

STEPS = 4


@pytest.mark.parametrize("kind", ["row", "pca", "segments"])
def test_a_strip_and_a_film_show_every_step(take, kind):
    strip = Image.open(io.BytesIO(take("strip", kind=kind)))
    film = Image.open(io.BytesIO(take("gif", kind=kind)))
    assert strip.format == "PNG" and strip.width > STEPS * 256 and strip.height > 2 * 256
    assert film.format == "GIF" and film.n_frames == STEPS


def test_a_painted_region_is_outlined_in_the_strip(take):
    painted, boxed = (
        np.array(Image.open(io.BytesIO(take("strip", **region))).convert("RGB"))
        for region in ({"brush": [[0.1, 0.1], [0.8, 0.8]]}, {"box": [0.1, 0.1, 0.1, 0.1]})
    )
    marks = [int((picture == MARK).all(-1).sum()) for picture in (painted, boxed)]
    assert marks[0] == 2 * marks[1] > 0, "two patches apart have two outlines"


@pytest.mark.parametrize("head", ["mean", "max", "paper", 0])
def test_the_papers_figures_cover_every_stage(take, head):
    """Whatever heads the page shows: rows know no paper mode and components no maximum, which then are the mean."""
    drawn = Image.open(io.BytesIO(take("figures", head=head, step=0)))
    assert drawn.width > 6 * 256 and drawn.height > 2 * 2 * 256  # the picture and five stages, two models, two figures
    assert drawn.tobytes() != Image.open(io.BytesIO(take("figures", head=head, step=3))).tobytes()


def test_the_papers_mode_has_no_mean_of_steps(tab, drawn, asked):
    answer = tab.take({"id": drawn["capture"]} | asked | {"file": "figures", "head": "paper", "step": "mean"})
    assert "each step is fitted alone, so there is no mean; choose a step" in answer["problem"]


def test_a_download_that_is_none_says_which_there_are(tab, drawn, asked):
    for change, message in (({"file": "svg"}, "choose one of strip, gif"), ({"opacity": "1"}, "opacity must be")):
        answer = tab.take({"id": drawn["capture"], "file": "strip"} | asked | change)
        assert message in answer["problem"]


def test_the_web_page_carries_queries_and_keys_and_no_foreign_markup(take, capture):
    text = take("page").decode()
    assert text.count("<script") == 2 and "alert(1)" in text and "<script>alert" not in text
    assert html.escape(capture.prompt) in text and "://" not in text, "base64 may spell http, but has no colon"
    content = json.loads(re.search(r'id="capture">(.*?)</script>', text, re.S)[1])
    assert content["value"]["moments"] == [f"step {k} of 4" for k in (1, 2, 3, 4)] and set(content["frames"]) == set(
        capture.stages
    )
    side, layer = content["frames"]["UP-2"][0][1], capture.stages["UP-2"][0][1]
    q, k = capture.sides[1].record.at(layer, 3)
    for name, tensor in (("q", q), ("k", k)):
        raw = bytearray(base64.b64decode(side["steps"][3][name]))
        assert torch.equal(torch.frombuffer(raw, dtype=torch.float16), tensor.flatten())
    assert content["frames"]["MID"][0][1] == {"absent": "Tiny KOALA-700M has no MID"}


def test_a_web_page_of_a_large_capture_has_one_stage_and_fewer_steps(capture, monkeypatch):
    monkeypatch.setattr(page, "BUDGET", page._bytes(capture, "UP-2") // 2)
    text = page.page(capture, "UP-2")
    content = json.loads(re.search(r'id="capture">(.*?)</script>', text, re.S)[1])
    assert list(content["frames"]) == ["UP-2"] and content["value"]["moments"] == ["step 1 of 4", "step 4 of 4"]
    assert not content["value"]["mean"] and len(content["frames"]["UP-2"][0][0]["steps"]) == 2
    absent = {s["name"]: s["absent"] for s in content["value"]["stages"]}
    assert absent["UP-1"].startswith("UP-1 was left out") and not absent["UP-2"]
    assert [len(r["values"]) for r in content["alike"]["rows"] if r["values"]] == [2] * 4


def test_the_web_page_has_the_apps_colours():
    sheet = (VIEWER / "page.css").read_text()
    light, dark = sheet.split("prefers-color-scheme: dark")
    for mode, part in enumerate((light, dark)):
        result = dict(re.findall(r"--k-([a-z-]+): (#[0-9a-f]{6})", part))
        assert len(result) == 11
        assert result == {name: COLOURS[name][mode] for name in result}


def test_a_pipeline_that_was_called_directly_has_a_page_and_downloads(tab, asked):
    pipeline = tab.session.device.model("tiny-koala-700m").pipeline
    with record(pipeline) as recorder:
        picture = pipeline("a red circle", num_inference_steps=2, width=128, height=128).images[0]
    capture = Capture(prompt="", sides=(Side(title="mine", picture=picture, record=recorder.record),))
    text = page.page(capture)
    assert "<h1>mine</h1><p>mine, 2 steps, conditional half.</p>" in text and "None" not in text
    for kind in ("strip", "gif", "figures", "page"):
        assert attention_files.take(capture, asked | {"step": 1, "file": kind})["data"]


def test_a_page_of_runs_of_different_lengths_keeps_every_step_once(tab, run):
    capture = tab.store.get(run(first_steps=4, second_steps=2)["capture"])
    content = json.loads(re.search(r'id="capture">(.*?)</script>', page.page(capture), re.S)[1])
    teacher, student = content["frames"]["UP-2"][0]
    assert [len(side["steps"]) for side in (teacher, student)] == [4, 2]
    assert (teacher["at"], student["at"]) == ([0, 1, 2, 3], [its for _, its in capture.moments])
    assert len(content["value"]["moments"]) == 4 and len(student["pca"]["steps"]) == 4
