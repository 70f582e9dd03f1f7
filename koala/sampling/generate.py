"""GenerationRequest -> GenerationResult: honest timing, live previews, and cancelling within one step."""

import dataclasses
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image

from koala.errors import Cancelled
from koala.files.hashing import digest
from koala.finite import NotFinite
from koala.hardware.timing import StageTimer, device_name
from koala.models.library import EMBEDDINGS
from koala.models.loaded import LoadedModel, Placement
from koala.models.schedulers import build_for_run, clean_estimate, noise_left
from koala.presets import PRESETS
from koala.request import GenerationRequest, Timing
from koala.sampling.adapters import adapted
from koala.sampling.decoding import decode
from koala.sampling.guidance import TENSORS, GuidanceInterval, unet_calls
from koala.sampling.nan_causes import check_prediction
from koala.sampling.previews import MAX_PREVIEWS, Frame, frame, preview_steps, shrunk
from koala.sampling.resolve import resolve
from koala.sampling.result import GenerationResult
from koala.sampling.tokens import unread


@dataclass(frozen=True, kw_only=True)
class Step:
    """Progress of a run: `index` steps of `total` are done; `preview` is the picture so far, now and then."""

    index: int
    total: int
    preview: Image.Image | None


def versions() -> dict[str, str]:
    """Versions of what decides the pixels."""
    return {name: version(name) for name in ("torch", "diffusers", "transformers")}


def noise_sources(request: GenerationRequest) -> list[torch.Generator]:
    """One per picture, of its own seed and on the CPU, so that every batch and every device gets the same noise."""
    return [torch.Generator().manual_seed(s) for s in range(request.seed, request.seed + request.images)]


