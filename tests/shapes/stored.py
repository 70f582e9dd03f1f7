"""Readings and pictures made from seeds, and what the judge said of them when `stored_verdicts.json` was written.

`python -m tests.shapes.stored` writes that file anew: only for a judge that is meant to judge otherwise than before.
"""

import hashlib
import json
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy import ndimage

from koala.shapes.captions import Description, Mention
from koala.shapes.judge import check
from koala.shapes.reading import Found, Reading, read
from koala.shapes.render import render, rgb
from koala.shapes.scene import BACKGROUNDS, COLOURS, RELATIONS, SHAPES, SIZES, Scene, SceneObject

FILE = Path(__file__).with_name("stored_verdicts.json")
NUM_READINGS, NUM_PICTURES = 1000, 30
DIGITS = 8  # of a hash: hexadecimal


def reading(seed: int) -> tuple[Reading, Description]:
    """What a picture might show, and what a prompt might say: up to nine objects, alike often enough to be confused."""
    rng = random.Random(f"reading {seed}")
    shapes, colours = rng.sample(SHAPES, rng.choice((1, 2, 3))), rng.sample(list(COLOURS), rng.choice((1, 2, 3)))
    side = rng.choice((256, 512))
    mentions = tuple(
        Mention(
            shape=rng.choice(shapes),
            colour=rng.choice(colours) if rng.random() < 0.7 else None,
            size=rng.choice(list(SIZES)) if rng.random() < 0.3 else None,
        )
        for _ in range(rng.randint(1, 3))
    )
    drawn = (
        list(mentions) if rng.random() < 0.4 else [Mention(shape=rng.choice(shapes)) for _ in range(rng.randint(0, 9))]
    )
    objects = [
        Found(
            shape="unclear" if rng.random() < 0.05 else one.shape,
            colour=one.colour or rng.choice(colours),
            size=one.size or rng.choice(list(SIZES)),
            x=rng.uniform(20, side - 20),
            y=rng.uniform(20, side - 20),
            radius=rng.uniform(15, 40),
            fit=rng.uniform(0.5, 1),
        )
        for one in drawn
    ]
    objects.sort(key=lambda o: o.x)
    relations = [(k, rng.choice(RELATIONS), k + 1) for k in range(len(mentions) - 1) if rng.random() < 0.8]
    ground = rng.choice(list(BACKGROUNDS)) if rng.random() < 0.4 else None
    seen = Reading(background=rng.choice(list(BACKGROUNDS)), objects=tuple(objects), width=side, height=side)
    return seen, Description(objects=mentions, relations=tuple(relations), background=ground)


def picture(seed: int) -> np.ndarray:
    """Up to seven objects that may touch or be cut off, soft and noisy, now and then patched: (H, W, 3) of uint8."""
    rng, noise = random.Random(f"picture {seed}"), np.random.default_rng(seed)
    width, height = rng.choice(((256, 256), (320, 192), (192, 320)))
    objects = tuple(
        SceneObject(
            shape=rng.choice(SHAPES),
            colour=rng.choice(list(COLOURS)),
            size=rng.choice(list(SIZES)),
            x=rng.randint(0, width),
            y=rng.randint(0, height),
        )
        for _ in range(rng.randint(1, 7))
    )
    drawn = np.asarray(
        render(Scene(objects=objects, background=rng.choice(list(BACKGROUNDS)), width=width, height=height)), float
    ).copy()
    for _ in range(rng.choice((0, 0, 3))):  # long patches of several colours, joined: no shape of ours
        x, y = rng.randint(0, width - 40), rng.randint(0, height - 60)
        for k in range(3):
            drawn[y + 20 * k : y + 20 * k + 20, x : x + 40] = 255 * rgb(rng.choice(list(COLOURS.values())))
    blur = rng.uniform(0, 2)
    drawn = ndimage.gaussian_filter(drawn, (blur, blur, 0)) + noise.normal(0, rng.uniform(0, 4), drawn.shape)
    return np.clip(np.round(drawn), 0, 255).astype(np.uint8)


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:DIGITS]


def verdict(seed: int) -> str:
    """The hash of everything that the judge says of a reading."""
    checked = check(*reading(seed))
    return _hash([[r.claim.kind, r.claim.text, r.holds, r.seen] for r in checked.results])


def sight(seed: int) -> str:
    """The hash of what is read off a picture, places to about 4 px."""
    seen = read(picture(seed))
    return _hash([seen.background, *([str(o), round(o.x / 4), round(o.y / 4)] for o in seen.objects)])


def judged() -> Iterator[tuple[str, list[str]]]:
    """What the judge says now, as the file has it."""
    yield "verdicts", [verdict(seed) for seed in range(NUM_READINGS)]
    yield "pictures", [sight(seed) for seed in range(NUM_PICTURES)]


if __name__ == "__main__":
    FILE.write_text(json.dumps({what: "".join(hashes) for what, hashes in judged()}, indent=1) + "\n")
