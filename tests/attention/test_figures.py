"""Figures, strips and films: models as rows, what is absent named, and every choice printed below."""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from koala.attention import figures, maps, render
from koala.attention.capture import Side
from koala.attention.figures import Choices, figure, over_steps, words
from koala.attention.kinds import FIGURES
from koala.attention.recorded import beside
from koala.attention.render import MARK, PAPER, SEGMENTS
from koala.errors import UserError
from koala.unet.specs import TINY_KOALA_700M, TINY_SDXL

TOKENS = ("<|startoftext|>", "red</w>", "cir", "cle</w>", "<|endoftext|>")
STAGES = ("DW-2", "MID", "UP-1")


@pytest.fixture
def sides(record_of):
    """A student of three steps next to its teacher of five, grey pictures."""
    paths = ["up_blocks.0.attentions.2.transformer_blocks.4.attn1", "mid_block.attentions.0.transformer_blocks.9.attn1"]
    paths += ["down_blocks.1.attentions.0.transformer_blocks.1.attn1"]
    teacher = record_of(TINY_SDXL, (900.0, 700.0, 500.0, 300.0, 100.0), layers=paths, cross=True)
    student = record_of(TINY_KOALA_700M, (900.0, 500.0, 100.0), seed=1, stages=["DW-2", "UP-1"], cross=True)
    grey = Image.new("RGB", (64, 64), (128, 128, 128))
    return [
        Side(title=f"the {name}", picture=grey, record=replace(r, tokens=TOKENS))
        for name, r in (("student", student), ("teacher", teacher))
    ]


@pytest.fixture
def notes(monkeypatch):
    """What the pictures print below, as they are drawn."""
    given, table = [], render.table

    def listening(*args, note, **kwargs):
        given.append((note, kwargs))
        return table(*args, note=note, **kwargs)

    monkeypatch.setattr(render, "table", listening)
    return given


def cell(picture, row, column, left):
    """The square of 256 px in a table."""
    x, y = left + column * 266, 36 + row * 266
    return np.array(picture)[y : y + 256, x : x + 256]


def left_of(picture) -> int:
    """Where the first picture begins: the first grey column."""
    grey = (np.array(picture)[100] == (128, 128, 128)).all(-1)
    return int(grey.argmax())


@pytest.mark.parametrize("kind", [k for k in FIGURES if k != "words"])
def test_a_figure_shows_models_by_stages_and_prints_its_choices(sides, notes, kind):
    picture = figure(sides, STAGES, Choices(kind=kind, pixel=(20, 40)))
    ((note, drawn),) = notes
    assert drawn["columns"] == ["picture", "DW-2 (4x4)", "MID (2x2)", "UP-1 (2x2)"]
    assert drawn["rows"] == ["the student", "the teacher"]
    for words_ in (
        "Step 2 of 3, t = 500 (the student) and step 3 of 5, t = 500 (the teacher). ",
        "Layers: DW-2, transformer 1, block 2; MID, transformer 1, block 10; "
        "UP-1, transformer 2, block 5 (the student) and transformer 3, block 5 (the teacher). ",
        "ean of all heads",
        "Conditional half",
        "seed 0, guidance 1, 64x64 px",
    ):
        assert words_ in note
    assert ("Variance shown: DW-2" in note) == (kind == "pca") and ("pixel 20,40" in note) == (kind == "rows")
    left = left_of(picture)
    missing = cell(picture, 0, 2, left)
    assert (missing[2:-2, 2:-2] == PAPER).all(-1).mean() > 0.9, "MID of the student is a text on paper"
    assert (cell(picture, 1, 2, left)[2:-2, 2:-2] == PAPER).all(-1).mean() < 0.1


def test_the_marked_patch_is_the_pixels_and_the_map_its_row(sides):
    """In DW-2's 4x4 grid pixel 20,40 of 64 is row 2, column 1."""
    picture = figure(sides, ["DW-2"], Choices(pixel=(20, 40), opacity=1.0))
    left = left_of(picture)
    shown = cell(picture, 1, 1, left)
    marks = np.argwhere((shown == MARK).all(-1))
    assert marks.min(0).tolist() == [120, 56], "two pixels of the picture, eight px here, around the patch"
    record, layer = sides[1].record, beside([s.record for s in sides])["DW-2"][-1][1]
    row = maps.row(*record.at(layer, 2), 9)
    brightest = int(row.argmax())
    light = shown.astype(int).sum(-1)[32::64, 32::64].flatten()
    assert int(light.argmax()) == brightest


def test_a_box_looks_from_all_its_patches_and_is_drawn_in_the_picture_too(sides):
    """Pixels 20,20 to 40,40 of 64 are the four patches in the middle of DW-2's 4x4."""
    shown = figure(sides, ["DW-2"], Choices(box=(20, 20, 40, 40), opacity=1.0))
    left = left_of(shown)
    for column in (0, 1):
        marks = np.argwhere((cell(shown, 1, column, left) == MARK).all(-1))
        assert marks.min(0).tolist() == [56, 56] and marks.max(0).tolist() == [199, 199]
    record, layer = sides[1].record, beside([s.record for s in sides])["DW-2"][-1][1]
    rows = maps.probabilities(*record.at(layer, 2))[[5, 6, 9, 10]].mean(0)
    light = cell(shown, 1, 1, left).astype(int).sum(-1)[16::64, 16::64].flatten()
    assert int(light.argmax()) == int(rows.argmax())


