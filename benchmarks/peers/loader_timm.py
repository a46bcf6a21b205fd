"""timm's loader without augmentation: its workers' uint8 [B, 3, 224, 224], before it normalises them on the device."""

from collections.abc import Callable, Iterator

import torch
from timm.data import create_dataset, create_loader

from benchmarks.peers.contestant import BATCH, SIZE, Job, serve_batches


def prepare(job: Job) -> Callable[[], Iterator[torch.Tensor]]:
    images = create_dataset("", root=str(job.folder))
    loader = create_loader(
        images, (3, SIZE, SIZE), BATCH, is_training=True, no_aug=True, num_workers=job.workers,
        device=torch.device("cpu"), persistent_workers=True,
    )  # fmt: skip
    return lambda: (batch for batch, _ in loader.loader)


if __name__ == "__main__":
    serve_batches(prepare)
