"""The picture so far: after which steps a run shows it, how large it is decoded, and what is kept of it.

A preview costs a decode. The app shows one after every step and keeps them all, so it decodes them small: the latents
are shrunk to a quarter of the places or fewer. The decoder takes latents of any size, since it has convolutions and one
attention over all places.
"""

from dataclasses import dataclass

import torch
from PIL import Image
from torch.nn.functional import interpolate

MAX_PREVIEWS = 6  # of a run at full size
EVERY = 32  # of a run whose previews are small: every step of a usual run, evenly spread steps of a longer one
SMALL = (16, 48)  # latents of the longer side of a small preview: half of the picture's within these bounds
FRAME_SIDE = 192  # px of the longer side of what is kept


@dataclass(frozen=True, kw_only=True)
class Frame:
    """A model's estimate of the picture after a step, counted from 1; `noise` is the share of noise left, 0 to 1."""

    step: int
    noise: float
    picture: Image.Image


def preview_steps(steps: int, num_previews: int) -> set[int]:
    """The steps, counted from 1, after which a run shows a preview: evenly spread, and never the last."""
    if num_previews >= steps:
        return set(range(1, steps))
    return {round(steps * k / (num_previews + 1)) for k in range(1, num_previews + 1)} - {0, steps}


def shrunk(latents: torch.Tensor) -> torch.Tensor:
    """Latents (B, 4, h, w) for a small preview: averaged down to half of each side, or as `SMALL` bounds that."""
    height, width = latents.shape[-2:]
    longer = max(height, width)
    wanted = min(max(longer // 2, SMALL[0]), SMALL[1], longer)
    size = [max(1, round(side * wanted / longer)) for side in (height, width)]
    return interpolate(latents.float(), size=size, mode="area").to(latents.dtype)


def frame(step: int, noise: float, picture: Image.Image) -> Frame:
    """A frame of a copy of the picture that fits `FRAME_SIDE`."""
    small = picture.copy()
    small.thumbnail((FRAME_SIDE, FRAME_SIDE))
    return Frame(step=step, noise=noise, picture=small)
