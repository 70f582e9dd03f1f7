"""Scenes of one to three coloured shapes: the vocabulary, the geometry and a seeded generator.

Lengths are pixels of the native picture, origin at the top left, y down. An object keeps its pixel size on
every canvas, so a wide picture shows the same circle as a square one.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLOURS = {
    "red": "#d42a34",
    "orange": "#f7901e",
    "yellow": "#f2d838",
    "green": "#2f9e44",
    "cyan": "#32d2d8",
    "blue": "#2f6fed",
    "purple": "#6a1fb0",
    "pink": "#f05cc0",
}
# Backgrounds carry almost no chroma: an object differs from any of them by hue, a shadow by lightness alone.
BACKGROUNDS = {"cream": "#f5f0e6", "sky": "#b4c8dc", "slate": "#6e7882", "night": "#1c212b"}
SIZES = {"small": 20.0, "large": 36.0}  # nominal radius, px; large / small = 1.8
RELATIONS = ("left of", "right of", "above", "below")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}

# Shape and colour pairs that no training picture shows: one per shape, no colour more than once.
HELD_OUT = frozenset(
    {
        ("circle", "purple"),
        ("square", "yellow"),
        ("triangle", "cyan"),
        ("star", "green"),
        ("cross", "orange"),
        ("ring", "red"),
    }
)
TRAINING_PAIRS = tuple((s, c) for s in SHAPES for c in COLOURS if (s, c) not in HELD_OUT)

EXTENT = 1.34  # half the largest width of any shape, in nominal radii (the star's points, plus its rounding)
MARGIN = 5  # px between an object's extent and the edge of the picture
GAP = 8  # px between two objects' extents: nothing ever touches
RELATION_GAP = 0.12  # of the canvas's shorter side, along the relation's axis


@dataclass(frozen=True, kw_only=True)
class SceneObject:
    """One shape; x, y is its centre of mass in px."""

    shape: str
    colour: str
    size: str
    x: int
    y: int

    @property
    def radius(self) -> float:
        """In px, by its size."""
        return SIZES[self.size]


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Objects in the order in which a caption names them, on one background."""

    objects: tuple[SceneObject, ...]
    background: str
    width: int = 256
    height: int = 256

    @property
    def pairs(self) -> frozenset[tuple[str, str]]:
        """The (shape, colour) there are, in no order."""
        return frozenset((o.shape, o.colour) for o in self.objects)


def relation(first: SceneObject, second: SceneObject, side: int) -> str | None:
    """How `first` lies to `second`: the axis of the larger offset decides; None when neither offset is clear."""
    dx, dy = first.x - second.x, first.y - second.y
    if max(abs(dx), abs(dy)) < RELATION_GAP * side:
        return None
    if abs(dx) >= abs(dy):
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"


def place(rng: random.Random, sizes: Sequence[str], width: int, height: int) -> list[tuple[int, int]] | None:
    """Random centres for objects of these sizes, none touching; None when this draw does not fit."""
    centres: list[tuple[int, int]] = []
    for i, size in enumerate(sizes):
        reach = math.ceil(SIZES[size] * EXTENT) + MARGIN
        if 2 * reach > min(width, height):
            return None
        for _ in range(30):
            x, y = rng.randint(reach, width - reach), rng.randint(reach, height - reach)
            if all(
                math.hypot(x - cx, y - cy) >= (SIZES[size] + SIZES[sizes[j]]) * EXTENT + GAP
                for j, (cx, cy) in enumerate(centres)
            ):
                centres.append((x, y))
                break
        if len(centres) <= i:
            return None
    return centres


def _unambiguous(objects: Sequence[SceneObject], side: int) -> bool:
    """Whether the first two objects lie clearly to one side of each other, not on the diagonal."""
    if len(objects) < 2:
        return True
    dx, dy = abs(objects[0].x - objects[1].x), abs(objects[0].y - objects[1].y)
    return relation(objects[0], objects[1], side) is not None and max(dx, dy) >= 1.25 * min(dx, dy)


def random_scene(
    rng: random.Random,
    num_objects: int,
    *,
    width: int = 256,
    height: int = 256,
    pairs: Sequence[tuple[str, str]] = TRAINING_PAIRS,
    sizes: Sequence[str] = tuple(SIZES),
) -> Scene:
    """A scene of `num_objects` different (shape, colour) pairs; the same `rng` state gives the same scene.

    Raises ValueError when the canvas cannot hold that many objects.
    """
    if not 1 <= num_objects <= 3:
        raise ValueError(f"a scene holds 1 to 3 objects, not {num_objects}")
    for _ in range(1000):
        chosen = rng.sample(list(pairs), num_objects)
        drawn = [rng.choice(list(sizes)) for _ in chosen]
        centres = place(rng, drawn, width, height)
        if centres is None:
            continue
        objects = tuple(
            SceneObject(shape=s, colour=c, size=z, x=x, y=y)
            for (s, c), z, (x, y) in zip(chosen, drawn, centres, strict=True)
        )
        if _unambiguous(objects, min(width, height)):
            return Scene(objects=objects, background=rng.choice(list(BACKGROUNDS)), width=width, height=height)
    raise ValueError(
        f"{num_objects} objects do not fit {width}x{height} px; a side of 192 px holds three, 128 px holds one"
    )
