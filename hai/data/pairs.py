"""Explicit comparisons of one split as examples, on top of any data set of its images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hai.types import Batch

if TYPE_CHECKING:
    from hai.data.manifest import Manifest

__all__ = ["ComparisonDataset"]


class _Batches(Protocol):
    def __next__(self) -> Batch: ...

    def close(self) -> object: ...


class _Images(Protocol):
    def batches(
        self, requests: Iterable[tuple[int, NDArray[np.int64]]], *, device: torch.device, training: bool
    ) -> _Batches: ...

    def names(self, positions: NDArray[np.int64]) -> list[str]: ...

    def prepare(self, batch: Batch, *, epoch: int, training: bool) -> Batch: ...


class ComparisonDataset:
    """Comparisons of one split of a manifest, by position 0..N-1.

    Args:
        images: data set of the split's images, in the order of the manifest's rows.
        manifest: all examples of the run.
        split: train, val or test.
    """

    def __init__(self, images: _Images, manifest: Manifest, split: str) -> None:
        rows = manifest.indices(split)
        comparisons = manifest.comparisons[np.isin(manifest.comparisons[:, 0], rows)].astype(np.int64)
        self.images, self.manifest, self.split = images, manifest, split
        self.positions: NDArray[np.int64] = np.searchsorted(rows, comparisons[:, :2])
        """Of left and right among the split's images, [N, 2]."""
        self.preferences: NDArray[np.int64] = comparisons[:, 2]
        """1 (left is better), -1 (right) or 0 (tie), [N]."""

    def __len__(self) -> int:
        return len(self.preferences)

    def strata(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Put all comparisons into one stratum: each is drawn once an epoch."""
        return np.zeros(len(self), dtype=np.int64), np.ones(1)

    def batches(
        self, requests: Iterable[tuple[int, NDArray[np.int64]]], *, device: torch.device, training: bool
    ) -> PairStream:
        """Load one batch per request (epoch, positions), in order and ahead of its use.

        Returns:
            An iterator of batches with what the images' data set loads as [B, 2, ...], left before right, among it
            `index`; `label` is the preference, [B]. Closing it closes the images' iterator.
        """
        asked: list[NDArray[np.int64]] = []

        def flat() -> Iterator[tuple[int, NDArray[np.int64]]]:
            for epoch, positions in requests:
                asked.append(self.preferences[positions])
                yield epoch, self.positions[positions].reshape(-1)

        return PairStream(self.images.batches(flat(), device=device, training=training), asked)

    def names(self, positions: NDArray[np.int64]) -> list[str]:
        """Return the paths of compared images, `left | right`."""
        names = self.images.names(self.positions[positions].reshape(-1))
        return [f"{left} | {right}" for left, right in zip(names[::2], names[1::2], strict=True)]

    def prepare(self, batch: Batch, *, epoch: int, training: bool) -> Batch:
        """Make the model's input of a loaded batch on its device, each image as its data set does."""
        label = batch["label"]
        flat = {name: value.flatten(0, 1) for name, value in batch.items() if name != "label"}
        flat["label"] = label.repeat_interleave(2)
        return _paired(self.images.prepare(flat, epoch=epoch, training=training), label)


class PairStream(Iterator[Batch]):
    """Loaded batches of comparisons; an iterator that can be closed."""

    def __init__(self, batches: _Batches, preferences: list[NDArray[Any]]) -> None:
        self._batches, self._preferences = batches, preferences

    def __next__(self) -> Batch:
        batch = next(self._batches)
        label = torch.from_numpy(self._preferences.pop(0))
        return _paired(batch, label.to(batch["index"].device, non_blocking=True))

    def close(self) -> None:
        """Stop reading ahead."""
        self._batches.close()


def _paired(batch: Batch, label: Tensor) -> Batch:
    """Give a batch of images [2B, ...] the shape [B, 2, ...] and the comparisons' label [B]."""
    paired = {name: value.reshape(len(label), 2, *value.shape[1:]) for name, value in batch.items() if name != "label"}
    return {**paired, "label": label}
