"""The order of examples: a function of (seed, step), fair to every example and indifferent to workers."""

import tracemalloc

import numpy as np
import pytest

from hai.data.draws import hash_int, hash_keys, permutation
from hai.order import Order, slice_bounds


def _plain(size: int, batch: int, seed: int = 1) -> Order:
    return Order(np.zeros(size, dtype=np.int64), np.ones(1), batch_size=batch, seed=seed)


def test_an_epoch_uses_every_example_once_and_another_order_each_time() -> None:
    order = _plain(64, 8)
    epochs = [np.concatenate([order.batch_at(step).positions for step in range(e * 8, e * 8 + 8)]) for e in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(64))
    assert not np.array_equal(epochs[0], epochs[1])
    assert not np.array_equal(epochs[0], np.concatenate([_plain(64, 8, 2).batch_at(s).positions for s in range(8)]))


def test_any_step_can_be_asked_first() -> None:
    forward = _plain(50, 7)
    steps = [forward.batch_at(step).positions for step in range(20)]
    for step in (19, 3, 12):
        assert np.array_equal(_plain(50, 7).batch_at(step).positions, steps[step])


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_workers_share_the_same_global_batches(world_size: int) -> None:
    alone = [request.positions for request in _plain(60, 10).requests(2, 9, rank=0, world_size=1)]
    parts = [
        [request.positions for request in _plain(60, 10).requests(2, 9, rank=rank, world_size=world_size)]
        for rank in range(world_size)
    ]
    together = [np.concatenate(batch) for batch in zip(*parts, strict=True)]
    assert all(np.array_equal(one, other) for one, other in zip(alone, together, strict=True))
    assert {len(part[0]) for part in parts} <= {10 // world_size, 10 // world_size + 1}


def test_a_thousand_workers_make_the_global_batch_and_hold_no_more_than_one() -> None:
    parts = []
    for rank in range(1000):
        requests = _plain(5000, 2003).requests(1, 2, rank=rank, world_size=1000)
        parts.append(next(requests).positions)
    assert np.array_equal(np.concatenate(parts), _plain(5000, 2003).batch_at(1).positions)
    held = []
    for world_size in (1, 1000):
        tracemalloc.start()
        order = _plain(50_000, 2000)
        requests = order.requests(0, 100, rank=world_size // 2, world_size=world_size)
        next(requests)
        held.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
    assert held[1] <= 1.01 * held[0]


def test_strata_fill_their_shares_evenly_and_use_their_examples_alike() -> None:
    strata = np.repeat([0, 1], [90, 10])
    order = Order(strata, np.array([0.5, 0.5]), batch_size=10, seed=3)
    assert order.steps_per_epoch == 10
    batches = [order.batch_at(step).positions for step in range(100)]
    shares = [np.mean(strata[batch] == 1) for batch in batches]
    assert np.mean(shares) == 0.5
    assert min(shares) >= 0.3
    assert max(shares) <= 0.7
    uses = np.bincount(np.concatenate(batches), minlength=100)
    assert uses[90:].max() - uses[90:].min() <= 1
    assert uses[:90].max() - uses[:90].min() <= 1


def test_fewer_examples_than_a_batch_repeat_themselves_fairly() -> None:
    order = _plain(5, 8)
    uses = np.bincount(np.concatenate([order.batch_at(step).positions for step in range(10)]), minlength=5)
    assert uses.sum() == 80
    assert uses.max() - uses.min() <= 1


def test_slices_cover_everything_once() -> None:
    for total in range(12):
        for parts in range(1, 6):
            bounds = [slice_bounds(total, part, parts) for part in range(parts)]
            assert [x for low, high in bounds for x in range(low, high)] == list(range(total))


def test_the_hash_is_the_same_for_integers_and_arrays() -> None:
    values = hash_keys(7, np.arange(-3, 3), 1)
    assert [hash_int(7, key, 1) for key in range(-3, 3)] == [int(value) for value in values]
    assert sorted(permutation(1000, 5)) == list(range(1000))


def test_the_hash_never_changes() -> None:
    assert hash_int(1, 2) == 2722629357572958981
    assert permutation(8, 42, 1).tolist() == [7, 0, 6, 3, 5, 2, 4, 1]
