"""Embeddings of one split, as the loop asks for them."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hai.config.schema import RunConfig
from hai.data.dataset import ImageDataset
from hai.embeddings.store import EmbeddingStore
from hai.types import Batch

if TYPE_CHECKING:
    from hai.data.manifest import Manifest

__all__ = ["EmbeddedDataset"]


class EmbeddedDataset:
    """The examples of an `ImageDataset`, in the same order, with kept embeddings in place of images.

    Args:
        manifest: all examples of the run; `index` of a batch points into it.
        config: how examples are drawn.
        split: train, val or test.
        store: read when the first batch is asked for.
    """

    def __init__(self, manifest: Manifest, config: RunConfig, split: str, store: EmbeddingStore) -> None:
        undecoded = config.data.model_copy(update={"cache_decoded": "off"})
        self._examples = ImageDataset(manifest, config.model_copy(update={"data": undecoded}), split)
        self._store = store

    def __len__(self) -> int:
        return len(self._examples)

    def strata(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Divide the examples into strata for `data.sampling`, as `ImageDataset` does."""
        return self._examples.strata()

    def batches(
        self, requests: Iterable[tuple[int, NDArray[np.int64]]], *, device: torch.device, training: bool
    ) -> Generator[Batch, None, None]:
        """Yield one batch per request (epoch, positions), in order: `embedding` float32 [B, D], `index` and `label`.

        Raises:
            DataError: embeddings are missing.
        """
        for _, positions in requests:
            batch = {
                "embedding": self._rows[torch.from_numpy(positions)].float(),
                "index": torch.from_numpy(self._examples.rows[positions]),
                "label": torch.from_numpy(self._examples.labels[positions]),
            }
            if device.type == "cuda":  # pinned, or the copy would wait for it
                batch = {name: values.pin_memory() for name, values in batch.items()}
            yield {name: values.to(device, non_blocking=True) for name, values in batch.items()}

    def names(self, positions: NDArray[np.int64]) -> list[str]:
        """Return the paths of examples, as the manifest has them."""
        return self._examples.names(positions)

    def prepare(self, batch: Batch, *, epoch: int, training: bool) -> Batch:
        """Return the batch: an embedding is the model's input as it is."""
        return batch

    def features(self) -> NDArray[np.float32]:
        """Return the embeddings of all examples, [N, D], in order."""
        return self._rows.float().numpy()

    @cached_property
    def _rows(self) -> Tensor:
        """Embeddings of the split, [N, D], in the format that they are kept in."""
        return torch.from_numpy(self._store.read_stored(self._examples.manifest.sha256[self._examples.rows]))
