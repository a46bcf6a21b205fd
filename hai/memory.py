"""Running out of memory: how it shows, and what is free again afterwards."""

from __future__ import annotations

import gc

import torch

__all__ = ["device_gigabytes", "first_line", "free_memory", "is_out_of_memory"]

_TEXTS = (  # of plain RuntimeErrors of torch
    "not enough memory: you tried to allocate",
    "can't allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "when calling `cublasCreate",  # says NOT_INITIALIZED where no room is left for its workspace
    "CUDNN_STATUS_ALLOC_FAILED",
    "DEVICE_ALLOCATION_FAILED",  # of cuDNN 9
    "CUFFT_ALLOC_FAILED",
    "CUSOLVER_STATUS_ALLOC_FAILED",
    "unable to find an engine to execute",  # cuDNN: every algorithm wants more than is left
)


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error means that a smaller batch could have worked."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _TEXTS)


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, which is never empty."""
    return (str(error).strip() or type(error).__name__).split("\n")[0]


def free_memory(device: torch.device) -> None:
    """Give back what a failed step has left; call it outside of the `except` block, whose error holds on to it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def device_gigabytes(device: torch.device) -> float | None:
    """Return the memory of a GPU, GB; None for a CPU."""
    return torch.cuda.get_device_properties(device).total_memory / 1e9 if device.type == "cuda" else None
