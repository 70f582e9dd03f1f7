"""Aspect buckets: the sizes that pictures are cropped to, all of about one area. Sizes are (width, height) in px."""

import math
from dataclasses import dataclass
from functools import cache

Bucket = tuple[int, int]

LEAST_AREA = 0.9  # of the square's
LONGEST = 4  # long side over short side


@cache
def buckets(resolution: int) -> tuple[Bucket, ...]:
    """The sizes for a resolution, whose square is one: sides are multiples of 64 px, below 768 of 32.

    At 1024 it is the list of SDXL (Podell et al. 2023, appendix I), which has 1344x704 upright only.
    """
    step = 64 if resolution >= 768 else 32
    area = resolution**2
    sides = [n * step for n in range(1, LONGEST * resolution // step + 1)] + [resolution]
    found = {
        (w, h) for w in sides for h in sides if LEAST_AREA * area <= w * h <= area and max(w, h) <= LONGEST * min(w, h)
    }
    return tuple(sorted(found))


def nearest(width: int, height: int, resolution: int) -> Bucket:
    """The bucket whose shape is nearest to a picture's; of two that are as near, the larger."""
    shape = math.log(width / height)
    return min(buckets(resolution), key=lambda b: (abs(math.log(b[0] / b[1]) - shape), -b[0] * b[1]))


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How a picture comes into its bucket: the middle part of it, in its own px, and SDXL's six numbers for that."""

    bucket: Bucket
    box: tuple[float, float, float, float]  # left, top, right, bottom
    time_ids: tuple[int, int, int, int, int, int]  # original h, w; crop top, left; target h, w


def fit(width: int, height: int, bucket: Bucket) -> Fit:
    """The largest part about a picture's centre that has its bucket's shape.

    The crop is told in px of the whole picture scaled to cover the bucket, as SDXL was trained (section 2.2).
    """
    scale = max(bucket[0] / width, bucket[1] / height)
    left, top = (width - bucket[0] / scale) / 2, (height - bucket[1] / scale) / 2
    left, top = max(left, 0.0), max(top, 0.0)  # rounding
    return Fit(
        bucket=bucket,
        box=(left, top, width - left, height - top),
        time_ids=(height, width, round(top * scale), round(left * scale), bucket[1], bucket[0]),
    )
