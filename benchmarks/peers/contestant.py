"""The side of a peer: a script that prepares once, then measures each time it is told to.

It runs in the peer's own environment, without the project's code. Its parent, `benchmarks.peers.contest`, writes a line
for each measurement to its standard input and reads a line of JSON from its standard output; whatever else is printed
goes to its log.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks._measure import timed

__all__ = ["BATCH", "MEAN", "SIZE", "STD", "Job", "image_paths", "serve", "serve_batches"]

SIZE, BATCH = 224, 64
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Job(NamedTuple):
    """What a peer gets."""

    folder: Path
    """`real/` and `fake/` with the images."""
    scratch: Path
    """A folder of its own, for files in its own format."""
    workers: int
    """Processes or threads that load: the number of cores."""
    recipe: dict[str, Any]
    """Strengths and probabilities of the changes to the images, named as in the config's `augment`."""
    steps: int
    """Steps of one measurement of a loop."""


def serve(prepare: Callable[[Job], Callable[[], dict[str, Any]]]) -> None:
    """Prepare, say so, then measure once for each line of standard input.

    Args:
        prepare: does what is done once and returns a function that measures.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    given = json.loads(sys.argv[1])
    measure = prepare(Job(**given | {"folder": Path(given["folder"]), "scratch": Path(given["scratch"])}))
    print("{}", file=answers, flush=True)
    for _ in iter(sys.stdin.readline, ""):
        print(json.dumps(measure()), file=answers, flush=True)


def serve_batches(prepare: Callable[[Job], Callable[[], Iterable[Any]]]) -> None:
    """Measure the time and processor seconds from the start of an epoch to its last batch.

    Args:
        prepare: returns a function that begins an epoch: batches of images, [B, ...].
    """

    def prepared(job: Job) -> Callable[[], dict[str, Any]]:
        epoch = prepare(job)

        def measure() -> dict[str, Any]:
            seen: dict[str, Any] = {"images": 0, "batches": set()}
            cost = timed(lambda: _count(epoch(), seen))
            return {"wall": cost.wall, "cpu": cost.cpu, "images": seen["images"], "batches": sorted(seen["batches"])}

        return measure

    serve(prepared)


def _count(batches: Iterable[Any], seen: dict[str, Any]) -> None:
    for images in batches:
        seen["images"] += len(images)
        seen["batches"].add(f"{str(images.dtype).removeprefix('torch.')} {tuple(images.shape[1:])}")


def image_paths(folder: Path) -> list[tuple[str, int]]:
    """List the images with their labels, 1 for fake."""
    return [(str(path), int(path.parent.name == "fake")) for path in sorted(folder.glob("*/*.jpg"))]
