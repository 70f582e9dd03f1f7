"""Which of the 1,000 timesteps a picture is noised to: drawn for one picture, and the share that each has in a run."""

import itertools
import math
from typing import TYPE_CHECKING

from koala.distill.config import DistillConfig

if TYPE_CHECKING:
    import torch

NUM_TIMESTEPS = 1000
HIGH_NOISE_MEAN = 0.8  # of the logit-normal half of "high-noise": t around 690, where layout is decided


def timestep(config: DistillConfig, which: float, uniform: float, source: "torch.Generator") -> int:
    """In 0..999, for two numbers in [0, 1): `which` decides between the halves, `uniform` within one."""
    if config.timesteps == "calls":
        return NUM_TIMESTEPS - 1 if which < 0.5 else called(config.calls)[int(uniform * config.calls)]
    if config.timesteps == "high-noise" and which < 0.5:
        import torch

        uniform = torch.sigmoid(torch.randn((), generator=source) + HIGH_NOISE_MEAN).item()
    if config.timesteps == "noisiest-quarter" and which < 0.5:
        uniform = 0.75 + uniform / 4
    return min(int(uniform * NUM_TIMESTEPS), NUM_TIMESTEPS - 1)


def called(calls: int) -> list[int]:
    """The timesteps of a trailing schedule of so many steps, which divide the 1,000, from the lowest on."""
    return [NUM_TIMESTEPS * (index + 1) // calls - 1 for index in range(calls)]


def shares(config: DistillConfig) -> list[float]:
    """How often each of the 1,000 timesteps is drawn; the sum is 1."""
    even = half = [1 / NUM_TIMESTEPS] * NUM_TIMESTEPS
    if config.timesteps == "calls":
        visited = set(called(config.calls))
        even = [(t in visited) / config.calls for t in range(NUM_TIMESTEPS)]
        half = [float(t == NUM_TIMESTEPS - 1) for t in range(NUM_TIMESTEPS)]
    elif config.timesteps == "noisiest-quarter":
        half = [4 / NUM_TIMESTEPS * (t >= NUM_TIMESTEPS * 3 / 4) for t in range(NUM_TIMESTEPS)]
    elif config.timesteps == "high-noise":
        below = [_below(t / NUM_TIMESTEPS) for t in range(NUM_TIMESTEPS + 1)]
        half = [high - low for low, high in itertools.pairwise(below)]
    return [(one + other) / 2 for one, other in zip(half, even, strict=True)]


def _below(x: float) -> float:
    """The share of a logit-normal distribution with the mean `HIGH_NOISE_MEAN` below x in [0, 1]."""
    if x in (0, 1):
        return float(x)
    return (1 + math.erf((math.log(x / (1 - x)) - HIGH_NOISE_MEAN) / math.sqrt(2))) / 2
