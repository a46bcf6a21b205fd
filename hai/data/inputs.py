"""Loaded images to the model's input: changed as drawn, normalised, float32."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from hai.data.augment import Change, ExampleChanges, apply_changes, change_example, changes_by_example, normalise
from hai.data.buffers import Buffers

__all__ = ["ModelInputs"]

_CHUNK = 4  # examples that a thread takes at once


class ModelInputs:
    """Make the model's inputs, the same bits on one thread and on many.

    A GPU works on the whole batch at once. On a CPU an example goes through all its changes and the normalisation
    before the next, so that it stays in the cache, in as many threads as torch computes with; the result lies in memory
    that comes back when nothing looks at it any more.
    """

    def __init__(self) -> None:
        self._buffers = Buffers()
        self._threads: ThreadPoolExecutor | None = None
        self._num_threads = 1

    def __call__(self, image: Tensor, changes: Sequence[Change]) -> Tensor:
        """Change and normalise uint8 [B, 3, H, W], which stays as it is; returns float32 of that shape."""
        if image.device.type != "cpu":
            return normalise(apply_changes(image, changes))
        result = torch.from_numpy(self._buffers.take(tuple(image.shape), "float32"))
        own = changes_by_example(changes, len(image))
        starts = range(0, len(image), _CHUNK)

        def fill(start: int) -> None:
            _fill(result, image, own, start)

        threads = self._threads_for(len(starts))
        if threads is None:
            for start in starts:
                fill(start)
        else:
            for _ in threads.map(fill, starts):
                pass
        return result

    def _threads_for(self, num_chunks: int) -> ThreadPoolExecutor | None:
        """Return threads whose torch computes alone, None where one is enough."""
        wanted = torch.get_num_threads()
        if num_chunks == 1 or wanted == 1:
            return None
        if self._threads is None or self._num_threads != wanted:
            self._threads, self._num_threads = _threads(wanted), wanted
        return self._threads


def _fill(result: Tensor, image: Tensor, own: Sequence[ExampleChanges], start: int) -> None:
    with torch.inference_mode():  # what comes between needs no gradients; the result is no inference tensor
        for row in range(start, min(start + _CHUNK, len(image))):
            target = result[row : row + 1]
            changed = normalise(change_example(target.copy_(image[row : row + 1]), own[row]))
            if changed is not target:
                target.copy_(changed)


def _threads(count: int) -> ThreadPoolExecutor:
    """Start threads in each of which torch computes with one thread: together they are as many as it may use.

    `torch.set_num_threads` counts for the thread that calls it and for all that start later, so it is called here again
    when they have started.
    """
    started = threading.Barrier(count)

    def alone() -> None:
        torch.set_num_threads(1)
        started.wait()  # holds each thread, or the first would take all these tasks

    threads = ThreadPoolExecutor(count, thread_name_prefix="hai-inputs")
    for task in [threads.submit(alone) for _ in range(count)]:
        task.result()
    torch.set_num_threads(count)
    return threads
