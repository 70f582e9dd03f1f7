"""The judge: picture -> what it shows -> which claims of a prompt hold. No learned model, no randomness.

Objects are chromatic, backgrounds almost neutral, and shadows and light change lightness alone: so the plane
of a and b in CIELAB separates objects from ground, and a grey thing is no object. Coordinates are px, y down.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from PIL import Image
from scipy import ndimage

from koala.shapes.captions import CLAIM_KINDS, Claim, Description, Mention, claims, parse
from koala.shapes.colour import lab
from koala.shapes.render import distance, rgb
from koala.shapes.scene import BACKGROUNDS, COLOURS, SHAPES, SIZES, relation

UNCLEAR = "unclear"  # the word for a shape or a background that is none of ours; it satisfies no claim
CLEAR_FIT = 0.75  # IoU below which a blob is no shape: clean ones reach 0.95, touching pairs rarely 0.72
CLEAR_GROUND = 20.0  # dE76 from every background beyond which the ground is none of them
FOREGROUND = 14.0  # distance from the ground in (a, b): the palest pair, cyan on sky, stands 34.6 apart
SPECK = 0.25  # of the smallest shape's area: what is smaller is no object and is passed over
SMOOTHING = 1.0  # px, of a and b: noise there is large in dark grounds and eats the hole of a small pale ring
OPENING = 2  # px, of the foreground: what is thinner than 5 px is a streak of noise and joins nothing
BORDER = 5  # px along the edges that no object reaches: the ground is measured there
GRID = 64  # cells along a template
REACH = 1.1  # half a template's side, in square roots of the shape's area (the star's points reach 0.85)


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
    """What a picture shows; objects from left to right."""

    background: str
    objects: tuple[Found, ...]
    width: int
    height: int

    def relation(self, first: Found, second: Found) -> str | None:
        """How `first` lies to `second` by the rule of `scene.relation`; None when neither offset is clear."""
        return relation(first, second, min(self.width, self.height))


@dataclass(frozen=True, kw_only=True)
class ClaimResult:
    """A claim, whether it holds, and in a few words what the picture shows for it."""

    claim: Claim
    holds: bool
    seen: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Every claim of a description against one picture, in the order of `captions.claims`."""

    results: tuple[ClaimResult, ...]
    reading: Reading

    @property
    def all(self) -> bool:
        """Whether every claim holds."""
        return all(r.holds for r in self.results)

    @property
    def by_kind(self) -> dict[str, tuple[int, int]]:
        """Kind -> (claims that hold, claims made); kinds without a claim are left out."""
        kinds = {k: [r.holds for r in self.results if r.claim.kind == k] for k in CLAIM_KINDS}
        return {k: (sum(held), len(held)) for k, held in kinds.items() if held}


# --- picture -> reading


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


def _parts(mask: np.ndarray) -> list[np.ndarray]:
    """Connected parts of a mask that are large enough for an object, each (H, W)."""
    labels, num = ndimage.label(mask)
    areas = np.bincount(labels.ravel())
    return [labels == i for i in range(1, num + 1) if areas[i] >= _smallest_area()]


def _by_colour(mask: np.ndarray, ab: np.ndarray) -> list[np.ndarray]:
    """Parts of a blob that each have one palette colour: objects of different colours that touch."""
    nearest = np.linalg.norm(ab[:, :, None] - _palette(False)[1][:, 1:], axis=-1).argmin(-1)  # (H, W, 8) -> (H, W)
    # Where colours blend they pass through others: an opening by 2 px leaves nothing of such a rim.
    classes = (ndimage.binary_opening(mask & (nearest == i), iterations=2) for i in range(len(COLOURS)))
    return [part for c in classes for part in _parts(c)]


def _chroma(colours: np.ndarray, ground: np.ndarray) -> np.ndarray:
    """How far Lab colours (..., 3) stand from the ground (3,) in the plane of a and b."""
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
    for i, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
        top, left = max(0, rows.start - 4), max(0, columns.start - 4)
        window = slice(top, rows.stop + 4), slice(left, columns.stop + 4)
        mask, others = labels[window] == i, (labels[window] > 0) & (labels[window] != i)
        if mask.sum() < _smallest_area():
            continue
        found = [_identify(colours[window], ground, mask, others)]
        if found[0] and found[0].shape == UNCLEAR:
            parts = _by_colour(mask, colours[window][..., 1:])
            taken = np.logical_or.reduce([others, *parts])
            apart = [_identify(colours[window], ground, part, taken & ~part) for part in parts]
            if any(o and o.shape != UNCLEAR for o in apart):
                found = apart
        objects += [replace(o, x=o.x + left, y=o.y + top) for o in found if o]
    objects.sort(key=lambda o: o.x)
    return Reading(background=background, objects=tuple(objects), width=width, height=height)


