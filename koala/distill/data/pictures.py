"""A picture from wherever a row says that it is: bytes, a file, an address; as RGB of 8 bits.

Numbers of more than 8 bits are scaled to the range that they use, or refused where it is unknown.
"""

import io
import os
import urllib.request
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import fsspec
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError, features

from koala.distill.data.buckets import Fit, fit, nearest
from koala.distill.data.files import is_file
from koala.distill.data.samples import Sample

ENDINGS = ("jpg", "jpeg", "png", "webp", "avif", "bmp", "gif", "tif", "tiff", "jfif")  # of files that are pictures
_TIMEOUT = 20.0  # s, for a picture behind an address
_AVIF = (b"ftypavif", b"ftypavis")
_BITS, _PHOTOMETRIC = 258, 262  # TIFF's tags
_WHITE_IS_ZERO = 0


class OutOfReach(OSError):
    """A picture that is unavailable now: missing, not answered, or without a decoder. It need not be broken."""


def open_picture(value: object, base: Path) -> Image.Image:
    """From bytes, a path, an address, or {"bytes", "path"} as `datasets` stores pictures. OutOfReach for now."""
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str) and value:
        value = local_file(value, base) or _fetch(value)
    if isinstance(value, Path):
        if not is_file(value):  # a pipe would be waited for without end
            raise OutOfReach(f"there is no file {value}")
        try:
            value = value.read_bytes()
        except OSError as error:
            raise OutOfReach(f"{value} cannot be read ({error.strerror or error})") from error
    if isinstance(value, bytes) and value:
        return _opened(value)
    raise ValueError("no picture" if not value else f"a {type(value).__name__} is not a picture")


def local_file(value: str, base: Path) -> Path | None:
    """The file that a path, or an address on this machine, means; None for an address elsewhere."""
    if value.lower().startswith("file://"):
        plain = value[len("file://") :]
        return Path(plain if is_file(Path(plain)) else urllib.request.url2pathname(plain))
    if "://" in value:
        return None
    return base / slashed(value, base)


def slashed(path: str, base: Path) -> str:
    """A path as it is, or as it was meant where Windows wrote it: images\\1.png."""
    return path.replace("\\", "/") if "\\" in path and not is_file(base / path) else path


def _opened(content: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(content))
    except UnidentifiedImageError as error:
        if content[4:12] in _AVIF and not features.check("avif"):
            raise OutOfReach("this Pillow reads no AVIF; pip install 'pillow>=11.3'") from error
        raise ValueError("it is not a picture that Pillow can read") from error


def _fetch(address: str) -> bytes:
    try:
        return _answer(address)
    except Exception as error:  # every file system of fsspec has errors of its own, one that is not installed too
        raise OutOfReach(f"{address}: {error or type(error).__name__}") from error


def _answer(address: str) -> bytes:
    if not address.startswith(("http://", "https://")):
        with fsspec.open(address, "rb") as file:  # hf://, s3:// and the like
            return file.read()
    request = urllib.request.Request(address, headers={"User-Agent": "koala"})
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
        return answer.read()


def upright(image: Image.Image) -> Image.Image:
    """RGB as a viewer would show it: rotated by its EXIF data, transparency on white."""
    image = ImageOps.exif_transpose(eight_bits(image))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def eight_bits(image: Image.Image) -> Image.Image:
    """The picture with 8 bits a channel; ValueError for numbers without a known range. Pillow's own clips to white."""
    if image.mode == "F":
        raise ValueError("its numbers are fractions of an unknown range; save it with 8 or 16 bits")
    if image.mode != "I" and not image.mode.startswith("I;16"):
        return image
    tags = getattr(image, "tag_v2", {})
    values = np.asarray(image).astype(np.int64)
    most = 2 ** _bits(image, tags, values) - 1
    grey = np.clip(values * 255 / most + 0.5, 0, 255).astype(np.uint8)
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        grey = 255 - grey
    converted = Image.fromarray(grey)
    clear = image.info.get("transparency")
    if isinstance(clear, int):  # the value that is to be seen through; several may have become the same grey
        converted.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    converted.getexif().update(image.getexif())  # it may say how the picture is to be turned
    return converted


def _bits(image: Image.Image, tags: dict, values: np.ndarray) -> int:
    """How many bits of each number the picture uses."""
    if image.mode != "I" or image.format == "PNG":
        declared = tags.get(_BITS, (16,))[0]
        return declared if 8 < declared <= 16 else 16
    if values.min() >= 0 and 255 < values.max() < 2**16:  # 16 bits in a wider number
        return 16
    raise ValueError(
        f"its numbers have 32 bits and run from {values.min():,} to {values.max():,}; save it with 8 or 16 bits"
    )


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
