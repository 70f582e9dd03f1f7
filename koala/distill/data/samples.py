"""What every source of pictures yields: samples with a lazy picture, in parts that are read one by one.

The samples that are used and those that are held out are spread over all of them, chosen by the seed.
"""

import random
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import accumulate
from pathlib import Path

from PIL import Image

from koala.distill.config import DistillConfig

HUB = "hub:"  # prefix of the address of a hub data set
PART = 256


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One picture with its captions. `image` opens it, and may raise anything if it is broken."""

    key: str  # its name in a log line
    captions: tuple[str, ...]
    image: Callable[[], Image.Image]
    fault: str = ""  # why it cannot be used, where that is known before the picture is opened
    out_of_reach: bool = False  # whether it may be usable later: a missing file


@dataclass(frozen=True, kw_only=True)
class Part:
    """A stretch of a source, always in the same order: `read(start)` yields its samples from number `start` on."""

    name: str  # unique in its source, and fit for a file name
    count: int | None  # samples in it; None is unknown until it was read
    read: Callable[[int], Iterator[Sample]]


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where pictures come from; `about` describes in a sentence what is used, how, and what is left out."""

    parts: tuple[Part, ...]
    identify: Callable[[], dict]  # may read all of the files
    about: str = ""
    used: Sequence[Path] = ()  # files that are read in addition to the pictures
    drawn: bool = False  # at random, so any stretch of it is as good as another

    @cached_property
    def identity(self) -> dict:
        """JSON that changes whenever the samples do."""
        return self.identify()


def caption_fields(config: DistillConfig) -> dict[str, str]:
    """Caption style -> the column or file ending that is to hold it, of the styles that are learned."""
    fields = {"short": config.short_caption, "detailed": config.detailed_caption}
    return fields if config.captions == "mixed" else {config.captions: fields[config.captions]}


def no_picture() -> Image.Image:
    """The picture of a sample that has none."""
    raise ValueError("no picture")


def spread(total: int, count: int, seed: int, what: str) -> list[int]:
    """`count` of the numbers below `total`, ascending: one at random out of each of `count` stretches of one length.

    Data are in the order of their names, so a stretch of them is often one class. Two are half of all apart, so that
    no class has both unless it is more than half of all.
    """
    count = min(count, total)
    rng = random.Random(f"{seed}/{what}")
    if count == 2:
        first = rng.randrange(total)
        return sorted((first, (first + total // 2) % total))
    return [rng.randrange(k * total // count, (k + 1) * total // count) for k in range(count)]


def chosen(source: Source, num_pictures: int, seed: int) -> Source:
    """The source with `num_pictures` of its samples, 0 is all; with its parts shuffled where their lengths are unknown.

    A source that was drawn at random is left as it is: its first samples are as good as any.
    """
    counts = [part.count for part in source.parts]
    if not num_pictures or source.drawn:
        return source
    if None in counts:
        parts = list(source.parts)
        random.Random(f"{seed}/parts").shuffle(parts)
        return replace(source, parts=tuple(parts))
    if sum(counts) <= num_pictures:
        return source
    numbers = spread(sum(counts), num_pictures, seed, "pictures")
    starts = [0, *accumulate(counts)]
    parts = tuple(
        Part(name=f"chosen-{first:07}", count=len(some), read=partial(_read, source.parts, starts, some))
        for first in range(0, num_pictures, PART)
        if (some := numbers[first : first + PART])
    )

    def identity() -> dict:
        return source.identity | {"chosen": {"pictures": num_pictures, "seed": seed}}

    about = f"{source.about}; {num_pictures:,} of {sum(counts):,} are used, chosen by the seed {seed}"
    return replace(source, parts=parts, identify=identity, about=about)


def _read(parts: Sequence[Part], starts: Sequence[int], numbers: Sequence[int], start: int) -> Iterator[Sample]:
    """The samples of these numbers, each part read in one go."""
    wanted: dict[int, list[int]] = {}
    for number in numbers[start:]:
        part = bisect_right(starts, number) - 1
        wanted.setdefault(part, []).append(number - starts[part])
    for part, places in wanted.items():
        samples = enumerate(parts[part].read(places[0]), places[0])
        for place in places:
            yield next(sample for at, sample in samples if at == place)
