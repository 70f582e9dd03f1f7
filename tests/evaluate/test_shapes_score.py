"""The compositional score: fixed prompts, one noise for all models, rates that follow from the verdicts."""

import json
import math
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from koala.errors import UserError
from koala.evaluate import shapes
from koala.evaluate.metrics import mean_and_interval
from koala.models.cards import EMBEDDED
from koala.models.library import Library
from koala.shapes.captions import parse
from koala.shapes.render import render
from koala.shapes.scene import HELD_OUT, Scene, SceneObject


def test_suites_are_fixed_and_ask_for_what_their_names_say():
    for suite in shapes.SUITES:
        assert shapes.prompts(suite, 40) == shapes.prompts(suite, 60)[:40]
    one, two, held = ([parse(p) for p in shapes.prompts(s, 200)] for s in ("one_object", "two_objects", "held_out"))
    assert {len(d.objects) for d in one} == {1}
    assert {len(d.objects) for d in two} == {2}
    assert all(len(d.relations) == 1 for d in two)
    assert {(m.shape, m.colour) for d in held for m in d.objects} == HELD_OUT
    assert not {(m.shape, m.colour) for d in one + two for m in d.objects} & HELD_OUT
    assert sum(d.background is not None for d in one) == 100  # every second prompt is detailed
    assert not {*shapes.prompts("two_objects", 200)} & {*shapes.prompts("two_objects", 200, series="choice")}


def test_another_canvas_has_prompts_of_its_own_that_fit_it():
    """Two large shapes do not stand above each other in 192 px, so no prompt of that canvas asks for it."""
    sizes = {
        (m.size, n.size)
        for p in shapes.prompts("two_objects", 400, width=320, height=192)
        for d in [parse(p)]
        for (_, word, _) in d.relations
        if word in ("above", "below")
        for m, n in [d.objects]
    }
    assert sizes and ("large", "large") not in sizes
    with pytest.raises(UserError, match="cannot be drawn: 2 objects do not fit 64x64 px"):
        shapes.prompts("two_objects", 1, width=64, height=64)


def test_a_side_that_is_not_given_is_the_models_own(monkeypatch):
    model, asked = Library("cpu").get("tiny-koala-700m"), []
    monkeypatch.setattr(shapes, "prompts", lambda suite, count, *, series, **canvas: asked.append(canvas) or [])
    for size in ({}, {"width": 320}, {"width": 256, "height": 192}):
        report = shapes.evaluate(model, count=0, suites=("one_object",), **size)
        assert (report["width"], report["height"]) == (size.get("width", 256), size.get("height", 256))
    assert asked == [{}, {"width": 320, "height": 256}, {"width": 256, "height": 192}]


def test_pictures_do_not_depend_on_the_batch_that_they_were_drawn_in():
    model = Library("cpu").get("tiny-koala-700m")
    texts = shapes.prompts("one_object", 4)
    together = shapes.draw(model, texts, 0, steps=2, guidance=5.0)
    apart = [shapes.draw(model, [t], k, steps=2, guidance=5.0)[0] for k, t in enumerate(texts)]
    for a, b in zip(together, apart, strict=True):
        difference = np.abs(np.asarray(a, int) - np.asarray(b, int))
        assert difference.max() <= 2, (difference.max(), difference.mean())


def test_perfect_pictures_score_one_and_wrong_ones_what_is_right_about_them(monkeypatch):
    model = Library("cpu").get("tiny-koala-700m")

    def picture(colour, x):
        return render(
            Scene(
                objects=(
                    SceneObject(shape="circle", colour=colour, size="large", x=x, y=128),
                    SceneObject(shape="ring", colour="blue", size="small", x=128, y=128),
                ),
                background="sky",
            )
        )

    monkeypatch.setattr(shapes, "prompts", lambda suite, count, **_: ["a red circle left of a blue ring"] * count)
    monkeypatch.setattr(shapes, "draw", lambda *a, **k: [picture("red", 50), picture("red", 206)])
    scores = shapes.evaluate(model, count=2, suites=("two_objects",), batch_size=2)["scores"]["two_objects"]
    assert scores["all"]["rate"] == 0.5
    assert scores["relation"] == {"rate": 0.5, "interval": [0.0945, 0.9055], "count": 2}
    assert scores["binding"]["rate"] == scores["count"]["rate"] == scores["attribute"]["rate"] == 1.0


def test_attributes_are_told_apart_by_what_they_say(monkeypatch):
    model = Library("cpu").get("tiny-koala-700m")
    scene = Scene(objects=(SceneObject(shape="circle", colour="red", size="large", x=90, y=128),), background="sky")
    monkeypatch.setattr(shapes, "prompts", lambda suite, count, **_: ["a red circle on a night background"] * count)
    monkeypatch.setattr(shapes, "draw", lambda *a, **k: [render(scene)] * 2)
    score = shapes.evaluate(model, count=2, suites=("one_object",), batch_size=2)["scores"]["one_object"]["attribute"]
    assert {what: each["rate"] for what, each in score["by"].items()} == {"shape": 1, "colour": 1, "background": 0}
    assert score["count"] == sum(each["count"] for each in score["by"].values()) == 6


@pytest.mark.parametrize(("held", "count"), [(0, 1), (1, 2), (25, 50), (250, 500), (498, 500), (500, 500)])
def test_an_interval_is_wilsons(held, count):
    """(2 k + z^2 -+ z sqrt(z^2 + 4 k (1 - k / n))) / (2 (n + z^2))"""
    z = 1.959963984540054
    half = z * math.sqrt(z * z + 4 * held * (1 - held / count))
    low, high = shapes.interval(held, count)
    assert low == pytest.approx((2 * held + z * z - half) / (2 * (count + z * z)), abs=1e-12)
    assert high == pytest.approx((2 * held + z * z + half) / (2 * (count + z * z)), abs=1e-12)
    assert low <= held / count <= high and high - low > 0


def rates(value: object) -> Iterator[dict]:
    if isinstance(value, dict) and {"rate", "interval", "count"} <= set(value):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from rates(inner)


def test_published_intervals_are_those_of_their_rates():
    files = [
        *(EMBEDDED / "scores").glob("tiny-*.json"),
        *(Path(__file__).parents[2] / "docs/measurements").glob("*.json"),
    ]
    published = [rate for file in files for rate in rates(json.loads(file.read_text()))]
    assert len(published) > 150
    for one in published:
        held = round(one["rate"] * one["count"])
        assert one["interval"] == [round(x, 4) for x in shapes.interval(held, one["count"])], one


def test_the_interval_of_a_mean_is_that_of_the_central_limit_in_little_memory():
    """Symptom: 2,000 resamples of all scores at once."""
    values = np.random.default_rng(1).gamma(2.0, 1.0, 20_000)
    tracemalloc.start()
    score = mean_and_interval(values)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    spread = 1.96 * values.std() / math.sqrt(len(values))
    assert score["interval"] == pytest.approx([values.mean() - spread, values.mean() + spread], abs=spread / 10)
    assert peak < 60_000_000, f"{peak / 1e6:.0f} MB"
    assert mean_and_interval(np.array([0.5])) == {"mean": 0.5, "interval": [0.5, 0.5]}
