"""Scene -> picture: anti-aliased shapes with a soft light and a soft shadow, both in luminance alone.

Shapes are signed distance fields, cached per (shape, size); centres are whole pixels, so a scene costs a few
blends. Shapes: H, W are the picture's height and width.
"""

import math
from functools import cache

import numpy as np
from PIL import Image

from koala.shapes.scene import BACKGROUNDS, COLOURS, EXTENT, SIZES, Scene

ROUNDING = 0.07  # of the radius: corners are soft, so that eight-fold compression keeps them
SHADOW_OFFSET = (4, 6)  # px right, px down
SHADOW_SOFTNESS = 9.0  # px
SHADOW_DEPTH = 0.20
LIGHT = 0.07  # lightness gained at the top left of an object, lost at its bottom right


def rgb(hex_colour: str) -> np.ndarray:
    """'#rrggbb' -> float32 (3,) in 0..1."""
    return np.array([int(hex_colour[i : i + 2], 16) for i in (1, 3, 5)], np.float32) / 255


def _regular(num: int, radius: float, *, start: float = -math.pi / 2) -> list[tuple[float, float]]:
    angles = (start + 2 * math.pi * k / num for k in range(num))
    return [(radius * math.cos(a), radius * math.sin(a)) for a in angles]


def _outline(shape: str) -> list[tuple[float, float]]:
    """Polygon of a shape of nominal radius 1, its centre of mass at the origin."""
    if shape == "square":
        return [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)]
    if shape == "triangle":
        return _regular(3, 1.25)
    if shape == "star":
        outer, inner = _regular(5, 1.27), _regular(5, 0.56, start=-math.pi / 2 + math.pi / 5)
        return [p for pair in zip(outer, inner, strict=True) for p in pair]
    a, b = 1.08, 0.36  # the cross: half its length, half its arm's width
    return [
        (-b, -a),
        (b, -a),
        (b, -b),
        (a, -b),
        (a, b),
        (b, b),
        (b, a),
        (-b, a),
        (-b, b),
        (-a, b),
        (-a, -b),
        (-b, -b),
    ]


def _polygon_distance(x: np.ndarray, y: np.ndarray, points: list[tuple[float, float]]) -> np.ndarray:
    """Signed distance to a closed polygon, negative inside (Quilez, "2D distance functions", polygon)."""
    squared = np.full(x.shape, np.inf, np.float32)
    inside = np.zeros(x.shape, bool)
    for (ax, ay), (bx, by) in zip(points, points[-1:] + points[:-1], strict=True):
        ex, ey, wx, wy = bx - ax, by - ay, x - ax, y - ay
        t = np.clip((wx * ex + wy * ey) / (ex * ex + ey * ey), 0, 1)
        squared = np.minimum(squared, (wx - ex * t) ** 2 + (wy - ey * t) ** 2)
        crosses = (y >= ay) != (y >= by)
        inside ^= crosses & ((ex * wy > ey * wx) == (ey > 0))
    return np.where(inside, -1, 1) * np.sqrt(squared)


def distance(shape: str, radius: float, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Signed distance in px, negative inside, of `shape` with nominal `radius` centred at the origin."""
    if shape == "circle":
        return np.hypot(x, y) - radius
    if shape == "ring":  # 1.08 and 0.52 radii outside and inside
        return np.abs(np.hypot(x, y) - 0.80 * radius) - 0.28 * radius
    rounding = ROUNDING * radius
    points = [(px * radius, py * radius) for px, py in _outline(shape)]
    return _polygon_distance(x, y, points) - rounding


@cache
def _tile(shape: str, size: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coverage, light and shadow of one object on a (2r+1, 2r+1) tile about its centre."""
    radius = SIZES[size]
    reach = math.ceil(radius * EXTENT + SHADOW_SOFTNESS + max(SHADOW_OFFSET))
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1].astype(np.float32)
    coverage = np.clip(0.5 - distance(shape, radius, x, y), 0, 1)
    light = 1 - LIGHT * np.clip((x + y) / (math.sqrt(2) * radius), -1.2, 1.2)
    dx, dy = SHADOW_OFFSET
    ramp = np.clip(0.5 - distance(shape, radius, x - dx, y - dy) / (2 * SHADOW_SOFTNESS), 0, 1)
    shadow = 1 - SHADOW_DEPTH * ramp * ramp * (3 - 2 * ramp)
    return coverage[..., None], light[..., None].astype(np.float32), shadow[..., None].astype(np.float32)


def _window(centre: int, reach: int, length: int) -> tuple[slice, slice]:
    """Where a tile of `reach` about `centre` lies: (slice of the picture, slice of the tile)."""
    low, high = max(0, centre - reach), min(length, centre + reach + 1)
    return slice(low, high), slice(low - centre + reach, high - centre + reach)


def render_array(scene: Scene) -> np.ndarray:
    """Scene -> float32 (H, W, 3) in 0..1."""
    fall = np.linspace(1.02, 0.97, scene.height, dtype=np.float32)[:, None, None]
    picture = np.broadcast_to(rgb(BACKGROUNDS[scene.background]) * fall, (scene.height, scene.width, 3)).copy()
    tiles = [(o, *_tile(o.shape, o.size)) for o in scene.objects]
    for o, coverage, _, shadow in tiles:
        reach = coverage.shape[0] // 2
        (py, ty), (px, tx) = _window(o.y, reach, scene.height), _window(o.x, reach, scene.width)
        picture[py, px] *= shadow[ty, tx]
    for o, coverage, light, _ in tiles:
        reach = coverage.shape[0] // 2
        (py, ty), (px, tx) = _window(o.y, reach, scene.height), _window(o.x, reach, scene.width)
        alpha = coverage[ty, tx]
        picture[py, px] += alpha * (rgb(COLOURS[o.colour]) * light[ty, tx] - picture[py, px])
    return np.clip(picture, 0, 1)


def object_mask(scene: Scene) -> np.ndarray:
    """Coverage of all objects together, float32 (H, W) in 0..1."""
    mask = np.zeros((scene.height, scene.width), np.float32)
    for o in scene.objects:
        coverage = _tile(o.shape, o.size)[0][..., 0]
        reach = coverage.shape[0] // 2
        (py, ty), (px, tx) = _window(o.y, reach, scene.height), _window(o.x, reach, scene.width)
        mask[py, px] = np.maximum(mask[py, px], coverage[ty, tx])
    return mask


def render(scene: Scene) -> Image.Image:
    """Scene -> RGB picture."""
    return Image.fromarray(np.round(render_array(scene) * 255).astype(np.uint8))
