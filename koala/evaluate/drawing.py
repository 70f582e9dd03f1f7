"""Requests -> pictures in batches: a picture depends on its own prompt and noise, not on its batch."""

import dataclasses
from collections.abc import Iterator, Sequence

import torch
from diffusers import StableDiffusionXLPipeline

from koala.evaluate.settings import Settings, request
from koala.hardware.timing import StageTimer
from koala.models.loaded import LoadedModel, Placement
from koala.request import MAX_IMAGES, GenerationRequest, Timing
from koala.sampling.decoding import decode
from koala.sampling.generate import made_by, noise_sources, peak_memory, resolve, run_pipeline
from koala.sampling.guidance import guided_steps
from koala.sampling.result import GenerationResult

BATCH_PIXELS = 25 * 256 * 256


def fitting(width: int, height: int) -> int:
    """The default batch size for pictures of this size in px."""
    return max(1, BATCH_PIXELS // (width * height))


def requests_for(
    model: LoadedModel, texts: Sequence[str], settings: Settings, *, steps: int | None = None
) -> list[GenerationRequest]:
    """One request per prompt under these settings; prompt k starts from the noise of the settings' seed + k."""
    name = model.card.name
    return [resolve(request(name, text, settings, steps=steps, offset=k), model.card) for k, text in enumerate(texts)]


def batches(requests: Sequence[GenerationRequest], size: int | None) -> Iterator[Sequence[GenerationRequest]]:
    """Slices of `size` requests, or of as many as fit."""
    size = size or (fitting(requests[0].width, requests[0].height) if requests else 1)
    for start in range(0, len(requests), size):
        yield requests[start : start + size]


def how_drawn(requests: Sequence[GenerationRequest]) -> dict:
    """What a report says about how its pictures were drawn; the seed is the first picture's."""
    names = ("steps", "guidance", "scheduler", "preset", "width", "height", "seed")
    return {name: getattr(requests[0], name) for name in names}


def placement_for(models: Sequence[LoadedModel], requests: Sequence[GenerationRequest]) -> Placement:
    """The memory plan for these models to process such a batch one after the other."""
    whole = dataclasses.replace(requests[0], images=min(len(requests), MAX_IMAGES))
    return models[0].library.place(models, [whole] * len(models))


@torch.inference_mode()
def clean_latents(
    model: LoadedModel,
    requests: Sequence[GenerationRequest],
    placement: Placement,
    timer: StageTimer | None = None,
) -> tuple[StableDiffusionXLPipeline, torch.Tensor]:
    """One batch, denoised: its pipeline and latents (B, 4, h, w). The requests differ only in prompt and seed.

    Hold the model's lock.
    """
    prompts, sources = [r.prompt for r in requests], [s for r in requests for s in noise_sources(r)]
    return run_pipeline(model, requests[0], prompt=prompts, sources=sources, timer=timer, placement=placement)


@torch.inference_mode()
def draw(model: LoadedModel, requests: Sequence[GenerationRequest]) -> list[GenerationResult]:
    """One batch, a result of one picture for each request; they differ only in prompt and seed.

    The timing is the whole batch's and is not a benchmark: there was no warm-up.
    """
    placement, timer = placement_for([model], requests), StageTimer(model.device)
    with model.lock:
        pipeline, latents = clean_latents(model, requests, placement, timer)
        with timer.stage("vae"):
            pictures = decode(pipeline.vae, latents, placement.tile)
    timing = Timing(
        text_ms=timer.total("text"),
        unet_ms=tuple(timer.ms["unet"]),
        unet_calls=requests[0].steps + len(guided_steps(requests[0])),
        vae_ms=timer.total("vae"),
        total_ms=timer.total("text") + timer.total("denoise") + timer.total("vae"),
        peak_memory_bytes=peak_memory(model, timer),
        swap_ms=timer.total("swap"),
    )
    return [
        GenerationResult(request=r, images=(picture,), timing=timing, **made_by(model, placement, r))
        for r, picture in zip(requests, pictures, strict=True)
    ]
