import random

import pytest

from koala.shapes.captions import STYLES, Mention, caption, claims, parse
from koala.shapes.scene import OPPOSITE, random_scene, relation


def captioned_scene(style: str, seed: int):
    """A scene, its caption, and that caption parsed."""
    rng = random.Random(seed)
    scene = random_scene(rng, 1 + seed % 3)
    text = caption(scene, style, rng)
    return scene, text, parse(text)


@pytest.mark.parametrize("style", STYLES)
def test_a_caption_reads_back_as_its_scene(style):
    detailed = style == "detailed"
    for seed in range(400):
        scene, text, description = captioned_scene(style, seed)
        mentions = tuple(
            Mention(shape=o.shape, colour=o.colour, size=o.size if detailed else None) for o in scene.objects
        )
        assert description.objects == mentions, text
        assert description.background == (scene.background if detailed else None), text
        assert description.unknown == (), text
        stated = ()
        if len(mentions) > 1:
            stated = ((0, relation(*scene.objects[:2], min(scene.width, scene.height)), 1),)
        assert description.relations == stated, text


@pytest.mark.parametrize("style", STYLES)
def test_the_claims_of_a_caption_are_all_that_it_says(style):
    for seed in range(400):
        scene, text, description = captioned_scene(style, seed)
        stated = claims(description)
        kinds = [c.kind for c in stated]
        words = {o.shape for o in scene.objects} | {o.colour for o in scene.objects}
        if style == "detailed":
            words |= {o.size for o in scene.objects} | {f"{scene.background} background"}
        assert kinds.count("count") == 1 and stated[0].subject == (len(scene.objects),)
        assert sorted(c.text for c in stated if c.kind == "attribute") == sorted(words), text
        assert kinds.count("binding") == len(scene.objects)
        assert kinds.count("relation") == (len(scene.objects) > 1)


def test_captions_vary_in_wording_and_repeat_with_their_seed():
    scene = random_scene(random.Random(3), 2)
    for style in STYLES:
        texts = {caption(scene, style, random.Random(seed)) for seed in range(40)}
        assert len(texts) >= 4
        assert caption(scene, style, random.Random(1)) == caption(scene, style, random.Random(1))


@pytest.mark.parametrize(
    ("phrase", "how"),
    [
        ("left of", "left of"),
        ("to the left of", "left of"),
        ("on the right of", "right of"),
        ("over", "above"),
        ("underneath", "below"),
        ("beneath", "below"),
    ],
)
def test_relations_in_other_words(phrase, how):
    description = parse(f"A red circle {phrase} a blue square")
    assert description.relations == ((0, how, 1),)
    assert how in OPPOSITE


def test_synonyms_plurals_and_numbers():
    description = parse("Two big red circles above a tiny blue plus")
    big = Mention(shape="circle", colour="red", size="large")
    assert description.objects == (big, big, Mention(shape="cross", colour="blue", size="small"))
    assert parse("three crosses").objects == (Mention(shape="cross"),) * 3


def test_unknown_words_are_told_and_a_prompt_without_a_shape_is_not_judged():
    assert parse("a fluffy red circle with a fluffy hat").unknown == ("fluffy", "hat")
    assert parse("a red castle on a hill") is None
    assert parse("") is None


def test_a_word_that_a_prompt_repeats_is_one_attribute_but_two_bindings():
    stated = claims(parse("a red circle left of a red square"))
    assert [c.text for c in stated if c.text == "red"] == ["red"]
    assert [c.text for c in stated if c.kind == "binding"] == ["red circle", "red square"]


def test_a_background_of_an_object_colour_does_not_paint_the_next_object():
    description = parse("on a blue background, a circle")
    assert description.objects == (Mention(shape="circle"),)
    assert (description.background, description.unknown) == (None, ("blue",))


def test_a_synonym_of_no_word_is_told_once():
    assert parse("a gray circle on gray paper").unknown == ("gray", "paper")


def test_an_unknown_style_is_refused():
    with pytest.raises(ValueError, match="short, detailed"):
        caption(random_scene(random.Random(0), 1), "poetic", random.Random(0))
