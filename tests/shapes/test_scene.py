import itertools
import math
import random

import numpy as np
import pytest

from koala.shapes.colour import lab
from koala.shapes.render import LIGHT, SHADOW_DEPTH, rgb
from koala.shapes.scene import (
    BACKGROUNDS,
    COLOURS,
    EXTENT,
    GAP,
    HELD_OUT,
    MARGIN,
    OPPOSITE,
    SHAPES,
    SIZES,
    TRAINING_PAIRS,
    SceneObject,
    random_scene,
    relation,
)

CANVASES = ((256, 256), (320, 192), (192, 320))


def drawn(num: int, seed: int = 0):
    rng = random.Random(seed)
    for i in range(num):
        width, height = CANVASES[i % len(CANVASES)]
        yield random_scene(rng, 1 + i // 3 % 3, width=width, height=height)


def test_the_same_seed_gives_the_same_scenes_and_another_seed_others():
    assert list(drawn(60, seed=7)) == list(drawn(60, seed=7))
    assert list(drawn(60, seed=7)) != list(drawn(60, seed=8))


def test_objects_stand_apart_and_inside_the_picture():
    for scene in drawn(600):
        for a, b in itertools.combinations(scene.objects, 2):
            assert math.hypot(a.x - b.x, a.y - b.y) >= (a.radius + b.radius) * EXTENT + GAP
        for o in scene.objects:
            reach = o.radius * EXTENT + MARGIN
            assert reach <= o.x <= scene.width - reach and reach <= o.y <= scene.height - reach


def test_the_first_two_objects_stand_clearly_to_one_side():
    seen = set()
    for scene in drawn(600):
        if len(scene.objects) > 1:
            first, second = scene.objects[:2]
            side = min(scene.width, scene.height)
            how = relation(first, second, side)
            assert how is not None and relation(second, first, side) == OPPOSITE[how]
            seen.add(how)
    assert seen == set(OPPOSITE)


def test_relation_needs_a_gap_along_its_axis():
    def at(x: int, y: int) -> SceneObject:
        return SceneObject(shape="circle", colour="red", size="small", x=x, y=y)

    assert relation(at(100, 100), at(130, 100), 256) is None  # 30 px, of 30.72
    assert relation(at(100, 100), at(131, 100), 256) == "left of"
    assert relation(at(100, 100), at(130, 100), 192) == "left of"
    assert relation(at(100, 100), at(90, 160), 256) == "above"
    assert relation(at(100, 160), at(90, 100), 256) == "below"


def test_held_out_pairs_are_never_drawn_and_all_others_are():
    pairs = set().union(*(scene.pairs for scene in drawn(900)))
    assert pairs == set(TRAINING_PAIRS)
    assert not pairs & HELD_OUT
    assert len(TRAINING_PAIRS) == len(SHAPES) * len(COLOURS) - len(HELD_OUT)
    assert sorted(s for s, _ in HELD_OUT) == sorted(SHAPES)
    assert len({c for _, c in HELD_OUT}) == len(HELD_OUT)


def test_held_out_pairs_are_drawn_when_asked_for():
    scene = random_scene(random.Random(0), 2, pairs=sorted(HELD_OUT))
    assert scene.pairs <= HELD_OUT


def test_every_word_is_drawn():
    scenes = list(drawn(300))
    objects = [o for s in scenes for o in s.objects]
    assert {s.background for s in scenes} == set(BACKGROUNDS)
    assert {o.size for o in objects} == set(SIZES)
    assert max(SIZES.values()) >= 1.7 * min(SIZES.values())


def test_colours_stay_30_dE_apart_under_every_light_and_shadow():
    light = (1 - 1.2 * LIGHT, 1, 1 + 1.2 * LIGHT)
    ground = (0.97 * (1 - SHADOW_DEPTH), 1, 1.02)
    shaded = {
        name: lab(np.clip([rgb(value) * k for k in (light if name in COLOURS else ground)], 0, 1))
        for name, value in (COLOURS | BACKGROUNDS).items()
    }
    for a, b in itertools.combinations(shaded, 2):
        apart = np.linalg.norm(shaded[a][:, None] - shaded[b][None], axis=-1).min()
        if a in COLOURS:
            assert apart > 30, f"{a} and {b} are {apart:.1f} apart"
    grounds = [lab(rgb(value)) for value in BACKGROUNDS.values()]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(grounds, 2)) > 20


def test_a_canvas_that_is_too_small_says_what_would_fit():
    with pytest.raises(ValueError, match="192 px holds three"):
        random_scene(random.Random(0), 3, width=128, height=128)
    with pytest.raises(ValueError, match="1 to 3 objects"):
        random_scene(random.Random(0), 4)
    assert len(random_scene(random.Random(0), 3, width=192, height=192).objects) == 3
    assert len(random_scene(random.Random(0), 1, width=128, height=128).objects) == 1
