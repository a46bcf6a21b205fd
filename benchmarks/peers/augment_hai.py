"""This project's loader and changes, those of the device on the CPU; normalised float32 [B, 3, 224, 224]."""

from collections.abc import Callable, Iterator

import torch

from benchmarks.peers.contestant import Job, serve_batches
from benchmarks.peers.loader_hai import dataset_of, epochs


def prepare(job: Job) -> Callable[[], Iterator[torch.Tensor]]:
    dataset = dataset_of(job, job.recipe)
    ahead = enumerate(epochs(dataset))

    def epoch() -> Iterator[torch.Tensor]:
        number, batches = next(ahead)
        return (dataset.prepare(batch, epoch=number, training=True)["image"] for batch in batches)

    return epoch


if __name__ == "__main__":
    serve_batches(prepare)
