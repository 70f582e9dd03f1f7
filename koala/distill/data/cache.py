"""Pictures and captions, encoded once: keyed by data, encoders and resolution alone, and filled by any number of
processes at once.

A part of the source is filled under a file lock, which ends with its process, and chunk by chunk: whoever is killed
loses one chunk. What a chunk holds depends on nothing but the key, so that nobody need care who wrote it.
"""

import hashlib
import json
import logging
import os
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from filelock import Timeout
from huggingface_hub.utils import WeakFileLock
from PIL import Image
from safetensors.torch import save_file

from koala.distill.config import DistillConfig
from koala.distill.data.buckets import Bucket, Fit, fit, nearest
from koala.distill.data.encoded import Chunk, EncodedData, name_of, read_chunk
from koala.distill.data.encoders import Encoders
from koala.distill.data.samples import BROKEN, Part, Sample, Source, upright
from koala.distill.data.sources import source_for
from koala.outputs import check_space, new_file
from koala.registry import find
from koala.request import RequestError

log = logging.getLogger(__name__)

VERSION = 1  # of what is done to a picture, and of the files
CHUNK = 256  # pictures of a file
_THREADS = 8  # that decode pictures
_PATIENCE = 0.2  # s, for a lock before the next part is looked at

Progress = Callable[[int, int, str], None]  # pictures done, pictures in all (0 is unknown), what is being done


class EncodingStopped(Exception):
    """The encoding was stopped on request; what was encoded stays, and the next one goes on from it."""


class EncoderSource(Protocol):
    """What `encode` takes the encoders from, once it knows that something is missing: `encoders.EncoderFiles`."""

    @property
    def identity(self) -> dict: ...

    def load(self, device: torch.device | str) -> Encoders: ...


