"""The usual loader: ImageFolder, PIL, ToTensor, Normalize and a DataLoader; float32 [B, 3, 224, 224]."""

from collections.abc import Callable, Iterator

import torch
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from benchmarks.peers.contestant import BATCH, MEAN, SIZE, STD, Job, serve_batches


def prepare(job: Job) -> Callable[[], Iterator[torch.Tensor]]:
    steps = [transforms.Resize((SIZE, SIZE)), transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    images = ImageFolder(str(job.folder), transforms.Compose(steps))
    loader = DataLoader(images, BATCH, shuffle=True, num_workers=job.workers, persistent_workers=True)
    return lambda: (batch for batch, _ in loader)


if __name__ == "__main__":
    serve_batches(prepare)
