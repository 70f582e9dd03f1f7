"""Batches of pictures: what falls into one, and that nothing about a picture depends on it."""

import dataclasses

import numpy as np
import pytest

from koala.evaluate import drawing
from koala.evaluate.prompt_files import of_shapes
from koala.evaluate.settings import Settings
from koala.models.library import Library

SMALL = Settings(width=64, height=64, steps=(2,), seed=5)


@pytest.fixture(scope="module")
def model():
    return Library("cpu").get("tiny-koala-700m")


@pytest.fixture(scope="module")
def requests(model):
    return drawing.requests_for(model, [p.text for p in of_shapes(3)], SMALL)


def test_batches_are_as_asked_or_as_large_as_25_small_pictures(requests):
    assert [len(b) for b in drawing.batches(requests, 2)] == [2, 1]
    assert [len(b) for b in drawing.batches(requests, None)] == [3]
    assert list(drawing.batches([], None)) == []
    assert [drawing.fitting(side, side) for side in (256, 512, 1024, 2048)] == [25, 6, 1, 1]


def test_prompts_start_from_consecutive_seeds_at_the_models_own_settings(model, requests):
    assert [r.seed for r in requests] == [5, 6, 7]
    assert {(r.steps, r.guidance, r.scheduler, r.images) for r in requests} == {(2, 2.0, "euler-ancestral-trailing", 1)}


def test_a_picture_is_the_same_alone_and_in_a_batch(model, requests):
    together = drawing.draw(model, requests)
    assert [r.request for r in together] == requests
    for request, result in zip(requests, together, strict=True):
        alone = drawing.draw(model, [request])[0]
        difference = np.abs(np.asarray(result.images[0], int) - np.asarray(alone.images[0], int))
        print("max", difference.max(), "mean", difference.mean())
        assert difference.max() <= 2
        assert len(result.timing.unet_ms) == 2
        assert result.timing.unet_calls == 4


def test_the_preset_reaches_the_pictures(model, requests):
    """`fast` leaves guidance out of the second half of the steps."""
    fast = drawing.draw(model, [dataclasses.replace(requests[0], preset="fast")])[0]
    quality = drawing.draw(model, requests[:1])[0]
    assert fast.timing.unet_calls == 3
    assert np.asarray(fast.images[0]).tolist() != np.asarray(quality.images[0]).tolist()
