"""Retries pictures that were out of reach when a cache was filled; successors of its chunks hold what is there now.

A chunk stays what it was for the runs that learned from it. Its successor holds its pictures, bit for bit, and those
that became available since.
"""

import time
from collections.abc import Callable, Iterator
from itertools import islice

from filelock import Timeout
from huggingface_hub.utils import WeakFileLock

from koala.distill.data.chunks import ChunkMaker
from koala.distill.data.encoded import Chunk, Skipped, last_try, successor
from koala.distill.data.filling import Filling
from koala.distill.data.pictures import Unusable
from koala.distill.data.samples import Sample
from koala.words import many

_LONGEST = 3600.0  # s: other processes of the run wait, but not forever
_PATIENCE = 0.2  # s to wait for another run's retry before checking whether to stop


class Again:
    """One retry of everything that is out of reach in the chunks of a filling."""

    def __init__(self, filling: Filling, *, say: Callable[[str], None]):
        self.filling, self.say = filling, say
        self.encoders = None
        self.until = time.monotonic() + _LONGEST

    def run(self) -> int:
        """Returns the number of the last try that found any pictures, this one or an earlier one."""
        while True:
            self.filling.stop_if_told()
            try:
                with WeakFileLock(self.filling.folder / ".again.lock", timeout=_PATIENCE):
                    return self._run()
            except Timeout:  # another run tries
                continue

    def _run(self) -> int:
        last = last_try(self.filling.folder)
        self.filling.take_tries(last)
        lacking = [(n, first, chunk) for n, first, chunk in self.filling.there() if chunk.out_of_reach]
        wanted, came = sum(len(chunk.out_of_reach) for _, _, chunk in lacking), 0
        if not lacking:
            return last
        self.say(f"retrying what was out of reach: {many(wanted, 'picture')}")
        try:
            for number, first, chunk in lacking:
                came += self._chunk(number, first, chunk, last + 1)
        except _NoTime:
            self.say("retrying took an hour; the next new run continues")
        finally:
            if self.encoders is not None:
                self.encoders.release()
        if came:
            self.say(f"{came:,} of them are there now")
        return last_try(self.filling.folder)

    def _chunk(self, number: int, first: int, chunk: Chunk, tries: int) -> int:
        """Returns how many pictures are available now; they are in the chunk's successor."""
        maker, came, now = None, 0, {one.number: one for one in chunk.skipped}
        samples = list(self._samples(number, first, chunk))
        places = iter(chunk.out_of_reach)
        for sample, decoded in self.filling.decoder.ahead(samples):
            self._go_on()
            place = next(places)
            if isinstance(decoded, Unusable):
                why = f"{sample.key}: {decoded.why}"
                now[place] = Skipped(number=place, why=why, out_of_reach=decoded.out_of_reach)
                continue
            if self.encoders is None:
                self.encoders = self.filling.load()
            maker = maker or ChunkMaker(self.encoders, self._go_on)
            maker.add(place, sample.captions, *decoded)
            del now[place]
            came += 1
        if maker or any(not one.out_of_reach for n, one in now.items() if n in chunk.out_of_reach):
            maker = maker or ChunkMaker(self.encoders, self._go_on)
            maker.encode_rest()
            skipped, file = [now[n] for n in sorted(now)], successor(chunk.file, tries)
            maker.write(file, samples=chunk.samples, ends=chunk.ends, skipped=skipped, former=chunk.file)
        return came

    def _samples(self, number: int, first: int, chunk: Chunk) -> Iterator[Sample]:
        read = islice(self.filling.parts[number].read(first), chunk.samples)
        for place, sample in enumerate(read):
            self._go_on()
            if place in chunk.out_of_reach:
                yield sample

    def _go_on(self) -> None:
        self.filling.stop_if_told()
        if time.monotonic() > self.until:
            raise _NoTime


class _NoTime(Exception):
    """The others have waited long enough."""
