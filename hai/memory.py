"""Running out of memory: how it shows, and what is free again afterwards."""

from __future__ import annotations

import gc

import torch

__all__ = ["device_gigabytes", "free_memory", "is_out_of_memory"]

_TEXTS = (  # of plain RuntimeErrors of torch
    "not enough memory: you tried to allocate",
    "can't allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error means that a smaller batch could have worked."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _TEXTS)


def free_memory(device: torch.device) -> None:
    """Give back what a failed step has left; call it outside of the `except` block, whose error holds on to it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def device_gigabytes(device: torch.device) -> float | None:
    """Return the memory of a GPU, GB; None for a CPU."""
    return torch.cuda.get_device_properties(device).total_memory / 1e9 if device.type == "cuda" else None
