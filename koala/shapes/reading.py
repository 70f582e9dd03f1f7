"""A picture -> what it shows: its background, and its objects with shape, colour, size and place. No learned model.

Objects are chromatic, backgrounds almost neutral, and shadows and light change lightness alone: so the plane
of a and b in CIELAB separates objects from ground, and grey regions are not objects. Coordinates are px, y down.
"""

import math
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from PIL import Image
from scipy import ndimage

from koala.shapes.colour import lab
from koala.shapes.render import distance, rgb
from koala.shapes.scene import BACKGROUNDS, COLOURS, SHAPES, SIZES, relation

UNCLEAR = "unclear"  # a shape or background outside the vocabulary; it satisfies no claim
CLEAR_FIT = 0.75  # IoU below which a blob is not a shape: clean ones reach 0.95, touching pairs rarely 0.72
CLEAR_GROUND = 20.0  # dE76 from every background beyond which the ground is none of them
FOREGROUND = 14.0  # distance from the ground in (a, b): the palest pair, cyan on sky, is 34.6 apart
SPECK = 0.25  # of the smallest shape's area: anything smaller is not an object and is skipped
SMOOTHING = 1.0  # px, of a and b: noise there is large in dark grounds and eats the hole of a small pale ring
OPENING = 2  # px, of the foreground: what is thinner than 5 px is a streak of noise and joins nothing
BORDER = 5  # px along the edges that no object reaches: the ground is measured there
GRID = 64  # cells along a template
REACH = 1.1  # half a template's side, in square roots of the shape's area (the star's points reach 0.85)
MOST_OBJECTS = 200  # of a picture that are identified, the largest first: a prompt's author can steer a picture
MOST_PIXELS = 2  # of the windows around them, in areas of the picture


@dataclass(frozen=True, kw_only=True)
class Found:
    """One object of a picture: words, centre of mass and nominal radius in px, IoU with the best template."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    radius: float
    fit: float

    def __str__(self) -> str:
        return f"{self.size} {self.colour} {'blob' if self.shape == UNCLEAR else self.shape}"


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a picture shows; objects from left to right. Of very many only the largest are identified."""

    background: str
    objects: tuple[Found, ...]
    width: int
    height: int
    unread: int = 0  # smaller things beyond MOST_OBJECTS or MOST_PIXELS

    def relation(self, first: Found, second: Found) -> str | None:
        """How `first` lies to `second` by the rule of `scene.relation`; None when neither offset is clear."""
        return relation(first, second, min(self.width, self.height))


@cache
def _templates() -> tuple[np.ndarray, np.ndarray]:
    """Coverage of every shape at area 1, (6, GRID * GRID), and each shape's area at radius 1, (6,)."""
    fine = np.arange(-1.5, 1.5, 1 / 128, dtype=np.float32) + 1 / 256
    y, x = np.meshgrid(fine, fine, indexing="ij")
    areas = np.array([(distance(s, 1.0, x, y) < 0).mean() * 9 for s in SHAPES])
    step = 2 * REACH / GRID
    line = (np.arange(GRID, dtype=np.float32) + 0.5) * step - REACH
    y, x = np.meshgrid(line, line, indexing="ij")
    cover = [
        np.clip(0.5 - distance(s, float(1 / math.sqrt(a)), x, y) / step, 0, 1)
        for s, a in zip(SHAPES, areas, strict=True)
    ]
    return np.stack(cover).reshape(len(SHAPES), -1).astype(np.float32), areas


def _fit(mask: np.ndarray) -> tuple[int, float, tuple[float, float], float]:
    """Mask (H, W) -> (index of the best shape, its IoU, centre (y, x), area in px).

    Mask and templates are compared at area 1 about their centres of mass.
    """
    rows, columns = np.nonzero(mask)
    area, y, x = len(rows), rows.mean(), columns.mean()
    line = ((np.arange(GRID) + 0.5) * (2 * REACH / GRID) - REACH) * math.sqrt(area)
    at = np.broadcast_arrays(line[:, None] + y, line + x)
    sampled = ndimage.map_coordinates(mask.astype(np.float32), at, order=1).ravel()
    covers = _templates()[0]
    common = np.minimum(covers, sampled).sum(1)
    whole = max(sampled.sum(), (GRID / (2 * REACH)) ** 2)  # what reaches beyond the grid counts too
    overlap = common / (covers.sum(1) + whole - common)
    best = int(overlap.argmax())
    return best, float(overlap[best]), (y, x), float(area)


