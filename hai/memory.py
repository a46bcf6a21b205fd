"""Memory of a step: how it shows that there is too little, what is free again afterwards, and what is kept."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch

__all__ = ["device_gigabytes", "first_line", "free_memory", "freed_memory_kept", "is_out_of_memory"]

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # names of mallopt(3)
_LARGEST_THRESHOLD: Final = 32 << 20  # that glibc takes, and comes to by itself

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


@contextmanager
def freed_memory_kept(device: torch.device) -> Iterator[None]:
    """On a CPU, keep what a step frees for the next one, in place of giving it back to the system in between.

    glibc maps every tensor above 32 MB anew and returns it when it is freed, and the kernel clears its pages each time.
    A step becomes up to a quarter shorter without that, and up to a third more memory is taken. In threads other than
    the first, tensors above 64 MB are mapped anew all the same. Afterwards what is free is given back. Nothing happens
    with another C library, nor where a variable `MALLOC_*` says what is wished.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None or device.type != "cpu" or any(name.startswith("MALLOC_") for name in os.environ):
        yield
        return
    mallopt(_MMAP_MAX, 0)
    mallopt(_TRIM_THRESHOLD, -1)  # never
    try:
        yield
    finally:
        mallopt(_MMAP_MAX, 65536)
        mallopt(_MMAP_THRESHOLD, _LARGEST_THRESHOLD)
        mallopt(_TRIM_THRESHOLD, 2 * _LARGEST_THRESHOLD)
        ctypes.CDLL(None).malloc_trim(0)


def device_gigabytes(device: torch.device) -> float | None:
    """Return the memory of a GPU, GB; None for a CPU."""
    return torch.cuda.get_device_properties(device).total_memory / 1e9 if device.type == "cuda" else None
