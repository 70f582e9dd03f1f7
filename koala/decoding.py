"""Latents -> pictures, whole or in tiles, by a full or a tiny VAE."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from koala.nan_causes import check_picture

_PROCESSOR = VaeImageProcessor()  # the pipeline's own way from floats to bytes


def decode(vae: torch.nn.Module, latents: torch.Tensor, tile: int | None = None) -> list[Image.Image]:
    """Latents (B, 4, h, w) in the U-Net's scale -> RGB pictures, one decode per picture to bound memory.

    `tile` is the side of the VAE's tiles in latents; None decodes the picture as a whole. `vae` may be a tiny one.
    Raises NotFinite with the cause for a picture that holds NaN.
    """
    scaled = latents / vae.config.scaling_factor
    upcast = vae.dtype == torch.float16 and vae.config.force_upcast  # SDXL's own VAE overflows in fp16
    if upcast:
        vae.to(torch.float32)
    try:
        with tiled(vae, tile):
            return [_picture(vae, one[None]) for one in scaled]
    finally:
        if upcast:
            vae.to(torch.float16)


def _picture(vae: torch.nn.Module, latents: torch.Tensor) -> Image.Image:
    """One picture of scaled latents (1, 4, h, w)."""
    decoded = vae.decode(latents.to(vae.dtype)).sample
    check_picture(decoded, vae)
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
