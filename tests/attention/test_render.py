"""Pictures of maps: colours that mean more and less, patches in their place, films that read back."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from koala.attention.render import MARK, TABLE, components, film, gif, heat, levels, marked, spread, strip, table
from koala.shapes.colour import lab


def test_more_is_brighter_to_the_eye():
    lightness = lab(TABLE)[:, 0]
    assert TABLE.shape == (256, 3) and TABLE.dtype == np.uint8
    assert (np.diff(lightness) > 0).mean() > 0.9 and (np.diff(lightness[::8]) > 0).all()
    assert lightness[0] < 5 and lightness[-1] > 95


def test_levels_span_to_the_largest_or_to_a_given_height():
    values = torch.tensor([0.0, 0.25, 0.5])
    assert levels(values).tolist() == [0, 128, 255]
    assert levels(values, high=1.0).tolist() == [0, 64, 128]
    assert levels(values, gamma=0.5).tolist() == [0, 180, 255]
    assert levels(torch.zeros(3)).tolist() == [0, 0, 0]


def test_heat_lies_where_its_patch_is_and_opacity_shows_the_picture():
    picture = Image.new("RGB", (60, 40), (0, 200, 0))
    values = torch.zeros(6)
    values[4] = 1.0  # second row, second column of 2x3
    drawn = heat(picture, values, (2, 3), opacity=1)
    assert drawn.getpixel((30, 30)) == tuple(TABLE[255]) and drawn.getpixel((30, 10)) == tuple(TABLE[0])
    assert drawn.getpixel((20, 20)) == tuple(TABLE[255]) and drawn.getpixel((19, 20)) == tuple(TABLE[0])
    assert heat(picture, values, (2, 3), opacity=0).tobytes() == picture.tobytes()


def test_components_and_the_mark_lie_in_their_patch():
    colours = torch.arange(18, dtype=torch.uint8).reshape(6, 3)
    assert components(colours, (2, 3), (60, 40)).getpixel((59, 39)) == (15, 16, 17)
    picture = Image.new("RGB", (60, 40))
    drawn = np.array(marked(picture, (2, 1, 3, 2), (2, 3)))
    at = np.argwhere((drawn == MARK).all(-1))
    assert at.min(0).tolist() == [18, 38] and not picture.getbbox(), "the picture itself is untouched"


def test_a_table_has_its_pictures_headings_and_what_is_absent():
    red = Image.new("RGB", (8, 8), (250, 0, 0))
    drawn = table([[red, "no MID"], [red, red]], columns=["DW-2", "MID"], rows=["teacher", "student"], note="how " * 60)
    plain = table([[red, red], [red, red]], columns=["DW-2", "MID"], rows=["teacher", "student"], note="how")
    count = [(np.array(p) == (250, 0, 0)).all(-1).sum() for p in (drawn, plain)]
    assert count == [3 * 256 * 256, 4 * 256 * 256]
    assert drawn.width == plain.width and drawn.height > plain.height, "a long note has lines of its own"


def test_a_strip_has_models_as_rows_and_keeps_the_shape_of_its_frames():
    """192x128 px at 256 px for the longer side are 256x171."""
    frames = [(Image.new("RGB", (192, 128), (k, 200, 0)), "no MID") for k in (10, 60, 250)]
    drawn = np.array(strip(frames, ["1", "2", "3"], titles=["student", "teacher"], note="note"))
    places = [np.argwhere((drawn == (k, 200, 0)).all(-1)) for k in (10, 60, 250)]
    assert [len(at) for at in places] == [256 * 171] * 3
    assert len({at[:, 0].min() for at in places}) == 1, "the first model's frames lie in one row"
    assert places[0][:, 1].max() < places[1][:, 1].min() < places[2][:, 1].min()


def test_a_film_has_models_side_by_side_and_a_frame_per_label():
    colours = [((10, 200, 0), (0, 40, 250)), ((90, 0, 200), (250, 250, 0))]
    frames = [[Image.new("RGB", (64, 64), colour) for colour in pair] for pair in colours]
    with Image.open(io.BytesIO(film(frames, ["1", "2"], titles=["student", "teacher"], note="note"))) as opened:
        assert opened.n_frames == 2
        for k, pair in enumerate(colours):
            opened.seek(k)
            drawn = np.array(opened.convert("RGB"), int)
            left, right = (np.argwhere(np.abs(drawn - colour).max(-1) < 12) for colour in pair)
            assert len(left) == len(right) == 256 * 256 and left[:, 1].max() < right[:, 1].min()


@pytest.mark.parametrize(("count", "most", "expected"), [(3, 8, [0, 1, 2]), (25, 8, [0, 3, 7, 10, 14, 17, 21, 24]),
                                                         (1, 8, [0]), (9, 1, [0]), (5, 2, [0, 4])])  # fmt: skip
def test_steps_are_spread_evenly_from_the_first_to_the_last(count, most, expected):
    assert spread(count, most) == expected


def test_a_film_has_every_frame_in_one_palette():
    generator = np.random.default_rng(0)
    frames = [Image.fromarray(np.kron(generator.integers(0, 255, (8, 8, 3), np.uint8), np.ones((4, 4, 1), np.uint8)))
              for _ in range(3)]  # fmt: skip
    with Image.open(io.BytesIO(gif(frames, 120))) as opened:
        assert opened.n_frames == 3 and opened.info["duration"] == 120 and opened.info["loop"] == 0
        gaps = []
        for k, frame in enumerate(frames):
            opened.seek(k)
            gaps.append(np.abs(np.array(opened.convert("RGB"), int) - np.array(frame, int)).mean())
    print(f"mean difference per frame: {gaps}")
    assert max(gaps) < 12


def test_equal_frames_stay_frames():
    """A film of a map that does not move still has one frame per step."""
    with Image.open(io.BytesIO(gif([Image.new("RGB", (8, 8), (9, 9, 9))] * 3))) as opened:
        assert opened.info["duration"] * opened.n_frames == pytest.approx(750)
