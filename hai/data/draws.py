"""Random numbers as a function of their keys: no generator, no state, the same on every machine and worker.

A key is a tuple of integers such as (seed, epoch, example, draw); the value is a 64-bit hash of it. Because nothing
depends on what was drawn before, order, augmentation and dropout resume anywhere and need no saved state. The mixing
function is splitmix64's finaliser (Steele, Lea, Flood: Fast splittable pseudorandom number generators, OOPSLA 2014),
defined here so that no library release can change a run.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["hash_int", "hash_keys", "permutation", "uniform"]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def _mix(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    value = (value ^ (value >> np.uint64(30))) * _MIX_1
    value = (value ^ (value >> np.uint64(27))) * _MIX_2
    return value ^ (value >> np.uint64(31))


def hash_keys(*keys: int | NDArray[Any]) -> NDArray[np.uint64]:
    """Hash integer keys, broadcast against each other.

    Args:
        keys: integers or integer arrays of broadcastable shapes; their order matters.

    Returns:
        uint64 array of the broadcast shape (0-d for scalars).
    """
    value = np.zeros((), dtype=np.uint64)
    with np.errstate(over="ignore"):
        for key in keys:
            part = np.asarray(key).astype(np.int64, copy=False).view(np.uint64)
            value = _mix(value * np.uint64(3) + part + _GOLDEN)
    return value


def uniform(*keys: int | NDArray[Any]) -> NDArray[np.float64]:
    """Draw from [0, 1), one number per broadcast key, 53 bits."""
    return (hash_keys(*keys) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(size: int, *keys: int) -> NDArray[np.int64]:
    """Permute range(size), the same for equal keys everywhere; 10 million in about a second.

    The position takes the low bits of its own hash, so that sorting plain numbers gives the permutation and equal
    hashes cannot make it depend on the sorting method.
    """
    mask = np.uint64((1 << max(size - 1, 1).bit_length()) - 1)
    positions = np.arange(size, dtype=np.int64)
    values = (hash_keys(*keys, positions) & ~mask) | positions.view(np.uint64)
    values.sort()
    return (values & mask).view(np.int64)


def hash_int(*keys: int) -> int:
    """Hash integers one at a time: the value of `hash_keys`, without the cost of arrays."""
    mask, value = 0xFFFFFFFFFFFFFFFF, 0
    for key in keys:
        value = (value * 3 + key + 0x9E3779B97F4A7C15) & mask
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
        value ^= value >> 31
    return value
