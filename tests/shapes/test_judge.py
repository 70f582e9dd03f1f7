import itertools
import random

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from koala.shapes.captions import STYLES, caption, claims, parse
from koala.shapes.judge import NoVerdict, judge, verdict
from koala.shapes.reading import UNCLEAR, read
from koala.shapes.render import render, rgb
from koala.shapes.scene import BACKGROUNDS, COLOURS, SHAPES, SIZES, Scene, SceneObject, random_scene

ALL_PAIRS = [(s, c) for s in SHAPES for c in COLOURS]
CANVASES = ((256, 256), (320, 192), (192, 320))
PROMPT = "a large red circle left of a small blue square on a cream background"


def scenes(num: int, seed: int = 1):
    rng = random.Random(seed)
    for i in range(num):
        width, height = CANVASES[i % len(CANVASES)]
        yield random_scene(rng, 1 + i // 3 % 3, width=width, height=height, pairs=ALL_PAIRS)


def is_read(scene: Scene, picture: Image.Image | np.ndarray, within: float = 2.0) -> bool:
    reading = read(picture)
    seen = sorted((o.shape, o.colour, o.size, o.x, o.y) for o in reading.objects)
    true = sorted((o.shape, o.colour, o.size, o.x, o.y) for o in scene.objects)
    return (
        reading.background == scene.background
        and [o[:3] for o in seen] == [o[:3] for o in true]
        and all(max(abs(a[3] - b[3]), abs(a[4] - b[4])) <= within for a, b in zip(seen, true, strict=True))
    )


def thing(words: str, x: int, y: int = 128) -> SceneObject:
    size, colour, shape = words.split()
    return SceneObject(shape=shape, colour=colour, size=size, x=x, y=y)


def picture(*objects: SceneObject, background: str = "cream", width: int = 256) -> Image.Image:
    return render(Scene(objects=objects, background=background, width=width))


def failed(judged) -> list[tuple[str, str, str]]:
    return [(r.claim.kind, r.claim.text, r.seen) for r in judged.results if not r.holds]


# --- reading


def test_clean_pictures_are_read_exactly():
    wrong = [s for s in scenes(300) if not is_read(s, render(s))]
    assert not wrong, wrong[:3]


def test_a_thin_line_between_two_objects_does_not_make_them_one():
    """What two openings take away, of the foreground and of each colour: two pixels of the objects' own colour."""
    drawn = np.array(picture(thing("small red circle", 60), thing("small red circle", 190)))
    drawn[127:129, 60:190] = drawn[128, 60]
    seen = [(o.shape, o.colour, o.size) for o in read(drawn).objects]
    assert seen == [("circle", "red", "small")] * 2


def test_every_shape_colour_size_and_background_is_read():
    for i, ((shape, colour), size) in enumerate(itertools.product(ALL_PAIRS, SIZES)):
        background = list(BACKGROUNDS)[(i // 2 + i // 16) % 4]  # each with every shape and every colour
        drawn = picture(thing(f"{size} {colour} {shape}", 128), background=background)
        (seen,) = read(drawn).objects
        assert (seen.shape, seen.colour, seen.size) == (shape, colour, size), f"{seen} on {background}"
        assert read(drawn).background == background
        assert 0.95 < seen.fit <= 1
        assert abs(seen.radius - SIZES[size]) < 1


@pytest.mark.parametrize(("blur", "noise"), [(1.5, 4), (2.5, 2)])
def test_soft_and_noisy_pictures_are_read(blur, noise):
    rng = np.random.default_rng(0)
    wrong = []
    for scene in scenes(100, seed=2):
        soft = ndimage.gaussian_filter(np.asarray(render(scene), float), (blur, blur, 0))
        soft += rng.normal(0, noise, soft.shape)
        if not is_read(scene, np.clip(np.round(soft), 0, 255).astype(np.uint8)):
            wrong.append(scene)
    assert len(wrong) <= 1, wrong[:3]


def test_an_array_reads_as_its_picture():
    drawn = picture(thing("large red star", 128))
    assert read(np.asarray(drawn)) == read(drawn)


def test_floats_and_channels_first_are_refused_with_the_remedy():
    for array in (np.zeros((64, 64, 3)), np.zeros((3, 64, 64), np.uint8)):
        with pytest.raises(ValueError, match="channels last"):
            read(array)


def test_an_empty_picture_shows_nothing():
    for background in BACKGROUNDS:
        reading = read(picture(background=background))
        assert (reading.background, reading.objects) == (background, ())


def test_a_ground_of_another_colour_is_no_background_of_ours():
    assert read(Image.new("RGB", (256, 256), "#802020")).background == UNCLEAR


def test_a_speck_is_no_object():
    drawn = np.array(picture(thing("large red circle", 80)))
    drawn[120:132, 200:212] = 255 * rgb(COLOURS["green"])
    assert [str(o) for o in read(drawn).objects] == ["large red circle"]


def test_a_stain_is_no_object_but_a_faded_object_is():
    ground = np.asarray(picture(), float)
    object_ = np.asarray(picture(thing("large red circle", 128)), float)
    for share, objects in ((0.4, []), (0.75, ["large red circle"])):
        mixed = np.round(ground + share * (object_ - ground)).astype(np.uint8)
        assert [str(o) for o in read(mixed).objects] == objects, share


def test_the_dim_fringe_that_a_vae_draws_beside_an_object_is_no_object():
    drawn = np.array(picture(thing("large purple square", 128), background="night"))
    drawn[80:90, 90:166] = (8, 48, 50)  # dark teal: its chroma is past the threshold, an eye sees the night
    assert [str(o) for o in read(drawn).objects] == ["large purple square"]


def test_a_blob_is_an_object_of_unclear_shape():
    drawn = np.array(picture())
    drawn[100:118, 60:180] = 255 * rgb(COLOURS["red"])
    (blob,) = read(drawn).objects
    assert (blob.shape, blob.colour, str(blob)) == (UNCLEAR, "red", f"{blob.size} red blob")
    assert failed(judge(drawn, "a red square")) == [
        ("attribute", "square", UNCLEAR),
        ("binding", "red square", str(blob)),
    ]


@pytest.mark.parametrize("other", ["large green square", "small purple ring", "large yellow star"])
def test_objects_of_different_colours_that_touch_are_two(other):
    drawn = picture(thing("large blue circle", 90), thing(other, 90 + (68 if other[0] == "l" else 54)))
    assert [str(o) for o in read(drawn).objects] == ["large blue circle", other]


# --- claims


def test_every_caption_holds_for_its_own_picture():
    rng = random.Random(0)
    for i, scene in enumerate(scenes(60, seed=3)):
        text = caption(scene, STYLES[i % 2], rng)
        judged = judge(render(scene), text)
        assert judged.all, (text, failed(judged))
        assert all(held == total for held, total in judged.by_kind.values())


def test_a_right_picture_satisfies_all_claims_in_their_order():
    judged = judge(picture(thing("large red circle", 70), thing("small blue square", 190)), PROMPT)
    assert judged.all
    assert judged.by_kind == {"attribute": (7, 7), "binding": (2, 2), "relation": (1, 1), "count": (1, 1)}
    assert [r.claim for r in judged.results] == list(claims(parse(PROMPT)))
    assert judged.results[0].seen == "2 objects"
    assert judged.results[-1].seen == "large red circle left of small blue square"


def test_swapped_colours_keep_the_attributes_and_break_the_binding():
    judged = judge(picture(thing("large blue circle", 70), thing("small red square", 190)), PROMPT)
    assert judged.by_kind == {"attribute": (7, 7), "binding": (0, 2), "relation": (0, 1), "count": (1, 1)}
    assert failed(judged) == [
        ("binding", "large red circle", "large blue circle"),
        ("binding", "small blue square", "small red square"),
        (
            "relation",
            "large red circle left of small blue square",
            "no large red circle and no small blue square",
        ),
    ]


def test_swapped_places_break_the_relation_alone():
    judged = judge(picture(thing("large red circle", 190), thing("small blue square", 70)), PROMPT)
    assert failed(judged) == [
        (
            "relation",
            "large red circle left of small blue square",
            "large red circle right of small blue square",
        )
    ]


def test_a_missing_object_breaks_the_count_and_its_own_words():
    judged = judge(picture(thing("large red circle", 70)), PROMPT)
    assert judged.by_kind == {"attribute": (4, 7), "binding": (1, 2), "relation": (0, 1), "count": (0, 1)}
    assert ("count", "2 objects", "1 object") in failed(judged)
    assert ("binding", "small blue square", "nothing") in failed(judged)


def test_a_third_object_breaks_the_count_alone():
    objects = (
        thing("large red circle", 70),
        thing("small blue square", 190),
        thing("small pink star", 190, 40),
    )
    assert failed(judge(picture(*objects), PROMPT)) == [("count", "2 objects", "3 objects")]


def test_another_background_or_size_breaks_only_its_claims():
    objects = thing("large red circle", 70), thing("small blue square", 190)
    assert failed(judge(picture(*objects, background="sky"), PROMPT)) == [
        ("attribute", "cream background", "sky background")
    ]
    large = judge(picture(objects[0], thing("large blue square", 190)), PROMPT)
    assert [f[:2] for f in failed(large)] == [
        ("attribute", "small"),
        ("binding", "small blue square"),
        ("relation", "large red circle left of small blue square"),
    ]


def test_an_empty_picture_breaks_everything():
    judged = judge(picture(background="night"), PROMPT)
    assert sum(held for held, _ in judged.by_kind.values()) == 0
    assert {seen for _, _, seen in failed(judged)} >= {"0 objects", "nothing", "night background"}


def test_one_object_is_bound_once():
    judged = judge(picture(thing("small red circle", 70)), "two red circles")
    assert judged.by_kind == {"count": (0, 1), "attribute": (2, 2), "binding": (1, 2)}


def test_of_two_equal_objects_the_one_that_keeps_the_relation_is_bound():
    drawn = picture(
        *(thing(w, x) for w, x in [("small red circle", 40), ("small blue square", 128), ("small red circle", 216)])
    )
    for how in ("left of", "right of"):
        assert failed(judge(drawn, f"a red circle {how} a blue square")) == [("count", "2 objects", "3 objects")]
    assert failed(judge(drawn, "a red circle above a blue square"))[1][2].endswith("of small blue square")


def test_binding_is_kept_before_relations():
    drawn = picture(thing("large red circle", 60), thing("small red circle", 200))
    judged = verdict(drawn, parse("a large red circle right of a red circle"))
    assert judged.by_kind == {"count": (1, 1), "attribute": (3, 3), "binding": (2, 2), "relation": (0, 1)}


def test_a_relation_uses_the_shorter_side():
    circle, square = thing("small red circle", 100), thing("small blue square", 145)
    assert judge(picture(circle, square), "a red circle left of a blue square").all
    assert judge(picture(circle, square, width=512), "a red circle left of a blue square").all
    close = Scene(objects=(circle, square), background="cream", width=512, height=512)
    assert failed(judge(render(close), "a red circle left of a blue square")) == [
        ("relation", "red circle left of blue square", "small red circle too close to small blue square")
    ]


def test_a_prompt_without_a_shape_is_not_judged():
    assert judge(picture(), "a koala in a tree") == NoVerdict(reason="the prompt names no shape that the judge knows")
