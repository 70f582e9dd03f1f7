"""Models of any size without any file: networks built from their specs. Speed does not depend on weights."""

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

from koala.loading import Library, LoadedModel
from koala.parts import TextSpec, parts_of
from koala.registry import EMBEDDED, ModelCard
from koala.request import RequestError

SEED = 0
FOLDER = EMBEDDED / "tiny-sdxl"  # whose tokenizers and scheduler serve every size


class RandomLibrary(Library):
    """A library whose models are noise in the right shape.

    Text encoders and VAEs are shared as real ones are, and so are U-Nets: names of one spec mean the same noise.
    """

    def __init__(self, device: str | None = None, *, memory: int | None = None, dtype: str | None = None):
        super().__init__(device, memory=memory, dtype=dtype)
        self.dtype = dtype or ("float32" if self.device.type == "cpu" else "float16")

    def _load(self, card: ModelCard, dtype: torch.dtype) -> LoadedModel:
        if card.spec is None:
            raise RequestError(
                f"nothing is known of {card.name} but its address, so no random one can be built; use a name that "
                "`python -m koala models` lists"
            )
        parts = parts_of(card.spec)

        def shared(name: str, build, of: object = card.spec.cross_attention_dim) -> torch.nn.Module:
            return self.share(f"{name}:{of}", lambda: self._random(build, dtype))

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
            library=self,
            revision="random",
            parameters=sum(p.numel() for p in pipeline.unet.parameters()),
        )

    def _random(self, build: Callable[[], torch.nn.Module], dtype: torch.dtype) -> torch.nn.Module:
        """The network, drawn on the device and kept in host memory."""
        return random_network(build, dtype, self.device).to("cpu")


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
            assert name.endswith("position_ids"), name  # the one buffer of these networks, lost on the way
            buffer.copy_(torch.arange(buffer.numel()))
    return module.eval().requires_grad_(False)


def _text_encoder(spec: TextSpec) -> torch.nn.Module:
    return (CLIPTextModelWithProjection if spec.projection else CLIPTextModel)(CLIPTextConfig(**spec.config()))
