"""The same random numbers as `hai.data.draws`, computed by torch on the device of a batch."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

__all__ = ["hash_keys", "normal", "uniform"]


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


def _shift(value: Tensor, bits: int) -> Tensor:
    """Shift right without the sign, which torch keeps."""
    return (value >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _mix(value: Tensor) -> Tensor:
    value = _shift(value, 30).bitwise_xor_(value).mul_(_MIX_1)
    value = _shift(value, 27).bitwise_xor_(value).mul_(_MIX_2)
    return _shift(value, 31).bitwise_xor_(value)


def _next(value: Tensor, key: int | Tensor) -> Tensor:
    return _mix((value * 3 + key).add_(_GOLDEN))


def hash_keys(*keys: int | Tensor) -> Tensor:
    """Hash integer keys, broadcast against each other; the bits are those of `hai.data.draws.hash_keys`.

    Args:
        keys: integers or int64 tensors of broadcastable shapes, at least one tensor.

    Returns:
        int64 tensor of the broadcast shape, to be read as 64 bits.
    """
    device = next(key.device for key in keys if isinstance(key, Tensor))
    value = torch.zeros((), dtype=torch.int64, device=device)
    for key in keys:
        value = _next(value, key)
    return value


def uniform(*keys: int | Tensor) -> Tensor:
    """Draw float32 from [0, 1), one number per broadcast key, 24 bits: all that float32 holds."""
    return _shift(hash_keys(*keys), 40).to(torch.float32) * 2.0**-24


def normal(keys: Tensor, size: int) -> Tensor:
    """Draw standard normal numbers by inverse transform sampling, exactly the same on every device.

    The distribution function is inverted at 65,536 equally likely points, which a table holds: the largest number is
    4.3, and one 64-bit hash gives four numbers. Box-Muller would take a logarithm and a cosine for each pair, whose
    last bits differ between devices.

    Args:
        keys: hashed keys, int64 [B].
        size: how many numbers per key; number i is a function of its key and i.

    Returns:
        float32 [B, size].

    Source: Devroye, Non-Uniform Random Variate Generation, 1986, chapter II.2.
    """
    counters = torch.arange((size + 3) // 4, dtype=torch.int64, device=keys.device)
    words = _next(keys[:, None], counters)
    quarters = words.view(torch.int16).flatten(1)[:, :size].to(torch.int32).add_(32768)
    drawn: Tensor = _quantiles(keys.device).index_select(0, quarters.flatten()).view(len(keys), size)
    return drawn


@functools.cache
@torch.inference_mode(False)
def _quantiles(device: torch.device) -> Tensor:
    """Return the normal quantiles of (i + 1/2) / 65,536, float32 [65536]."""
    points = (torch.arange(1 << 16, dtype=torch.float64) + 0.5) / (1 << 16)
    quantiles: Tensor = torch.special.ndtri(points)
    return quantiles.to(device, torch.float32)
