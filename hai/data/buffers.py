"""Memory for batches that comes back by itself, so that no batch pays for fresh pages."""

from __future__ import annotations

import math
import weakref
from collections import deque
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray

__all__ = ["Buffers"]


class Buffers:
    """Lend arrays; their memory is free again when nothing looks at the loan any more.

    The system clears memory before a process may have it, which for a batch of float32 images takes longer than to
    normalise them. `torch.from_numpy` of a loan holds on to it, views of the loan do not.

    Args:
        pinned: lend memory from which a GPU can copy without waiting.
    """

    def __init__(self, *, pinned: bool = False) -> None:
        self._pinned = pinned
        self._free: deque[NDArray[np.uint8]] = deque()

    def take(self, shape: tuple[int, ...], dtype: DTypeLike = np.uint8) -> NDArray[Any]:
        """Lend an array with whatever it last held."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        buffer = self._free.popleft() if self._free else None
        if buffer is None or len(buffer) < size:
            buffer = torch.empty(size, dtype=torch.uint8, pin_memory=self._pinned).numpy()
        loan = buffer[:size].view(dtype).reshape(shape)
        weakref.finalize(loan, self._free.append, buffer).atexit = False
        return loan
