"""How fast a card distils: whole training steps, built from the trainer's own parts, on random latents and captions."""

import statistics
import time
from itertools import product

import torch
from diffusers import UNet2DConditionModel

from koala.distill.config import DistillConfig
from koala.distill.data.encoded import Batch
from koala.distill.draws import draw, generator
from koala.distill.estimate.total import Estimate, estimate
from koala.distill.loss.pairs import feature_pairs
from koala.distill.loss.step import DistillationStep, alphas_cumprod
from koala.distill.optimizers import Ema, build_optimizers
from koala.gpu_report.budget import Limit, NotHere, Say
from koala.gpu_report.scale import Scale
from koala.hardware.device import device_memory, give_back
from koala.hardware.shortage import ran_out, release
from koala.hardware.timing import StageTimer, synchronize
from koala.models.library import Library
from koala.models.loaded import LoadedModel
from koala.models.random_weights import random_network
from koala.unet.costs import LATENT_CHANNELS, LATENT_FACTOR, TOKENS
from koala.unet.specs import UNetSpec
from koala.unet.specs import student as student_spec

STEPS = 5  # timed, after two warm-up steps
_HALVES = {"cuda": "bf16", "mps": "fp32", "cpu": "fp32"}
_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
_SECONDS = 30.0  # assumed for a row while none is measured
VALIDATED = "student that is validated"  # a run also holds this; these steps do not


def precision(device: torch.device) -> str:
    """The precision that a run on this device trains in: bf16 on a card."""
    return _HALVES[device.type]


def distillation(scale: Scale, library: Library, results: dict, limit: Limit, say: Say) -> None:
    """Steps with and without gradient checkpointing, each with the largest batch that is predicted to fit.

    `library` has the teacher in the precision of the run. Loading data is not timed: a run reads it from its cache.
    """
    results |= {"rows": [], "not_measured": []}
    teacher, device = library.get(scale.teacher), library.device
    spec = student_spec(scale.student, teacher.spec)
    library.residence.bring([teacher.pipeline.unet])
    free = device_memory(device) + sum(p.nbytes for p in teacher.pipeline.unet.parameters()) * (device.type == "cuda")
    refusals = []
    for checkpointing in (True, False):
        what = {"teacher": scale.teacher, "student": scale.student, "size": scale.resolution}
        what["gradient_checkpointing"] = checkpointing
        config, expected = _fitting(scale, spec, teacher.spec, device, free, checkpointing)
        if not expected.fits:
            refusals.append(expected.shortage())
            results["not_measured"].append(what | {"reason": refusals[-1]})
        elif not limit.allows(_SECONDS):
            results["not_measured"].append(what | {"reason": "no time was left"})
        else:
            say(f"{scale.student} of {scale.teacher}, batch {config.batch_size}, checkpointing {checkpointing}")
            results["rows"].append(what | _paced(config, expected, spec, teacher, limit))
    if len(refusals) == 2:
        raise NotHere(f"no batch fits: {refusals[0]}")


def _fitting(
    scale: Scale, student: UNetSpec, teacher: UNetSpec, device: torch.device, free: int, checkpointing: bool
) -> tuple[DistillConfig, Estimate]:
    """The config with the largest batch that fits, or with the smallest if none does.

    The moving average is on the card if it fits there with that batch, else in host memory.
    """
    for batch, place in product(scale.batches, ("student", "cpu")):
        config = DistillConfig(
            teacher=scale.teacher,
            student_spec=scale.student,
            resolution=scale.resolution,
            batch_size=batch,
            precision=precision(device),
            teacher_precision=precision(device),
            gradient_checkpointing=checkpointing,
            ema_device=place,
        )
        expected = estimate(
            config, student, teacher, resolution=scale.resolution, device=device.type, memory_bytes=free
        )
        if expected.fits:
            break
    return config, expected


def _paced(config: DistillConfig, expected: Estimate, spec: UNetSpec, teacher: LoadedModel, limit: Limit) -> dict:
    moments = [size for name, size in expected.moments.items() if name not in ("validation", "encoding before it")]
    row = {
        "batch": config.batch_size,
        "precision": config.precision,
        "moving_average": config.ema_device,
        "predicted_bytes": max(moments) - expected.always.get(VALIDATED, 0),
    }
    try:
        seconds, peak = _steps(config, spec, teacher, limit)
    except RuntimeError as error:
        if not ran_out(error):
            raise
        release(error)
        give_back()
        return row | {"ran_out": True, "pictures_per_second": None, "step_ms": None, "steps": 0, "peak_bytes": None}
    step = statistics.median(seconds)
    return row | {
        "ran_out": False,
        "pictures_per_second": config.batch_size / step,
        "step_ms": 1000 * step,
        "steps": len(seconds),
        "peak_bytes": peak,
    }


def _steps(config: DistillConfig, spec: UNetSpec, teacher: LoadedModel, limit: Limit) -> tuple[list[float], int]:
    """Seconds of each timed step, and their peak memory in bytes."""
    device = teacher.device
    student = random_network(lambda: UNet2DConditionModel(**spec.config()), torch.float32, device)
    student.requires_grad_(True).train()
    if config.gradient_checkpointing:
        student.enable_gradient_checkpointing()
    pairs = feature_pairs(config, spec, teacher.spec)
    alphas = alphas_cumprod(teacher.pipeline.scheduler.config)
    distils = DistillationStep(config, teacher.pipeline.unet, pairs, alphas)
    optimizers, ema = build_optimizers(student, config), Ema(student, config.ema_decay, config.ema_device)
    half = torch.autocast(device.type, _DTYPES[config.precision], enabled=config.precision != "fp32")
    took: list[float] = []
    with distils.hooked(student) as losses_of:
        for step in range(STEPS + 2):
            if len(took) > 2 and not limit.allows(2 * max(took)):
                break
            if step == 1:
                timer = StageTimer(device)  # the optimizer allocates its states in the first step
            synchronize(device)
            began = time.perf_counter()
            with half:
                losses = losses_of(student, *_batch(config, spec, step))
            losses.check(step + 1)
            losses.total.backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), config.max_grad_norm)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            ema.update(student)
            synchronize(device)
            took.append(time.perf_counter() - began)
    return took[2:], timer.peak_memory()


def _batch(config: DistillConfig, spec: UNetSpec, step: int):
    """Noise instead of pictures and captions, and the draws of the step's positions."""
    count, side = config.batch_size, config.resolution // LATENT_FACTOR
    source = generator("gpu-report", step)
    sizes = torch.tensor([config.resolution, config.resolution, 0, 0, config.resolution, config.resolution])
    batch = Batch(
        latents=torch.randn(count, LATENT_CHANNELS, side, side, generator=source),
        context=torch.randn(count, TOKENS, spec.cross_attention_dim, generator=source),
        pooled=torch.randn(count, spec.pooled_dim, generator=source),
        time_ids=sizes.float().repeat(count, 1),
    )
    places = range(step * count, (step + 1) * count)
    return batch, draw(config, places, (LATENT_CHANNELS, side, side))
