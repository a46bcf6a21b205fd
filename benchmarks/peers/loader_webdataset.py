"""WebDataset: four tar files a worker or more, shuffled by shard and in a buffer; uint8 [B, 3, 224, 224]."""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import webdataset as wds

from benchmarks.peers.contestant import BATCH, Job, image_paths, serve_batches
from benchmarks.peers.decoding import decoded


def prepare(job: Job) -> Callable[[], Iterator[torch.Tensor]]:
    paths = image_paths(job.folder)
    most = max(1, len(paths) // (4 * job.workers))  # it refuses fewer files than workers
    with wds.ShardWriter(str(job.scratch / "faces-%04d.tar"), maxcount=most, verbose=0) as shards:
        for number, (path, label) in enumerate(paths):
            shards.write({"__key__": f"{number:06}", "jpg": Path(path).read_bytes(), "cls": label})
    files = sorted(str(path) for path in job.scratch.glob("*.tar"))
    images = wds.WebDataset(files, shardshuffle=len(files)).shuffle(1000).to_tuple("jpg", "cls")
    loader = wds.WebLoader(
        images.map_tuple(decoded, int).batched(BATCH), batch_size=None, num_workers=job.workers, persistent_workers=True
    )
    return lambda: (batch for batch, _ in loader)


if __name__ == "__main__":
    serve_batches(prepare)
