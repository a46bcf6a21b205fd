"""Copies of a state that training may go on changing."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["Buffers"]


class Buffers:
    """CPU memory that holds a copy of named tensors, and is used again for the next copy."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def copy(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copy tensors from any device; overwrites the copy before."""
        buffers = {}
        for name, tensor in tensors.items():
            buffer = self._buffers.get(name)
            if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
                buffer = _empty_like(tensor)
            buffers[name] = buffer.copy_(tensor.detach(), non_blocking=True)
        self._buffers = buffers
        for device in {tensor.device for tensor in tensors.values() if tensor.is_cuda}:
            torch.cuda.synchronize(device)
        return dict(buffers)


def _empty_like(tensor: Tensor) -> Tensor:
    """Allocate CPU memory, laid out like the tensor, so that copying is no transposing: pinned if there is enough."""
    if tensor.is_cuda:
        with contextlib.suppress(RuntimeError):
            return torch.empty_like(tensor, device="cpu", pin_memory=True, requires_grad=False)
    return torch.empty_like(tensor, device="cpu", requires_grad=False)
