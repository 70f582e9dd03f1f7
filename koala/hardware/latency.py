"""How long a picture takes on known hardware, from arithmetic: three constants per device, fitted on published figures.

A U-Net call takes its FLOPs at the device's rate, and a fixed time per transformer block that no size changes: kernel
launches, and what waits for memory. The VAE has a rate of its own: it is convolutions at full resolution.
"""

import re
from dataclasses import dataclass

from koala.presets import PRESETS
from koala.unet.costs import flops
from koala.unet.parts import Parts, parts_of
from koala.unet.specs import UNetSpec

GB = 10**9
TINY_VAE_FLOPS = 565e9 / 1024**2  # per px: taesdxl takes 0.565 TF at 1024 px
COMPILED = 1.3  # times faster U-Net, compiled (SDXL: A100 3.32 -> 2.54 s, diffusion-fast; L40S 72 -> 55 ms, diffusers)


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """A device and how fast it is. Rates are 10^12 FLOP/s."""

    name: str
    memory_bytes: int | None
    peak: float | None  # of the data sheet: dense, 16 bit with 32-bit accumulation; None where it was only measured
    unet: float  # achieved by eager PyTorch
    vae: float
    block_ms: float  # per transformer block and call, at any size
    source: str  # of the three
    unguided: float | None = None  # the U-Net's rate in a step without guidance, on half the batch; None: the same
    compiles: bool = True  # whether a preset that compiles does so here


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The time of one batch of pictures by stage, in ms."""

    text_ms: float
    unet_ms: tuple[float, ...]  # one entry per step, as in Timing
    vae_ms: float

    @property
    def unet_total_ms(self) -> float:
        """The sum over all steps."""
        return sum(self.unet_ms)

    @property
    def total_ms(self) -> float:
        """Of text encoders, U-Net and VAE."""
        return self.text_ms + self.unet_total_ms + self.vae_ms


_FIGURE = "fitted on KOALA, figure 7, and its 512 px rows; within 6 % of each"
_LIKE_4090 = "; VAE and blocks as on an RTX 4090"
GPUS = {
    key: Hardware(name=name, memory_bytes=memory * GB, peak=peak, unet=unet, vae=vae, block_ms=block, source=source)
    for key, name, memory, peak, unet, vae, block, source in (
        ("rtx-3060-ti", "RTX 3060 Ti", 8, 32.4, 23.0, 23.8, 0.371, _FIGURE),
        ("rtx-2080-ti", "RTX 2080 Ti", 11, 53.8, 38.6, 22.4, 0.430, _FIGURE),
        ("rtx-3090", "RTX 3090", 24, 71.0, 57.2, 28.0, 0.206, "SDXL 4.0 steps/s, OneDiff #426" + _LIKE_4090),
        ("rtx-4080", "RTX 4080", 16, 97.5, 66.7, 33.0, 0.206, "SDXL 4.6 steps/s, stable-fast README" + _LIKE_4090),
        ("rtx-4090", "RTX 4090", 24, 165.2, 121.1, 60.2, 0.206, _FIGURE),
        ("a10", "A10", 24, 125.0, 47.1, 23.0, 0.206, "SDXL 30 steps 9.40 s, SDXL TensorRT card" + _LIKE_4090),
        ("l40s", "L40S", 48, 362.0, 118.0, 59.0, 0.206, "SDXL U-Net 72 ms, diffusers benchmarks" + _LIKE_4090),
        (
            "a100",
            "A100 80 GB",
            80,
            312.0,
            169.0,
            22.0,
            0.206,
            "SDXL and SSD-1B 30 steps 3.32 and 2.25 s, diffusion-fast",
        ),
        (
            "h100",
            "H100",
            80,
            989.0,
            257.0,
            21.6,
            0.206,
            "SDXL 14.9 steps/s, stable-fast; 30 steps 2.50 s, TensorRT card",
        ),
        ("h200", "H200", 141, 989.0, 257.0, 21.6, 0.206, "as the H100, which has the same cores"),
    )
}
CPU = Hardware(
    name="Core i7-12700, float32",
    memory_bytes=None,
    peak=1.2,  # eight performance cores x 32 FLOP x 4.7 GHz
    unet=0.42,
    vae=0.42,
    block_ms=0.0,
    source="SDXL-Turbo at 512 px, one step in 10 s, fastsdcpu README",
    compiles=False,
)
HARDWARE = GPUS | {"core-i7-12700": CPU}


def named(device: str) -> Hardware | None:
    """The known GPU that a driver's name means ("NVIDIA A100-SXM4-80GB"); laptops' and variants are other chips."""
    if "Laptop" in device:
        return None
    return next((gpu for gpu in GPUS.values() if re.search(_driver_name(gpu), device)), None)


def _driver_name(gpu: Hardware) -> str:
    """As a pattern: without the memory that our name may add, and without a variant's ending."""
    chip = re.sub(r" \d+ GB$", "", gpu.name)
    return rf"\b{chip}(?![0-9A-Za-z])(?! *(Ti|SUPER|D)\b)"


def predict(
    spec: UNetSpec,
    hardware: Hardware,
    *,
    width: int,
    height: int,
    steps: int,
    guided: bool,
    images: int = 1,
    preset: str = "quality",
    tiny_vae: bool = False,
    parts: Parts | None = None,
) -> Prediction:
    """The time of `images` pictures of this size in px, drawn as one batch after a warm-up.

    A guided step runs the U-Net on twice the batch. `tiny_vae` says whether the model has a small decoder.
    """
    parts = parts or parts_of(spec)
    chosen = PRESETS[preset]
    twice = chosen.guided_steps(steps) if guided else range(0)
    gain = COMPILED if chosen.compiled and hardware.compiles else 1
    num_blocks = sum(sum(depths) for depths in spec.depths().values())
    num_layers = parts.text.layers + parts.text_2.layers  # half a block each: they have self-attention only

    def step(samples: int, rate: float) -> float:
        work = flops(spec, width=width, height=height, batch=samples)
        return (_ms(work, rate) + num_blocks * hardware.block_ms) / gain

    plain, doubled = step(images, hardware.unguided or hardware.unet), step(2 * images, hardware.unet)
    if tiny_vae and chosen.tiny_decoder:
        decoded = TINY_VAE_FLOPS * width * height
    else:
        decoded = parts.vae.decoder(width=width, height=height)[1]
    return Prediction(
        text_ms=_ms(parts.text_cost[1] * (2 if guided else 1), hardware.unet) + num_layers * hardware.block_ms / 2,
        unet_ms=tuple(doubled if index in twice else plain for index in range(steps)),
        vae_ms=images * _ms(decoded, hardware.vae),
    )


def _ms(work: float, rate: float) -> float:
    """FLOPs at a rate in 10^12 per second."""
    return work / rate / 1e9
