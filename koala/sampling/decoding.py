"""Latents -> pictures, whole or in tiles, by a full or a tiny VAE."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from koala.sampling.nan_causes import check_picture

_PROCESSOR = VaeImageProcessor()  # converts floats to bytes as the pipeline does


def scaled(vae: torch.nn.Module, latents: torch.Tensor) -> torch.Tensor:
    """What a VAE's encoder gives (B, 4, h, w) in the U-Net's scale: whitened by channel where its config says how, as
    Playground's does, then times its scaling factor. As diffusers' pipelines of SDXL compute it."""
    factor, channels = vae.config.scaling_factor, _channels(vae, latents)
    if channels is None:
        return latents * factor
    mean, std = channels
    return (latents - mean) * factor / std


def unscaled(vae: torch.nn.Module, latents: torch.Tensor) -> torch.Tensor:
    """The U-Net's latents (B, 4, h, w) as a VAE's decoder takes them; the reverse of `scaled`."""
    factor, channels = vae.config.scaling_factor, _channels(vae, latents)
    if channels is None:
        return latents / factor
    mean, std = channels
    return latents * std / factor + mean


def _channels(vae: torch.nn.Module, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Mean and deviation of each channel (1, 4, 1, 1); None where the VAE's config does not have both."""
    statistics = [vae.config.get(name) for name in ("latents_mean", "latents_std")]
    if any(values is None for values in statistics):
        return None
    mean, std = (latents.new_tensor(values).view(1, -1, 1, 1) for values in statistics)
    return mean, std


def decode(vae: torch.nn.Module, latents: torch.Tensor, tile: int | None = None) -> list[Image.Image]:
    """Latents (B, 4, h, w) in the U-Net's scale -> RGB pictures, one decode per picture to bound memory.

    `tile` is the side of the VAE's tiles in latents; None decodes the picture as a whole. `vae` may be a tiny one.
    Raises NotFinite with the cause for a picture that holds NaN.
    """
    own = unscaled(vae, latents)
    upcast = vae.dtype == torch.float16 and vae.config.force_upcast  # SDXL's own VAE overflows in fp16
    if upcast:
        vae.to(torch.float32)
    try:
        with tiled(vae, tile):
            return [_picture(vae, one[None]) for one in own]
    finally:
        if upcast:
            vae.to(torch.float16)


def _picture(vae: torch.nn.Module, latents: torch.Tensor) -> Image.Image:
    """One picture of scaled latents (1, 4, h, w)."""
    decoded = vae.decode(latents.to(vae.dtype)).sample
    check_picture(decoded, vae)
    return to_picture(decoded)


def to_picture(decoded: torch.Tensor) -> Image.Image:
    """What a VAE made, (1, 3, H, W) from -1 to 1, in bytes. A rehearsal on tensors without values replaces this."""
    return _PROCESSOR.postprocess(decoded, output_type="pil")[0]


@contextmanager
def tiled(vae: torch.nn.Module, tile: int | None) -> Iterator[None]:
    """Decode in tiles of this side in latents; diffusers' own size is a whole 1024 px picture, which saves nothing."""
    if tile is None:
        yield
        return
    before = vae.tile_latent_min_size, vae.tile_sample_min_size
    vae.enable_tiling()
    vae.tile_latent_min_size = tile
    vae.tile_sample_min_size = tile * 2 ** (len(vae.config.block_out_channels) - 1)
    try:
        yield
    finally:
        vae.disable_tiling()
        vae.tile_latent_min_size, vae.tile_sample_min_size = before
