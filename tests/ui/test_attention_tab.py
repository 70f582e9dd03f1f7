"""The Attention tab: what it shows is what was recorded, it answers at once, and nothing is lost on bad input."""

import base64
import html
import io
import json
import math
import re
import time
from types import SimpleNamespace

import gradio as gr
import pytest
import torch
from PIL import Image

from koala.attention import maps, page, view
from koala.attention.figures import Side
from koala.attention.plan import Layer
from koala.attention.questions import KINDS, Capture
from koala.attention.recorded import AttentionRecord
from koala.request import RequestError
from koala.specs import SDXL
from koala.ui.attention_store import Store
from koala.ui.session import Session
from koala.ui.tabs.attention import Attention
from koala.ui.theme import COLOURS, VIEWER

STEPS = 4
HOSTILE = """a red circle </script><script>alert(1)</script> left of a blue square & "q" ${x}"""
FIELDS = {
    "prompt": HOSTILE,
    "first": "tiny-sdxl",
    "second": "tiny-koala-700m",
    "seed": "7",
    "random": False,
    "steps": STEPS,
    "guidance": 5.0,
    "width": 256,
    "height": 256,
    "stages": ["DW-2", "DW-3", "MID", "UP-1", "UP-2"],
    "every": False,
    "words": True,
    "inputs": "own",
}
ASKED = {
    "kind": "row",
    "stage": "UP-2",
    "layer": 0,
    "head": "mean",
    "step": 2,
    "box": [0.3, 0.6, 0.3, 0.6],
    "diagonal": True,
    "word": 2,
    "opacity": 0.75,
    "gamma": 1.0,
}


class Visitor:
    """What a handler knows of who sent an event."""

    session_hash = "one"


@pytest.fixture(scope="module")
def tab():
    session = Session(device="cpu")
    with gr.Blocks():
        tab = Attention(session, Store())
    session.start()
    return tab


def run(tab, before: str = "", **change) -> dict:
    """The last thing that the page is told of a capture, by the components' names."""
    told: dict = {}
    for update in tab.run(Visitor(), *(FIELDS | change).values(), before):
        told |= {name: update[c] for name, c in vars(tab).items() if isinstance(c, gr.blocks.Block) and c in update}
    return told


@pytest.fixture(scope="module")
def drawn(tab):
    return run(tab)


@pytest.fixture(scope="module")
def capture(tab, drawn):
    return tab.store.get(drawn["capture"])


@pytest.fixture
def ask(tab, drawn):
    """Asks as the page does, and gets what the page gets."""
    return lambda **change: json.loads(json.dumps(tab.look({"id": drawn["capture"]} | ASKED | change)))


@pytest.fixture
def take(tab, drawn):
    def taken(file: str, **change) -> bytes:
        found = tab.take({"id": drawn["capture"], "file": file} | ASKED | change)
        assert "problem" not in found, found
        assert re.fullmatch(rf"koala-attention-[a-z0-9-]+-{file}\.(png|gif|html)", found["name"])
        return base64.b64decode(found["data"])

    return taken


def decoded(side: dict) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(side["data"])), dtype=torch.uint8)


# --- a capture


def test_a_capture_opens_at_up_2_and_says_which_stages_there_are(drawn):
    value = drawn["viewer"]
    stages = {s["name"]: s for s in value["stages"]}
    assert value["phase"] == "done" and value["stage"] == "UP-2" and stages["UP-2"]["grid"] == [16, 16]
    assert stages["UP-1"]["grid"] == [8, 8]  # the paper's stage is coarse here, and its button says so
    for stage in ("DW-1", "UP-3"):
        assert stages[stage]["absent"] == f"there is no attention in {stage}"
    assert [m["title"] for m in value["models"]] == ["Tiny SDXL (teacher)", "Tiny KOALA-700M"]
    assert [w["text"] for w in value["words"]][:4] == ["<|startoftext|>", "a", "red", "circle"]
    assert re.search(r"Recording took: Tiny SDXL \(teacher\) [\d.]+ MB, \d+ ms of a run of [\d.]+ s", value["told"])


def test_the_page_holds_an_id_and_no_tensor(tab, drawn):
    assert re.fullmatch("[0-9a-f]{32}", drawn["capture"])
    assert json.loads(json.dumps(drawn["viewer"])) == drawn["viewer"]
    assert tab.capture.delete_callback == tab.store.drop


