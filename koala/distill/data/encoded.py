"""Encoded pictures and captions on disk, read at random by memory map.

A chunk is one safetensors file of at most 256 pictures. Of each bucket, named WxH, it holds n pictures: WxH/latents
(n, 4, h, w), WxH/time_ids (n, 6), WxH/order (n,), a picture's number among the chunk's samples, and WxH/captions
(n, K), which texts describe it, filled up with -1. `context` (U, 77, C) and `pooled` (U, P) are those texts.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from koala.distill.data.buckets import Bucket
from koala.distill.data.samples import spread

_OPEN_FILES = 256
_OF_THOSE = "-"  # between a cache's key and the hash of which pictures are there


def cache_of(key: str) -> str:
    """The cache's part of the key of its data."""
    return key.partition(_OF_THOSE)[0]


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A sample that is not in its chunk."""

    number: int  # among the chunk's samples
    why: str
    out_of_reach: bool  # a later run may find it


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """One file of the cache."""

    file: Path
    samples: int  # read for it, including those that were skipped
    ends: bool  # its part of the source had fewer samples than were asked for, so there are no more
    skipped: tuple[Skipped, ...]

    @property
    def out_of_reach(self) -> dict[int, Skipped]:
        """The samples that a later run may find, by number."""
        return {one.number: one for one in self.skipped if one.out_of_reach}


def read_chunk(file: Path) -> Chunk | None:
    """The chunk's own record; None where the file is missing or incomplete."""
    try:
        with safe_open(file, framework="pt") as opened:
            record = json.loads(opened.metadata()["chunk"])
        skipped = tuple(Skipped(number=n, why=why, out_of_reach=away) for n, why, away in record["skipped"])
        return Chunk(file=file, samples=record["samples"], ends=record["ends"], skipped=skipped)
    except (
        FileNotFoundError,
        ValueError,
        LookupError,
        TypeError,
        SafetensorError,
    ):  # cut off, or not ours: to be encoded again
        return None


_SUCCESSOR = re.compile(r"(.+)\.again-(\d+)(\.safetensors)")


def successor(file: Path, tries: int) -> Path:
    """The file of a chunk that also holds what the try of this number found."""
    former = _SUCCESSOR.fullmatch(file.name)
    stem = former[1] if former else file.stem
    return file.with_name(f"{stem}.again-{tries:03}.safetensors")


def successors(folder: Path, tries: int | None = None) -> dict[str, list[Path]]:
    """Name of a chunk's first file -> its successors up to a try, or all of them, the last first."""
    later: dict[str, list[Path]] = {}
    for file in sorted(folder.glob("*.again-*"), reverse=True):
        match = _SUCCESSOR.fullmatch(file.name)
        if match and (tries is None or int(match[2]) <= tries):
            later.setdefault(match[1] + match[3], []).append(file)
    return later


