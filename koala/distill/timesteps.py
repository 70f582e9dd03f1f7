"""Which of the 1,000 timesteps a picture is noised to: drawn for one picture, and the share that each has in a run."""

import torch

from koala.distill.config import DistillConfig

NUM_TIMESTEPS = 1000
HIGH_NOISE_MEAN = 0.8  # of the logit-normal half of "high-noise": t around 690, where layout is decided


def timestep(config: DistillConfig, which: float, uniform: float, source: torch.Generator) -> int:
    """In 0..999, for two numbers in [0, 1): `which` decides between the halves, `uniform` within one."""
    if which < 0.5:
        if config.timesteps == "calls":
            return NUM_TIMESTEPS - 1
        if config.timesteps == "noisiest-quarter":
            uniform = 0.75 + uniform / 4
        if config.timesteps == "high-noise":
            uniform = torch.sigmoid(torch.randn((), generator=source) + HIGH_NOISE_MEAN).item()
    if config.timesteps == "calls":
        return called(config.calls)[int(uniform * config.calls)]
    return min(int(uniform * NUM_TIMESTEPS), NUM_TIMESTEPS - 1)


def called(calls: int) -> list[int]:
    """The timesteps of a trailing schedule of so many steps, which divide the 1,000, from the lowest on."""
    return [NUM_TIMESTEPS * (index + 1) // calls - 1 for index in range(calls)]


def shares(config: DistillConfig) -> torch.Tensor:
    """How often each timestep is drawn, (1000,) float64 with the sum 1."""
    even = torch.full((NUM_TIMESTEPS,), 1 / NUM_TIMESTEPS, dtype=torch.float64)
    half = torch.zeros_like(even)
    if config.timesteps == "calls":
        half[-1] = 1
        even = torch.zeros_like(even)
        even[called(config.calls)] = 1 / config.calls
    elif config.timesteps == "noisiest-quarter":
        half[NUM_TIMESTEPS * 3 // 4 :] = 4 / NUM_TIMESTEPS
    elif config.timesteps == "high-noise":
        edges = torch.arange(NUM_TIMESTEPS + 1, dtype=torch.float64) / NUM_TIMESTEPS
        half = torch.special.ndtr(torch.logit(edges) - HIGH_NOISE_MEAN).diff()
    else:
        half = even
    return (half + even) / 2