@cache
def _palette(background: bool) -> tuple[tuple[str, ...], np.ndarray]:
    """Names and Lab colours (N, 3) of the backgrounds or of the objects."""
    table = BACKGROUNDS if background else COLOURS
    return tuple(table), np.stack([lab(rgb(c)) for c in table.values()])


def _smallest_area() -> float:
    return SPECK * _templates()[1].min() * min(SIZES.values()) ** 2


@dataclass(frozen=True)
class _Part:
    """A connected region: its window with a margin around it, and its mask there."""

    window: tuple[slice, slice]
    mask: np.ndarray  # (h, w) of bool


def _around(region: tuple[slice, slice], shape: tuple[int, ...]) -> tuple[slice, slice]:
    """A region's window with 4 px more on every side, within the picture."""
    return tuple(slice(max(0, s.start - 4), min(length, s.stop + 4)) for s, length in zip(region, shape, strict=True))


def _largest(labels: np.ndarray, most: int = MOST_OBJECTS) -> tuple[list[tuple[int, tuple[slice, slice]]], int]:
    """(number, window) of each labelled region that is large enough for an object, and how many more are left out."""
    areas = np.bincount(labels.ravel())
    regions = ndimage.find_objects(labels)
    large = [i for i in range(1, len(areas)) if areas[i] >= _smallest_area()]
    chosen, pixels = [], 0
    for i in sorted(large, key=lambda i: -areas[i])[:most]:
        window = _around(regions[i - 1], labels.shape)
        pixels += math.prod(s.stop - s.start for s in window)
        if chosen and pixels > MOST_PIXELS * labels.size:
            break
        chosen.append((i, window))
    return sorted(chosen, key=lambda each: each[0]), len(large) - len(chosen)


def _by_colour(mask: np.ndarray, ab: np.ndarray, most: int) -> tuple[list[_Part], int]:
    """Parts of a blob that each have one palette colour: objects of different colours that touch; and how many more."""
    apart = np.linalg.norm(ab[mask][:, None] - _palette(False)[1][:, 1:], axis=-1)  # (n, 2) -> (n, 8)
    nearest = np.zeros(mask.shape, np.int8)
    nearest[mask] = 1 + apart.argmin(-1)
    counts = np.bincount(nearest.ravel(), minlength=len(COLOURS) + 1)
    labels, count = np.zeros(mask.shape, np.int32), 0  # of all colours: no two parts lie over each other
    for number, region in enumerate(ndimage.find_objects(nearest), start=1):
        if region is None or counts[number] < _smallest_area():
            continue
        # Where colours blend they pass through others: an opening by 2 px leaves nothing of such a rim.
        own, num = ndimage.label(ndimage.binary_opening(nearest[region] == number, iterations=2))
        labels[region][own > 0] = own[own > 0] + count
        count += num
    regions, more = _largest(labels, most)
    return [_Part(window, labels[window] == i) for i, window in regions], more


def _chroma(colours: np.ndarray, ground: np.ndarray) -> np.ndarray:
    """Distance of Lab colours (..., 3) from the ground (3,) in the plane of a and b."""
    return np.hypot(colours[..., 1] - ground[1], colours[..., 2] - ground[2])


