"""Samples -> pixels of their bucket's size, decoded by threads ahead of the encoder."""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image

from koala.distill.data.buckets import Fit, fit, nearest
from koala.distill.data.pictures import OutOfReach, upright
from koala.distill.data.samples import Sample

_THREADS = 8


@dataclass(frozen=True, kw_only=True)
class Unusable:
    """Why a sample cannot be used; what is out of reach may be usable later."""

    why: str
    out_of_reach: bool = False


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """Decodes pictures to one resolution."""

    resolution: int
    aspect_buckets: bool

    def ahead(
        self, samples: Iterable[Sample], world: int = 1
    ) -> Iterator[tuple[Sample, tuple[np.ndarray, Fit] | Unusable]]:
        """Samples with their pixels (H, W, 3) uint8, or with the reason why there are none; `world` processes do so."""
        waiting = deque()
        with ThreadPoolExecutor(max(1, min(_THREADS, (os.cpu_count() or 1) // world))) as threads:
            try:
                for sample in samples:
                    waiting.append((sample, threads.submit(self._pixels, sample)))
                    if len(waiting) > 2 * _THREADS:
                        sample, future = waiting.popleft()
                        yield sample, future.result()
                for sample, future in waiting:
                    yield sample, future.result()
            finally:
                threads.shutdown(wait=False, cancel_futures=True)

    def _pixels(self, sample: Sample) -> tuple[np.ndarray, Fit] | Unusable:
        if sample.fault:
            return Unusable(why=sample.fault, out_of_reach=sample.out_of_reach)
        if not sample.captions:
            return Unusable(why="no caption")
        try:
            image = upright(sample.image())
        except Exception as error:  # Pillow meets damaged files with errors of every kind
            return Unusable(why=str(error) or type(error).__name__, out_of_reach=isinstance(error, OutOfReach))
        square = (self.resolution, self.resolution)
        bucket = nearest(*image.size, self.resolution) if self.aspect_buckets else square
        place = fit(*image.size, bucket)
        return np.asarray(image.resize(bucket, Image.Resampling.LANCZOS, box=place.box)), place
