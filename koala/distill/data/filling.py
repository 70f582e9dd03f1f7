"""Filling a cache: part by part of a source, by any number of processes at once, each part under a file lock.

A lock ends with its process, and a chunk is a file of its own: whoever is killed loses one chunk. What a chunk holds
depends on nothing but the cache's key and its own name, so that nobody need care who wrote it.
"""

import json
import logging
import os
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from filelock import Timeout
from huggingface_hub.utils import WeakFileLock
from PIL import Image
from safetensors.torch import save_file

from koala.distill.data.buckets import Bucket, Fit, fit, nearest
from koala.distill.data.encoded import Chunk, name_of, read_chunk
from koala.distill.data.encoders import Encoders
from koala.distill.data.samples import Part, Sample, upright
from koala.outputs import check_space, new_file
from koala.request import RequestError

log = logging.getLogger(__name__)

CHUNK = 256  # pictures of a file
_THREADS = 8  # that decode pictures
_PATIENCE = 0.2  # s, for a lock before the next part is looked at

Progress = Callable[[int, int, str], None]  # samples done, samples in all (0 is unknown), what is being done


class EncodingStopped(Exception):
    """The encoding was stopped on request; what was encoded stays, and the next one goes on from it."""


@dataclass(frozen=True, kw_only=True)
class _Picture:
    """A picture ready to encode."""

    pixels: np.ndarray  # (H, W, 3), uint8
    fit: Fit
    order: int  # in its chunk
    texts: list[int]  # of the chunk's


