"""Previews of every step: which, how large, how much noise is left, and that they change nothing but what is kept."""

import numpy as np
import pytest
import torch

from koala.models.schedulers import build, noise_left
from koala.request import GenerationRequest
from koala.sampling.compare import compare, warm_up_together
from koala.sampling.previews import EVERY, FRAME_SIDE, preview_steps, shrunk

SDXL_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}


@pytest.mark.parametrize(("steps", "shown"), [(1, []), (4, [1, 2, 3]), (25, list(range(1, 25)))])
def test_a_usual_run_shows_every_step_but_the_last_which_is_the_picture(steps, shown):
    assert sorted(preview_steps(steps, EVERY)) == shown


def test_a_long_run_shows_as_many_as_there_may_be_from_early_to_late():
    shown = sorted(preview_steps(200, EVERY))
    assert len(shown) == EVERY and shown[0] < 10 and 190 < shown[-1] < 200
    assert set(np.diff(shown)) <= {6, 7}


@pytest.mark.parametrize(
    ("size", "wanted"), [((32, 32), (16, 16)), ((128, 128), (48, 48)), ((24, 40), (12, 20)), ((8, 8), (8, 8))]
)
def test_small_previews_have_half_of_each_side_within_bounds(size, wanted):
    latents = torch.randn(1, 4, *size)
    small = shrunk(latents)
    assert small.shape == (1, 4, *wanted)
    assert torch.allclose(small.mean(), latents.mean(), atol=0.02)


@pytest.mark.parametrize("scheduler", ["euler-trailing", "euler-ancestral-trailing", "ddim-trailing"])
def test_the_noise_that_is_left_is_that_of_the_next_timestep(scheduler):
    built = build(scheduler, SDXL_BETAS)
    built.set_timesteps(4)  # trailing: 999, 749, 499, 249
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    left = np.sqrt(1 - np.cumprod(1 - betas))
    assert [noise_left(built, k) for k in range(4)] == pytest.approx([*left[[749, 499, 249]], 0], abs=1e-4)


def test_a_comparison_keeps_its_previews_small_and_measures_what_was_warm(library):
    settings = {"tiny-sdxl": (3, 2.0), "tiny-koala-700m": (2, 0.0)}
    asked = [
        GenerationRequest(model=name, prompt="a red circle", steps=s, guidance=g, width=256, height=64)
        for name, (s, g) in settings.items()
    ]
    warm_up_together(asked, library)
    calls, seen = [], []
    hooks = [
        library.get(name).pipeline.unet.register_forward_hook(lambda *_, name=name: calls.append(name))
        for name in settings
    ]
    try:
        results = compare(
            asked, library, on_step=lambda k, step: seen.append((k, step)), num_previews=EVERY, small_previews=True
        )
    finally:
        for hook in hooks:
            hook.remove()
    assert calls == ["tiny-koala-700m"] * 2 + ["tiny-sdxl"] * 3  # no warm-up is left to do
    assert [(k, step.index, step.preview is not None) for k, step in seen] == [
        (1, 1, True), (1, 2, False), (0, 1, True), (0, 2, True), (0, 3, False),
    ]  # fmt: skip
    assert [[frame.step for frame in result.frames] for result in results] == [[1, 2], [1]]
    for (k, step), frame in zip(
        [(k, s) for k, s in seen if s.preview], results[1].frames + results[0].frames, strict=True
    ):
        assert step.preview.size == (128, 32) and max(frame.picture.size) <= FRAME_SIDE
        assert 0 < frame.noise <= 1, k
    plain = compare(asked, library, num_previews=0)
    for watched, alone in zip(results, plain, strict=True):
        assert np.array_equal(np.asarray(watched.images[0]), np.asarray(alone.images[0])) and not alone.frames
