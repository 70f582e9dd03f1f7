"""A model's parts as plain functions of named tensors, with the example inputs that they are traced on."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection

INNER = "inner"  # the attribute that holds the wrapped module: the exporter puts it before every parameter's name

# Sizes of the examples. No multiple of 4: only then does the U-Net ask each skip connection for its size, and one file
# serves every multiple of 8 px (NVIDIA's demo subtracts 8 px for the same reason). Never 1: torch.export would take
# that for a constant.
LATENTS = (18, 22)
PIXELS = (48, 80)
BATCH, TOKENS = 2, 77


@dataclass(frozen=True, kw_only=True)
class Traced:
    """A part to be exported. `dims` names the dimensions of its inputs that are free."""

    module: torch.nn.Module
    inputs: Mapping[str, torch.Tensor]
    dims: Mapping[str, Mapping[int, str]]
    outputs: tuple[str, ...]
    output_dims: Mapping[str, Mapping[int, str]]


class _UNet(torch.nn.Module):
    def __init__(self, inner: UNet2DConditionModel):
        super().__init__()
        self.inner = inner

    def forward(self, sample, timestep, encoder_hidden_states, text_embeds, time_ids):
        # The size embedding is made in fp32, and joins the pooled text: both must be of one type in ONNX.
        added = {"text_embeds": text_embeds.float(), "time_ids": time_ids}
        return self.inner(sample, timestep, encoder_hidden_states, added_cond_kwargs=added, return_dict=False)[0]


class _Text(torch.nn.Module):
    def __init__(self, inner: CLIPTextModel | CLIPTextModelWithProjection):
        super().__init__()
        self.inner = inner

    def forward(self, input_ids):
        output = self.inner(input_ids, output_hidden_states=True)
        if isinstance(self.inner, CLIPTextModelWithProjection):  # pipelines take the first output for the pooled text
            return output.text_embeds, output.last_hidden_state, *output.hidden_states
        return output.last_hidden_state, output.pooler_output, *output.hidden_states


class _Decoder(torch.nn.Module):
    def __init__(self, inner: AutoencoderKL):
        super().__init__()
        self.inner = inner

    def forward(self, latent_sample):
        return self.inner.decode(latent_sample, return_dict=False)[0]


class _Encoder(torch.nn.Module):
    def __init__(self, inner: AutoencoderKL):
        super().__init__()
        self.inner = inner

    def forward(self, sample):
        return self.inner.encode(sample).latent_dist.parameters  # mean and log variance (B, 8, h, w)


def unet(inner: UNet2DConditionModel) -> Traced:
    """`sample` (B, 4, h, w), `timestep` a scalar, text (B, tokens, C) and pooled (B, P), `time_ids` (B, 6)."""
    config, dtype = inner.config, inner.dtype
    pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    inputs = {  # `sample` first: optimum reads the pipeline's dtype from the first floating input
        "sample": torch.randn(BATCH, config.in_channels, *LATENTS, dtype=dtype),
        "timestep": torch.tensor(500.0),
        "encoder_hidden_states": torch.randn(BATCH, TOKENS, config.cross_attention_dim, dtype=dtype),
        "text_embeds": torch.randn(BATCH, pooled, dtype=dtype),
        "time_ids": torch.randn(BATCH, 6),
    }
    picture = {0: "batch", 2: "height", 3: "width"}
    dims = {
        "sample": picture,
        "timestep": {},
        "encoder_hidden_states": {0: "batch", 1: "sequence"},
        "text_embeds": {0: "batch"},
        "time_ids": {0: "batch"},
    }
    return Traced(
        module=_UNet(inner), inputs=inputs, dims=dims, outputs=("out_sample",), output_dims={"out_sample": picture}
    )


def text_encoder(inner: CLIPTextModel | CLIPTextModelWithProjection) -> Traced:
    """`input_ids` (B, tokens) int64; every layer's hidden states come out, SDXL reads the last but one."""
    projected = isinstance(inner, CLIPTextModelWithProjection)
    pooled = "text_embeds" if projected else "pooler_output"
    first = (pooled, "last_hidden_state") if projected else ("last_hidden_state", pooled)
    states = tuple(f"hidden_states.{k}" for k in range(inner.config.num_hidden_layers + 1))
    rows = {0: "batch", 1: "sequence"}
    return Traced(
        module=_Text(inner),
        inputs={"input_ids": torch.randint(0, inner.config.vocab_size, (BATCH, TOKENS))},
        dims={"input_ids": rows},
        outputs=(*first, *states),
        output_dims={"last_hidden_state": rows, pooled: {0: "batch"}, **{name: rows for name in states}},
    )


def vae_decoder(inner: AutoencoderKL) -> Traced:
    """`latent_sample` (B, 4, h, w), already divided by the scaling factor, to pixels in -1 .. 1."""
    shape, pixels = {0: "batch", 2: "height", 3: "width"}, {0: "batch", 2: "pixel_height", 3: "pixel_width"}
    example = torch.randn(BATCH, inner.config.latent_channels, *LATENTS, dtype=inner.dtype)
    return Traced(
        module=_Decoder(inner),
        inputs={"latent_sample": example},
        dims={"latent_sample": shape},
        outputs=("sample",),
        output_dims={"sample": pixels},
    )


def vae_encoder(inner: AutoencoderKL) -> Traced:
    """Pixels in -1 .. 1 to `latent_parameters` (B, 8, h, w), mean above log variance."""
    shape, latents = {0: "batch", 2: "height", 3: "width"}, {0: "batch", 2: "latent_height", 3: "latent_width"}
    example = torch.randn(BATCH, inner.config.in_channels, *PIXELS, dtype=inner.dtype)
    return Traced(
        module=_Encoder(inner),
        inputs={"sample": example},
        dims={"sample": shape},
        outputs=("latent_parameters",),
        output_dims={"latent_parameters": latents},
    )


# ONNX component -> how the part that it is made of is wrapped.
WRAPPERS: Mapping[str, Callable[..., Traced]] = {
    "unet": unet,
    "text_encoder": text_encoder,
    "text_encoder_2": text_encoder,
    "vae_decoder": vae_decoder,
    "vae_encoder": vae_encoder,
}
