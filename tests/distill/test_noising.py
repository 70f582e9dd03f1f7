"""What a network is shown while it learns is what it meets while it draws."""

import pytest
import torch
from diffusers import DDPMScheduler, EulerDiscreteScheduler

from koala.distill import config
from koala.models.cards import CARDS, EMBEDDED
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
