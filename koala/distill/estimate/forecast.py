"""The estimate of a run on the machine at hand: its memory, and its speed by a short measurement."""

import dataclasses
import os
import time

import torch
from diffusers import UNet2DConditionModel

from koala.benchmark.calibration import DEPTH
from koala.distill.config import DistillConfig
from koala.distill.estimate.total import Estimate, estimate
from koala.distill.methods import check_own_spec
from koala.distill.processes import this_process
from koala.distill.sampling import guidance_range
from koala.hardware.device import device_memory
from koala.hardware.timing import synchronize
from koala.models.checkpoints import open_unet
from koala.models.registry import find, torch_only
from koala.unet.costs import LATENT_CHANNELS, LATENT_FACTOR, TOKENS, flops
from koala.unet.specs import UNetSpec, koala
from koala.unet.specs import student as student_spec

_LARGEST = 8  # pictures of the measured passes
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def estimate_here(
    config: DistillConfig, *, processes: int | None = None, memory_bytes: int | None = None, measure: bool = True
) -> Estimate:
    """What the run takes on this device; `processes` and `memory_bytes` are of another machine, where they are given.

    Speed is only known of the device at hand, from a shallow network as wide as the student.
    """
    state = this_process()
    elsewhere = processes is not None or memory_bytes is not None
    card = find(config.teacher)
    torch_only(card, "distillation")
    teacher = card.spec or open_unet(config.teacher).spec
    if config.method != "koala":
        low, high = guidance_range(config, card)
        config = dataclasses.replace(config, guidance_min=low, guidance_max=high)
    resolution = config.resolution or card.width
    settings = dict(
        resolution=resolution,
        device="cuda" if elsewhere else state.device.type,
        memory_bytes=memory_bytes if elsewhere else device_memory(state.device),
        world=processes or state.num_processes,
        sharded=os.environ.get("ACCELERATE_USE_FSDP", "false") == "true",
    )
    student = student_spec(config.student_spec, teacher)
    check_own_spec(config.to_dict(), student, teacher)
    expected = estimate(config, student, teacher, **settings)
    if elsewhere or not measure or not expected.fits:
        return expected
    rate = measured_rate(config, student, state.device, resolution, expected.pictures_per_pass)
    return estimate(config, student, teacher, **settings, flops_per_second=rate)


def measured_rate(config: DistillConfig, spec: UNetSpec, device: torch.device, resolution: int, pictures: int) -> float:
    """FLOP per second of a pass forward and backward, as the trainer runs it; the second of two passes counts."""
    yardstick = koala("yardstick", spec, depth=DEPTH, mid=False)
    unet = UNet2DConditionModel(**yardstick.config()).to(device).train()
    pictures, side = min(pictures, _LARGEST), resolution // LATENT_FACTOR
    latents = torch.randn(pictures, LATENT_CHANNELS, side, side, device=device)
    text = torch.randn(pictures, TOKENS, spec.cross_attention_dim, device=device)
    added = {
        "text_embeds": torch.randn(pictures, spec.pooled_dim, device=device),
        "time_ids": torch.zeros(pictures, 6, device=device),
    }
    for _ in range(2):
        synchronize(device)
        start = time.perf_counter()
        with torch.autocast(device.type, _DTYPES[config.precision], enabled=config.precision != "fp32"):
            unet(latents, 500, text, added_cond_kwargs=added).sample.float().square().mean().backward()
        synchronize(device)
        seconds = time.perf_counter() - start
    work = 3 * flops(yardstick, width=resolution, height=resolution, batch=pictures)  # backward costs twice forward
    return work / seconds
