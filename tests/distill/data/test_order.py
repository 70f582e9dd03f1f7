"""The order of batches: pure, fair, and never of two buckets."""

from collections import Counter

import pytest

from koala.distill.data.buckets import BatchOrder

SIZES = {(256, 256): 37, (320, 192): 10, (192, 320): 3}


def seen(order: BatchOrder, steps: range) -> Counter:
    return Counter((bucket, row) for step in steps for bucket, rows in [order.rows(step)] for row in rows)


def test_a_new_process_goes_on_with_the_same_batches():
    first, resumed = BatchOrder(SIZES, 8, seed=1), BatchOrder(SIZES, 8, seed=1)
    batches = [first.rows(step) for step in range(200)]
    assert [resumed.rows(step) for step in reversed(range(200))] == batches[::-1]
    assert batches != [BatchOrder(SIZES, 8, seed=2).rows(step) for step in range(200)]


def test_every_batch_is_full_and_of_rows_that_its_bucket_has():
    order = BatchOrder(SIZES, 8, seed=0)
    for step in range(500):
        bucket, rows = order.rows(step)
        assert len(rows) == 8 and set(rows) <= set(range(SIZES[bucket]))


def test_eight_epochs_see_every_picture_eight_times():
    """Whatever the batch leaves over: 50 pictures, batches of 8, 50 steps."""
    counts = seen(BatchOrder(SIZES, 8, seed=0), range(50))
    assert len(counts) == 50 and set(counts.values()) == {8}


def test_no_picture_returns_before_all_of_its_bucket_were_seen():
    order = BatchOrder({(64, 64): 20}, 4, seed=0)
    for epoch in range(3):
        rows = [row for step in range(5) for row in order.rows(5 * epoch + step)[1]]
        assert sorted(rows) == list(range(20))
    assert order.rows(0) != order.rows(5)


def test_fewer_pictures_than_a_batch_are_repeated():
    bucket, rows = BatchOrder({(64, 64): 3}, 8, seed=0).rows(7)
    assert sorted(Counter(rows).values()) == [2, 3, 3]


@pytest.mark.parametrize("step", [0, 1, 499_999])
def test_any_step_is_at_hand_at_full_scale(step):
    sizes = {(1024, 1024 - 64 * k): 491_000 // 8 for k in range(8)}
    bucket, rows = BatchOrder(sizes, 128, seed=0).rows(step)
    assert len(set(rows)) == 128