def test_what_was_predicted_is_what_is_kept(tab, capture):
    told = tab.forecast(*FIELDS.values())
    assert f"{capture.bytes / 1e6:,.1f} MB" in told and f"over {STEPS} steps" in told
    assert sum(p.bytes for p in tab.plan(_asked())) == capture.bytes


def _asked(**change):
    from koala.ui.tabs.attention import _read

    return _read((FIELDS | change).values())


def test_the_pictures_are_those_of_a_run_without_a_recorder(tab, capture):
    from koala.generate import generate

    for side, request in zip(capture.sides, tab.requests(_asked()), strict=True):
        plain = generate(request, tab.session.model(request.model))
        assert plain.images[0].tobytes() == side.picture.tobytes()


def test_on_the_same_input_the_teacher_sees_the_students_picture(tab):
    told = run(tab, steps=2, inputs="same")
    capture = tab.store.get(told["capture"])
    assert [s.title for s in capture.sides] == ["Tiny SDXL (teacher) on the student's input", "Tiny KOALA-700M"]
    assert capture.sides[0].picture is capture.sides[1].picture
    own = tab.store.get(run(tab, steps=2)["capture"])
    means = [
        [torch.tensor(r["values"][1:]).mean() for r in view.alike(c)["rows"] if r["values"]] for c in (capture, own)
    ]
    print("agreement at the second step: same input", means[0], "own run", means[1])
    assert sum(means[0]) > sum(means[1])


def test_another_size_has_a_grid_of_its_own(tab):
    told = run(tab, steps=1, width=320, height=192, guidance=1.0)
    assert {tuple(s["grid"]) for s in told["viewer"]["stages"] if not s["absent"]} == {(12, 20), (6, 10)}
    right = tab.look({"id": told["capture"]} | ASKED | {"step": 0, "box": [0.999, 0.999, 0.999, 0.999]})
    assert right["sides"][0]["cells"] == [19, 11, 20, 12]


def test_every_layer_can_be_recorded_and_looked_at(tab):
    told = run(tab, steps=1, every=True)
    layers = {s["name"]: s.get("layers") for s in told["viewer"]["stages"]}
    assert len(layers["UP-1"]) == 10 and len(layers["MID"]) == 10  # MID is the teacher's alone
    first = tab.look({"id": told["capture"]} | ASKED | {"step": 0, "stage": "UP-1", "layer": 0})
    last = tab.look({"id": told["capture"]} | ASKED | {"step": 0, "stage": "UP-1", "layer": 9})
    assert first["sides"][0]["said"].startswith("Transformer 1, block 1:")
    assert last["sides"][0]["said"].startswith("Transformer 3, block 5:")  # KOALA's last decoder block pairs with it
    assert last["sides"][1]["said"].startswith("Transformer 2, block 5:")


# --- maps


def test_a_click_shows_the_exact_row_of_both_models(ask, capture):
    answer = ask()
    assert answer["said"] == "UP-2, step 3 of 4, mean of 2 heads, 16 × 16 patches"
    for side, shown, (layer,) in zip(capture.sides, answer["sides"], zip(capture.stages["UP-2"][0]), strict=True):
        q, k = side.record.at(layer, 2)
        row = torch.softmax(q.float() @ k.float().mT / math.sqrt(q.shape[-1]), -1).mean(0)[9 * 16 + 4]
        assert shown["cells"] == [4, 9, 5, 10]
        assert torch.equal(decoded(shown), (row / row.max() * 255).round().to(torch.uint8))


def test_a_region_is_the_mean_of_its_rows_and_the_mean_step_that_of_all_steps(ask, capture):
    shown = ask(box=[0.0, 0.0, 0.1, 0.1], step="mean", head=1)["sides"][1]
    record, layer = capture.sides[1].record, capture.stages["UP-2"][0][1]
    rows = torch.stack([maps.probabilities(*record.at(layer, s), 1)[[0, 1, 16, 17]].mean(0) for s in range(STEPS)])
    expected = rows.mean(0) / rows.mean(0).max() * 255
    assert shown["cells"] == [0, 0, 2, 2]
    assert (decoded(shown).float() - expected).abs().max() <= 0.51


