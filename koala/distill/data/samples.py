"""What every source of pictures gives: samples with a lazy picture, in parts that are read one by one."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from PIL import Image, ImageOps

from koala.distill.config import DistillConfig
from koala.distill.data.depths import eight_bits

HUB = "hub:"  # stands before the address of a hub data set


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One picture with its captions. `image` opens it, and may raise anything if it is broken."""

    key: str  # what a log line calls it
    captions: tuple[str, ...]
    image: Callable[[], Image.Image]
    fault: str = ""  # why it cannot be used, where that is known before the picture is opened
    out_of_reach: bool = False  # whether that may be another time: a file that is missing


@dataclass(frozen=True, kw_only=True)
class Part:
    """A stretch of a source, always in the same order: `read(start)` yields its samples from number `start` on."""

    name: str  # unique in its source, and fit for a file name
    count: int | None  # samples in it; None is unknown until it was read
    read: Callable[[int], Iterator[Sample]]


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where pictures come from; `about` says in a sentence what is used, how, and what is left out."""

    parts: tuple[Part, ...]
    identify: Callable[[], dict]  # may read all of the files
    about: str = ""
    used: Sequence[Path] = ()  # files that are read besides the pictures
    drawn: bool = False  # at random, so that any stretch of it is as good as any other

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


def upright(image: Image.Image) -> Image.Image:
    """RGB as a viewer would show it: turned as its EXIF data says, what is transparent on white."""
    image = ImageOps.exif_transpose(eight_bits(image))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
