"""Dividing examples over train, val and test: stratified, groups whole, a function of the contents and the seed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hai.data.draws import hash_keys

__all__ = ["assign_splits", "codes_of", "components", "content_keys", "follow", "linked"]

_SPLIT_DRAW = 0x53504C49
"""Key that keeps these draws apart from all others of the same seed."""


def codes_of(values: list[str]) -> tuple[NDArray[np.int64], list[str]]:
    """Number the distinct strings in sorted order; return the number of each value [N], and the strings."""
    names = sorted(set(values))
    position = {name: i for i, name in enumerate(names)}
    return np.fromiter(map(position.__getitem__, values), dtype=np.int64, count=len(values)), names


def content_keys(sha256: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return the first 8 bytes of each hash [N, 32] as a number."""
    return np.ascontiguousarray(sha256[:, :8]).view("<i8").reshape(-1).astype(np.int64)


def components(*keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """Join rows that share a key, directly or over other rows.

    Args:
        keys: arrays [N] of numbers >= 0; rows with the same number in one of them belong together; -1 joins nothing.

    Returns:
        The number of each row's component, 0 to the number of components - 1, [N].
    """
    size = len(keys[0])
    joined: NDArray[np.int64] = np.arange(size, dtype=np.int64)
    links = [(np.flatnonzero(key >= 0), np.unique(key[key >= 0], return_inverse=True)[1]) for key in keys]
    while True:
        before = joined.copy()
        for rows, key in links:
            if len(rows):
                lowest = np.full(int(key.max()) + 1, size, dtype=np.int64)
                np.minimum.at(lowest, key, joined[rows])
                joined[rows] = lowest[key]
        joined = joined[joined]  # a shortcut: long chains close in few rounds
        if np.array_equal(joined, before):
            return np.unique(joined, return_inverse=True)[1].astype(np.int64).reshape(-1)


def linked(size: int, pairs: NDArray[Any]) -> NDArray[np.int64]:
    """Join things by pairs of them, [P, 2]; return the number of each thing's component, counted from 0, [size]."""
    joined: NDArray[np.int64] = np.arange(size, dtype=np.int64)
    left, right = pairs[:, 0].astype(np.int64), pairs[:, 1].astype(np.int64)
    while True:
        lowest = np.minimum(joined[left], joined[right])
        before = joined.copy()
        for ends in (left, right):
            np.minimum.at(joined, joined[ends], lowest)
            np.minimum.at(joined, ends, lowest)
        joined = joined[joined]
        if np.array_equal(joined, before):
            return np.unique(joined, return_inverse=True)[1].astype(np.int64).reshape(-1)


def follow(split: NDArray[np.int8], key: NDArray[np.int64]) -> NDArray[np.int8]:
    """Give rows without a split the first that others with their key have.

    Args:
        split: position in SPLITS or -1, [N].
        key: rows with the same number belong together; -1 follows nothing, [N].

    Returns:
        The splits, -1 where there is nothing to follow, [N].
    """
    result = split.copy()
    given, keyed = (split >= 0) & (key >= 0), np.flatnonzero((split < 0) & (key >= 0))
    if given.any() and len(keyed):
        known = np.full(int(key.max()) + 1, 127, dtype=np.int8)
        np.minimum.at(known, key[given], split[given])
        follows = keyed[known[key[keyed]] < 127]
        result[follows] = known[key[follows]]
    return result


def assign_splits(
    split: NDArray[np.int8],
    label: NDArray[np.int8],
    source: NDArray[np.int64],
    unit: NDArray[np.int64],
    key: NDArray[np.int64],
    shares: NDArray[np.float64],
    seed: int,
) -> NDArray[np.int8]:
    """Give every row without a split one.

    Units are never divided; a unit of which some rows have a split follows them. The others are drawn within their
    stratum, which is the first of their sources and the labels they hold: in the order of hash(seed, content), so that
    neither names nor the order of rows matter. A stratum's shares are met within half a unit, and every split with a
    share gets a unit as long as there are enough, train first.

    Args:
        split: position in SPLITS or -1, [N].
        label: [N].
        source: number of the source, in an order that does not depend on paths, [N].
        unit: number of the unit that a row belongs to, 0 to U - 1, [N].
        key: number that stands for a row's content, [N].
        shares: of train, val and test for the row's source, summing to 1, [N, 3].
        seed: of the draw.

    Returns:
        A split for every row, [N].
    """
    result = follow(split, unit)
    rows = np.flatnonzero(result < 0)
    if not len(rows):
        return result
    num_units = int(unit.max()) + 1
    content = np.full(num_units, np.iinfo(np.int64).max)
    first = np.full(num_units, np.iinfo(np.int64).max)
    labels = np.zeros(num_units, dtype=np.int64)
    example = np.zeros(num_units, dtype=np.int64)
    np.minimum.at(content, unit[rows], key[rows])
    np.minimum.at(first, unit[rows], source[rows])
    np.bitwise_or.at(labels, unit[rows], np.int64(1) << label[rows].astype(np.int64))
    from_first = rows[source[rows] == first[unit[rows]]]
    example[unit[from_first]] = from_first
    counts = np.bincount(unit[rows], minlength=num_units)

    units = np.flatnonzero(counts)
    draw = hash_keys(seed, _SPLIT_DRAW, content[units])
    order = np.lexsort((content[units], draw, labels[units], first[units]))
    units = units[order]
    changes = (np.diff(first[units]) != 0) | (np.diff(labels[units]) != 0)
    drawn = np.full(num_units, -1, dtype=np.int8)
    for stratum in np.split(units, np.flatnonzero(changes) + 1):
        drawn[stratum] = _cut(counts[stratum], shares[example[stratum[0]]])
    result[rows] = drawn[unit[rows]]
    return result


def _cut(counts: NDArray[Any], shares: NDArray[np.float64]) -> NDArray[np.int8]:
    """Divide units of some sizes, in drawn order, by the shares."""
    middle = np.cumsum(counts) - counts / 2
    edges = np.cumsum(shares) * counts.sum()
    edges[np.flatnonzero(shares)[-1] :] = np.inf
    split = np.searchsorted(edges, middle, side="right").astype(np.int8)
    wanted = np.flatnonzero(shares)
    for missing in wanted[: len(counts)]:
        if not (split == missing).any():
            units = np.bincount(split, minlength=3)
            donor = units.argmax() if units.max() > 1 else split.max()  # of single units the last is one too many
            candidates = np.flatnonzero(split == donor)
            split[candidates[counts[candidates].argmin()]] = missing
    return split
