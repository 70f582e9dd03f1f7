"""Generation on the embedded models: determinism, sizes, timing, previews, cancel within one step."""

import dataclasses
import threading
import time

import numpy as np
import pytest

from koala.errors import UserError
from koala.models.cards import CARDS
from koala.request import SCHEDULERS, GenerationRequest, Timing
from koala.sampling.compare import compare, same_noise, speedup
from koala.sampling.generate import Cancelled, generate, initial_noise, resolve

STUDENT = "tiny-koala-700m"


def request(**change):
    return GenerationRequest(**dict(model=STUDENT, prompt="a red circle", steps=3, seed=1) | change)


def pixels(result, index=0):
    return np.asarray(result.images[index])


def test_same_request_same_pixels_and_another_seed_other_pixels(library):
    model = library.get(STUDENT)
    first, again, other = (generate(request(seed=s), model) for s in (1, 1, 2))
    assert np.array_equal(pixels(first), pixels(again))
    assert not np.array_equal(pixels(first), pixels(other))


def test_watching_changes_no_pixel_and_shows_previews(library):
    model = library.get(STUDENT)
    steps = []
    watched = generate(request(steps=6), model, on_step=steps.append, num_previews=3)
    assert [s.index for s in steps] == [1, 2, 3, 4, 5, 6]
    assert 1 <= sum(s.preview is not None for s in steps) <= 3
    assert np.array_equal(pixels(watched), pixels(generate(request(steps=6), model)))


@pytest.mark.parametrize("scheduler", ["euler-trailing", "euler-leading", "euler-ancestral-trailing"])
def test_a_preview_shows_the_picture_without_its_remaining_noise(library, scheduler):
    """Half way the layout stands; noise would be grain, a difference from one pixel to the next."""
    steps = []
    drawn = generate(request(steps=12, scheduler=scheduler), library.get(STUDENT), on_step=steps.append, num_previews=2)
    grain = [np.abs(np.diff(np.asarray(p).astype(int), axis=1)).mean() for p in (steps[7].preview, drawn.images[0])]
    assert grain[0] < 1.5 * grain[1], grain


def test_picture_k_of_a_batch_has_seed_plus_k(library):
    model = library.get(STUDENT)
    batch = generate(request(images=2, seed=7), model)
    alone = generate(request(seed=8), model)
    difference = np.abs(pixels(batch, 1).astype(int) - pixels(alone).astype(int))
    assert difference.max() <= 1, (difference.max(), difference.mean())  # a batch may round otherwise
    assert not np.array_equal(pixels(batch, 0), pixels(batch, 1))


@pytest.mark.parametrize("scheduler", [name for name in SCHEDULERS if name != "lcm"])  # not on the straight path
def test_every_scheduler_draws_its_own_picture(library, scheduler):
    drawn = generate(request(scheduler=scheduler), library.get(STUDENT))
    assert drawn.request.scheduler == scheduler
    assert pixels(drawn).std() > 1
    if scheduler != CARDS[STUDENT].scheduler:
        assert not np.array_equal(pixels(drawn), pixels(generate(request(), library.get(STUDENT))))


def test_wide_pictures_and_defaults(library):
    drawn = generate(request(width=320, height=192), library.get(STUDENT))
    assert drawn.images[0].size == (320, 192)
    filled = resolve(GenerationRequest(model=STUDENT, prompt="x"), CARDS[STUDENT])
    card = CARDS[STUDENT]
    assert (filled.steps, filled.guidance, filled.width) == (card.steps, card.guidance, card.width)


def test_negative_prompt_changes_the_picture_only_with_guidance(library):
    model = library.get(STUDENT)
    plain, negative = (generate(request(negative_prompt=n), model) for n in ("", "a blue square"))
    assert not np.array_equal(pixels(plain), pixels(negative))
    plain, negative = (generate(request(negative_prompt=n, guidance=1.0), model) for n in ("", "a blue square"))
    assert np.array_equal(pixels(plain), pixels(negative))


