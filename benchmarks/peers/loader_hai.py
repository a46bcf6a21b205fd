"""This project's loader on the plain folder: uint8 [B, 3, 224, 224], as a GPU gets it."""

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import numpy as np
import torch

from benchmarks.peers.contestant import BATCH, SIZE, Job, serve_batches
from hai.config.schema import RunConfig
from hai.data.dataset import ImageDataset
from hai.data.manifest import build_manifest


def dataset_of(job: Job, augment: dict[str, Any]) -> ImageDataset:
    """Index the folder; nothing is cached between epochs but hashes."""
    data = {
        "sources": [{"path": str(job.folder), "splits": ["train"]}], "image_size": SIZE, "cache_decoded": "off",
        "num_threads": job.workers,
    }  # fmt: skip
    config = RunConfig.model_validate({"data": data, "augment": augment})
    return ImageDataset(build_manifest(config.data, 1, require=("train",)), config, "train")


def epochs(dataset: ImageDataset) -> Iterator[Iterator[dict[str, torch.Tensor]]]:
    """Yield epoch after epoch of loaded batches, each in a new order."""
    epoch = 0
    while True:
        order = np.random.default_rng(epoch).permutation(len(dataset))
        requests = ((epoch, order[start : start + BATCH]) for start in range(0, len(order), BATCH))
        yield _closed(dataset.batches(requests, device=torch.device("cpu"), training=True))
        epoch += 1


def _closed(batches: Any) -> Iterator[dict[str, torch.Tensor]]:
    with closing(batches):
        yield from batches


def prepare(job: Job) -> Callable[[], Iterator[torch.Tensor]]:
    ahead = epochs(dataset_of(job, {}))
    return lambda: (batch["image"] for batch in next(ahead))


if __name__ == "__main__":
    serve_batches(prepare)
