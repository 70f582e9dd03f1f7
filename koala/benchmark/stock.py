"""The baseline: diffusers' own pipeline on the same weights, all on the device, with its stages timed by hooks."""

import threading

import torch

from koala.hardware.memory_plan import Plan, pair_plan
from koala.hardware.timing import StageTimer
from koala.models.loaded import LoadedModel
from koala.models.schedulers import build_for_run
from koala.request import GenerationRequest, Timing
from koala.sampling.generate import Cancelled, compiled, initial_noise, noise_sources


@torch.inference_mode()
def stock(model: LoadedModel, request: GenerationRequest, cancel: threading.Event) -> Timing:
    """One run, called as in diffusers' documentation. Hold `model.lock`; setting `cancel` raises Cancelled."""
    parts = [p for p in model.pipeline.components.values() if isinstance(p, torch.nn.Module)]
    model.library.residence.bring(parts)
    scheduler = build_for_run(request.scheduler, model.pipeline.scheduler.config, request.steps)
    pipeline = type(model.pipeline)(
        **model.pipeline.components | {"scheduler": scheduler},
        force_zeros_for_empty_prompt=model.pipeline.config.force_zeros_for_empty_prompt,
        add_watermarker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    sources = noise_sources(request)
    noise = initial_noise(request, pipeline.unet.config.in_channels, pipeline.vae_scale_factor, sources)

    def step_end(*_) -> dict:
        if cancel.is_set():
            raise Cancelled
        return {}

    timer = StageTimer(model.device)
    with (
        compiled(pipeline.unet, False),  # another preset may have compiled its blocks
        timer.stage("total"),
        timer.calls("text", pipeline.text_encoder),
        timer.calls("text", pipeline.text_encoder_2),
        timer.calls("unet", pipeline.unet),
        timer.calls("vae", pipeline.vae.decoder),
    ):
        pipeline(
            prompt=request.prompt,
            num_inference_steps=request.steps,
            guidance_scale=request.guidance,
            width=request.width,
            height=request.height,
            num_images_per_prompt=request.images,
            latents=noise.to(model.device, model.dtype),
            generator=sources,
            callback_on_step_end=step_end,
        )
    return Timing(
        text_ms=timer.total("text"),
        unet_ms=tuple(timer.ms["unet"]),
        unet_calls=request.steps * (2 if request.guidance > 1 else 1),
        vae_ms=timer.total("vae"),
        total_ms=timer.total("total"),
        peak_memory_bytes=timer.peak_memory(),
    )


def stock_plan(model: LoadedModel, request: GenerationRequest) -> Plan:
    """What the pipeline does by default, as a memory plan."""
    return pair_plan(
        [model.spec],
        device=model.device.type,
        vram_bytes=None,
        width=request.width,
        height=request.height,
        images=request.images,
        guided=request.guidance > 1,
        dtype=str(model.dtype).removeprefix("torch."),
    )
