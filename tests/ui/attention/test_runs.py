"""What the Attention tab records: as much as it said, without changing the pictures."""

import json
import re

import torch

from koala.attention import view
from koala.ui.tabs.attention import _read

STEPS = 4


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


def test_what_was_predicted_is_what_is_kept(tab, capture, fields):
    told = tab.forecast(*fields())
    assert f"{capture.bytes / 1e6:,.1f} MB" in told and f"over {STEPS} steps" in told
    assert sum(p.bytes for p in tab.plans(_read(fields()))) == capture.bytes


def test_the_pictures_are_those_of_a_run_without_a_recorder(tab, capture, fields):
    from koala.generate import generate

    for side, request in zip(capture.sides, tab.requests(_read(fields())), strict=True):
        plain = generate(request, tab.session.model(request.model))
        assert plain.images[0].tobytes() == side.picture.tobytes()


def test_on_the_same_input_the_teacher_sees_the_students_picture(tab, run):
    told = run(steps=2, inputs="same")
    capture = tab.store.get(told["capture"])
    assert [s.title for s in capture.sides] == ["Tiny SDXL (teacher) on the student's input", "Tiny KOALA-700M"]
    assert capture.sides[0].picture is capture.sides[1].picture
    own = tab.store.get(run(steps=2)["capture"])
    means = [
        [torch.tensor(r["values"][1:]).mean() for r in view.alike(c)["rows"] if r["values"]] for c in (capture, own)
    ]
    print("agreement at the second step: same input", means[0], "own run", means[1])
    assert sum(means[0]) > sum(means[1])


def test_another_size_has_a_grid_of_its_own(tab, run, asked):
    told = run(steps=1, width=320, height=192, guidance=1.0)
    assert {tuple(s["grid"]) for s in told["viewer"]["stages"] if not s["absent"]} == {(12, 20), (6, 10)}
    right = tab.look({"id": told["capture"]} | asked | {"step": 0, "box": [0.999, 0.999, 0.999, 0.999]})
    assert right["sides"][0]["marked"] == [12 * 20 - 1]


def test_every_layer_can_be_recorded_and_looked_at(tab, run, asked):
    told = run(steps=1, every=True)
    layers = {s["name"]: s.get("layers") for s in told["viewer"]["stages"]}
    assert len(layers["UP-1"]) == 10 and len(layers["MID"]) == 10  # MID is the teacher's alone
    first = tab.look({"id": told["capture"]} | asked | {"step": 0, "stage": "UP-1", "layer": 0})
    last = tab.look({"id": told["capture"]} | asked | {"step": 0, "stage": "UP-1", "layer": 9})
    assert first["sides"][0]["said"].startswith("Transformer 1, block 1:")
    assert last["sides"][0]["said"].startswith("Transformer 3, block 5:")  # KOALA's last decoder block pairs with it
    assert last["sides"][1]["said"].startswith("Transformer 2, block 5:")
