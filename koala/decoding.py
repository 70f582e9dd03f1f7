"""Latents -> pictures, whole or in tiles, by a full or a tiny VAE."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

_PROCESSOR = VaeImageProcessor()  # the pipeline's own way from floats to bytes


def decode(vae: torch.nn.Module, latents: torch.Tensor, tile: int | None = None) -> list[Image.Image]:
    """Latents (B, 4, h, w) in the U-Net's scale -> RGB pictures, one decode per picture to bound memory.

    `tile` is the side of the VAE's tiles in latents; None decodes the picture as a whole. `vae` may be a tiny one.
    """
    scaled = latents / vae.config.scaling_factor
    upcast = vae.dtype == torch.float16 and vae.config.force_upcast  # SDXL's own VAE overflows in fp16
    if upcast:
        vae.to(torch.float32)
    try:
        with tiled(vae, tile):
            return [
                _PROCESSOR.postprocess(vae.decode(one.to(vae.dtype)[None]).sample, output_type="pil")[0]
                for one in scaled
            ]
    finally:
        if upcast:
            vae.to(torch.float16)


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