def initial_noise(
    request: GenerationRequest, channels: int, factor: int, sources: Sequence[torch.Generator] | None = None
) -> torch.Tensor:
    """Unit noise (images, channels, H / factor, W / factor). An ancestral sampler's steps draw on from `sources`."""
    shape = (1, channels, request.height // factor, request.width // factor)
    return torch.cat([torch.randn(shape, generator=s) for s in sources or noise_sources(request)])


def _encode(
    model: LoadedModel, request: GenerationRequest, prompt: str | list[str], placement: Placement, timer: StageTimer
) -> dict[str, torch.Tensor | None]:
    """The pipeline's arguments for a prompt, or for one prompt per picture.

    Where the plan releases the text encoders, embeddings are remembered, with the time that they once took.
    """
    guided = request.guidance > 1
    zeros = model.pipeline.config.force_zeros_for_empty_prompt
    # By content: an encoder's id may be reused after it is freed. Without a content nothing is remembered.
    encoders = [model.library.content(e) for e in (model.pipeline.text_encoder, model.pipeline.text_encoder_2)]
    remembered = model.library.embeddings if all(encoders) and not placement.keeps_text else OrderedDict()
    prompts = prompt if isinstance(prompt, str) else tuple(prompt)
    key = (*encoders, zeros, prompts, request.negative_prompt, request.images, guided)
    with timer.stage("swap"):
        placement.enter("unet" if key in remembered else "text", model)
    timer.restart_peak()  # what an earlier run of another model left on the device is freed only now
    if key not in remembered:
        names = (
            "prompt_embeds",
            "negative_prompt_embeds",
            "pooled_prompt_embeds",
            "negative_pooled_prompt_embeds",
        )
        negative = request.negative_prompt or None
        with timer.stage("text"):
            values = model.pipeline.encode_prompt(
                prompt=prompt,
                negative_prompt=[negative] * len(prompt) if negative and isinstance(prompt, list) else negative,
                num_images_per_prompt=request.images,
                do_classifier_free_guidance=guided,
                device=model.device,
            )
        remembered[key] = dict(zip(names, values, strict=True)), timer.total("text")
        if len(remembered) > EMBEDDINGS:
            remembered.popitem(last=False)
    remembered.move_to_end(key)
    embeds, took = remembered[key]
    timer.ms["text"] = [took]
    return embeds


@contextmanager
def compiled(unet: torch.nn.Module, wanted: bool) -> Iterator[None]:
    """Run the U-Net with its transformer blocks compiled, or exactly as it is; the first wanted run compiles them.

    Only the blocks: they repeat, so one compilation of seconds serves all of them. Other runs of the same U-Net stay
    eager, and their pixels unchanged.
    """
    if wanted and not _has_compiled_blocks(unet):
        unet.compile_repeated_blocks(dynamic=True)  # one compilation for all sizes; what breaks it runs eagerly
    with torch.compiler.set_stance("default" if wanted else "force_eager"):
        yield


def _has_compiled_blocks(unet: torch.nn.Module) -> bool:
    return any(m._compiled_call_impl is not None for m in unet.modules())


def _compiled(model: LoadedModel, request: GenerationRequest):
    """Compile blocks where the preset asks for it and it pays: on a CUDA GPU, without a LoRA."""
    wanted = PRESETS[request.preset].compiled and model.device.type == "cuda" and not request.lora
    return compiled(model.pipeline.unet, wanted)


def run_pipeline(
    model: LoadedModel,
    request: GenerationRequest,
    *,
    prompt: str | list[str] | None = None,
    sources: list[torch.Generator] | None = None,
    timer: StageTimer | None = None,
    step_end: Callable | None = None,
    placement: Placement | None = None,
) -> tuple[StableDiffusionXLPipeline, torch.Tensor]:
    """Text, then every denoising step: a pipeline of this run's own and the clean latents (B, 4, h, w).

    For a batch of several requests `prompt` is a list, with a source of noise for each. The pipeline and its scheduler
    are new, the parts are shared; its `vae` is the one to decode with, and is on the device when this returns. Raises
    NotFinite with the cause for latents that hold NaN. Hold `model.lock`; `generate` puts a LoRA on.
    """
    placement = placement or model.place(request)
    timer = timer or StageTimer(model.device)
    # Without text encoders: they are done, and the pipeline takes its device from the parts that it holds.
    left_out = {"scheduler", "text_encoder", "text_encoder_2"}
    parts = {n: c for n, c in model.pipeline.components.items() if n not in left_out}
    scheduler = build_for_run(request.scheduler, model.pipeline.scheduler.config, request.steps)
    pipeline = StableDiffusionXLPipeline(
        **parts, text_encoder=None, text_encoder_2=None, scheduler=scheduler, add_watermarker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    sources = sources or noise_sources(request)
    noise = initial_noise(request, pipeline.unet.config.in_channels, pipeline.vae_scale_factor, sources)
    embeds = _encode(model, request, request.prompt if prompt is None else prompt, placement, timer)
    interval = GuidanceInterval(request, embeds)
    start = noise.to(model.device, model.dtype)
    before: list[torch.Tensor] = []  # the latents of the step before

    def after_step(pipeline, index: int, timestep, values: dict) -> dict:
        if step_end:
            was = before.pop() if before else start * pipeline.scheduler.init_noise_sigma
            step_end(pipeline, index, timestep, values | {"before": was})
            before.append(values["latents"])
        return interval.step_end(pipeline, index, values)

    with timer.stage("swap"):
        placement.enter("unet", model)
    with timer.stage("denoise"), timer.calls("unet", pipeline.unet), _compiled(model, request):
        latents = pipeline(
            **embeds,
            num_inference_steps=request.steps,
            guidance_scale=interval.scale,
            width=request.width,
            height=request.height,
            latents=start,
            generator=sources,
            output_type="latent",
            callback_on_step_end=after_step,
            callback_on_step_end_tensor_inputs=["latents", *TENSORS],
        ).images
    check_prediction(latents, model, embeds.values(), request)
    pipeline.vae = model.decoder(placement.plan)
    with timer.stage("swap"):
        placement.enter("vae", model)
    return pipeline, latents


class _Watch:
    """What happens after each step: note the U-Net's time, look at the cancel flag, show the picture so far."""

    def __init__(
        self,
        request: GenerationRequest,
        timer: StageTimer,
        on_step: Callable[[Step], None] | None,
        cancel: threading.Event,
        num_previews: int,
        model: LoadedModel,
        tile: int | None,
        small: bool,
    ):
        self.request, self.timer, self.on_step, self.cancel = request, timer, on_step, cancel
        self.vae, self.tile = model.tiny_vae or model.pipeline.vae, tile  # whole, a small one takes more than the tiles
        self.shown, self.small = preview_steps(request.steps, num_previews), small
        self.frames: list[Frame] = []
        self.unet_ms: list[float] = []

    def __call__(self, pipeline, index: int, timestep, values: dict) -> None:
        self.unet_ms.append(self.timer.total("unet") - sum(self.unet_ms))
        if self.cancel.is_set():
            raise Cancelled
        with self.timer.stage("watching"):
            if self.on_step:
                preview = None
                if index + 1 in self.shown:
                    clean = clean_estimate(pipeline.scheduler, values["before"], values["latents"], index)[:1]
                    with suppress(NotFinite):  # the latents may still come right; the picture itself is checked
                        preview = decode(self.vae, shrunk(clean) if self.small else clean, self.tile)[0]
                        self.frames.append(frame(index + 1, noise_left(pipeline.scheduler, index), preview))
                self.on_step(Step(index=index + 1, total=self.request.steps, preview=preview))
        if self.cancel.is_set():
            raise Cancelled


def peak_memory(model: LoadedModel, timer: StageTimer) -> int | None:
    """Bytes at the busiest moment. On a GPU only torch's own are counted, and an export's are not torch's."""
    return None if model.device.type == "cuda" and model.card.runtime != "torch" else timer.peak_memory()


def made_by(model: LoadedModel, placement: Placement, request: GenerationRequest) -> dict:
    """What a result records of the model that drew it, and of the prompt that it did not read."""
    tokenizers = model.pipeline.tokenizer, model.pipeline.tokenizer_2
    return {
        "unread": unread(request, [Path(tokenizer.name_or_path) for tokenizer in tokenizers]),
        "parameters": model.parameters,
        "revision": model.revision,
        "dtype": model.precision,
        "device": device_name(model.device),
        "runtime": model.card.runtime,
        "versions": versions() | model.software,
        "plan": placement.plan,
    }


@torch.inference_mode()
def _run(
    model: LoadedModel,
    request: GenerationRequest,
    placement: Placement,
    on_step: Callable[[Step], None] | None,
    cancel: threading.Event,
    num_previews: int,
    small_previews: bool = False,
) -> GenerationResult:
    timer = StageTimer(model.device)
    if "vae" not in placement.on_device("unet"):
        num_previews = 0  # nothing to decode them with is on the device
    watch = _Watch(request, timer, on_step, cancel, num_previews, model, placement.tile, small_previews)
    pipeline, latents = run_pipeline(model, request, timer=timer, step_end=watch, placement=placement)
    with timer.stage("vae"):
        images = decode(pipeline.vae, latents, placement.tile)
    timing = Timing(
        text_ms=timer.total("text"),
        unet_ms=tuple(watch.unet_ms),
        unet_calls=unet_calls(request),
        vae_ms=timer.total("vae"),
        # what a run without anyone watching would have taken
        total_ms=timer.total("text") + timer.total("denoise") - timer.total("watching") + timer.total("vae"),
        peak_memory_bytes=peak_memory(model, timer),
        swap_ms=timer.total("swap"),
    )
    return GenerationResult(
        request=request,
        images=tuple(images),
        timing=timing,
        frames=tuple(watch.frames),
        **made_by(model, placement, request),
    )


def warm_up(
    request: GenerationRequest,
    model: LoadedModel,
    *,
    cancel: threading.Event | None = None,
    placement: Placement | None = None,
) -> None:
    """Let the model draw two uncounted steps of this request's shape, unless it has drawn that shape before.

    `generate` does the same before its first run of a shape. An app calls this while it loads its models. Setting
    `cancel` raises Cancelled before the next step ends.
    """
    request = resolve(request, model.card)
    with model.lock, adapted(model, request):
        _warm_up(request, model, placement or model.place(request), cancel or threading.Event())


def _warm_up(request: GenerationRequest, model: LoadedModel, placement: Placement, cancel: threading.Event) -> None:
    """The same of a request whose defaults are filled in, within the model's lock and with its LoRA on."""
    shape = (request.width, request.height, request.images, request.guidance > 1, request.preset, request.lora)
    if shape in model.warm:
        return
    known = dict(model.library.embeddings)
    _run(model, dataclasses.replace(request, steps=2), placement, None, cancel, 0)
    for key in model.library.embeddings.keys() - known.keys():
        del model.library.embeddings[key]  # the warm-up's encoding time is not a measurement
    model.warm.add(shape)


def generate(
    request: GenerationRequest,
    model: LoadedModel,
    *,
    on_step: Callable[[Step], None] | None = None,
    cancel: threading.Event | None = None,
    num_previews: int = MAX_PREVIEWS,
    small_previews: bool = False,
    placement: Placement | None = None,
) -> GenerationResult:
    """Draw the request's pictures on a loaded model.

    `on_step` is called after every step. Setting `cancel` raises Cancelled before the next step ends. The first
    run of a shape is preceded by an uncounted warm-up of two steps; the time that `on_step` and its previews
    take is left out of the timing. `small_previews` are decoded from fewer latents; the result keeps every preview.
    `placement` is a memory plan that several models share.
    """
    request = resolve(request, model.card)
    cancel = cancel or threading.Event()
    with model.lock, ExitStack() as run:
        placement = placement or model.place(request)  # it counts the weights of the last LoRA, which goes now
        lora = run.enter_context(adapted(model, request))
        _warm_up(request, model, placement, cancel)
        result = _run(model, request, placement, on_step, cancel, num_previews, small_previews)
    if lora is None:
        return result
    return dataclasses.replace(result, lora_sha256=digest(Path(request.lora)), lora_layers=lora.summary)
