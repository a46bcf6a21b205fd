import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hai.data.splits import assign_splits, codes_of, components, content_keys, follow

SHARES = (0.8, 0.1, 0.1)


def assigned(label, source, unit, *, split=None, key=None, shares=SHARES, seed=0):
    size = len(label)
    return assign_splits(
        np.full(size, -1, np.int8) if split is None else np.asarray(split, np.int8),
        np.asarray(label, np.int8),
        np.asarray(source, np.int64),
        np.asarray(unit, np.int64),
        np.random.default_rng(1).permutation(size).astype(np.int64) if key is None else key,
        np.tile(np.asarray(shares, float), (size, 1)),
        seed,
    )


def test_shares_are_met_in_every_stratum():
    label, source = np.arange(2000) % 2, np.arange(2000) // 1000
    split = assigned(label, source, np.arange(2000))
    for s in (0, 1):
        for y in (0, 1):
            assert np.bincount(split[(source == s) & (label == y)]).tolist() == [400, 50, 50]


def test_groups_are_never_divided_and_shares_are_close():
    rng = np.random.default_rng(3)
    unit = np.repeat(np.arange(300), rng.integers(1, 20, 300))
    label = (unit % 2).astype(np.int8)
    split = assigned(label, np.zeros(len(unit)), unit)
    for k in range(300):
        assert len(set(split[unit == k].tolist())) == 1
    assert np.allclose(np.bincount(split) / len(unit), SHARES, atol=0.03)


def test_the_order_of_rows_does_not_matter_and_the_seed_does():
    rng = np.random.default_rng(5)
    size = 500
    label, source, key = rng.integers(0, 2, size), rng.integers(0, 3, size), rng.integers(0, 2**62, size)
    unit = components(rng.integers(0, 80, size))
    first = assigned(label, source, unit, key=key, seed=9)
    order = rng.permutation(size)
    renamed = rng.permutation(unit.max() + 1)[unit]
    again = assigned(label[order], source[order], renamed[order], key=key[order], seed=9)
    assert np.array_equal(first[order], again)
    assert not np.array_equal(first, assigned(label, source, unit, key=key, seed=10))


@pytest.mark.parametrize(("size", "expected"), [(1, [1, 0, 0]), (2, [1, 1, 0]), (3, [1, 1, 1]), (5, [3, 1, 1])])
def test_small_strata_fill_train_then_val_then_test(size, expected):
    split = assigned([0] * size, [0] * size, np.arange(size))
    assert np.bincount(split, minlength=3).tolist() == expected


@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=12),
    parts=st.lists(st.integers(0, 10), min_size=3, max_size=3).filter(any),
    seed=st.integers(0, 5),
)
def test_as_many_splits_are_filled_as_there_are_units_train_first(sizes, parts, seed):
    unit = np.repeat(np.arange(len(sizes)), sizes)
    split = assigned(0 * unit, 0 * unit, unit, shares=np.array(parts) / sum(parts), seed=seed)
    assert len(set(zip(unit.tolist(), split.tolist(), strict=True))) == len(sizes)
    wanted = np.flatnonzero(parts)
    assert set(wanted[: len(sizes)]) <= set(split) <= set(wanted)


@pytest.mark.parametrize("sizes", [(10, 2), (2, 10)])
def test_of_two_groups_one_is_for_training(sizes):
    for seed in range(4):
        split = assigned([0] * 12, [0] * 12, np.repeat([0, 1], sizes), seed=seed)
        assert set(split) == {0, 1}


def test_rows_follow_the_split_of_their_unit():
    split = assigned([0] * 6, [0] * 6, [0, 0, 1, 1, 2, 2], split=[2, -1, -1, 1, -1, -1])
    assert split[:4].tolist() == [2, 2, 1, 1]
    assert split[4] == split[5] == 0


@given(
    rows=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6), st.booleans()), min_size=1, max_size=30),
    splits=st.lists(st.integers(0, 2), min_size=7, max_size=7),
)
def test_groups_stay_whole_whatever_splits_their_copies_have(rows, splits):
    group, content = np.array([row[:2] for row in rows], dtype=np.int64).T
    split = np.array([splits[g] if known else -1 for g, _, known in rows], dtype=np.int8)
    unit = components(group, content)
    found = assigned(0 * unit, 0 * unit, unit, split=follow(split, group))
    assert len(set(zip(group.tolist(), found.tolist(), strict=True))) == len(set(group.tolist()))
    assert (found >= 0).all()
    assert (found == split)[split >= 0].all()


def test_given_splits_stay():
    given_splits = [0, 1, 2, 2, 1, 0]
    assert assigned([0] * 6, [0] * 6, np.arange(6), split=given_splits).tolist() == given_splits
    assert assigned([], [], []).tolist() == []


def test_shares_of_zero_get_nothing():
    assert set(assigned([0] * 50, [0] * 50, np.arange(50), shares=(0.5, 0.5, 0)).tolist()) == {0, 1}
    assert set(assigned([0] * 50, [0] * 50, np.arange(50), shares=(0, 1, 0)).tolist()) == {1}


@given(st.lists(st.tuples(st.integers(-1, 6), st.integers(-1, 6)), min_size=1, max_size=30))
def test_components_equal_a_search_through_the_links(pairs):
    keys = [np.array([pair[k] for pair in pairs], dtype=np.int64) for k in (0, 1)]
    found = components(*keys)
    reached = [{i} for i in range(len(pairs))]
    changed = True
    while changed:
        changed = False
        for i in range(len(pairs)):
            for j in range(len(pairs)):
                linked = any(key[i] == key[j] >= 0 for key in keys)
                if linked and reached[i] is not reached[j]:
                    joined = reached[i] | reached[j]
                    for k in joined:
                        reached[k] = joined
                    changed = True
    for i in range(len(pairs)):
        assert {j for j in range(len(pairs)) if found[j] == found[i]} == reached[i]
    assert set(found.tolist()) == set(range(found.max() + 1))


def test_long_chains_are_joined():
    left = np.arange(20_000) // 2
    right = (np.arange(20_000) + 1) // 2
    assert components(left, right).max() == 0


def test_codes_and_keys():
    codes, names = codes_of(["b", "a", "b", ""])
    assert names == ["", "a", "b"]
    assert codes.tolist() == [2, 1, 2, 0]
    digests = np.zeros((2, 32), np.uint8)
    digests[1, 0] = 1
    assert content_keys(digests).tolist() == [0, 1]
