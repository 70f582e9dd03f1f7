"""A trained student is a model like any other."""

import os
import time

import pytest

from koala.errors import UserError
from koala.ui.distill.runs import Runs
from tests.ui.distill.conftest import a_student, with_student, written


def test_a_trained_student_is_a_model_and_an_untrained_cut_is_not(session, tmp_path):
    run = written(tmp_path, "a-1")
    runs = Runs(session, tmp_path)
    a_student(run.student)
    assert runs.all()[0].model is None
    run.checkpoint(20).mkdir(parents=True)
    session.catalogue.before_choosing.append(runs.all)
    assert ("a-1 (distilled)", "distilled-a-1") in session.catalogue.choices()  # wherever models are chosen
    card = session.catalogue.card("distilled-a-1")
    assert (card.teacher, card.steps, card.guidance, card.width) == ("tiny-sdxl", 25, 2.0, 256)
    runs.delete("a-1")
    with pytest.raises(UserError, match="unknown model"):
        session.catalogue.card("distilled-a-1")


def test_a_student_that_learned_more_is_loaded_anew(session, tmp_path):
    """Symptom: Compare went on drawing with the weights of the first checkpoint."""
    run = with_student(written(tmp_path, "a-1"))
    runs = Runs(session, tmp_path)
    runs.all()
    session.start()
    old = session.device.model("distilled-a-1")
    weights = run.student / "unet" / "diffusion_pytorch_model.safetensors"
    os.utime(weights, (time.time() + 5, time.time() + 5))
    runs.all()
    assert session.device.model("distilled-a-1") is not old
    while not session.loader.settled:  # a process must not end in the middle of loading
        time.sleep(0.05)


def test_a_run_whose_student_draws_is_not_deleted(session, tmp_path):
    run = with_student(written(tmp_path, "a-1"))
    runs = Runs(session, tmp_path)
    runs.all()
    with session.device.using("distilled-a-1"), pytest.raises(UserError, match="being loaded or is drawing"):
        runs.delete("a-1")
    assert run.path.exists()
