"""A model in memory, and which of its parts a memory plan keeps on the device."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from diffusers import AutoencoderTiny, StableDiffusionXLPipeline

from koala.hardware.device import Residence
from koala.hardware.memory_plan import Plan
from koala.lora.report import LoraReport
from koala.models.cards import ModelCard
from koala.request import GenerationRequest
from koala.unet.specs import UNetSpec

STAGE_PARTS = {"text": ("text_encoder", "text_encoder_2"), "unet": ("unet",), "vae": ("vae",)}


class Shelf(Protocol):
    """What loaders and loaded models need of the library: its device, and parts shared by key."""

    device: torch.device
    residence: Residence
    embeddings: OrderedDict

    def share(self, key: str, make: Callable[[], torch.nn.Module]) -> torch.nn.Module:
        """The part with this key, made now if no model has it."""

    def content(self, part: torch.nn.Module) -> str:
        """The key of a shared part; empty for one that is not shared."""

    def place(self, models: "Sequence[LoadedModel]", requests: Sequence[GenerationRequest]) -> "Placement":
        """The memory plan for these requests."""


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A LoRA fitted to a model: its report, and every weight that it changes, in host memory."""

    report: LoraReport
    weights: dict[str, torch.Tensor]


@dataclass(kw_only=True)
class LoadedModel:
    """A model in memory. `lock` is held by the one run that uses the device: two runs never share a U-Net at once."""

    card: ModelCard
    pipeline: StableDiffusionXLPipeline
    spec: UNetSpec
    tiny_vae: AutoencoderTiny | None
    library: Shelf
    revision: str
    parameters: int  # of the U-Net
    warm: set[tuple] = field(default_factory=set)  # request shapes that have run once
    # (a LoRA's content, its strength) -> that LoRA, until another one is asked for
    adapted: dict[tuple[str, float], Fitted] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """The device that the model runs on."""
        return self.library.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the U-Net's weights."""
        return self.pipeline.unet.dtype

    @property
    def precision(self) -> str:
        """Of the U-Net's weights."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def software(self) -> dict[str, str]:
        """Versions of software that affects the pixels, besides torch and its libraries."""
        return {}

    @property
    def lock(self) -> threading.Lock:
        """The device's lock: every run holds it, since parts are shared and move."""
        return self.library.residence.lock

    def decoder(self, plan: Plan | None) -> torch.nn.Module:
        """The VAE that a plan decodes with, the tiny one or its own."""
        return self.tiny_vae if plan and plan.tiny_vae else self.pipeline.vae

    def parts(self, stage: str, plan: Plan | None) -> list[torch.nn.Module]:
        """The modules that work in a stage: text, unet or vae."""
        if stage == "vae":
            return [self.decoder(plan), *([self.tiny_vae] if self.tiny_vae else [])]
        return [getattr(self.pipeline, name) for name in STAGE_PARTS[stage]]

    def place(self, request: GenerationRequest) -> "Placement":
        """The memory plan for a run of this model alone."""
        return self.library.place([self], [request])


@dataclass(frozen=True, kw_only=True)
class Placement:
    """A memory plan that one model follows, or several that draw the same prompt one after the other."""

    plan: Plan | None  # None for exports: their runtime decides, and everything is on the device
    models: tuple[LoadedModel, ...]

    @property
    def keeps_text(self) -> bool:
        """Whether the text encoders stay on the device, ready for the next prompt."""
        return self.plan is None or self.plan.text == "resident"

    @property
    def tile(self) -> int | None:
        """Latents per side of the VAE's tiles."""
        return self.plan.vae_tile if self.plan else None

    def on_device(self, stage: str) -> tuple[str, ...]:
        """Which of "text", "unet" and "vae" are on the device in the stage of that name."""
        return self.plan.on_device(stage) if self.plan else tuple(STAGE_PARTS)

    def enter(self, stage: str, model: LoadedModel) -> None:
        """Have on the device exactly what the plan puts there in this stage of `model`."""
        parts = self.on_device(stage)
        working = [p for part in parts for p in model.parts(part, self.plan)]
        others = [part for part in parts if part != "unet" or self.plan is None or self.plan.unet == "resident"]
        keep = [p for other in self.models for part in others for p in other.parts(part, self.plan)]
        model.library.residence.bring(working, keep)
