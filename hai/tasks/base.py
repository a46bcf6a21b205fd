"""The protocol between the loop and what it trains."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hai.config.schema import RunConfig
from hai.distributed import Workers
from hai.types import Arrays, Batch, Record

__all__ = ["Batches", "Dataset", "Datasets", "Progress", "Say", "Task"]

Progress = Callable[[int, int], None]
"""Called with (done, total) while something takes long."""

Say = Callable[[str], None]
"""Takes a line for people."""


class Batches(Protocol):
    """An iterator of loaded batches that can be closed before its end, which ends its threads."""

    def __iter__(self) -> Iterator[Batch]: ...

    def __next__(self) -> Batch: ...

    def close(self) -> object:
        """Stop reading ahead."""
        ...


class Dataset(Protocol):
    """Examples of one split, by position 0..N-1."""

    def __len__(self) -> int: ...

    def strata(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return the stratum of each example [N] and the share of each stratum in an epoch [S]."""
        ...

    def batches(
        self, requests: Iterable[tuple[int, NDArray[np.int64]]], *, device: torch.device, training: bool
    ) -> Batches:
        """Yield one batch per request (epoch, positions), in order, reading ahead lazily."""
        ...

    def names(self, positions: NDArray[np.int64]) -> list[str]:
        """Name examples for people."""
        ...

    def prepare(self, batch: Batch, *, epoch: int, training: bool) -> Batch:
        """Turn a loaded batch into the model's input on its device; in training with the epoch's random changes."""
        ...


@dataclass(frozen=True)
class Datasets:
    """The splits of a run.

    Args:
        splits: datasets by split name; train and val are present.
        identity: hash over content, labels, groups and splits, which a resume compares.
        table: counts for people, one record per row.
        notes: lines worth telling: warnings, unreadable files.
        crop_settings: how the images were cut out of others; kept with checkpoints, followed by prediction.
    """

    splits: Mapping[str, Dataset]
    identity: str
    table: list[Record]
    notes: tuple[str, ...] = ()
    details: Any = None
    crop_settings: Record | None = None


class Task(Protocol):
    """What to learn: data, model, objective, predictions, metrics. It never steps, wraps, gathers, saves or logs."""

    name: str
    metric: str
    """Validation metric that picks the best checkpoint; higher is better."""

    def __init__(self, config: RunConfig) -> None: ...

    def build_datasets(self, *, progress: Progress | None = None) -> Datasets:
        """Read the sources; raises DataError."""
        ...

    def metric_names(self) -> list[str]:
        """Name the metrics that evaluations of the validation split will have; after `build_datasets`."""
        ...

    def prepare(self, workers: Workers, *, say: Say, asked: Callable[[], int]) -> bool:
        """Compute what training reads, such as embeddings, together with all workers; called once before the loop.

        Args:
            workers: this worker's group.
            say: takes a line for people.
            asked: asked now and then on the first worker; STOP ends the work early, what is done is kept.

        Returns:
            False if it was stopped.
        """
        ...

    def build_model(self) -> nn.Module:
        """Build the network with its initial weights, a function of the config alone."""
        ...

    def backbone(self, model: nn.Module) -> set[str]:
        """Name the parameters of the backbone."""
        ...

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """Forward a prepared batch: [B, ...]."""
        ...

    def loss(self, outputs: Tensor, batch: Batch, *, epoch: int) -> Tensor:
        """Compute the objective of a global batch; `batch` holds everything but the images."""
        ...

    def needs_global_batch(self, epoch: int) -> bool:
        """Say whether the loss is more than a mean over examples, so that it must see the global batch whole."""
        ...

    def statistics(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Count what training metrics are made of, summable over batches: float64 [K]."""
        ...

    def training_metrics(self, statistics: list[float]) -> dict[str, float]:
        """Turn summed statistics into metrics."""
        ...

    def predict(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Predict a prepared batch: tensors [B, ...] that metrics and tables need."""
        ...

    def fit(self, predictions: Arrays) -> Record:
        """Fit what is stored with a checkpoint, such as a threshold, on the validation split."""
        ...

    def metrics(self, predictions: Arrays) -> dict[str, float | None]:
        """Compute the metrics of a whole split, each example exactly once; None where one is not defined."""
        ...
