"""Pictures of more than 8 bits: scaled to what they show, or refused where nobody can know what that is."""

import numpy as np
from PIL import Image

_BITS, _PHOTOMETRIC = 258, 262  # TIFF's tags
_WHITE_IS_ZERO = 0


def eight_bits(image: Image.Image) -> Image.Image:
    """The picture with 8 bits a channel; ValueError for numbers without a known range. Pillow's own clips to white."""
    if image.mode == "F":
        raise ValueError("its numbers are fractions, whose range nobody knows; save it with 8 or 16 bits")
    if image.mode != "I" and not image.mode.startswith("I;16"):
        return image
    tags = getattr(image, "tag_v2", {})
    values = np.asarray(image).astype(np.int64)
    most = 2 ** _bits(image, tags, values) - 1
    grey = np.clip(values * 255 / most + 0.5, 0, 255).astype(np.uint8)
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        grey = 255 - grey
    found = Image.fromarray(grey)
    clear = image.info.get("transparency")
    if isinstance(clear, int):  # the value that is to be seen through; several may have become the same grey
        found.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    found.getexif().update(image.getexif())  # it may say how the picture is to be turned
    return found


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