# --- reading -> verdict


def _says(found: Found, mention: Mention) -> bool:
    """Whether an object has every word of a mention."""
    return (
        found.shape == mention.shape and mention.colour in (None, found.colour) and mention.size in (None, found.size)
    )


def _assign(description: Description, reading: Reading) -> tuple[Found | None, ...]:
    """Mention -> the object it is bound to, one to one: most mentions bound, then most relations; exact."""
    objects, mentions = reading.objects, description.objects
    fitting = [[o for o in objects if _says(o, m)] for m in mentions]
    perfect = (len(mentions), len(description.relations))
    best: tuple[tuple[int, int], tuple[Found | None, ...]] = ((-1, -1), ())

    def extend(chosen: tuple[Found | None, ...]) -> None:
        nonlocal best
        bound = sum(o is not None for o in chosen)
        if best[0] == perfect or bound + len(mentions) - len(chosen) < best[0][0]:
            return  # nothing better can follow
        if len(chosen) == len(mentions):
            held = sum(_related(chosen, r, reading) for r in description.relations)
            best = max(best, ((bound, held), chosen), key=lambda b: b[0])
            return
        for candidate in [*fitting[len(chosen)], None]:
            if candidate is None or all(candidate is not o for o in chosen):
                extend((*chosen, candidate))

    extend(())
    return best[1]


def _related(bound: Sequence[Found | None], claimed: tuple[int, str, int], reading: Reading) -> bool:
    first, how, second = bound[claimed[0]], claimed[1], bound[claimed[2]]
    return None not in (first, second) and reading.relation(first, second) == how


def _listed(words: Sequence[str]) -> str:
    return " and ".join(dict.fromkeys(words)) or "nothing"


def _nearest(mention: Mention, candidates: Sequence[Found]) -> str:
    """The object that comes closest to a mention, in words; a shape in common counts before a colour."""

    def shared(o: Found) -> tuple[bool, bool, bool]:
        return o.shape == mention.shape, o.colour == mention.colour, o.size == mention.size

    return str(max(candidates, key=shared)) if candidates else "nothing"


def _check(claim: Claim, description: Description, reading: Reading, bound: tuple[Found | None, ...]) -> ClaimResult:
    objects, subject = reading.objects, claim.subject
    if claim.kind == "count":
        holds = len(objects) == subject[0]
        seen = f"{len(objects)} object{'' if len(objects) == 1 else 's'}"
    elif claim.kind == "attribute" and subject[0] == "background":
        holds, seen = reading.background == subject[1], f"{reading.background} background"
    elif claim.kind == "attribute":
        words = [getattr(o, subject[0]) for o in objects]
        holds, seen = subject[1] in words, _listed(words)
    elif claim.kind == "binding":
        own = bound[subject[0]]
        free = [o for o in objects if all(o is not b for b in bound)]
        holds, seen = own is not None, str(own) if own else _nearest(description.objects[subject[0]], free)
    else:
        first, _, second = subject
        holds = _related(bound, subject, reading)
        missing = [f"no {description.objects[i]}" for i in (first, second) if bound[i] is None]
        if missing:
            seen = _listed(missing)
        else:
            how = reading.relation(bound[first], bound[second]) or "too close to"
            seen = f"{bound[first]} {how} {bound[second]}"
    return ClaimResult(claim=claim, holds=holds, seen=seen)


def check(reading: Reading, description: Description) -> Verdict:
    """Reading and description -> which claims hold; relations count between bound mentions alone."""
    bound = _assign(description, reading)
    results = tuple(_check(c, description, reading, bound) for c in claims(description))
    return Verdict(results=results, reading=reading)


def verdict(picture: Image.Image | np.ndarray, description: Description) -> Verdict:
    """Picture and description -> which claims hold."""
    return check(read(picture), description)


def judge(picture: Image.Image | np.ndarray, prompt: str) -> Verdict | None:
    """Picture and prompt -> which claims hold; None when the prompt names no shape of this world."""
    description = parse(prompt)
    return None if description is None else verdict(picture, description)