def test_timing_adds_up_and_guidance_doubles_the_calls(library):
    model = library.get(STUDENT)
    timing = generate(request(steps=4), model).timing
    assert timing.unet_calls == 8
    assert len(timing.unet_ms) == 4
    assert all(ms > 0 for ms in timing.unet_ms)
    parts = timing.text_ms + timing.unet_total_ms + timing.vae_ms
    assert parts <= timing.total_ms <= 1.5 * parts + 50
    assert timing.peak_memory_bytes > 10**8
    assert generate(request(steps=4, guidance=1.0), model).timing.unet_calls == 4


def test_the_first_run_of_a_shape_warms_up_uncounted(library):
    model, calls = library.get(STUDENT), []
    hook = model.pipeline.unet.register_forward_hook(lambda *_: calls.append(1))
    try:
        first = generate(request(steps=3, width=96, height=64), model)
        assert len(calls) == 2 + 3
        generate(request(steps=3, width=96, height=64), model)
        assert len(calls) == 2 + 3 + 3
    finally:
        hook.remove()
    assert len(first.timing.unet_ms) == 3


def test_a_slow_watcher_is_not_counted(library):
    model = library.get(STUDENT)
    generate(request(steps=4), model)  # the warm-up, if nothing has run yet
    start = time.perf_counter()
    slow = generate(request(steps=4), model, on_step=lambda step: time.sleep(0.3), num_previews=0)
    wall_ms = (time.perf_counter() - start) * 1000
    assert slow.timing.total_ms <= wall_ms - 4 * 300


def test_cancel_takes_effect_within_one_step_and_the_model_stays_usable(library):
    model, cancel, seen = library.get(STUDENT), threading.Event(), []

    def watch(step):
        seen.append(step.index)
        if step.index == 2:
            cancel.set()

    with pytest.raises(Cancelled):
        generate(request(steps=50), model, on_step=watch, cancel=cancel)
    assert seen == [1, 2]
    assert not model.pipeline.unet._forward_hooks
    assert generate(request(), model).images


def test_two_runs_at_once_take_turns(library):
    model, results = library.get(STUDENT), {}
    threads = [
        threading.Thread(target=lambda s=s: results.update({s: generate(request(seed=s), model)})) for s in (1, 2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, result in results.items():
        assert np.array_equal(pixels(result), pixels(generate(request(seed=seed), model)))


def test_noise_depends_on_seed_alone(library):
    base = dataclasses.replace(request(seed=3, images=2), width=64, height=64)
    noise = initial_noise(base, 4, 8)
    assert noise.shape == (2, 4, 8, 8)
    assert np.array_equal(noise[1:], initial_noise(dataclasses.replace(base, seed=4, images=1), 4, 8))


def test_compare_uses_one_noise_and_reports_in_order(library):
    requests = [request(model=m) for m in ("tiny-sdxl", STUDENT)]
    order = []
    results = compare(requests, library, on_result=lambda position, r: order.append(position))
    assert order == [1, 0]  # the least work first
    assert [r.request.model for r in results] == ["tiny-sdxl", STUDENT]
    alone = generate(request(), library.get(STUDENT))
    assert np.array_equal(pixels(results[1]), pixels(alone))


def test_comparisons_that_would_not_start_alike_are_refused():
    with pytest.raises(UserError, match="at least two models"):
        same_noise([request()])
    with pytest.raises(UserError, match="differ in seed"):
        same_noise([request(), request(seed=2)])
    first, second = same_noise([request(width=320, height=192), request(width=320, height=192, steps=9)])
    assert (first.steps, second.steps, second.width) == (3, 9, 320)


def test_speed_up_is_per_call_times_calls():
    slow = Timing(text_ms=0, unet_ms=(40,) * 25, unet_calls=50, vae_ms=0, total_ms=1000, peak_memory_bytes=None)
    fast = Timing(text_ms=0, unet_ms=(20,) * 10, unet_calls=20, vae_ms=0, total_ms=200, peak_memory_bytes=None)
    factors = speedup(slow, fast)
    assert (factors.per_call, factors.calls, factors.unet, factors.total) == pytest.approx((2, 2.5, 5, 5))
    assert factors.sentence().startswith("U-Net 2.00x per call x 2.50x by the number of calls = 5.00x")
