"""Filling a cache: part by part of a source, by any number of processes at once, each part under a file lock.

A lock ends with its process, and a chunk is a file of its own: a process that is killed loses one chunk. What a chunk
holds depends only on the cache's key and its own name, so it does not matter which process wrote it.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from filelock import Timeout
from huggingface_hub.utils import WeakFileLock

from koala.distill.data.chunks import ChunkMaker, store_tensors
from koala.distill.data.encoded import Chunk, Skipped, read_chunk, successors
from koala.distill.data.encoders import Encoders
from koala.distill.data.pictures import Decoder, Unusable
from koala.distill.data.samples import Part, Sample
from koala.errors import UserError
from koala.files.outputs import check_space

log = logging.getLogger(__name__)

CHUNK = 256  # pictures of a file
_PATIENCE = 0.2  # s to wait for a lock before trying the next part

Progress = Callable[[int, int, str], None]  # samples done, samples in all (0 is unknown), what is being done


class EncodingStopped(Exception):
    """Encoding was stopped on request; what was encoded is kept, and the next run continues from it."""


class Filling:
    """One process filling one cache with `parts`, of which `limit` samples are wanted; 0 is all."""

    def __init__(
        self,
        folder: Path,
        parts: Sequence[Part],
        *,
        limit: int,
        decoder: Decoder,
        load: Callable[[], Encoders],
        on_progress: Progress,
        should_stop: Callable[[], bool],
    ):
        self.folder, self.parts, self.limit = folder, parts, limit
        self.decoder, self.load, self.world = decoder, load, 1
        self.on_progress, self.should_stop = on_progress, should_stop
        self.empty = folder / "empty.safetensors"
        self.later: dict[str, list[Path]] = {}  # successors of chunks, by the name of the chunk's first file
        self.known: dict[int, list[Chunk]] = {}  # by the number of the part
        self.shares = self._first_shares()  # samples that each part is to give, by number; None for all
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

    def take_tries(self, number: int | None) -> None:
        """Use the successors of chunks up to the try of this number; None uses all."""
        self.later = successors(self.folder, number)

    def run(self, rank: int, world: int) -> list[Chunk]:
        """Fill what is missing and wait for what others are filling; returns all chunks in the order of the data."""
        self.world = world
        self._fill_shares(rank, world)
        while self._take_more():
            self._fill_shares(rank, world)
        return self._chunks()

    def is_complete(self) -> bool:
        """Whether there is nothing to fill."""
        while not self._missing(self.shares):
            if not self._take_more():
                return self.empty.is_file()
        return False

    def there(self) -> list[tuple[int, int, Chunk]]:
        """The chunks that need not be filled: (number of the part, first sample in it, chunk)."""
        self.is_complete()
        return [(n, CHUNK * at, chunk) for n in sorted(self.known) for at, chunk in enumerate(self.known[n])]

    def _take_more(self) -> bool:
        """Whether parts have to give more than their share so far."""
        further = self._lacking()
        for number, samples in further.items():
            self.shares[number] = self.shares.get(number, 0) + samples
            self.known.pop(number, None)
        return bool(further)

    def _lacking(self) -> dict[int, int]:
        """What to take in addition, where parts of unknown length gave fewer samples than their share."""
        lacking = self.limit - sum(chunk.samples for chunk in self._chunks())
        if lacking <= 0:
            return {}
        unused = [n for n, part in enumerate(self.parts) if part.count is None and n not in self.shares]
        longer = [n for n in self.shares if self.parts[n].count is None and not self.known[n][-1].ends]
        return self._further_shares(unused or longer, lacking) if unused or longer else {}

    def _chunks(self) -> list[Chunk]:
        return [chunk for number in sorted(self.known) for chunk in self.known[number]]

    def _fill_shares(self, rank: int, world: int) -> None:
        """This process's own parts first, then those that no other process is filling."""
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
                store_tensors(self.empty, {"context": context.cpu(), "pooled": pooled.cpu()}, {})
            while missing := self._missing(missing):
                self._fill_what_is_free(missing)
        finally:
            self.encoders.release()

    def _fill_what_is_free(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            self.stop_if_told()
            with self._claim(self.parts[number]) as ours:
                if ours:
                    self._fill(number)
                else:
                    self._tell("waiting for other processes")

    def _missing(self, numbers: Iterable[int]) -> list[int]:
        missing = []
        for number in numbers:
            self.stop_if_told()
            if not self._look(number):
                missing.append(number)
        return missing

    def _look(self, number: int) -> bool:
        """Note the chunks of a part that are on the disk by now; whether they are all."""
        chunks = self.known.setdefault(number, [])
        while left := self._left(number):
            chunk = self._read(self._file(number, left))
            if chunk is None:
                return False
            chunks.append(chunk)
        return True

    def _read(self, file: Path) -> Chunk | None:
        return next(filter(None, map(read_chunk, [*self.later.get(file.name, ()), file])), None)

    def _left(self, number: int) -> int:
        """How many samples the part's next chunk takes; 0 when it has no more or has given its share."""
        chunks, share = self.known[number], self.shares[number]
        if chunks and chunks[-1].ends:
            return 0
        return CHUNK if share is None else min(CHUNK, share - sum(chunk.samples for chunk in chunks))

    def _file(self, number: int, samples: int) -> Path:
        """The part's next chunk; one that takes less than there is has a name of its own.

        It is no other's beginning: the last bits of what is encoded depend on what was encoded together.
        """
        part, before = self.parts[number], len(self.known[number])
        samples_there = CHUNK if part.count is None else part.count - before * CHUNK
        cut = f".first-{samples}" if samples < min(CHUNK, samples_there) else ""
        return self.folder / f"{part.name}.{before:04}{cut}.safetensors"

    @contextmanager
    def _claim(self, part: Part) -> Iterator[bool]:
        """Whether this process may fill a part now; no other process does until the block ends."""
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
        skipped, number = [], 0

        def after_batch() -> None:
            self.stop_if_told()
            self._tell("encoding", number)

        maker = ChunkMaker(self.encoders, after_batch)
        for sample, decoded in self.decoder.ahead(samples, self.world):
            self.stop_if_told()
            if isinstance(decoded, Unusable):
                log.warning("skipped %s: %s", sample.key, decoded.why)
                why = f"{sample.key}: {decoded.why}"
                skipped.append(Skipped(number=number, why=why, out_of_reach=decoded.out_of_reach))
            else:
                maker.add(number, sample.captions, *decoded)
            number += 1
        maker.encode_rest()
        if len(skipped) == CHUNK:  # a wrong column, or a network that went away: not to be remembered as broken
            raise UserError(
                f"{CHUNK} pictures in a row cannot be used, so something else is wrong; the first: {skipped[0].why}"
            )
        maker.write(file, samples=number, ends=number < asked, skipped=skipped)

    def _check_space(self, missing: Iterable[int]) -> None:
        """UserError at once where the disk cannot take what will surely come; latents alone are counted."""
        pictures = sum(self.shares[number] or 0 for number in missing)
        check_space(self.folder / "latents", pictures * 4 * (self.decoder.resolution // 8) ** 2 * 2)

    def stop_if_told(self) -> None:
        """Raises EncodingStopped where this process is to stop."""
        if self.should_stop():
            raise EncodingStopped

    def _tell(self, message: str, further: int = 0) -> None:
        self.on_progress(sum(chunk.samples for chunk in self._chunks()) + further, self.total, message)
