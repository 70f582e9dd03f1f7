"""Aspect buckets, and the order in which their pictures are seen. Sizes are (width, height) in px.

A bucket is a size that pictures are cropped to; all are of about one area. The order is a pure function of seed and
step, so a resumed run needs no state for it.
"""

import math
import random
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache

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
    sizes = {
        (w, h) for w in sides for h in sides if LEAST_AREA * area <= w * h <= area and max(w, h) <= LONGEST * min(w, h)
    }
    return tuple(sorted(sizes))


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

    The crop is given in px of the whole picture scaled to cover the bucket, as SDXL was trained (section 2.2).
    """
    scale = max(bucket[0] / width, bucket[1] / height)
    left, top = (width - bucket[0] / scale) / 2, (height - bucket[1] / scale) / 2
    left, top = max(left, 0.0), max(top, 0.0)  # rounding
    return Fit(
        bucket=bucket,
        box=(left, top, width - left, height - top),
        time_ids=(height, width, round(top * scale), round(left * scale), bucket[1], bucket[0]),
    )


class BatchOrder:
    """Batches that never mix buckets; `sizes` says how many pictures each bucket has.

    Every bucket is an endless stream, one shuffled pass over its pictures after the other, cut into batches. So each
    picture is seen equally often, no remainder is dropped, and a bucket smaller than a batch repeats its pictures
    within one, but comes up less often.
    """

    def __init__(self, sizes: Mapping[Bucket, int], batch_size: int, seed: int):
        self.sizes = {bucket: size for bucket, size in sorted(sizes.items()) if size}
        self.batch_size, self.seed = batch_size, seed
        self._pass = lru_cache(maxsize=2 * len(self.sizes))(self._shuffled)
        self._epoch = lru_cache(maxsize=2)(self._batches)

    def rows(self, step: int) -> tuple[Bucket, list[int]]:
        """The bucket of a step's batch, and the rows in it (batch_size,)."""
        epoch = self._epoch_of(step)
        bucket, batch = self._epoch(epoch)[step - self._before(epoch)]
        size, start = self.sizes[bucket], batch * self.batch_size
        return bucket, [self._pass(bucket, at // size)[at % size] for at in range(start, start + self.batch_size)]

    def _before(self, epoch: int) -> int:
        """Batches of all buckets before an epoch: as many of each as its pictures filled by then."""
        return sum(epoch * size // self.batch_size for size in self.sizes.values())

    def _epoch_of(self, step: int) -> int:
        longest = (step + 1 + len(self.sizes)) * self.batch_size // sum(self.sizes.values()) + 2
        return bisect_right(range(longest), step, key=self._before) - 1

    def _batches(self, epoch: int) -> list[tuple[Bucket, int]]:
        """The epoch's batches, as (bucket, number of the batch in its stream), shuffled."""
        batches = [
            (bucket, batch)
            for bucket, size in self.sizes.items()
            for batch in range(epoch * size // self.batch_size, (epoch + 1) * size // self.batch_size)
        ]
        random.Random(f"{self.seed}/batches/{epoch}").shuffle(batches)
        return batches

    def _shuffled(self, bucket: Bucket, number: int) -> list[int]:
        """The rows of a bucket as its pass of this number sees them."""
        rows = list(range(self.sizes[bucket]))
        random.Random(f"{self.seed}/{bucket[0]}x{bucket[1]}/{number}").shuffle(rows)
        return rows
