"""Running out of memory: how it shows, and what is free again afterwards."""

from __future__ import annotations

import gc

import torch

__all__ = ["device_gigabytes", "free_memory", "is_out_of_memory"]

_CPU_ALLOCATOR = "not enough memory: you tried to allocate"  # a plain RuntimeError of torch
_CPU_ALLOCATOR_POSIX = "can't allocate memory"


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error means that a smaller batch could have worked."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and (_CPU_ALLOCATOR in text or _CPU_ALLOCATOR_POSIX in text)


def free_memory(device: torch.device) -> None:
    """Give back what a failed step has left; call it outside of the `except` block, whose error holds on to it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def device_gigabytes(device: torch.device) -> float | None:
    """Return the memory of a GPU, GB; None for a CPU."""
    return torch.cuda.get_device_properties(device).total_memory / 1e9 if device.type == "cuda" else None
