"""MosaicML Streaming from a local folder of its shards, shuffled; uint8 [B, 3, 224, 224]."""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from streaming import MDSWriter, StreamingDataset
from streaming.base.util import clean_stale_shared_memory
from torch.utils.data import DataLoader

from benchmarks.peers.contestant import BATCH, Job, image_paths, serve_batches
from benchmarks.peers.decoding import decoded


class Images(StreamingDataset):
    def __getitem__(self, at: int) -> tuple[torch.Tensor, int]:
        example = super().__getitem__(at)
        return decoded(example["image"]), example["label"]


def prepare(job: Job) -> Callable[[], Iterator[torch.Tensor]]:
    with MDSWriter(out=str(job.scratch / "shards"), columns={"image": "bytes", "label": "int"}) as shards:
        for path, label in image_paths(job.folder):
            shards.write({"image": Path(path).read_bytes(), "label": label})
    clean_stale_shared_memory()
    images = Images(local=str(job.scratch / "shards"), shuffle=True, batch_size=BATCH)
    loader = DataLoader(images, batch_size=BATCH, num_workers=job.workers, persistent_workers=True)
    return lambda: (batch for batch, _ in loader)


if __name__ == "__main__":
    serve_batches(prepare)
