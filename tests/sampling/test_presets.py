"""Presets: quality is the stock pipeline to the bit, fast calls the U-Net less often, low-memory decodes in tiles."""

import dataclasses

import numpy as np
import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler, EulerDiscreteScheduler, StableDiffusionXLPipeline

from koala.errors import UserError
from koala.models.cards import CARDS, EMBEDDED
from koala.models.library import Library
from koala.presets import PRESETS
from koala.request import GenerationRequest
from koala.sampling.decoding import decode
from koala.sampling.generate import generate, initial_noise, noise_sources, resolve
from koala.sampling.guidance import guided_steps

STUDENT = "tiny-koala-700m"


@pytest.fixture(scope="module")
def model():
    return Library("cpu").get(STUDENT)


def request(**change):
    return GenerationRequest(**dict(model=STUDENT, prompt="a red circle above a blue ring", steps=6, seed=3) | change)


def pixels(result):
    return np.stack([np.asarray(i).astype(int) for i in result.images])


@pytest.mark.parametrize(
    ("name", "kind"),
    [("euler-trailing", EulerDiscreteScheduler), ("euler-ancestral-trailing", EulerAncestralDiscreteScheduler)],
)
@pytest.mark.parametrize("images", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_quality_is_the_stock_pipeline_to_the_bit(model, images, name, kind):
    """The stock pipeline's latents, decoded one by one as we do: a whole batch at once rounds some bytes otherwise."""
    asked = resolve(request(images=images, scheduler=name), CARDS[STUDENT])
    stock = StableDiffusionXLPipeline.from_pretrained(EMBEDDED / STUDENT)
    stock.scheduler = kind.from_config(stock.scheduler.config, timestep_spacing="trailing")
    sources = noise_sources(asked)
    stock.set_progress_bar_config(disable=True)
    latents = stock(
        asked.prompt,
        num_inference_steps=asked.steps,
        guidance_scale=asked.guidance,
        num_images_per_prompt=images,
        latents=initial_noise(asked, 4, 8, sources),
        generator=sources,
        output_type="latent",
    ).images
    with torch.inference_mode():
        decoded = torch.cat(
            [stock.vae.decode(row / stock.vae.config.scaling_factor).sample for row in latents.split(1)]
        )
    pictures = stock.image_processor.postprocess(decoded, output_type="np")
    drawn = generate(asked, model)
    difference = np.abs((pictures * 255).round().astype(int) - pixels(drawn))
    print(f"max {difference.max()}, mean {difference.mean():.2e}")
    assert difference.max() == 0
    assert drawn.timing.unet_calls == 2 * asked.steps


@pytest.mark.parametrize("images", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_fast_guides_half_of_the_steps_whatever_the_batch(model, images):
    rows = []
    hook = model.pipeline.unet.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append((len(args[0]), len(kwargs["encoder_hidden_states"]))), with_kwargs=True
    )
    try:
        model.warm.clear()
        fast = generate(request(preset="fast", images=images), model)
    finally:
        hook.remove()
    counted = rows[2:]  # after the warm-up of two steps
    assert counted == [(2 * images, 2 * images)] * 3 + [(images, images)] * 3
    assert fast.timing.unet_calls == 9
    quality = generate(request(images=images), model)
    assert (pixels(fast) != pixels(quality)).any()
    assert fast.request.preset == "fast"


def test_turbo_draws_without_guidance_what_was_distilled_for_it(model, monkeypatch):
    """The pictures of guidance 1 with the small decoder, in one U-Net call a step."""
    monkeypatch.setattr(type(model.card), "draws_unguided", property(lambda card: True))
    turbo = generate(request(preset="turbo"), model)
    assert (turbo.request.guidance, turbo.timing.unet_calls) == (1.0, 6)
    assert np.array_equal(pixels(turbo), pixels(generate(request(preset="quality", guidance=1.0), model)))


@pytest.mark.parametrize(
    ("name", "guidance"),
    [("sdxl-turbo", 0.0), ("sdxl-lightning-4step", 0.0), ("koala-lightning-700m", 1.0), ("koala-lightning-1b", 1.0)],
)
def test_turbo_takes_models_that_were_distilled_without_guidance(name, guidance):
    """SDXL-Turbo and -Lightning are drawn without; the Lightning KOALAs learned from the latter (paper, A.2)."""
    asked = GenerationRequest(model=name, prompt="a koala", preset="turbo")
    assert resolve(asked, CARDS[name]).guidance == guidance
    assert not guided_steps(resolve(asked, CARDS[name]))
    with pytest.raises(UserError, match="draws without guidance, not with 3.5; set guidance to 1"):
        resolve(dataclasses.replace(asked, guidance=3.5), CARDS[name])


@pytest.mark.parametrize("name", ["sdxl-base", "koala-700m", "ssd-1b", STUDENT, "tiny-sdxl"])
def test_turbo_refuses_what_needs_guidance_and_names_what_works(name):
    with pytest.raises(UserError, match="needs guidance.*use the preset fast, or a model") as output:
        resolve(GenerationRequest(model=name, prompt="a koala", preset="turbo"), CARDS[name])
    resolve(GenerationRequest(model=name, prompt="a koala", preset="fast"), CARDS[name])
    for able in str(output.value).rpartition(": ")[2].split(", "):
        resolve(GenerationRequest(model=able, prompt="a koala", preset="turbo"), CARDS[able])


def test_the_guided_interval_may_begin_later(model, monkeypatch):
    """Guidance off, on and off again equals the plain loop with the same switches."""
    late = dataclasses.replace(PRESETS["fast"], guided=(0.25, 0.75))
    monkeypatch.setitem(PRESETS, "fast", late)
    asked = resolve(request(preset="fast", steps=8, scheduler="euler-trailing"), CARDS[STUDENT])
    assert list(guided_steps(asked)) == [2, 3, 4, 5]
    for guidance in (0.0, 1.0):  # the prompt alone: nothing is set against it
        assert not guided_steps(dataclasses.replace(asked, guidance=guidance))
    model.warm.clear()
    drawn = generate(asked, model)
    pipe = model.pipeline
    with torch.inference_mode():
        positive, negative, pooled, negative_pooled = pipe.encode_prompt(asked.prompt, device="cpu")
        scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
        scheduler.set_timesteps(8)
        latents = initial_noise(asked, 4, 8) * scheduler.init_noise_sigma
        ids = torch.tensor([[256.0, 256, 0, 0, 256, 256]])
        for index, t in enumerate(scheduler.timesteps):
            x = scheduler.scale_model_input(latents, t)

            def noise(context, pool, x=x, t=t):
                return pipe.unet(x, t, context, added_cond_kwargs={"text_embeds": pool, "time_ids": ids}).sample

            predicted = noise(positive, pooled)
            if index in (2, 3, 4, 5):
                empty = noise(negative, negative_pooled)
                predicted = empty + asked.guidance * (predicted - empty)
            latents = scheduler.step(predicted, t, latents).prev_sample
        plain = np.asarray(decode(pipe.vae, latents)[0]).astype(int)
    difference = np.abs(plain - pixels(drawn)[0])
    print(f"max {difference.max()}, mean {difference.mean():.2e}")
    assert difference.max() <= 1


def test_low_memory_decodes_in_tiles_and_leaves_the_vae_as_it_was(model):
    asked = request(width=512, height=320, steps=2)
    whole = generate(asked, model)
    tiled = generate(request(width=512, height=320, steps=2, preset="low-memory"), model)
    assert whole.plan.vae_tile is None
    assert tiled.plan.vae_tile == 32
    assert any("tiles" in c.value for c in tiled.plan.choices)
    difference = np.abs(pixels(whole) - pixels(tiled))
    print(f"max {difference.max()}, mean {difference.mean():.2f}")
    assert difference.any()
    assert difference.mean() < 12
    assert not model.pipeline.vae.use_tiling
    assert np.array_equal(pixels(whole), pixels(generate(asked, model)))


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 25])
@pytest.mark.parametrize("name", [name for name, preset in PRESETS.items() if preset.guided])
def test_every_run_has_a_guided_step(name, steps):
    guided = PRESETS[name].guided_steps(steps)
    assert 1 <= len(guided) <= steps
    assert (len(guided) == steps) == (PRESETS[name].guided == (0, 1) or steps == 1)
