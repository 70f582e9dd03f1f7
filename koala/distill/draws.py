"""What a step sees: its pictures, and what chance decides for each of them.

Both are pure functions of the seed and the step. So a batch may be split over passes and processes, and a run may stop
anywhere, and every draw stays the same.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from koala.distill.config import DistillConfig
from koala.distill.data.buckets import BatchOrder
from koala.distill.data.encoded import Batch, EncodedData
from koala.distill.timesteps import timestep
from koala.unet.costs import LATENT_CHANNELS, LATENT_FACTOR


@dataclass(frozen=True, kw_only=True)
class Draws:
    """For B pictures: `picks` chooses each one's caption, -1 for the empty prompt."""

    noise: torch.Tensor  # (B, 4, h, w)
    timesteps: torch.Tensor  # (B,) in 0..999
    picks: tuple[float, ...]
    strengths: torch.Tensor | None = None  # (B,) in [0, 1), where in the range of guidance; None where it has no width


def generator(*words: object) -> torch.Generator:
    """A generator whose seed is the hash of these words."""
    digest = hashlib.sha256("/".join(map(str, words)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def draw(config: DistillConfig, indices: Sequence[int], shape: tuple[int, int, int]) -> Draws:
    """For the pictures at `indices` of the run (step * batch_size + place), with latents (C, h, w) = `shape`."""
    noises, timesteps, picks = [], [], []
    for index in indices:
        source = generator("draw", config.seed, index)
        noise = torch.randn(shape, generator=source)
        if config.noise_offset:
            noise = noise + config.noise_offset * torch.randn(shape[0], 1, 1, generator=source)
        uniform, which, pick, empty = torch.rand(4, generator=source, dtype=torch.float64).tolist()
        noises.append(noise)
        timesteps.append(timestep(config, which, uniform, source))
        picks.append(-1.0 if empty < config.empty_prompts else pick)
    strengths = None
    if config.guidance_min < config.guidance_max:
        each = [torch.rand((), generator=generator("guidance", config.seed, index)) for index in indices]
        strengths = torch.stack(each)
    return Draws(noise=torch.stack(noises), timesteps=torch.tensor(timesteps), picks=tuple(picks), strengths=strengths)


class Batches:
    """The batches of a run on these data."""

    def __init__(self, config: DistillConfig, data: EncodedData):
        self.config, self.data = config, data
        self.order = BatchOrder(data.sizes, config.batch_size, config.seed)

    def at(self, step: int, places: Sequence[int]) -> tuple[Batch, Draws]:
        """The pictures at these places of the step's batch, and their draws."""
        bucket, rows = self.order.rows(step)
        width, height = bucket
        indices = [step * self.config.batch_size + place for place in places]
        draws = draw(self.config, indices, (LATENT_CHANNELS, height // LATENT_FACTOR, width // LATENT_FACTOR))
        return self.data.batch(bucket, [rows[place] for place in places], draws.picks), draws