class Filling:
    """One process filling one cache with `parts`, of which `limit` samples are wanted; 0 is all."""

    def __init__(
        self,
        folder: Path,
        parts: Sequence[Part],
        *,
        limit: int,
        resolution: int,
        aspect_buckets: bool,
        load: Callable[[], Encoders],
        on_progress: Progress,
        should_stop: Callable[[], bool],
    ):
        self.folder, self.parts, self.limit = folder, parts, limit
        self.resolution, self.aspect_buckets = resolution, aspect_buckets
        self.load, self.on_progress, self.should_stop = load, on_progress, should_stop
        self.empty = folder / "empty.safetensors"
        self.known: dict[int, list[Chunk]] = {}  # by the number of the part
        self.shares = self._first_shares()  # the same: how many samples it is to give, None for all
        known = [share for share in self.shares.values() if share is not None]
        self.total = sum(known) if len(known) == len(self.shares) else 0

    def _first_shares(self) -> dict[int, int | None]:
        counts = [part.count for part in self.parts]
        if not self.limit:
            return dict(enumerate(counts))
        if None in counts:
            return self._further_shares(range(len(counts)), self.limit)
        before = [sum(counts[:number]) for number in range(len(counts))]
        return {n: min(counts[n], self.limit - start) for n, start in enumerate(before) if start < self.limit}

    def _further_shares(self, numbers: Sequence[int], samples: int) -> dict[int, int]:
        """Evenly out of as few parts as fill whole chunks: a part of unknown length may be long to open."""
        used = numbers[: -(-samples // CHUNK)]
        return {number: -(-samples // len(used)) for number in used}

    def run(self, rank: int, world: int) -> list[Chunk]:
        """Fill what is missing and wait for what others are filling: all chunks in the data's order."""
        self._fill_shares(rank, world)
        while further := self._lacking():
            for number, samples in further.items():
                self.shares[number] = self.shares.get(number, 0) + samples
                self.known.pop(number, None)
            self._fill_shares(rank, world)
        return self._chunks()

    def _lacking(self) -> dict[int, int]:
        """What to take besides, where parts of unknown length gave fewer samples than their share."""
        lacking = self.limit - sum(chunk.samples for chunk in self._chunks())
        if lacking <= 0:
            return {}
        unused = [n for n, part in enumerate(self.parts) if part.count is None and n not in self.shares]
        longer = [n for n in self.shares if self.parts[n].count is None and not self.known[n][-1].ends]
        return self._further_shares(unused or longer, lacking) if unused or longer else {}

    def _chunks(self) -> list[Chunk]:
        return [chunk for number in sorted(self.known) for chunk in self.known[number]]

    def _fill_shares(self, rank: int, world: int) -> None:
        """This process's own parts first, then what nobody else has in work."""
        numbers = sorted(self.shares)
        missing = self._missing([n for other in range(world) for n in numbers[(rank + other) % world :: world]])
        if not missing and self.empty.is_file():
            return
        self._check_space(missing)
        self._tell("loading the encoders")
        self.encoders = self.load()
        try:
            if not self.empty.is_file():
                context, pooled = self.encoders.captions([""])
                _write(self.empty, {"context": context.cpu(), "pooled": pooled.cpu()}, {})
            with ThreadPoolExecutor(max(1, min(_THREADS, (os.cpu_count() or 1) // world))) as self.threads:
                while missing := self._missing(missing):
                    self._fill_what_is_free(missing)
        finally:
            self.encoders.release()

    def _fill_what_is_free(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            self._stop_if_told()
            with self._claim(self.parts[number]) as ours:
                if ours:
                    self._fill(number)
                else:
                    self._tell("waiting for other processes")

    def _missing(self, numbers: Iterable[int]) -> list[int]:
        found = []
        for number in numbers:
            self._stop_if_told()
            if not self._look(number):
                found.append(number)
        return found

    def _look(self, number: int) -> bool:
        """Note the chunks of a part that are on the disk by now; whether they are all."""
        found = self.known.setdefault(number, [])
        while left := self._left(number):
            chunk = read_chunk(self._file(number, left))
            if chunk is None:
                return False
            found.append(chunk)
        return True

    def _left(self, number: int) -> int:
        """How many samples the part's next chunk takes; 0 when it has no more or has given its share."""
        found, share = self.known[number], self.shares[number]
        if found and found[-1].ends:
            return 0
        return CHUNK if share is None else min(CHUNK, share - sum(chunk.samples for chunk in found))

    def _file(self, number: int, samples: int) -> Path:
        """The part's next chunk; one that takes less than there is has a name of its own.

        It is no other's beginning: the last bits of what is encoded depend on what was encoded together.
        """
        part, before = self.parts[number], len(self.known[number])
        there = CHUNK if part.count is None else part.count - before * CHUNK
        cut = f".first-{samples}" if samples < min(CHUNK, there) else ""
        return self.folder / f"{part.name}.{before:04}{cut}.safetensors"

    @contextmanager
    def _claim(self, part: Part) -> Iterator[bool]:
        """Whether this process may fill a part now; nobody else does until the block ends."""
        try:
            with WeakFileLock(self.folder / f".{part.name}.lock", timeout=_PATIENCE):
                yield True
        except Timeout:
            yield False

    def _fill(self, number: int) -> None:
        if self._look(number):
            return
        part = self.parts[number]
        for stale in self.folder.glob(f".{part.name}.*.partial"):  # of a process that was killed
            stale.unlink()
        samples = part.read(CHUNK * len(self.known[number]))
        while left := self._left(number):
            file = self._file(number, left)
            self._write_chunk(file, islice(samples, left), left)
            self.known[number].append(read_chunk(file))
            self._tell("encoding")

    def _write_chunk(self, file: Path, samples: Iterable[Sample], asked: int) -> None:
        pending, encoded = defaultdict(list), defaultdict(list)
        texts: dict[str, int] = {}
        skipped, number = [], 0

        def encode_pending(bucket: Bucket) -> None:
            batch = pending.pop(bucket)
            latents = self.encoders.pictures(np.stack([picture.pixels for picture in batch]))
            encoded[bucket] += zip(latents.half().cpu(), batch, strict=True)
            self._stop_if_told()
            self._tell("encoding", number)

        for sample, found in self._ahead(samples):
            self._stop_if_told()
            if isinstance(found, str):
                log.warning("skipped %s: %s", sample.key, found)
                skipped.append(f"{sample.key}: {found}")
            else:
                pixels, place = found
                told = [texts.setdefault(text, len(texts)) for text in sample.captions]
                pending[place.bucket].append(_Picture(pixels=pixels, fit=place, order=number, texts=told))
                if len(pending[place.bucket]) == self.encoders.batch_size(*place.bucket):
                    encode_pending(place.bucket)
            number += 1
        for bucket in sorted(pending):
            encode_pending(bucket)
        if len(skipped) == CHUNK:  # a wrong column, or a network that went away: not to be remembered as broken
            raise RequestError(
                f"{CHUNK} pictures in a row cannot be used, so something else is wrong; the first: {skipped[0]}"
            )

        tensors = {name: tensor for bucket in encoded for name, tensor in _bucket_tensors(bucket, encoded[bucket])}
        if texts:
            context, pooled = self.encoders.captions(list(texts))
            tensors |= {"context": context.cpu(), "pooled": pooled.cpu()}
        told = {"samples": number, "ends": number < asked, "skipped": skipped}
        _write(file, tensors, {"chunk": json.dumps(told)})

    def _ahead(self, samples: Iterable[Sample]) -> Iterator[tuple[Sample, tuple[np.ndarray, Fit] | str]]:
        """Samples with their pixels, or with the reason why there are none; decoded while others are encoded."""
        waiting = deque()
        for sample in samples:
            waiting.append((sample, self.threads.submit(self._pixels, sample)))
            if len(waiting) > 2 * _THREADS:
                sample, future = waiting.popleft()
                yield sample, future.result()
        for sample, future in waiting:
            yield sample, future.result()

    def _pixels(self, sample: Sample) -> tuple[np.ndarray, Fit] | str:
        if sample.fault:
            return sample.fault
        if not sample.captions:
            return "no caption"
        try:
            image = upright(sample.image())
        except Exception as error:  # Pillow meets damaged files with errors of every kind
            return str(error) or type(error).__name__
        square = (self.resolution, self.resolution)
        bucket = nearest(*image.size, self.resolution) if self.aspect_buckets else square
        place = fit(*image.size, bucket)
        return np.asarray(image.resize(bucket, Image.Resampling.LANCZOS, box=place.box)), place

    def _check_space(self, missing: Iterable[int]) -> None:
        """RequestError at once where the disk cannot take what will surely come; latents alone are counted."""
        pictures = sum(self.shares[number] or 0 for number in missing)
        check_space(self.folder / "latents", pictures * 4 * (self.resolution // 8) ** 2 * 2)

    def _stop_if_told(self) -> None:
        if self.should_stop():
            raise EncodingStopped

    def _tell(self, message: str, further: int = 0) -> None:
        self.on_progress(sum(chunk.samples for chunk in self._chunks()) + further, self.total, message)


def _bucket_tensors(bucket: Bucket, encoded: list[tuple[torch.Tensor, _Picture]]) -> Iterator[tuple[str, torch.Tensor]]:
    """A bucket's tensors of one chunk, in the order of its samples."""
    encoded = sorted(encoded, key=lambda pair: pair[1].order)
    name, most = name_of(bucket), max(len(picture.texts) for _, picture in encoded)
    texts = [picture.texts + [-1] * (most - len(picture.texts)) for _, picture in encoded]
    yield f"{name}/latents", torch.stack([latents for latents, _ in encoded])
    yield f"{name}/time_ids", torch.tensor([picture.fit.time_ids for _, picture in encoded], dtype=torch.int32)
    yield f"{name}/order", torch.tensor([picture.order for _, picture in encoded], dtype=torch.int32)
    yield f"{name}/captions", torch.tensor(texts, dtype=torch.int32)


def _write(file: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    check_space(file, sum(tensor.nbytes for tensor in tensors.values()))
    with new_file(file) as partial:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial, metadata=metadata)