def test_another_layer_than_the_last_is_shown(record_of, notes):
    record = record_of(TINY_KOALA_700M, (9.0,), stages=["UP-1"], layers="all")
    side = Side(title="the student", picture=Image.new("RGB", (64, 64)), record=record)
    for layer, label in (
        (None, "transformer 2, block 5"),
        (0, "transformer 1, block 1"),
        (9, "transformer 2, block 5"),
    ):
        figure([side], ["UP-1"], Choices(layer=layer))
        assert f"Layers: UP-1, {label}." in notes[-1][0]
    with pytest.raises(UserError, match="layer 11 is not among the 10 recorded of the student's UP-1"):
        Choices(layer=10).check(record, "the student")


def test_segments_are_the_records_own(sides):
    shown = cell(picture := figure(sides, ["DW-2"], Choices(kind="segments", opacity=1.0)), 1, 1, left_of(picture))
    record, layer = sides[1].record, beside([s.record for s in sides])["DW-2"][-1][1]
    labels = maps.segments(maps.probabilities(*record.at(layer, 2)), layer.grid)
    assert np.array_equal(shown[32::64, 32::64].reshape(16, 3), SEGMENTS[labels % 8].numpy())


def test_distance_without_the_diagonal_is_farther(sides):
    """A patch is no distance from itself, so leaving that out can only raise the mean."""
    record, layer = sides[1].record, beside([s.record for s in sides])["DW-2"][-1][1]
    with_it, without = (maps.mean_distance(*record.at(layer, 0), layer.grid, diagonal=d) for d in (True, False))
    assert (without > with_it).all()


def test_a_record_of_a_pipeline_that_was_called_directly_prints_what_is_known(sides, notes):
    unknown = [replace(s, record=replace(s.record, prompt="", seed=None, guidance=None)) for s in sides]
    figure(unknown, ["UP-1"], Choices())
    assert notes[-1][0].endswith("Conditional half. 64x64 px.")


def test_layers_stand_beside_those_they_were_cut_from(sides):
    rows = beside([side.record for side in sides])
    assert [x.label for x in rows["UP-1"][0]] == ["UP-1, transformer 2, block 5", "UP-1, transformer 3, block 5"]
    assert rows["MID"][0][0] is None and list(rows) == ["DW-2", "MID", "UP-1"]
    for stage, message in (
        ("UP-2", "UP-2 was not recorded, there is DW-2, MID, UP-1; capture"),
        ("UP-3", "no attention in UP-3"),
    ):
        with pytest.raises(UserError, match=message):
            figure(sides, [stage], Choices())


def test_strips_and_films_go_over_the_steps_that_both_have(sides, notes):
    strip, film = over_steps(sides, "UP-1", Choices(kind="pca"))
    assert [n[1]["columns"] for n in notes[:1]] == [["t = 900", "t = 500", "t = 100"]]
    with Image.open(io.BytesIO(film)) as opened:
        assert opened.n_frames == 3
    assert strip.width > 3 * 256
    over_steps(sides, "MID", Choices(kind="rows"))


def test_a_mean_over_steps_and_single_heads_are_shown_as_such(sides, notes):
    figure(sides, ["UP-1"], Choices(kind="pca", step="mean", head=1))
    assert "mean of 5 steps (the teacher)" in notes[-1][0] and "head 2, one basis" in notes[-1][0]
    figure(sides, ["UP-1"], Choices(kind="rows", head="max", diagonal=False))
    assert "Max of all heads, without what a patch sees of itself" in notes[-1][0]


def test_paper_mode_says_what_each_model_shows(sides, notes):
    figure(sides, ["UP-1"], Choices(kind="pca", paper=True))
    assert "heads side by side, each model and step fitted alone. Variance shown: UP-1 the student" in notes[-1][0]


def test_words_are_columns(sides, notes, monkeypatch):
    words(sides, "DW-2", Choices(kind="words"))
    note, drawn = notes[-1]
    assert drawn["columns"] == ["red", "circle"] and "cross-attention" in note
    monkeypatch.setattr(figures, "MOST_WORDS", 1)
    words(sides, "DW-2", Choices(kind="words"))
    assert notes[-1][1]["columns"] == ["red"] and "the first 1 of 2 words" in notes[-1][0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"step": 3}, "step 4 is not in the student's run of 3"),
        ({"step": "last"}, "step 'last' is neither"),
        ({"pixel": (64, 0)}, "pixel 64,0 is outside the picture of 64x64 px; x goes from 0 to 63, y to 63"),
        ({"box": (0, 0, 64, 9)}, "box 0,0,64,9 is outside the picture of 64x64 px"),
        ({"box": (9, 0, 3, 9)}, "left before right and top before bottom"),
        ({"layer": 1}, "layer 2 is not among the 1 recorded of the student's DW-2; choose 1 to 1"),
        ({"head": 2}, "head 3 is not one of DW-2's 2"),
        ({"head": "median"}, "choose mean, max or a number"),
        ({"kind": "pca", "paper": True, "step": "mean"}, "each step is fitted alone"),
    ],
)
def test_what_cannot_be_drawn_is_known_before_the_run(sides, settings, message):
    with pytest.raises(UserError, match=message):
        Choices(**settings).check(sides[0].record, "the student")


def test_words_need_cross_attention(record_of):
    with pytest.raises(UserError, match="words need cross-attention"):
        Choices(kind="words").check(record_of(TINY_SDXL, (9.0,)), "the teacher")
    with pytest.raises(UserError, match="there is no figure 'svd'; choose one of rows"):
        Choices(kind="svd")


def test_pictures_are_the_same_every_time(sides):
    first, second = (figure(sides, STAGES, Choices(kind="pca")).tobytes() for _ in range(2))
    assert first == second
