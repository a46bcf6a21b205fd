"""The usual loader: ImageFolder, PIL, ToTensor, Normalize and a DataLoader; float32 [B, 3, 224, 224]."""

from collections.abc import Callable, Iterator

import torch

from benchmarks._classic import usual_loader
from benchmarks.peers.contestant import Job, serve_batches


def prepare(job: Job) -> Callable[[], Iterator[torch.Tensor]]:
    loader = usual_loader(job.folder, job.workers)
    return lambda: (batch for batch, _ in loader)


if __name__ == "__main__":
    serve_batches(prepare)