def last_try(folder: Path) -> int:
    """The number of the last further try that found pictures; 0 where none did."""
    return max((int(_SUCCESSOR.fullmatch(f.name)[2]) for fs in successors(folder).values() for f in fs), default=0)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Pictures of one bucket as the U-Net is conditioned on them; fp32 on the CPU."""

    latents: torch.Tensor  # (B, 4, h, w)
    context: torch.Tensor  # (B, 77, C)
    pooled: torch.Tensor  # (B, P)
    time_ids: torch.Tensor  # (B, 6): original h, w; crop top, left; target h, w


class EncodedData:
    """The pictures of a cache: those to learn from, and those held out for validation."""

    def __init__(
        self,
        chunks: Sequence[Chunk],
        empty: Path,
        *,
        key: str,
        num_pictures: int,
        held_back: int,
        seed: int | None,
    ):
        """`num_pictures` is how many to use at most, 0 is all; `key` is the cache's.

        Where pictures were skipped, the data's own key also says which are there, so it changes whenever the data does.
        The seed decides which are held out; without a seed the last ones are, which is fine where the data was drawn.
        """
        self._files = [chunk.file for chunk in chunks]
        self._open = lru_cache(maxsize=_OPEN_FILES)(lambda file: safe_open(file, framework="pt"))
        with safe_open(empty, framework="pt") as opened:
            self._empty = opened.get_tensor("context"), opened.get_tensor("pooled")
        buckets, rows = _index(chunks)
        rows = rows[:num_pictures] if num_pictures else rows
        self.num_pictures = len(rows)
        self.skipped = sum(len(chunk.skipped) for chunk in chunks)
        self.out_of_reach = sum(len(chunk.out_of_reach) for chunk in chunks)
        digest = hashlib.sha256(rows[:, [1, 3]].astype("<i8").tobytes()).hexdigest()[:8]
        self.key = f"{key}{_OF_THOSE}{digest}" if self.skipped else key
        held = np.zeros(len(rows), bool)
        held[spread(len(rows), held_back, seed, "held back") if seed is not None else slice(-held_back, None)] = True
        self._training = _by_bucket(buckets, rows[~held, :3])
        self._validation = _by_bucket(buckets, rows[held, :3])

    @property
    def empty(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The empty prompt as the U-Net is conditioned on it: context (1, 77, C) and pooled (1, P)."""
        return self._empty

    @property
    def sizes(self) -> dict[Bucket, int]:
        """Number of training pictures in each bucket."""
        return {bucket: len(rows) for bucket, rows in self._training.items()}

    def batch(self, bucket: Bucket, rows: Sequence[int], picks: Sequence[float]) -> Batch:
        """Pictures of a bucket by row; a pick in [0, 1) chooses among a picture's captions, -1 takes the empty text."""
        return self._batch(bucket, self._training[bucket][list(rows)], picks)

    def validation(self) -> list[tuple[Bucket, list[int]]]:
        """Buckets of the held-out pictures, and the rows in each."""
        return [(bucket, list(range(len(rows)))) for bucket, rows in self._validation.items()]

    def validation_batch(self, bucket: Bucket, rows: Sequence[int], picks: Sequence[float]) -> Batch:
        """As `batch`, of the held-out pictures."""
        return self._batch(bucket, self._validation[bucket][list(rows)], picks)

    def _batch(self, bucket: Bucket, places: np.ndarray, picks: Sequence[float]) -> Batch:
        pictures = [
            self._picture(bucket, chunk, at, pick) for (chunk, at), pick in zip(places.tolist(), picks, strict=True)
        ]
        latents, context, pooled, time_ids = (torch.cat(each).float() for each in zip(*pictures, strict=True))
        return Batch(latents=latents, context=context, pooled=pooled, time_ids=time_ids)

    def _picture(self, bucket: Bucket, chunk: int, at: int, pick: float) -> tuple[torch.Tensor, ...]:
        opened, name = self._open(self._files[chunk]), name_of(bucket)

        def row(tensor: str, index: int) -> torch.Tensor:
            return opened.get_slice(tensor)[index : index + 1]

        context, pooled = self._empty
        if pick >= 0:
            texts = [text for text in row(f"{name}/captions", at)[0].tolist() if text >= 0]
            text = texts[int(pick * len(texts))]
            context, pooled = row("context", text), row("pooled", text)
        return row(f"{name}/latents", at), context, pooled, row(f"{name}/time_ids", at)


def name_of(bucket: Bucket) -> str:
    """(256, 320) -> 256x320: a bucket in file names."""
    return f"{bucket[0]}x{bucket[1]}"


def _index(chunks: Sequence[Chunk]) -> tuple[list[Bucket], np.ndarray]:
    """The buckets; and bucket, chunk, place in its bucket there and number of every picture in order, (N, 4)."""
    numbers: dict[Bucket, int] = {}
    tables = [np.zeros((0, 4), np.int64)]
    for number, chunk in enumerate(chunks):
        with safe_open(chunk.file, framework="np") as opened:
            for tensor in opened.keys():  # noqa: SIM118  (not a dict)
                if tensor.endswith("/order"):
                    bucket = tuple(int(side) for side in tensor.removesuffix("/order").split("x"))
                    order = opened.get_tensor(tensor)
                    columns = np.empty((len(order), 4), np.int64)
                    columns[:, 0], columns[:, 1] = number, order
                    columns[:, 2], columns[:, 3] = numbers.setdefault(bucket, len(numbers)), np.arange(len(order))
                    tables.append(columns)
    rows = np.concatenate(tables)
    return list(numbers), rows[np.lexsort((rows[:, 1], rows[:, 0]))][:, [2, 0, 3, 1]]


def _by_bucket(buckets: Sequence[Bucket], rows: np.ndarray) -> dict[Bucket, np.ndarray]:
    """Bucket -> (chunk, place) of each of its pictures, (n, 2); buckets without any are left out."""
    places = {bucket: rows[rows[:, 0] == number, 1:] for number, bucket in enumerate(buckets)}
    return {bucket: some for bucket, some in sorted(places.items()) if len(some)}
