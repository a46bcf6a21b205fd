"""Predictions of a whole split on all workers, every example exactly once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hai.distributed import Workers
from hai.memory import free_memory, is_out_of_memory
from hai.order import Request, slice_bounds
from hai.precision import precision_on
from hai.tasks.base import Dataset, Task
from hai.types import Arrays, Batch

__all__ = ["predict_split"]


def predict_split(
    model: nn.Module,
    task: Task,
    dataset: Dataset,
    workers: Workers,
    *,
    batch_size: int,
    mixed_precision: bool | str = False,
) -> Arrays:
    """Predict every example of a data set; the model is left in evaluation mode.

    Each worker takes a contiguous part; nothing is padded or repeated. Where memory runs out, a worker forwards fewer
    examples at once.

    Args:
        model: the network on the worker's device.
        task: makes predictions of batches.
        dataset: the split.
        workers: this worker's group.
        batch_size: most examples that this worker forwards at once.
        mixed_precision: as `train.mixed_precision`.

    Returns:
        The task's predictions plus `index`, in the order of the data set, on all workers.
    """
    low, high = slice_bounds(len(dataset), workers.rank, workers.world_size)
    if low == high:  # more workers than examples: predict one for its layout, then drop it
        low, high, keep = 0, 1, 0
    else:
        keep = high - low
    model.eval()
    parts: list[Arrays] = []
    precision = precision_on(workers.device, mixed_precision)
    with torch.inference_mode(), torch.autocast(workers.device.type, precision, enabled=precision is not None):
        requests = _requests(low, high, batch_size)
        with closing(dataset.batches(requests, device=workers.device, training=False)) as batches:
            for batch in batches:
                start, size = 0, len(batch["index"])
                while start < size:
                    piece = {name: values[start : start + batch_size] for name, values in batch.items()}
                    part = _predicted(model, task, dataset, piece)
                    if part is None:
                        free_memory(workers.device)
                        batch_size = len(piece["index"]) // 2
                    else:
                        parts.append(part)
                        start += batch_size
    own = {name: np.concatenate([part[name] for part in parts])[:keep] for name in parts[0]}
    return workers.gather_arrays(own)


def _requests(low: int, high: int, batch_size: int) -> Iterator[Request]:
    for start in range(low, high, batch_size):
        yield Request(0, np.arange(start, min(start + batch_size, high)))


def _predicted(model: nn.Module, task: Task, dataset: Dataset, batch: Batch) -> Arrays | None:
    """Predict one batch; None when memory has run out and half of it may fit."""
    try:
        prepared = dataset.prepare(batch, epoch=0, training=False)
        predictions = {"index": prepared["index"], **task.predict(model, prepared)}
        return {name: _array(values) for name, values in predictions.items()}
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error) or len(batch["index"]) == 1:
            raise
        return None


def _array(values: torch.Tensor) -> NDArray[np.generic]:
    if values.is_floating_point():
        values = values.float()
    return values.cpu().numpy()
