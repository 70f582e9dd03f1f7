"""Models with random weights, built from their specs without any file: speed does not depend on the weights."""

import math
from collections.abc import Callable

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from koala.errors import UserError
from koala.models.cards import EMBEDDED, ModelCard
from koala.models.library import Library
from koala.models.loaded import LoadedModel, Shelf
from koala.unet.parts import TextSpec, parts_of

SEED = 0
FOLDER = EMBEDDED / "tiny-sdxl"  # whose tokenizers and scheduler serve every size


Make = Callable[[Callable[[], torch.nn.Module], torch.dtype], torch.nn.Module]


def random_library(device: str | None = None, *, memory: int | None = None, dtype: str | None = None) -> Library:
    """A library of models with random weights; without a dtype, float32 on a CPU and float16 elsewhere.

    Text encoders and VAEs are shared as real ones are, and so are U-Nets: names of one spec mean the same noise.
    """
    library = Library(device, memory=memory, dtype=dtype, loaders={"torch": __name__})
    library.dtype = dtype or ("float32" if library.device.type == "cpu" else "float16")
    return library


def load(card: ModelCard, library: Shelf, dtype: torch.dtype, make: Make | None = None) -> LoadedModel:
    """A model like this card's with random weights. UserError where its spec is not known.

    `make(build, dtype)` is how a network comes about; by default it is drawn on the device and kept in host memory.
    """
    make = make or (lambda build, dtype: random_network(build, dtype, library.device).to("cpu"))
    if card.spec is None:
        raise UserError(
            f"nothing is known of {card.name} but its address, so no random one can be built; use a name that "
            "`python -m koala models` lists"
        )
    parts = parts_of(card.spec)

    def shared(name: str, build, of: object = card.spec.cross_attention_dim) -> torch.nn.Module:
        return library.share(f"{name}:{of}", lambda: make(build, dtype))

    of = card.spec.notation, card.spec.channels
    pipeline = StableDiffusionXLPipeline(
        unet=shared("unet", lambda: UNet2DConditionModel(**card.spec.config()), of),
        text_encoder=shared("text_encoder", lambda: _text_encoder(parts.text)),
        text_encoder_2=shared("text_encoder_2", lambda: _text_encoder(parts.text_2)),
        vae=shared("vae", lambda: AutoencoderKL(**parts.vae.config())),
        tokenizer=CLIPTokenizer.from_pretrained(FOLDER / "tokenizer"),
        tokenizer_2=CLIPTokenizer.from_pretrained(FOLDER / "tokenizer_2"),
        scheduler=EulerDiscreteScheduler.from_pretrained(FOLDER / "scheduler"),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return LoadedModel(
        card=card,
        pipeline=pipeline,
        spec=card.spec,
        tiny_vae=shared("tiny_vae", AutoencoderTiny) if card.tiny_vae else None,
        library=library,
        revision="random",
        parameters=sum(p.numel() for p in pipeline.unet.parameters()),
    )


def random_network(build: Callable[[], torch.nn.Module], dtype: torch.dtype, device: torch.device) -> torch.nn.Module:
    """The network on the device, frozen, with uniform weights of a fixed seed that keep activations small."""
    with torch.device("meta"):
        module = build().to(dtype)
    module.to_empty(device=device)
    generator = torch.Generator(device).manual_seed(SEED)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.dim() > 1:
                bound = 1 / math.sqrt(parameter[0].numel())
                parameter.uniform_(-bound, bound, generator=generator)
            else:
                parameter.fill_(1 if "norm" in name and name.endswith("weight") else 0)
        for name, buffer in module.named_buffers():
            assert name.endswith("position_ids"), name  # the only buffer of these networks, which `to_empty` loses
            buffer.copy_(torch.arange(buffer.numel()))
    return module.eval().requires_grad_(False)


def _text_encoder(spec: TextSpec) -> torch.nn.Module:
    return (CLIPTextModelWithProjection if spec.projection else CLIPTextModel)(CLIPTextConfig(**spec.config()))
