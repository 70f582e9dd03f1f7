"""What the Attention tab records: as much as it said, without changing the pictures."""

import json
import re

import pytest
import torch

from koala.attention import view
from koala.attention.questions import read
from koala.errors import UserError
from koala.ui.attention.recording import Asked

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
    key = tab.store.add(tab.store.get(drawn["capture"]))
    tab.capture.delete_callback(key)  # Gradio's, when a page has been left
    with pytest.raises(UserError, match="no longer kept"):
        tab.store.get(key)


def test_what_was_predicted_is_what_is_kept(tab, capture, fields):
    output = tab.forecast(*fields())
    recorded = sum(side.record.bytes for side in capture.sides)
    assert f"{recorded / 1e6:,.1f} MB" in output and f"over {STEPS} steps" in output
    assert sum(p.bytes for p in Asked.of(fields()).plans(tab.session.catalogue)) == recorded
    assert capture.bytes == recorded + sum(map(len, capture.files)) + sum(
        len(side.picture.tobytes()) for side in capture.sides
    )


def test_the_pictures_are_those_of_a_run_without_a_recorder(tab, capture, fields):
    from koala.sampling.generate import generate

    for side, request in zip(capture.sides, Asked.of(fields()).requests(tab.session.catalogue), strict=True):
        plain = generate(request, tab.session.device.model(request.model))
        assert plain.images[0].tobytes() == side.picture.tobytes()


def test_on_the_same_input_the_teacher_sees_the_students_picture(tab, run):
    output = run(steps=2, inputs="same")
    capture = tab.store.get(output["capture"])
    assert [s.title for s in capture.sides] == ["Tiny SDXL (teacher) on the student's input", "Tiny KOALA-700M"]
    assert capture.sides[0].picture is capture.sides[1].picture
    own = tab.store.get(run(steps=2)["capture"])
    means = [
        [torch.tensor(r["values"][1:]).mean() for r in view.alike(c)["rows"] if r["values"]] for c in (capture, own)
    ]
    print("agreement at the second step: same input", means[0], "own run", means[1])
    assert sum(means[0]) > sum(means[1])


def test_another_size_has_a_grid_of_its_own(tab, run, asked):
    output = run(steps=1, width=320, height=192, guidance=1.0)
    assert {tuple(s["grid"]) for s in output["viewer"]["stages"] if not s["absent"]} == {(12, 20), (6, 10)}
    right = tab.look({"id": output["capture"]} | asked | {"step": 0, "box": [0.999, 0.999, 0.999, 0.999]})
    assert right["sides"][0]["marked"] == [12 * 20 - 1]


def test_every_layer_can_be_recorded_and_looked_at(tab, run, asked):
    output = run(steps=1, every=True)
    layers = {s["name"]: s.get("layers") for s in output["viewer"]["stages"]}
    assert len(layers["UP-1"]) == 10 and len(layers["MID"]) == 10  # MID is the teacher's alone
    first = tab.look({"id": output["capture"]} | asked | {"step": 0, "stage": "UP-1", "layer": 0})
    last = tab.look({"id": output["capture"]} | asked | {"step": 0, "stage": "UP-1", "layer": 9})
    assert first["sides"][0]["said"].startswith("Transformer 1, block 1:")
    assert last["sides"][0]["said"].startswith("Transformer 3, block 5:")  # KOALA's last decoder block pairs with it
    assert last["sides"][1]["said"].startswith("Transformer 2, block 5:")


def test_runs_of_different_lengths_stand_beside_each_other_by_their_noise(tab, run, asked):
    output = run(first_steps=5, second_steps=2)
    capture, value = tab.store.get(output["capture"]), output["viewer"]
    assert [side.record.steps for side in capture.sides] == [5, 2]
    teacher, student = (side.record.timesteps for side in capture.sides)
    for moment, (teacher_step, student_step) in enumerate(capture.moments):
        assert teacher_step == moment and abs(student[student_step] - teacher[teacher_step]) == min(
            abs(t - teacher[teacher_step]) for t in student
        )
    assert {student_step for _, student_step in capture.moments} == {0, 1}
    assert (
        value["moments"][4] == f"noise {teacher[4]:.0f}, steps 5 of 5 and 2 of 2" and "5 and 2 steps" in value["pace"]
    )
    assert value["mean"] == "mean of 5 and 2 steps"
    answer = tab.look({"id": output["capture"]} | asked | {"step": 4})
    alone = view.row(capture.sides[1].record, capture.stages["UP-2"][0][1], read(capture, asked | {"step": 1}))
    assert answer["said"].startswith("UP-2, noise") and answer["sides"][1]["data"] == view._encoded(view.heat(alone))
    assert {len(r["values"]) for r in view.alike(capture)["rows"] if not r["absent"]} == {5}


def test_a_teacher_on_the_students_input_has_no_settings_of_its_own(tab, fields):
    def open_(*chosen):
        return [slider.interactive for slider in tab.settle(*chosen)]

    assert open_("tiny-sdxl", "tiny-koala-700m", "own") == [True] * 4
    assert open_("tiny-sdxl", "tiny-koala-700m", "same") == [False, True] * 2
    assert open_("tiny-koala-700m", "tiny-sdxl", "same") == [True, False] * 2
    assert open_("tiny-sdxl", "no-such-model", "same") == [True] * 4
    assert "over 3 steps" in tab.forecast(*fields(inputs="same", first_steps=25, second_steps=3))
    assert "over 25 and 3 steps" in tab.forecast(*fields(first_steps=25, second_steps=3))


def test_a_model_brings_its_own_steps_and_guidance_and_the_first_one_its_size(tab):
    assert tab.pick(0, "tiny-sdxl") == (25, 2.0, 256, 256)
    assert tab.pick(1, "tiny-koala-700m") == (25, 2.0)
