"""What a run's initial model predicts is what its teacher predicts, or the run is refused by name."""

import dataclasses
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from koala.distill.config import DistillConfig
from koala.distill.run.folder import RunFolder
from koala.distill.run.student_folder import check_student, create_student
from koala.errors import UserError
from koala.models.layout import DRAWING
from koala.models.registry import drawing_of, find

SCHEDULER, UNET = "scheduler/scheduler_config.json", "unet/diffusion_pytorch_model.safetensors"


def copy_marked(source, folder, marks=(), **scheduler):
    """A copy of an embedded model whose file has these marks, and whose scheduler says this.

    Its koala.json says how to sample it, so that there is no notice about it.
    """
    folder.mkdir()
    (folder / DRAWING).write_text(json.dumps(drawing_of(find(source.name))))
    for part in source.iterdir():
        (folder / part.name).symlink_to(part)
    for part in ("scheduler", *["unet"] * bool(marks)):
        (folder / part).unlink()
        shutil.copytree(source / part, folder / part)
    config = folder / SCHEDULER
    config.write_text(json.dumps(json.loads(config.read_text()) | scheduler))
    if marks:
        save_file(load_file(folder / UNET) | {mark: torch.ones(1) for mark in marks}, folder / UNET)


@pytest.fixture
def config(embedded, tmp_path):
    """A run of a teacher and an initial model that say these things of themselves."""

    def make(teacher: dict, initial: dict, place: str = "") -> DistillConfig:
        copy_marked(embedded / "tiny-sdxl", tmp_path / "teacher", **teacher)
        copy_marked(embedded / "tiny-koala-700m", tmp_path / "initial", **initial)
        return DistillConfig(
            teacher=str(tmp_path / "teacher"),
            student_spec="koala-700m",
            student_init=str(tmp_path / "initial" / place),
        )

    return make


V = {"prediction_type": "v_prediction"}
ZERO = V | {"rescale_betas_zero_snr": True}
MARKED = V | {"marks": ("v_pred",)}


@pytest.mark.parametrize(
    ("teacher", "initial", "place", "own", "wanted"),
    [
        (V, {}, "", "epsilon", "v_prediction"),
        ({}, V, "", "v_prediction", "epsilon"),
        ({}, MARKED, "", "v_prediction", "epsilon"),
        ({}, MARKED, UNET, "v_prediction", "epsilon"),
        (ZERO, V, "", "v_prediction", "v_prediction with rescale_betas_zero_snr"),
        (V, ZERO | {"marks": ("v_pred", "ztsnr")}, "unet", "v_prediction with rescale_betas_zero_snr", "v_prediction"),
    ],
)
def test_an_initial_model_that_predicts_something_else_is_refused_by_name(config, teacher, initial, place, own, wanted):
    run = config(teacher, initial, place)
    with pytest.raises(UserError) as error:
        check_student(run)
    assert f"student_init={run.student_init} predicts {own}, the teacher {run.teacher} predicts {wanted};" in str(
        error.value
    )
    if not place:
        check_student(dataclasses.replace(run, student_init=""))  # what the message says to type


@pytest.mark.parametrize(
    ("teacher", "initial", "place"),
    [({}, {}, "unet"), (V, V, ""), (V, MARKED, "unet"), (MARKED, V, "")],
)
def test_one_that_predicts_the_same_is_taken_whoever_says_so(config, tmp_path, caplog, teacher, initial, place):
    """Symptom: a marked file was no beginning for a teacher whose scheduler's config says the same."""
    run = config(teacher, initial, place)
    check_student(run)
    assert not caplog.text
    create_student(RunFolder(path=tmp_path / "run"), run)
    student = load_file(tmp_path / "run" / "student" / UNET)
    own = load_file(tmp_path / "initial" / UNET)
    assert ("v_pred" in student) == (MARKED in (teacher, initial))
    assert all(torch.equal(student[name], own[name]) for name in student if name != "v_pred")


def test_one_that_does_not_say_is_taken_for_the_teachers_and_that_is_told(config, caplog):
    run = config(V, V, "unet")
    check_student(run)
    assert f"student_init={run.student_init} does not say what it predicts; it is taken for v_pred" in caplog.text
