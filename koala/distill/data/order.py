"""Which pictures each step sees: a pure function of seed and step, so that a resumed run needs no state for it."""

import random
from bisect import bisect_right
from collections.abc import Mapping
from functools import lru_cache

from koala.distill.data.buckets import Bucket


class BatchOrder:
    """Batches that never mix buckets; `sizes` says how many pictures each bucket has.

    Every bucket is an endless stream, one shuffled pass over its pictures after the other, cut into batches. So each
    picture is seen equally often, no remainder is dropped, and a bucket smaller than a batch repeats its pictures
    within one, but comes up the more seldom.
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
        found = [
            (bucket, batch)
            for bucket, size in self.sizes.items()
            for batch in range(epoch * size // self.batch_size, (epoch + 1) * size // self.batch_size)
        ]
        random.Random(f"{self.seed}/batches/{epoch}").shuffle(found)
        return found

    def _shuffled(self, bucket: Bucket, number: int) -> list[int]:
        """The rows of a bucket as its pass of this number sees them."""
        rows = list(range(self.sizes[bucket]))
        random.Random(f"{self.seed}/{bucket[0]}x{bucket[1]}/{number}").shuffle(rows)
        return rows
