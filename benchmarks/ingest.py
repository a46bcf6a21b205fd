"""The first epoch from a drive on which opening a file takes 20 ms, as it does on mounted network drives.

Each repeat reads the same JPEGs once in every way, on an empty cache, so that a busy machine slows all alike; a record
is the median over repeats of the ratio within a repeat, `low` and `high` are its smallest and largest value. The drive
is a local folder: every open below it waits 20 ms, reading is as fast as the disk.

- `pack_ratio`: images per second of the first epoch from a pack on the drive, the copy to local disk, its verification
  and the reading of its index included, over those of one thread that reads the folder on the drive: open, decode,
  resize, one file after another, with the same decoder.
- `folder_ratio`: the same of the folder on the drive as a source, its index by many threads included.
- `again_ratio`: the pack in the next run of this machine, which finds it copied.
- `*_images_per_second`: of each; `pack_copy_seconds`: what the copy and its verification took of it.

Run alone with `python -m benchmarks.ingest [--quick]`. The images are made: JPEGs of 224 to 256 px, about 15 KB each.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks._classic import BATCH, SIZE
from benchmarks._images import draw_faces
from hai.config.schema import RunConfig
from hai.data import dataset, sources
from hai.data.dataset import ImageDataset
from hai.data.images import decode_image, fit_image
from hai.data.manifest import build_manifest
from hai.data.pack import build_pack

OPEN_S, NUM_IMAGES, NUM_ALONE = 0.02, 4000, 400
FLOORS = {"pack_ratio": 30.0, "folder_ratio": None, "again_ratio": None}


class _Drive:
    """A folder where opening a file takes a while, for everything in this process."""

    def __init__(self) -> None:
        self.root = ""
        sys.addaudithook(self._wait)

    def _wait(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and self.root and str(arguments[0]).startswith(self.root):
            time.sleep(OPEN_S)

    @contextmanager
    def mounted(self, root: Path) -> Iterator[None]:
        """Make a folder the drive; it is taken for what it plays."""
        seen, self.root = sources.is_mount, str(root)
        sources.is_mount = dataset.is_mount = lambda path: str(path).startswith(self.root)
        try:
            yield
        finally:
            self.root, sources.is_mount, dataset.is_mount = "", seen, seen


_DRIVE = _Drive()  # an audit hook stays as long as its process


def run(quick: bool) -> list[dict[str, Any]]:
    """Measure; each record that has a floor says whether it keeps it."""
    before = os.environ.get("HAI_CACHE")
    with tempfile.TemporaryDirectory(prefix="hai-ingest-") as name:
        scratch = Path(name)
        try:
            return _measured(scratch, repeats=3 if quick else 5, count=NUM_IMAGES // 4 if quick else NUM_IMAGES)
        finally:
            os.environ.pop("HAI_CACHE", None)
            if before is not None:
                os.environ["HAI_CACHE"] = before


def _measured(scratch: Path, *, repeats: int, count: int) -> list[dict[str, Any]]:
    folder = draw_faces(scratch / "drive" / "faces", count)
    os.environ["HAI_CACHE"] = str(scratch / "packing")
    pack = build_pack(build_manifest(_config(folder).data, 1, require=("train",)), scratch / "drive" / "pack")
    files = sorted(folder.rglob("*.jpg"))
    rates: dict[str, list[float]] = {"alone": [], "pack": [], "folder": [], "again": []}
    copies = []
    for repeat in range(repeats):
        os.environ["HAI_CACHE"] = str(scratch / f"cache-{repeat}")
        with _DRIVE.mounted(scratch / "drive"):
            chosen = files[repeat % 7 :: max(1, count // NUM_ALONE)]
            rates["alone"].append(_rate(lambda chosen=chosen: _alone(chosen)))
            rates["pack"].append(_rate(lambda: _epoch(pack, copies)))
            rates["again"].append(_rate(lambda: _epoch(pack)))
            rates["folder"].append(_rate(lambda: _epoch(folder)))
        shutil.rmtree(scratch / f"cache-{repeat}")
    records = []
    for name, floor in FLOORS.items():
        own = rates[name.removesuffix("_ratio")]
        ratios = [mine / theirs for mine, theirs in zip(own, rates["alone"], strict=True)]
        records.append(_record(name, ratios, floor))
    records += [_record(f"{name}_images_per_second", values) for name, values in rates.items()]
    return [*records, _record("pack_copy_seconds", copies)]


def _record(name: str, values: list[float], floor: float | None = None) -> dict[str, Any]:
    value = statistics.median(values)
    holds = floor is None or value >= floor
    return {"name": name, "value": value, "low": min(values), "high": max(values), "floor": floor, "holds": holds}


def _rate(read: Callable[[], int]) -> float:
    began = time.perf_counter()
    return read() / (time.perf_counter() - began)


def _alone(files: list[Path]) -> int:
    """Read files one after another in this thread."""
    out = np.empty((BATCH, SIZE, SIZE, 3), dtype=np.uint8)
    for number, file in enumerate(files):
        out[number % BATCH] = fit_image(decode_image(file.read_bytes()), SIZE, "resize")
    return len(files)


def _epoch(path: Path, copies: list[float] | None = None) -> int:
    """Read a source as a run does: bring it here, list it, then one shuffled epoch in batches."""
    began = time.perf_counter()
    config = _config(path)
    dataset = ImageDataset(build_manifest(config.data, 1, require=("train",)), config, "train")
    if copies is not None:
        copies.append(time.perf_counter() - began)
    order = np.random.default_rng(0).permutation(len(dataset))
    requests = ((0, order[start : start + BATCH]) for start in range(0, len(order), BATCH))
    with closing(dataset.batches(requests, device=torch.device("cpu"), training=True)) as batches:
        return sum(len(batch["image"]) for batch in batches)


def _config(path: Path) -> RunConfig:
    data = {"sources": [{"path": str(path), "splits": ["train"]}], "image_size": SIZE, "cache_decoded": "off"}
    return RunConfig.model_validate({"data": data})


if __name__ == "__main__":
    results = run(quick="--quick" in sys.argv)
    print(json.dumps(results, indent=1))
    sys.exit(0 if all(record["holds"] for record in results) else 1)