def default_folder() -> Path:
    """Where encoded data lies if the config names no place: beside the caches of other programs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "koala" / "distill"


def encode(
    config: DistillConfig,
    encoders: EncoderSource,
    *,
    device: torch.device | str,
    rank: int = 0,
    world: int = 1,
    on_progress: Progress = lambda done, total, message: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> EncodedData:
    """Encode what the cache lacks and wait for what other processes are encoding; the encoders are released again.

    Raises EncodingStopped soon after `should_stop` says so, RequestError for data that cannot be used.
    """
    resolution = config.resolution or find(config.teacher).width
    source = source_for(config, resolution)
    identity = {
        "version": VERSION,
        "source": source.identity,
        "encoders": encoders.identity,
        "resolution": resolution,
        "aspect_buckets": config.aspect_buckets,
    }
    text = json.dumps(identity, indent=1, sort_keys=True)
    folder = Path(config.cache or default_folder()).absolute() / hashlib.sha256(text.encode()).hexdigest()[:16]
    if not (folder / "identity.json").is_file():
        with new_file(folder / "identity.json") as file:
            file.write_text(text + "\n")
    filling = _Filling(
        folder=folder,
        resolution=resolution,
        aspect_buckets=config.aspect_buckets,
        shares=_shares(source, config.num_pictures),
        on_progress=on_progress,
        should_stop=should_stop,
    )
    filling.run(lambda: encoders.load(device), rank, world)
    data = EncodedData(
        filling.chunks(),
        folder / "empty.safetensors",
        num_pictures=config.num_pictures,
        held_back=config.validation_pictures,
    )
    _check(config, data, filling.chunks())
    return data


def _check(config: DistillConfig, data: EncodedData, chunks: list[Chunk]) -> None:
    """RequestError where nothing is left to learn from."""
    if data.skipped:
        log.warning("%d of %d pictures were skipped", data.skipped, data.skipped + data.num_pictures)
    if not data.num_pictures:
        why = next((f"; the first: {why}" for chunk in chunks for _, why in chunk.skipped), "")
        raise RequestError(f"{config.data} holds no picture that can be used: {data.skipped} were skipped{why}")
    if not data.sizes:
        raise RequestError(
            f"all {data.num_pictures} pictures of {config.data} are held back for validation; set "
            f"validation_pictures={max(1, data.num_pictures // 10)}"
            if data.num_pictures > 1
            else f"{config.data} holds one picture, and it takes one to learn from and one for validation"
        )


def _shares(source: Source, limit: int) -> list[tuple[Part, int | None]]:
    """Which parts are read, and how many samples of each; None is all there are.

    Where nobody knows how many samples a part has, each gives the same number.
    """
    counts = [part.count for part in source.parts]
    if not limit:
        return list(zip(source.parts, counts, strict=True))
    if None in counts:
        used = source.parts[: -(-limit // CHUNK)]
        return [(part, -(-limit // len(used))) for part in used]
    found = []
    for part, count in zip(source.parts, counts, strict=True):
        if limit > 0:
            found.append((part, min(count, limit)))
        limit -= count
    return found


@dataclass(frozen=True, kw_only=True)
class _Picture:
    """A picture ready to encode."""

    pixels: np.ndarray  # (H, W, 3), uint8
    fit: Fit
    order: int  # in its chunk
    texts: list[int]  # of the chunk's


class _Filling:
    """One process filling one cache."""

    def __init__(
        self,
        *,
        folder: Path,
        resolution: int,
        aspect_buckets: bool,
        shares: list[tuple[Part, int | None]],
        on_progress: Progress,
        should_stop: Callable[[], bool],
    ):
        self.folder, self.resolution, self.aspect_buckets = folder, resolution, aspect_buckets
        self.shares, self.on_progress, self.should_stop = shares, on_progress, should_stop
        self.total = 0 if any(share is None for _, share in shares) else sum(share for _, share in shares)
        self.known: dict[str, list[Chunk]] = {part.name: [] for part, _ in shares}

    def chunks(self) -> list[Chunk]:
        """Those that are there, in the data's order."""
        return [chunk for part, _ in self.shares for chunk in self.known[part.name]]

    def run(self, load: Callable[[], Encoders], rank: int, world: int) -> None:
        """Fill the parts that are missing: this process's own first, then what nobody else has in work."""
        mine = self.shares[rank::world]
        others = [share for other in range(rank + 1, rank + world) for share in self.shares[other % world :: world]]
        missing = self._missing(mine + others)
        empty = self.folder / "empty.safetensors"
        if not missing and empty.is_file():
            return
        self._check_space(missing)
        self._tell("loading the encoders")
        self.encoders = load()
        try:
            if not empty.is_file():
                context, pooled = self.encoders.captions([""])
                _write(empty, {"context": context.cpu(), "pooled": pooled.cpu()}, {})
            with ThreadPoolExecutor(max(1, min(_THREADS, (os.cpu_count() or 1) // world))) as self.threads:
                while missing := self._missing(missing):
                    self._fill_what_is_free(missing)
        finally:
            self.encoders.release()

    def _fill_what_is_free(self, missing: Iterable[tuple[Part, int | None]]) -> None:
        for part, share in missing:
            self._stop_if_told()
            with self._claim(part) as ours:
                if ours:
                    self._fill(part, share)
                else:
                    self._tell("waiting for other processes")

    def _missing(self, shares: Iterable[tuple[Part, int | None]]) -> list[tuple[Part, int | None]]:
        return [(part, share) for part, share in shares if not self._look(part, share)]

    def _look(self, part: Part, share: int | None) -> bool:
        """Note the chunks of a part that are on the disk by now; whether they are all."""
        found = self.known[part.name]
        while not (found and found[-1].ends) and (left := _left(found, share)):
            number = len(found)
            chunk = read_chunk(self._file(part, number, CHUNK), left) or read_chunk(
                self._file(part, number, left), left
            )
            if chunk is None:
                return False
            found.append(chunk)
        return True

    def _file(self, part: Part, number: int, samples: int) -> Path:
        """A part's chunk of this number; one that takes less than there is has a name of its own."""
        there = CHUNK if part.count is None else part.count - number * CHUNK
        cut = f".first-{samples}" if samples < min(CHUNK, there) else ""
        return self.folder / f"{part.name}.{number:04}{cut}.safetensors"

    @contextmanager
    def _claim(self, part: Part) -> Iterator[bool]:
        """Whether this process may fill a part now; nobody else does until the block ends."""
        try:
            with WeakFileLock(self.folder / f".{part.name}.lock", timeout=_PATIENCE):
                yield True
        except Timeout:
            yield False

    def _fill(self, part: Part, share: int | None) -> None:
        if self._look(part, share):
            return
        for stale in self.folder.glob(f".{part.name}.*.partial"):  # of a process that was killed
            stale.unlink()
        found = self.known[part.name]
        samples = part.read(CHUNK * len(found))
        while not (found and found[-1].ends) and (left := _left(found, share)):
            file = self._file(part, len(found), left)
            self._write_chunk(file, islice(samples, left), left)
            found.append(read_chunk(file, left))
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
            if isinstance(found, str):
                log.warning("skipped %s: %s", sample.key, found)
                skipped.append((number, f"{sample.key}: {found}"))
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
                f"{CHUNK} pictures in a row cannot be used, so something else is wrong; the first: {skipped[0][1]}"
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
        if not sample.captions:
            return "no caption"
        try:
            image = upright(sample.image())
        except BROKEN as error:
            return str(error) or type(error).__name__
        square = (self.resolution, self.resolution)
        bucket = nearest(*image.size, self.resolution) if self.aspect_buckets else square
        place = fit(*image.size, bucket)
        return np.asarray(image.resize(bucket, Image.Resampling.LANCZOS, box=place.box)), place

    def _check_space(self, missing: list[tuple[Part, int | None]]) -> None:
        """RequestError at once where the disk cannot take what will surely come; latents alone are counted."""
        pictures = sum(share or 0 for _, share in missing)
        check_space(self.folder / "latents", pictures * 4 * (self.resolution // 8) ** 2 * 2)

    def _stop_if_told(self) -> None:
        if self.should_stop():
            raise EncodingStopped

    def _tell(self, message: str, further: int = 0) -> None:
        self.on_progress(sum(chunk.samples for chunk in self.chunks()) + further, self.total, message)


def _left(found: list[Chunk], share: int | None) -> int:
    """How many samples the part's next chunk takes; 0 when it has its share."""
    return CHUNK if share is None else min(CHUNK, share - sum(chunk.samples for chunk in found))


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
