"""Runs of few-step and unguided students: they go on bit by bit, and say how they are sampled."""

import dataclasses
import json

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file

from koala.distill.loss.phased import PhasedStep
from koala.distill.run.folder import RunFolder
from koala.distill.run.student_folder import check_student, repair_student
from koala.distill.trainer import train
from koala.models.cards import CARDS, EMBEDDED
from koala.models.registry import find

FEW = dict(method="phased", student_spec="sdxl", min_snr_gamma=0.0, empty_prompts=0.0, log_every=1, num_steps=2)


@pytest.mark.parametrize(
    "settings", [{}, pytest.param({"target": "ema", "guidance_min": 1.5, "guidance_max": 3.0}, marks=pytest.mark.slow)]
)
def test_a_resumed_run_ends_with_the_very_same_weights(small, tmp_path, settings):
    config = small(**FEW | settings | {"checkpoint_every": 1})
    whole, parted = (RunFolder(path=tmp_path / name) for name in ("whole", "parted"))
    train(whole, config)
    train(parted, dataclasses.replace(config, num_steps=1))
    train(parted, config, resume_from=1)
    for file in ("student.safetensors", "ema.safetensors"):
        expected, resumed = (load_file(run.checkpoint(2) / file) for run in (whole, parted))
        assert expected.keys() == resumed.keys() and all(
            torch.equal(expected[name], resumed[name]) for name in expected
        )
    losses = [[entry["consistency"] for entry in run.metrics() if entry["kind"] == "train"] for run in (whole, parted)]
    assert losses[0] == losses[1] and len(losses[0]) == 2
    start = load_file(EMBEDDED / "tiny-sdxl" / "unet" / "diffusion_pytorch_model.safetensors")
    assert any(not torch.equal(value.half(), expected[name].half()) for name, value in start.items())


@pytest.mark.slow
def test_the_trainer_hands_the_moving_average_to_the_step(small, tmp_path, monkeypatch):
    given, hooked = [], PhasedStep.hooked

    def recorded(self, bare, average=None):
        given.append(average)
        return hooked(self, bare, average)

    monkeypatch.setattr(PhasedStep, "hooked", recorded)
    run = RunFolder(path=tmp_path / "run")
    train(run, small(**FEW | {"target": "ema", "num_steps": 1}))
    (average,) = [each for each in given if each is not None]
    saved = load_file(run.checkpoint(1) / "ema.safetensors")
    assert average.keys() == saved.keys() and all(torch.equal(average[name], saved[name]) for name in saved)


@pytest.mark.parametrize(
    ("method", "sampler", "steps"),
    [
        ("phased", "euler-trailing", 2),
        pytest.param("guidance", CARDS["tiny-sdxl"].scheduler, CARDS["tiny-sdxl"].steps, marks=pytest.mark.slow),
    ],
)
def test_a_student_says_how_it_is_sampled(small, tmp_path, method, sampler, steps):
    run = RunFolder(path=tmp_path / "run")
    phases = {"phases": 2} if method == "phased" else {}
    config = small(**FEW | {"method": method, "num_steps": 1} | phases)
    train(run, config)
    card = find(str(run.student))
    assert (card.scheduler, card.steps, card.guidance, card.noising) == (sampler, steps, 0.0, "straight")
    assert (card.width, card.height, card.draws_unguided) == (128, 128, True)
    validated = [entry for entry in run.metrics() if entry["kind"] == "validation"][-1]
    assert set(validated["timesteps"]["750-999"]) == {"loss", "consistency" if method == "phased" else "guidance"}
    plain = StableDiffusionXLPipeline.from_pretrained(run.student)
    kind = "EulerDiscreteScheduler" if method == "phased" else "EulerAncestralDiscreteScheduler"
    assert type(plain.scheduler).__name__ == kind and plain.scheduler.config.timestep_spacing == "trailing"
    words = (run.student / "koala.json").read_text()
    (run.student / "koala.json").unlink()
    assert "koala.json is missing" in repair_student(run, config)
    assert (run.student / "koala.json").read_text() == words


@pytest.mark.slow
def test_a_student_cut_from_a_few_step_teacher_is_sampled_as_its_teacher(small, tmp_path):
    few, run = RunFolder(path=tmp_path / "few"), RunFolder(path=tmp_path / "run")
    train(few, small(**FEW | {"num_steps": 1, "phases": 2}))
    config = small(teacher=str(few.student), num_steps=1)
    check_student(config)
    train(run, config)
    assert json.loads((run.student / "koala.json").read_text())["defaults"]["steps"] == 2
    assert (find(str(run.student)).scheduler, find(str(run.student)).guidance) == ("euler-trailing", 0.0)
