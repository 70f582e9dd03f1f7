"""The shapes world as training data: scene i is a function of i alone, and no scene contains a held-out pair."""

import random
from collections.abc import Iterator
from functools import partial

from koala.distill.config import DistillConfig
from koala.distill.data.samples import Part, Sample, Source, caption_fields
from koala.errors import UserError
from koala.shapes.captions import caption
from koala.shapes.render import render
from koala.shapes.scene import Scene, random_scene

SCENES = 2048  # where the config names no number
PART = 256
CAPTIONS = 2  # of each style
NATIVE = 256  # px: larger pictures are this canvas enlarged, for objects have their size in px
_LEAST_SIDE = {1: 128, 2: 160, 3: 192}  # objects -> px of canvas that hold them
_SHARES = {1: 0.5, 2: 0.4, 3: 0.1}
_WIDE = 320, 192  # in addition to the square; upright as often


def scene(index: int, resolution: int, aspect_buckets: bool) -> Scene:
    """The scene of this number on a canvas for this resolution."""
    rng = random.Random(f"distill/{index}")
    side = min(resolution, NATIVE)
    width = height = side
    if aspect_buckets and side == NATIVE and rng.random() < 0.5:
        width, height = rng.choice([_WIDE, _WIDE[::-1]])
    numbers = [n for n, least in _LEAST_SIDE.items() if least <= min(width, height)]
    num_objects = rng.choices(numbers, [_SHARES[n] for n in numbers])[0]
    return random_scene(rng, num_objects, width=width, height=height)


def _read(
    first: int, count: int, styles: tuple[str, ...], resolution: int, aspect_buckets: bool, start: int
) -> Iterator[Sample]:
    for index in range(first + start, first + count):
        drawn = scene(index, resolution, aspect_buckets)
        rng = random.Random(f"distill/{index}/captions")
        captions = {style: [caption(drawn, style, rng) for _ in range(CAPTIONS)] for style in ("short", "detailed")}
        yield Sample(
            key=f"scene {index}",
            captions=tuple(text for style in styles for text in captions[style]),
            image=partial(render, drawn),
        )


def shapes_source(config: DistillConfig, resolution: int) -> Source:
    """As many scenes as the config asks for."""
    if resolution < _LEAST_SIDE[1]:
        raise UserError(
            f"the shapes world needs {_LEAST_SIDE[1]} px a side for one object, not {resolution}; set resolution"
        )
    styles = tuple(caption_fields(config))
    total = config.num_pictures or SCENES
    parts = []
    for first in range(0, total, PART):
        # whole parts, so that a longer run finds a shorter one's scenes in the cache
        read = partial(_read, first, PART, styles, resolution, config.aspect_buckets)
        parts.append(Part(name=f"scenes-{first:07}", count=PART, read=read))
    identity = {"kind": "shapes", "version": 1, "styles": styles}
    return Source(identify=lambda: identity, parts=tuple(parts), drawn=True)
