"""GenerationRequest -> GenerationResult: honest timing, live previews, and a cancel that works within one step."""

import dataclasses
import threading
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline
from PIL import Image

from koala.loading import LoadedModel
from koala.registry import ModelCard
from koala.request import GenerationRequest, Timing
from koala.result import GenerationResult
from koala.schedulers import build
from koala.timing import StageTimer, device_name

MAX_PREVIEWS = 6  # per run: a preview costs a VAE decode


class Cancelled(Exception):
    """The run was stopped on request; nothing was produced."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """Progress of a run: `index` steps of `total` are done; `preview` is the picture so far, now and then."""

    index: int
    total: int
    preview: Image.Image | None


def resolve(request: GenerationRequest, card: ModelCard) -> GenerationRequest:
    """The request with every None replaced by its model's default."""
    defaults = {n: getattr(card, n) for n in ("steps", "guidance", "scheduler", "width", "height")}
    missing = {n: v for n, v in defaults.items() if getattr(request, n) is None}
    return dataclasses.replace(request, model=card.name, **missing)


def versions() -> dict[str, str]:
    """Versions of what decides the pixels."""
    return {name: version(name) for name in ("torch", "diffusers", "transformers")}


def initial_noise(request: GenerationRequest, channels: int, factor: int) -> torch.Tensor:
    """Unit noise (images, channels, H / factor, W / factor), drawn on the CPU so that every device gets the same."""
    shape = (1, channels, request.height // factor, request.width // factor)
    seeds = range(request.seed, request.seed + request.images)
    return torch.cat([torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in seeds])


def decode(pipeline: StableDiffusionXLPipeline, latents: torch.Tensor) -> list[Image.Image]:
    """Latents (B, 4, h, w) in the U-Net's scale -> RGB pictures, one decode per picture to bound memory."""
    vae = pipeline.vae
    scaled = latents / vae.config.scaling_factor
    upcast = vae.dtype == torch.float16 and vae.config.force_upcast  # SDXL's own VAE overflows in fp16
    if upcast:
        vae.to(torch.float32)
    try:
        pixels = [vae.decode(one.to(vae.dtype)[None]).sample[0].float().cpu() for one in scaled]
    finally:
        if upcast:
            vae.to(torch.float16)
    arrays = (((p.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy() for p in pixels)
    return [Image.fromarray(np.ascontiguousarray(a)) for a in arrays]


def _clean(pipeline, before: torch.Tensor, after: torch.Tensor, index: int) -> torch.Tensor:
    """What the picture would be without its remaining noise: Euler's step is a line, followed to sigma 0."""
    if not isinstance(pipeline.scheduler, EulerDiscreteScheduler):
        return after
    high, low = pipeline.scheduler.sigmas[index : index + 2].tolist()
    return (high * after - low * before) / (high - low)


def _encode(pipeline: StableDiffusionXLPipeline, request: GenerationRequest, prompt: str | list[str]) -> dict:
    """The pipeline's arguments for a prompt, or for one prompt per picture."""
    names = (
        "prompt_embeds",
        "negative_prompt_embeds",
        "pooled_prompt_embeds",
        "negative_pooled_prompt_embeds",
    )
    negative = request.negative_prompt or None
    values = pipeline.encode_prompt(
        prompt=prompt,
        negative_prompt=[negative] * len(prompt) if negative and isinstance(prompt, list) else negative,
        num_images_per_prompt=request.images,
        do_classifier_free_guidance=request.guidance > 1,
        device=pipeline.unet.device,
    )
    return dict(zip(names, values, strict=True))


def run_pipeline(
    model: LoadedModel,
    request: GenerationRequest,
    noise: torch.Tensor,
    *,
    prompt: str | list[str] | None = None,
    timer: StageTimer | None = None,
    step_end: Callable | None = None,
) -> tuple[StableDiffusionXLPipeline, torch.Tensor]:
    """Text, then every denoising step: a pipeline of this run's own and the clean latents (B, 4, h, w).

    `prompt` may be a list, one per row of `noise`. The pipeline and its scheduler are new, the parts are shared.
    """
    parts = {n: c for n, c in model.pipeline.components.items() if n != "scheduler"}
    scheduler = build(request.scheduler, model.pipeline.scheduler.config)
    pipeline = StableDiffusionXLPipeline(**parts, scheduler=scheduler, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    timer = timer or StageTimer(model.device)
    with timer.stage("text"):
        embeds = _encode(pipeline, request, request.prompt if prompt is None else prompt)
    with timer.stage("denoise"), timer.calls("unet", pipeline.unet):
        latents = pipeline(
            **embeds,
            num_inference_steps=request.steps,
            guidance_scale=request.guidance,
            width=request.width,
            height=request.height,
            latents=noise.to(model.device, model.dtype),
            output_type="latent",
            callback_on_step_end=step_end,
        ).images
    return pipeline, latents


class _Watch:
    """What happens after each step: note the U-Net's time, look at the cancel flag, show the picture so far."""

    def __init__(self, request, timer: StageTimer, on_step, cancel: threading.Event, num_previews: int):
        self.request, self.timer, self.on_step, self.cancel = request, timer, on_step, cancel
        self.shown = {round(request.steps * k / (num_previews + 1)) for k in range(1, num_previews + 1)}
        self.latents: torch.Tensor | None = None
        self.unet_ms: list[float] = []

    def __call__(self, pipeline, index: int, timestep, values: dict) -> dict:
        self.unet_ms.append(self.timer.total("unet") - sum(self.unet_ms))
        if self.cancel.is_set():
            raise Cancelled
        with self.timer.stage("watching"):
            if self.on_step:
                preview = None
                if index + 1 in self.shown and self.latents is not None:
                    preview = decode(pipeline, _clean(pipeline, self.latents, values["latents"], index)[:1])[0]
                self.on_step(Step(index=index + 1, total=self.request.steps, preview=preview))
            self.latents = values["latents"]
        if self.cancel.is_set():
            raise Cancelled
        return {}


@torch.inference_mode()
def _run(
    model: LoadedModel,
    request: GenerationRequest,
    on_step: Callable[[Step], None] | None,
    cancel: threading.Event,
    num_previews: int,
) -> GenerationResult:
    timer = StageTimer(model.device)
    watch = _Watch(request, timer, on_step, cancel, num_previews)
    noise = initial_noise(request, model.pipeline.unet.config.in_channels, model.pipeline.vae_scale_factor)
    pipeline, latents = run_pipeline(model, request, noise, timer=timer, step_end=watch)
    with timer.stage("vae"):
        images = decode(pipeline, latents)
    timing = Timing(
        text_ms=timer.total("text"),
        unet_ms=tuple(watch.unet_ms),
        unet_calls=request.steps * (2 if request.guidance > 1 else 1),
        vae_ms=timer.total("vae"),
        # what a run without anyone watching would have taken
        total_ms=timer.total("text") + timer.total("denoise") - timer.total("watching") + timer.total("vae"),
        peak_memory_bytes=timer.peak_memory(),
    )
    return GenerationResult(
        request=request,
        images=tuple(images),
        timing=timing,
        parameters=model.parameters,
        revision=model.revision,
        dtype=str(model.dtype).removeprefix("torch."),
        device=device_name(model.device),
        versions=versions(),
    )


def generate(
    request: GenerationRequest,
    model: LoadedModel,
    *,
    on_step: Callable[[Step], None] | None = None,
    cancel: threading.Event | None = None,
    num_previews: int = MAX_PREVIEWS,
) -> GenerationResult:
    """Draw the request's pictures on a loaded model.

    `on_step` is called after every step. Setting `cancel` raises Cancelled before the next step ends. The first
    run of a shape is preceded by an uncounted warm-up of two steps; the time that `on_step` and its previews
    take is left out of the timing.
    """
    request = resolve(request, model.card)
    cancel = cancel or threading.Event()
    shape = (request.width, request.height, request.images, request.guidance > 1)
    with model.lock:
        if shape not in model.warm:
            _run(model, dataclasses.replace(request, steps=2), None, cancel, 0)
            model.warm.add(shape)
        return _run(model, request, on_step, cancel, num_previews)
