"""torchvision v2 on uint8 tensors in a DataLoader's workers, float32 at the end, as its documentation recommends."""

from collections.abc import Callable, Iterator

import torch

from benchmarks._classic import usual_loader
from benchmarks.peers.contestant import Job, serve_batches


def prepare(job: Job) -> Callable[[], Iterator[torch.Tensor]]:
    loader = usual_loader(job.folder, job.workers, recipe=job.recipe, tensors=True)
    return lambda: (batch for batch, _ in loader)


if __name__ == "__main__":
    serve_batches(prepare)