def test_without_itself_the_patch_is_dark(ask):
    shown = ask(diagonal=False)["sides"][0]
    assert decoded(shown)[9 * 16 + 4] == 0 and decoded(shown).max() == 255 and "without itself" in shown["said"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stage", ["DW-2", "UP-1", "MID"])
def test_every_view_of_every_stage_has_both_models_or_says_why_not(ask, kind, stage):
    for step in (0, "mean"):
        answer = ask(kind=kind, stage=stage, step=step)
        first, second = answer["sides"]
        cells = math.prod(first["grid"]) * (3 if KINDS[kind].colour else 1)
        assert len(decoded(first)) == cells
        assert second == {"absent": "Tiny KOALA-700M has no MID"} if stage == "MID" else len(decoded(second)) == cells


def test_pca_has_one_basis_for_both_models_and_all_steps(ask):
    each = [ask(kind="pca", step=s)["sides"] for s in range(STEPS)]
    said = {side["said"].partition(": ")[2] for sides in each for side in sides}
    assert len(said) == 1 and re.search(r"variance shown .* = \d+ %", said.pop())
    colours = torch.stack([decoded(side) for sides in each for side in sides]).view(-1, 256, 3)
    for channel in range(3):  # the percentiles are joint: no frame alone spans them all
        assert colours[..., channel].min() == 0 and colours[..., channel].max() == 255
    paper = ask(kind="pca", head="paper", step=1)["sides"]
    assert paper[0]["said"] != paper[1]["said"]
    assert "no mean; choose a step" in ask(kind="pca", head="paper", step="mean")["problem"]


def test_the_agreement_chart_has_a_value_per_step_or_a_reason(ask):
    rows = {r["stage"]: r for r in ask(kind="agreement")["rows"]}
    assert {s for s, r in rows.items() if r["absent"]} == {"DW-1", "MID", "UP-3"}
    for row in rows.values():
        assert len(row["values"]) == (0 if row["absent"] else STEPS)
        assert all(0 < v <= 1 for v in row["values"])


# --- how long it takes


def test_a_click_is_answered_in_a_tenth_of_a_second(ask):
    times = []
    for k in range(20):
        begun = time.perf_counter()
        ask(box=[k / 20] * 4)
        times.append(1000 * (time.perf_counter() - begun))
    print(f"click, embedded: {sorted(times)[10]:.1f} ms, slowest {max(times):.1f} ms")
    assert sorted(times)[10] < 100


def test_a_click_on_a_full_size_layer_is_answered_in_time():
    spec, paths = SDXL, [p for s, p in SDXL.self_attentions() if s == "UP-2"][-1:]
    layer = Layer(stage="UP-2", path=paths[0], kind="self", heads=10, dim=64, grid=(64, 64))
    noise = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 10, 4096, 64, generator=noise).half() for _ in range(2))
    record = AttentionRecord(
        model="sdxl-base",
        revision="local",
        spec=spec,
        prompt="noise",
        seed=0,
        guidance=7.5,
        width=1024,
        height=1024,
        images=1,
        half="conditional",
        timesteps=(500.0,),
        tokens=(),
        overhead_ms=0.0,
        layers=(layer,),
        frames=({paths[0]: (q, k)},),
    )
    side = Side(title="SDXL", picture=Image.new("RGB", (1024, 1024)), record=record)
    capture = Capture(prompt="noise", sides=(side, side))
    times = []
    for at in (0.1, 0.5, 0.9):
        begun = time.perf_counter()
        answer = view.look(capture, ASKED | {"step": 0, "box": [at] * 4})
        times.append(1000 * (time.perf_counter() - begun))
    print(f"click on two 64x64 layers of 10 heads: {sorted(times)[1]:.0f} ms")
    assert sorted(times)[1] < 300 and answer["sides"][1]["grid"] == [64, 64]


# --- what cannot be


@pytest.mark.parametrize(
    ("change", "said"),
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
        ({"kind": "word", "word": 99}, "word 99 is not in this capture"),
        ({"kind": "film"}, "there is no view 'film'"),
        ({"kind": ["row"]}, "there is no view"),
        ({"id": "0" * 32}, "no longer kept"),
        ({"id": None}, "no longer kept"),
    ],
    ids=str,
)
def test_a_question_that_cannot_be_answered_says_what_can_and_loses_nothing(tab, drawn, change, said):
    answer = tab.look({"id": drawn["capture"]} | ASKED | change)
    assert said in answer["problem"]
    assert "problem" not in tab.look({"id": drawn["capture"]} | ASKED)


@pytest.mark.parametrize("asked", [None, "row", 3, []], ids=str)
def test_a_question_that_is_none(tab, asked):
    assert "reload it" in tab.look(asked)["problem"] and "reload it" in tab.take(asked)["problem"]


