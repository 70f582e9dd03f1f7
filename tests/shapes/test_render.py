import random

import numpy as np
import pytest
from scipy import ndimage

from koala.shapes.colour import lab
from koala.shapes.render import distance, object_mask, render, render_array, rgb
from koala.shapes.scene import BACKGROUNDS, COLOURS, EXTENT, SHAPES, SIZES, Scene, SceneObject, random_scene


def one(shape: str, size: str = "large", colour: str = "red", background: str = "cream") -> Scene:
    return Scene(objects=(SceneObject(shape=shape, colour=colour, size=size, x=120, y=130),), background=background)


def test_a_picture_has_its_canvas_and_is_the_same_every_time():
    scene = random_scene(random.Random(0), 3, width=320, height=192)
    assert render(scene).size == (320, 192)
    assert render_array(scene).shape == (192, 320, 3)
    assert render_array(scene).dtype == np.float32
    np.testing.assert_array_equal(render_array(scene), render_array(scene))
    np.testing.assert_array_equal(np.asarray(render(scene)), np.round(render_array(scene) * 255))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_lies_about_its_centre_of_mass_and_within_its_extent(shape, size):
    mask = object_mask(one(shape, size))
    y, x = ndimage.center_of_mass(mask)
    assert (x, y) == (pytest.approx(120, abs=0.3), pytest.approx(130, abs=0.3))
    rows, columns = np.nonzero(mask)
    assert np.hypot(columns - 120, rows - 130).max() <= SIZES[size] * EXTENT + 1
    assert ndimage.label(mask > 0.5)[1] == 1
    holes = ndimage.label(mask <= 0.5)[1] - 1
    assert holes == (shape == "ring")


@pytest.mark.parametrize("shape", SHAPES)
def test_the_distance_is_in_pixels_and_grows_with_the_radius(shape):
    line = np.linspace(-90, 90, 721, dtype=np.float32)
    x, y = np.meshgrid(line, line)
    steep = np.hypot(*np.gradient(distance(shape, 36.0, x, y), 0.25))
    assert np.median(steep) == pytest.approx(1, abs=0.01)
    np.testing.assert_allclose(distance(shape, 36.0, x, y), 36 * distance(shape, 1.0, x / 36, y / 36), atol=1e-3)


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_shadow_and_light_change_lightness_and_hardly_chroma(background):
    scene = one("circle", background=background)
    colours, mask = lab(render_array(scene)), object_mask(scene)
    ground, inside = colours[mask == 0], colours[mask == 1]
    assert np.linalg.norm(ground[:, 1:] - np.median(ground[:, 1:], axis=0), axis=1).max() < 3
    assert np.ptp(ground[:, 0]) > 3  # there is a shadow
    assert np.ptp(inside[:, 0]) > 3  # there is light
    assert np.linalg.norm(inside.mean(0) - lab(rgb(COLOURS["red"]))) < 2


def test_the_mask_covers_what_differs_from_the_bare_ground():
    scene = random_scene(random.Random(5), 3)
    bare = render_array(Scene(objects=(), background=scene.background))
    changed = np.linalg.norm((lab(render_array(scene)) - lab(bare))[..., 1:], axis=-1) > 14
    mask = object_mask(scene)
    assert changed[mask > 0.9].all() and not changed[mask == 0].any()
