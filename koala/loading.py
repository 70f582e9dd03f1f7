"""Files -> models ready to run; text encoders and VAE that are the same file are loaded once and shared."""

import hashlib
import threading
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.models.modeling_utils import load_state_dict
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from koala.locate import Location, locate, replacements
from koala.registry import ModelCard, find
from koala.request import RequestError

_CLASSES = {
    "text_encoder": CLIPTextModel,
    "text_encoder_2": CLIPTextModelWithProjection,
    "vae": AutoencoderKL,
}


@dataclass(kw_only=True)
class LoadedModel:
    """A model in memory. `lock` is held by the one run that uses it: two runs never share a U-Net at once."""

    card: ModelCard
    pipeline: StableDiffusionXLPipeline
    device: torch.device
    dtype: torch.dtype
    revision: str
    parameters: int  # of the U-Net
    lock: threading.Lock = field(default_factory=threading.Lock)
    warm: set[tuple] = field(default_factory=set)  # request shapes that have run once


@lru_cache(maxsize=64)
def _digest(path: Path, size: int, modified: float) -> str:
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def digest(path: Path) -> str:
    """SHA-256 of a file, remembered until the file changes."""
    stat = path.resolve().stat()
    return _digest(path.resolve(), stat.st_size, stat.st_mtime)


def best_device(name: str | None = None) -> torch.device:
    """The device by name, or the best one here: CUDA, Apple's GPU, CPU."""
    if name:
        try:
            device = torch.device(name)
        except RuntimeError as error:
            raise RequestError(f"unknown device {name!r}; use cpu, cuda, cuda:1 or mps") from error
        if device.type == "cuda" and not torch.cuda.is_available():
            raise RequestError(f"device {name} was asked for, but no CUDA GPU is visible; use --device cpu")
        return device
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


class Library:
    """The models of one process. Loading is thread-safe; each model and each shared part is loaded once."""

    def __init__(self, device: str | None = None):
        self.device = best_device(device)
        # CPUs compute in fp32: half precision there is slower, and rounds more.
        self.dtype = torch.float32 if self.device.type == "cpu" else torch.float16
        self._models: dict[str, LoadedModel] = {}
        self._shared: dict[str, torch.nn.Module] = {}
        self._lock = threading.Lock()

    def loaded(self, name: str) -> bool:
        return name in self._models

    def get(self, name: str) -> LoadedModel:
        """The model of this name, loaded now if it was not. Raises RequestError with the remedy."""
        card = find(name)
        with self._lock:
            if card.name not in self._models:
                self._models[card.name] = self._load(card)
            return self._models[card.name]

    def _part(self, component: str, folder: Path, weights: Path) -> torch.nn.Module:
        """A text encoder or VAE, shared with every model whose weights file has the same hash."""
        key = f"{component}:{digest(weights)}"
        if key not in self._shared:
            variant = "fp16" if weights.name.endswith(".fp16.safetensors") else None
            kind = _CLASSES[component]
            dtype = {"torch_dtype" if kind is AutoencoderKL else "dtype": self.dtype}
            part = kind.from_pretrained(folder, variant=variant, **dtype)
            self._shared[key] = part.to(self.device).eval().requires_grad_(False)
        return self._shared[key]

    def _unet(self, location: Location, replacement: Path | None) -> UNet2DConditionModel:
        if replacement is None:
            return UNet2DConditionModel.from_pretrained(
                location.folder / "unet", variant=location.variant, torch_dtype=self.dtype
            )
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(location.folder / "unet"))
        unet.load_state_dict(load_state_dict(replacement))
        return unet.to(self.dtype)

    def _load(self, card: ModelCard) -> LoadedModel:
        location, replaced = locate(card), replacements(card)
        folder = location.folder
        try:
            unet = self._unet(location, replaced.get("unet")).to(self.device).eval().requires_grad_(False)
            vae_file = replaced.get("vae", location.weights("vae"))
            parts = {n: self._part(n, folder / n, location.weights(n)) for n in ("text_encoder", "text_encoder_2")}
            pipeline = StableDiffusionXLPipeline(
                unet=unet,
                vae=self._part("vae", vae_file.parent, vae_file),
                tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
                tokenizer_2=CLIPTokenizer.from_pretrained(folder / "tokenizer_2"),
                scheduler=EulerDiscreteScheduler.from_pretrained(folder / "scheduler"),
                force_zeros_for_empty_prompt=True,
                add_watermarker=False,
                **parts,
            )
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise RequestError(
                f"{card.name} could not be loaded from {folder}: {error}. Copy or download its files again"
            ) from error
        pipeline.set_progress_bar_config(disable=True)
        return LoadedModel(
            card=card,
            pipeline=pipeline,
            device=self.device,
            dtype=self.dtype,
            revision=location.revision,
            parameters=sum(p.numel() for p in unet.parameters()),
        )
