"""The model on every device of this machine, each with a thread of its own that scores batches."""

from __future__ import annotations

import copy
import queue
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from hai.memory import free_memory, is_out_of_memory
from hai.trained import best_device

if TYPE_CHECKING:
    from hai.trained import Trained

__all__ = ["Lanes", "Scored", "all_devices", "is_scoring"]

_BATCH_SIZE = {"cuda": 64}
_SMALL_BATCH = 16
_THREADS: Final = "hai-lane"
"""What the names of the threads begin with."""


class Scored(NamedTuple):
    """Logits of fake against real, [M, B] for M models, and the seconds that they took."""

    logits: NDArray[np.float64]
    seconds: float


def all_devices() -> list[torch.device]:
    """Return every GPU, or else the one device to compute on."""
    best = best_device()
    if best.type != "cuda":
        return [best]
    return [torch.device("cuda", number) for number in range(torch.cuda.device_count())]


class Lanes:
    """One lane for each device.

    Args:
        models: on any device, all with the same input; copies go to the other devices.
        devices: where to compute; one that is named twice has two lanes.
        flip: average with the mirrored picture.
        num_threads: of each lane on a CPU; None: as many as torch takes.
    """

    def __init__(
        self,
        models: Sequence[Trained],
        devices: Sequence[torch.device],
        *,
        flip: bool = False,
        num_threads: int | None = None,
    ) -> None:
        self.num_lanes = len(devices)
        self.batch_size = _BATCH_SIZE.get(devices[0].type, _SMALL_BATCH)
        self._flip = flip
        self._copies: queue.SimpleQueue[list[Trained]] = queue.SimpleQueue()
        for device in devices:
            self._copies.put([_on(device, model) for model in models])
        self._own = threading.local()
        self._is_abandoned = False
        self._threads_before = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(
            len(devices), _THREADS, initializer=self._begin, initargs=(num_threads or self._threads_before,)
        )

    def __enter__(self) -> Lanes:
        """Be there until the lanes are closed."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Drop what waits, and end the threads; those of abandoned lanes end when their batches are done."""
        self._pool.shutdown(wait=not self._is_abandoned, cancel_futures=True)
        torch.set_num_threads(self._threads_before)  # the lanes' number would be that of every thread from now on

    def submit(self, pixels: NDArray[np.uint8]) -> Future[Scored]:
        """Score pictures [B, S, S, 3] on the next free device."""
        return self._pool.submit(self._score, pixels)

    def abandon(self) -> None:
        """Have nobody wait for the batches that are being scored: they cannot be stopped."""
        self._is_abandoned = True

    def _begin(self, num_threads: int) -> None:
        torch.set_num_threads(num_threads)
        self._own.models = self._copies.get()

    def _score(self, pixels: NDArray[np.uint8]) -> Scored:
        began = time.perf_counter()
        models: list[Trained] = self._own.models
        image = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        if models[0].device.type == "cuda":
            image = image.pin_memory()
        image = image.to(models[0].device, non_blocking=True)
        logits = np.stack([self._logits(model, image) for model in models])
        return Scored(logits, time.perf_counter() - began)

    def _logits(self, model: Trained, image: torch.Tensor) -> NDArray[np.float64]:
        """Score a batch, in halves where memory runs out."""
        try:
            return model.logits(image, flip=self._flip)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or len(image) == 1:
                raise
        free_memory(model.device)
        return np.concatenate([self._logits(model, half) for half in image.tensor_split(2)])


def is_scoring() -> bool:
    """Say whether lanes of this process are at work, be it abandoned ones."""
    return any(thread.name.startswith(_THREADS) for thread in threading.enumerate())


def _on(device: torch.device, model: Trained) -> Trained:
    same = model.device.type == device.type and (model.device.index or 0) == (device.index or 0)
    return model if same else replace(model, model=copy.deepcopy(model.model).to(device), device=device)
