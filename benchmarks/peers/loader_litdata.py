"""LitData from a local folder of its chunks, shuffled; it decodes JPEGs itself; uint8 [B, 3, 224, 224]."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from litdata import StreamingDataLoader, StreamingDataset, optimize
from PIL import Image

from benchmarks.peers.contestant import BATCH, Job, image_paths, serve_batches
from benchmarks.peers.decoding import resized


def example(entry: tuple[str, int]) -> dict[str, Any]:
    """Open an image, whose bytes are kept as they are."""
    return {"image": Image.open(entry[0]), "label": entry[1]}


class Images(StreamingDataset):
    def __getitem__(self, at: Any) -> tuple[torch.Tensor, int]:
        found = super().__getitem__(at)
        return resized(found["image"]), found["label"]


def prepare(job: Job) -> Callable[[], Iterator[torch.Tensor]]:
    chunks = str(job.scratch / "chunks")
    optimize(example, image_paths(job.folder), chunks, chunk_bytes="64MB", num_workers=job.workers, verbose=False)
    loader = StreamingDataLoader(
        Images(chunks, shuffle=True), batch_size=BATCH, num_workers=job.workers, persistent_workers=True
    )
    return lambda: (batch for batch, _ in loader)


if __name__ == "__main__":
    serve_batches(prepare)
