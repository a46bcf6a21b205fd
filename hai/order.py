"""Which example comes when: a pure function of (seed, step), the same for every number of workers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hai.data.draws import permutation, uniform

__all__ = ["Order", "Request", "slice_bounds"]

_SHUFFLE, _STRATUM, _SPREAD = 101, 102, 103  # which draw, so that no two uses share their numbers


class Request(NamedTuple):
    """What a loader is asked for: positions within the dataset, and the epoch that keys their augmentation."""

    epoch: int
    positions: NDArray[np.int64]


def slice_bounds(total: int, part: int, parts: int) -> tuple[int, int]:
    """Cut range(total) into contiguous parts whose sizes differ by at most one; return the bounds of one part."""
    return part * total // parts, (part + 1) * total // parts


class Order:
    """The order of training examples.

    With one stratum, every epoch is a permutation of the data set; the remainder that does not fill a batch is left out
    (another one each epoch). With several, stratum s fills the share `shares[s]` of every epoch, spread evenly over it:
    each runs through permutation after permutation of its own examples, so that within a stratum no example is used
    twice more often than another however long training lasts.

    Args:
        strata: stratum of each example, int64 [N], all of 0..S-1 present.
        shares: share of each stratum in an epoch, [S], summing to 1.
        batch_size: examples per step over all workers.
        seed: seed of the run.
    """

    def __init__(self, strata: NDArray[np.int64], shares: NDArray[np.float64], *, batch_size: int, seed: int) -> None:
        self.batch_size = batch_size
        self.steps_per_epoch = max(1, len(strata) // batch_size)
        self._seed = seed
        self._size = len(strata)
        self._members = [np.flatnonzero(strata == code) for code in range(len(shares))] if len(shares) > 1 else []
        self._draws = _apportion(shares, self.steps_per_epoch * batch_size)
        self._epoch = -1
        self._positions: NDArray[np.int64] = np.empty(0, dtype=np.int64)

    def epoch_of(self, step: int) -> int:
        """Return the epoch that step (counted from 0) belongs to."""
        return step // self.steps_per_epoch

    def batch_at(self, step: int) -> Request:
        """Return the global batch of a step: positions int64 [batch_size]."""
        epoch, within = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._positions = self._positions_of(epoch)
            self._epoch = epoch
        start = within * self.batch_size
        return Request(epoch, self._positions[start : start + self.batch_size])

    def requests(self, step: int, end: int, *, rank: int, world_size: int) -> Iterator[Request]:
        """Yield one worker's part of the batches from step to end."""
        low, high = slice_bounds(self.batch_size, rank, world_size)
        for at in range(step, end):
            epoch, positions = self.batch_at(at)
            yield Request(epoch, positions[low:high])

    def _positions_of(self, epoch: int) -> NDArray[np.int64]:
        count = self.steps_per_epoch * self.batch_size
        if not self._members:
            if count <= self._size:
                return permutation(self._size, self._seed, _SHUFFLE, epoch)[:count]
            return self._stream(np.arange(self._size), 0, epoch * count, count)
        parts, keys = [], []
        for code, (members, draws) in enumerate(zip(self._members, self._draws, strict=True)):
            parts.append(self._stream(members, code, epoch * draws, draws))
            jitter = uniform(self._seed, _SPREAD, epoch, code, np.arange(draws))
            keys.append((np.arange(draws) + jitter) / max(draws, 1))
        return np.concatenate(parts)[np.argsort(np.concatenate(keys), kind="stable")]

    def _stream(self, members: NDArray[np.int64], code: int, start: int, count: int) -> NDArray[np.int64]:
        """Cut count places out of the endless row of permutations of a stratum."""
        size = len(members)
        first, last = start // size, (start + max(count, 1) - 1) // size
        rounds = [permutation(size, self._seed, _STRATUM, code, turn) for turn in range(first, last + 1)]
        offset = start - first * size
        return members[np.concatenate(rounds)[offset : offset + count]]


def _apportion(shares: NDArray[np.float64], total: int) -> list[int]:
    """Round shares of a total to whole numbers that sum to it, largest remainders first."""
    exact = np.asarray(shares, dtype=np.float64) * total
    whole = np.floor(exact).astype(np.int64)
    for code in np.argsort(whole - exact, kind="stable")[: total - int(whole.sum())]:
        whole[code] += 1
    return [int(count) for count in whole]
