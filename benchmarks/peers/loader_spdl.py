"""SPDL as its own example of loading images has it: threads, FFmpeg's decoder and scaler; uint8 [B, 224, 224, 3].

It needs FFmpeg 8's libraries under their usual names. PyAV's wheel brings them under names of its own; links give them
the usual ones.
"""

import os
import random
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import torch

from benchmarks.peers.contestant import BATCH, SIZE, Job, image_paths, serve_batches

_LINKS = "HAI_BENCHMARK_FFMPEG"


def offer_ffmpeg() -> None:
    """Start this process again where the loader of shared libraries finds FFmpeg."""
    if os.environ.get(_LINKS):
        return
    libraries = Path(av.__file__).parents[1] / "av.libs"
    links = Path.cwd() / "ffmpeg"
    links.mkdir()
    for library in libraries.glob("lib*"):
        named = re.fullmatch(r"(lib\w+)-[0-9a-f]{8}\.so\.(\d+)[\d.]*", library.name)
        if named:
            (links / f"{named[1]}.so.{named[2]}").symlink_to(library)
    places = [str(links), str(libraries), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    os.environ.update({_LINKS: "1", "LD_LIBRARY_PATH": ":".join(places)})
    os.execv(sys.executable, [sys.executable, *sys.argv])


def prepare(job: Job) -> Callable[[], Iterator[torch.Tensor]]:
    import spdl.io
    from spdl.pipeline import PipelineBuilder

    paths = [path for path, _ in image_paths(job.folder)]

    def load(batch: list[str]) -> torch.Tensor:
        return spdl.io.to_torch(spdl.io.load_image_batch(batch, width=SIZE, height=SIZE, pix_fmt="rgb24"))

    def epoch() -> Iterator[torch.Tensor]:
        order = random.sample(paths, len(paths))
        builder = PipelineBuilder().add_source(order).aggregate(BATCH).pipe(load, concurrency=job.workers)
        pipeline = builder.add_sink(4).build(num_threads=job.workers)
        with pipeline.auto_stop():
            yield from pipeline

    return epoch


if __name__ == "__main__":
    offer_ffmpeg()
    serve_batches(prepare)