def _identify(colours: np.ndarray, ground: np.ndarray, mask: np.ndarray, others: np.ndarray) -> Found | None:
    """Crop (H, W, 3), ground (3,) in Lab, masks of a blob and its neighbours -> object, in the crop's px.

    None for a stain: its colour is nearer to the ground's than to any of ours.
    """
    core = ndimage.binary_erosion(mask, iterations=3)
    seen = np.median(colours[core if core.any() else mask], axis=0)
    names, palette = _palette(False)
    apart = np.linalg.norm(palette - seen, axis=1)
    if np.linalg.norm(seen - ground) < apart.min():
        return None
    # The edge lies where half of the object's own chroma is reached, however soft it is.
    half = _chroma(colours, ground) > _chroma(seen, ground) / 2
    edged = half & ndimage.binary_dilation(mask, iterations=OPENING + 1) & ~others
    best, fit, (y, x), area = _fit(edged if edged.any() else mask)
    radius = math.sqrt(area / _templates()[1][best])
    size = min(SIZES, key=lambda s: abs(math.log(radius / SIZES[s])))
    shape = SHAPES[best] if fit >= CLEAR_FIT else UNCLEAR
    colour = names[int(apart.argmin())]
    return Found(shape=shape, colour=colour, size=size, x=float(x), y=float(y), radius=radius, fit=fit)


def _split(colours: np.ndarray, ground: np.ndarray, parts: list[_Part], others: np.ndarray) -> list[Found]:
    """The objects that the parts of a blob are, in the crop's px."""
    occupied = others.copy()
    for part in parts:
        occupied[part.window] |= part.mask
    objects = []
    for part in parts:
        shape = _identify(colours[part.window], ground, part.mask, occupied[part.window] & ~part.mask)
        if shape:
            rows, columns = part.window
            objects.append(replace(shape, x=shape.x + columns.start, y=shape.y + rows.start))
    return objects


def _pixels(picture: Image.Image | np.ndarray) -> np.ndarray:
    """Picture -> uint8 (H, W, 3)."""
    if isinstance(picture, Image.Image):
        return np.asarray(picture.convert("RGB"))
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise ValueError(
            f"the judge reads uint8 pictures (H, W, 3), not {picture.dtype} {picture.shape}; "
            "scale floats to 0..255, put channels last, then .astype(np.uint8)"
        )
    return picture


def _ground(colours: np.ndarray) -> tuple[str, np.ndarray]:
    """Picture (H, W, 3) in Lab -> (name of its background, Lab of its ground as observed (3,))."""
    edges = (colours[:BORDER], colours[-BORDER:], colours[:, :BORDER], colours[:, -BORDER:])
    ground = np.median(np.concatenate([e.reshape(-1, 3) for e in edges]), axis=0)
    names, palette = _palette(True)
    apart = np.linalg.norm(palette - ground, axis=1)
    return names[int(apart.argmin())] if apart.min() < CLEAR_GROUND else UNCLEAR, ground


def read(picture: Image.Image | np.ndarray) -> Reading:
    """RGB picture of any size, uint8 (H, W, 3) if an array -> its background and its objects."""
    colours = lab(_pixels(picture))
    height, width = colours.shape[:2]
    background, ground = _ground(colours)
    colours[..., 1:] = ndimage.gaussian_filter(colours[..., 1:], (SMOOTHING, SMOOTHING, 0))
    foreground = _chroma(colours, ground) > FOREGROUND
    labels, _ = ndimage.label(ndimage.binary_opening(foreground, iterations=OPENING))
    objects: list[Found] = []
    blobs, unread = _largest(labels)
    left = MOST_OBJECTS  # of the parts of all blobs
    for i, window in blobs:
        mask, others = labels[window] == i, (labels[window] > 0) & (labels[window] != i)
        shapes = [_identify(colours[window], ground, mask, others)]
        if shapes[0] and shapes[0].shape == UNCLEAR and left:
            parts, more = _by_colour(mask, colours[window][..., 1:], left)
            left -= len(parts)
            apart = _split(colours[window], ground, parts, others)
            if any(o.shape != UNCLEAR for o in apart):
                shapes, unread = apart, unread + more
        rows, columns = window
        objects += [replace(o, x=o.x + columns.start, y=o.y + rows.start) for o in shapes if o]
    objects.sort(key=lambda o: o.x)
    return Reading(background=background, objects=tuple(objects), width=width, height=height, unread=unread)
