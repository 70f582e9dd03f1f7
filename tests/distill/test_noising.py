"""What a network is shown while it learns is what it meets while it draws."""

import json
import shutil

import pytest
import torch
from diffusers import DDPMScheduler, EulerDiscreteScheduler

from koala.compress.surgery import compress
from koala.distill import config
from koala.distill.config import DistillConfig
from koala.distill.sampling import write_sampling
from koala.models.cards import CARDS, EMBEDDED
from koala.models.registry import find
from koala.sampling.noising import NOISINGS, ddpm, noising_of, straight

SCHEDULER = EMBEDDED / "tiny-sdxl" / "scheduler"


def latents_and_noise() -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.double))


def test_training_sees_what_sampling_will_from_pure_noise_to_the_picture():
    """A network that predicts what it is taught draws the picture exactly, and meets no state that it did not see."""
    alphas = DDPMScheduler.from_pretrained(SCHEDULER).alphas_cumprod.double()
    sampler = EulerDiscreteScheduler.from_pretrained(SCHEDULER)
    sampler.set_timesteps(7)
    latents, noise = latents_and_noise()
    state = noise * sampler.init_noise_sigma
    for t in sampler.timesteps:
        seen = sampler.scale_model_input(state, t)
        noisy, wanted = straight(latents, noise, t.long().repeat(2), alphas)
        torch.testing.assert_close(seen, noisy, rtol=0, atol=1e-5)
        state = sampler.step(wanted, t, state).prev_sample.double()
    torch.testing.assert_close(state, latents, rtol=0, atol=1e-5)


def test_ddpm_is_the_schedulers_own_and_shows_the_picture_to_its_last_step():
    scheduler = DDPMScheduler.from_pretrained(SCHEDULER)
    latents, noise = latents_and_noise()
    timesteps = torch.tensor([0, 999])
    noisy, wanted = ddpm(latents, noise, timesteps, scheduler.alphas_cumprod.double())
    torch.testing.assert_close(noisy, scheduler.add_noise(latents, noise, timesteps))
    assert wanted is noise
    left = noisy[1] - (1 - scheduler.alphas_cumprod[-1].double()).sqrt() * noise[1]
    assert (left / latents[1]).mean().item() == pytest.approx(0.068, abs=0.001)


def test_every_model_names_a_noising_that_there_is():
    assert {card.noising for card in CARDS.values()} == set(NOISINGS)
    assert all((card.noising == "straight") == card.embedded for card in CARDS.values())


def test_a_teachers_own_noising_is_taken_unless_another_is_chosen():
    assert set(config.NOISINGS) == {"teacher", *NOISINGS}
    assert (noising_of(CARDS["tiny-sdxl"]), noising_of(CARDS["sdxl-base"])) == (straight, ddpm)
    for name, chosen in NOISINGS.items():
        assert noising_of(CARDS["tiny-sdxl"], name) is noising_of(CARDS["sdxl-base"], name) is chosen


def test_a_student_of_another_noising_than_its_teachers_says_so(tmp_path):
    """Symptom: a student that KOALA's method had trained with noising=ddpm was taken for one of the straight path."""
    folder, own = tmp_path / "student", CARDS["tiny-koala-700m"]
    compress("tiny-sdxl", "koala-700m", folder)
    for chosen in ("teacher", "straight"):
        write_sampling(DistillConfig(noising=chosen), folder)
        assert find(str(folder)).noising == "straight" and not (folder / "koala.json").exists()
    write_sampling(DistillConfig(noising="ddpm"), folder)
    card = find(str(folder))
    assert card.noising == "ddpm" and card.teacher == "tiny-sdxl"
    assert (card.scheduler, card.steps, card.guidance) == (own.scheduler, own.steps, own.guidance)


def test_the_straight_path_is_drawn_from_pure_noise(tmp_path):
    """Its last timestep is noise alone; leading timesteps would begin later, where the network expects a picture."""
    teacher, folder = tmp_path / "teacher", tmp_path / "student"
    compress("tiny-sdxl", "koala-700m", teacher)
    settings = {"scheduler": "euler-leading", "steps": 25, "guidance": 7.5, "width": 256, "height": 256}
    (teacher / "koala.json").write_text(json.dumps({"defaults": settings, "noising": "ddpm"}))
    chosen = DistillConfig(teacher=str(teacher), noising="straight")
    compress(str(teacher), "koala-700m", folder)
    assert (find(str(folder)).scheduler, find(str(folder)).noising) == ("euler-leading", "ddpm")
    write_sampling(chosen, folder)
    assert (find(str(folder)).scheduler, find(str(folder)).noising) == ("euler-trailing", "straight")
    plain = EulerDiscreteScheduler.from_pretrained(folder / "scheduler")
    assert plain.config.timestep_spacing == "trailing"


def test_a_plain_copy_of_an_embedded_model_keeps_its_noising(tmp_path, caplog):
    """Symptom: a copy by path was taken for SDXL: other noise in training, and guidance 7.5 in drawing, in silence."""
    copied = shutil.copytree(EMBEDDED / "tiny-sdxl", tmp_path / "copied")
    card, original = find(str(copied)), CARDS["tiny-sdxl"]
    assert (card.noising, card.steps, card.guidance, card.scheduler) == ("straight", 25, 2.0, original.scheduler)
    assert "by its widths it is taken for a model like Tiny SDXL" in caplog.text
    student = shutil.copytree(EMBEDDED / "tiny-koala-700m", tmp_path / "student")
    for name in ("surgery.json", "koala.json"):
        (student / name).unlink(missing_ok=True)
    assert (find(str(student)).noising, find(str(student)).guidance) == ("straight", 2.0)