@pytest.mark.parametrize(
    ("change", "said"),
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
def test_what_cannot_be_recorded_is_refused_and_the_capture_before_stays(tab, drawn, change, said):
    with pytest.raises(gr.Error, match="(?i)" + re.escape(said)):
        run(tab, drawn["capture"], **change)
    assert tab.store.get(drawn["capture"])


def test_a_run_that_is_stopped_brings_the_capture_before_back(tab, drawn):
    updates = tab.run(Visitor(), *(FIELDS | {"steps": 40}).values(), drawn["capture"])
    phases = [next(updates)[tab.viewer]["phase"], next(updates)[tab.viewer]["phase"]]
    back = tab.halt(SimpleNamespace(session_hash="one"), drawn["capture"], "tiny-sdxl", "tiny-koala-700m")
    last = [u[tab.viewer] for u in updates][-1]
    assert phases == ["running"] * 2
    for value in (back, last):
        assert (value["phase"], value["id"], value["status"]) == ("done", drawn["capture"], "Stopped.")
    assert not tab.active


def test_strangers_keep_less():
    session = Session(device="cpu", local=False)
    with gr.Blocks():
        tab = Attention(session, Store())
    told = tab.forecast(*(FIELDS | {"steps": 200, "every": True, "width": 512, "height": 512}).values())
    assert "the budget is 0.20 GB" in told and "k-needs" in told


# --- the store


def kept(size: int):
    return SimpleNamespace(bytes=size)


def test_the_store_lets_go_of_what_was_not_looked_at_for_longest():
    store = Store(limit=100)
    first, second = store.add(kept(40)), store.add(kept(40))
    store.get(first)
    third = store.add(kept(40))
    assert store.bytes == 80 and store.get(first) and store.get(third)
    with pytest.raises(RequestError, match="capture it again"):
        store.get(second)
    store.drop(first)
    store.drop(first)
    store.drop("")
    assert store.bytes == 40
    assert store.get(store.add(kept(500)))  # the newest stays, whatever its size
    assert store.bytes == 500


# --- downloads


@pytest.mark.parametrize("kind", ["row", "pca", "segments"])
def test_a_strip_and_a_film_show_every_step(take, kind):
    strip = Image.open(io.BytesIO(take("strip", kind=kind)))
    film = Image.open(io.BytesIO(take("gif", kind=kind)))
    assert strip.format == "PNG" and strip.width > STEPS * 256 and strip.height > 2 * 256
    assert film.format == "GIF" and film.n_frames == STEPS


@pytest.mark.parametrize("figure", ["pca", "rows"])
def test_the_papers_figures_cover_every_stage(take, figure):
    drawn = Image.open(io.BytesIO(take(figure)))
    assert drawn.width > 6 * 256 and drawn.height > 2 * 256  # the picture and five stages, two models
    assert take(figure, step=0) != take(figure, step=3)


def test_a_download_that_is_none_says_which_there_are(tab, drawn):
    for change, said in (({"file": "svg"}, "choose one of strip, gif"), ({"opacity": "1"}, "opacity must be")):
        answer = tab.take({"id": drawn["capture"], "file": "strip"} | ASKED | change)
        assert said in answer["problem"]


def test_the_web_page_carries_queries_and_keys_and_no_foreign_markup(take, capture):
    text = take("page").decode()
    assert text.count("<script") == 2 and "alert(1)" in text and "<script>alert" not in text
    assert html.escape(HOSTILE) in text and "://" not in text, "base64 may spell http, but has no colon"
    content = json.loads(re.search(r'id="capture">(.*?)</script>', text, re.S)[1])
    assert content["value"]["numbers"] == [1, 2, 3, 4] and set(content["frames"]) == set(capture.stages)
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
    assert list(content["frames"]) == ["UP-2"] and content["value"]["numbers"] == [1, 4]
    assert content["value"]["total"] == STEPS and len(content["frames"]["UP-2"][0][0]["steps"]) == 2
    absent = {s["name"]: s["absent"] for s in content["value"]["stages"]}
    assert absent["UP-1"].startswith("UP-1 was left out") and not absent["UP-2"]
    assert [len(r["values"]) for r in content["alike"]["rows"] if r["values"]] == [2] * 4


def test_the_web_page_has_the_apps_colours():
    sheet = (VIEWER / "page.css").read_text()
    light, dark = sheet.split("prefers-color-scheme: dark")
    for mode, part in enumerate((light, dark)):
        found = dict(re.findall(r"--k-([a-z-]+): (#[0-9a-f]{6})", part))
        assert len(found) == 11
        assert found == {name: COLOURS[name][mode] for name in found}
