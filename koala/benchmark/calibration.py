"""The speed of this device, measured with a small U-Net, so that the times of whole models can be predicted."""

import statistics
import time
from collections.abc import Callable

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from koala.hardware.latency import Hardware
from koala.hardware.timing import device_name, synchronize
from koala.models.random_weights import random_network
from koala.unet.costs import LATENT_CHANNELS, LATENT_FACTOR, TOKENS, flops
from koala.unet.parts import parts_of
from koala.unet.specs import UNetSpec, koala

DEPTH = 2  # of the yardstick's transformers: KOALA's cut of the same widths, shallower than any model


class Yardstick:
    """A shallow U-Net as wide as `spec`, and the VAE at half the size: their times give the device's rates.

    For pictures of this size in px and this batch, in the VAE's precision. Call `run` between runs of what it predicts:
    on a shared machine both then see the same load. No measured model runs here; all sizes share one `unet`.
    """

    def __init__(
        self,
        spec: UNetSpec,
        vae: AutoencoderKL,
        *,
        device: torch.device,
        width: int,
        height: int,
        images: int,
        unet: UNet2DConditionModel | None = None,
    ):
        self.device, self.vae, self.parts = device, vae, parts_of(spec)
        self.width, self.height, self.images = width, height, images
        self.spec = koala("yardstick", spec, depth=DEPTH, mid=False)
        self.unet = unet or self._made().to("cpu")
        self.seconds: dict[str, list[float]] = {}

    def _made(self) -> UNet2DConditionModel:
        return random_network(lambda: UNet2DConditionModel(**self.spec.config()), self.vae.dtype, self.device)

    @torch.inference_mode()
    def run(self) -> None:
        """One guided step, one without guidance, one decode; U-Net and VAE must be on the device."""
        self._time("guided", self._step(2 * self.images))
        self._time("unguided", self._step(self.images))
        latents = self._noise(1, LATENT_CHANNELS, self.height // LATENT_FACTOR // 2, self.width // LATENT_FACTOR // 2)
        self._time("vae", lambda: self.vae.decode(latents))

    def hardware(self) -> Hardware:
        """The rates: medians of all runs but the first, which is the warm-up."""

        def rate(name: str, work: int) -> float:
            return work / statistics.median(self.seconds[name][1:] or self.seconds[name]) / 1e12

        size = {"width": self.width, "height": self.height}
        half = {"width": self.width // 2, "height": self.height // 2}
        return Hardware(
            name=device_name(self.device),
            memory_bytes=None,
            peak=None,
            unet=rate("guided", flops(self.spec, **size, batch=2 * self.images)),
            unguided=rate("unguided", flops(self.spec, **size, batch=self.images)),
            vae=rate("vae", self.parts.vae.decoder(**half)[1]),
            block_ms=0.0,  # the rates are those of exactly this size
            source=f"measured here with a U-Net of {sum(1 for _ in self.spec.self_attentions())} transformer blocks",
            compiles=self.device.type == "cuda",
        )

    def _noise(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(self.device, self.vae.dtype)

    def _step(self, samples: int) -> Callable[[], object]:
        latents = self._noise(samples, LATENT_CHANNELS, self.height // LATENT_FACTOR, self.width // LATENT_FACTOR)
        text = self._noise(samples, TOKENS, self.spec.cross_attention_dim)
        added = {"text_embeds": self._noise(samples, self.spec.pooled_dim), "time_ids": self._noise(samples, 6)}
        return lambda: self.unet(latents, 500, text, added_cond_kwargs=added)

    def _time(self, name: str, work: Callable[[], object]) -> None:
        synchronize(self.device)
        start = time.perf_counter()
        work()
        synchronize(self.device)
        self.seconds.setdefault(name, []).append(time.perf_counter() - start)
