"""The loader against the usual one: ImageFolder, PIL, ToTensor, Normalize and a DataLoader with two worker processes.

Each repeat runs every contestant once over the same number of images, so that a busy machine slows all alike; a record
is the median over repeats of the ratio within a repeat, `low` and `high` are its smallest and largest value.

- `loader_wall_ratio`, `loader_cpu_ratio`: images per second, and per CPU-second, of uint8 batches as a GPU gets them,
  each image decoded and resized to 224 px; the usual loader's batches are normalised float32: it knows no other way.
- `prepared_wall_ratio`: the same, normalised on this machine's CPU.
- `cached_wall_ratio`: uint8 batches from the second epoch on, read from the decoded cache.
- `augmented_wall_ratio`, `augmented_cpu_ratio`: with flip, rotation, colour jitter, JPEG, blur and noise as strong as
  in the recipe, everything on this machine's CPU, ending in normalised float32 on both sides.

Run alone with `python -m benchmarks.loader [--quick]`. The images are made: JPEGs of 224 to 256 px, about 15 KB each.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, RandomSampler
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from hai.config.schema import RunConfig
from hai.data.augment import MEAN, STD
from hai.data.dataset import ImageDataset
from hai.data.manifest import build_manifest

SIZE, BATCH, NUM_IMAGES = 224, 64, 640
RECIPE = {
    "flip": 0.5, "rotation_degrees": 10, "brightness": 0.15, "contrast": 0.15, "saturation": 0.15, "hue": 0.05,
    "jpeg_probability": 0.3, "noise_probability": 0.1, "blur_probability": 0.05,
}  # fmt: skip
FLOORS = {
    "loader_wall_ratio": 6.0,
    "loader_cpu_ratio": 5.0,
    "prepared_wall_ratio": None,
    "cached_wall_ratio": 25.0,
    "augmented_wall_ratio": 2.0,
    "augmented_cpu_ratio": 2.0,
}


def run(quick: bool) -> list[dict[str, Any]]:
    """Measure; each record says whether it keeps its floor."""
    before = os.environ.get("HAI_CACHE")
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["HAI_CACHE"] = str(Path(scratch) / "cache")
        try:
            return _measured(draw_images(Path(scratch) / "faces"), repeats=3 if quick else 7, passes=1 if quick else 6)
        finally:
            os.environ.pop("HAI_CACHE")
            if before is not None:
                os.environ["HAI_CACHE"] = before


def _measured(folder: Path, *, repeats: int, passes: int) -> list[dict[str, Any]]:
    total = passes * NUM_IMAGES
    usual, usual_augmented = (_usual(folder, total, augmented=augmented) for augmented in (False, True))
    for peer in (usual, usual_augmented):
        next(
            iter(peer)
        )  # starts its workers, which stay: before torch has threads here, which a fork would not survive
    cached = _dataset(folder, cache="on")
    for _ in _batches(cached, NUM_IMAGES, prepare=False):
        pass  # fills the cache
    contestants: dict[str, Callable[[], Iterator[Any]]] = {
        "usual": lambda: iter(usual),
        "loader": lambda: _batches(_dataset(folder), total, prepare=False),
        "prepared": lambda: _batches(_dataset(folder), total, prepare=True),
        "cached": lambda: _batches(cached, total, prepare=False),
        "usual_augmented": lambda: iter(usual_augmented),
        "augmented": lambda: _batches(_dataset(folder, augment=RECIPE), total, prepare=True),
    }
    costs: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
    for _ in range(repeats):
        for name, batches in contestants.items():
            costs[name].append(_cost(batches, total))
    records = []
    for name, floor in FLOORS.items():
        contestant, kind, _ = name.split("_")
        peer = "usual_augmented" if contestant == "augmented" else "usual"
        column = 0 if kind == "wall" else 1
        ratios = [a[column] / b[column] for a, b in zip(costs[peer], costs[contestant], strict=True)]
        value = statistics.median(ratios)
        holds = floor is None or value >= floor
        records.append(
            {"name": name, "value": value, "low": min(ratios), "high": max(ratios), "floor": floor, "holds": holds}
        )
    for name, pairs in costs.items():
        rates = [total / wall for wall, _ in pairs]
        records.append(
            {
                "name": f"{name}_images_per_second", "value": statistics.median(rates), "low": min(rates),
                "high": max(rates), "floor": None, "holds": True,
            }
        )  # fmt: skip
    return records


def _cost(batches: Callable[[], Iterator[Any]], total: int) -> tuple[float, float]:
    """Return the wall and CPU seconds, of this process and its workers, from the start to the last batch."""
    wall, cpu = time.perf_counter(), _cpu_seconds()
    count = sum(len(batch["image"] if isinstance(batch, dict) else batch[0]) for batch in batches())
    assert count == total, (count, total)
    return time.perf_counter() - wall, _cpu_seconds() - cpu


def _cpu_seconds() -> float:
    ticks = 0
    for child in multiprocessing.active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])  # user and system time
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def _dataset(folder: Path, *, cache: str = "off", augment: dict[str, float] | None = None) -> ImageDataset:
    if folder not in _manifests:
        _manifests[folder] = build_manifest(_config(folder, cache, augment).data, 1, require=("train",))
    return ImageDataset(_manifests[folder], _config(folder, cache, augment), "train")


_manifests: dict[Path, Any] = {}


def _config(folder: Path, cache: str, augment: dict[str, float] | None) -> RunConfig:
    data = {
        "sources": [{"path": str(folder), "splits": ["train"]}],
        "image_size": SIZE,
        "cache_decoded": cache,
        "num_threads": len(os.sched_getaffinity(0)),
    }
    return RunConfig.model_validate({"data": data, "augment": augment or {}})


def _batches(dataset: ImageDataset, total: int, *, prepare: bool) -> Iterator[dict[str, torch.Tensor]]:
    rng = np.random.default_rng(0)
    rounds = -(-total // len(dataset))
    order = np.concatenate([rng.permutation(len(dataset)) for _ in range(rounds)])[:total]
    requests = ((0, order[start : start + BATCH]) for start in range(0, total, BATCH))
    with closing(dataset.batches(requests, device=torch.device("cpu"), training=True)) as batches:
        for batch in batches:
            yield dataset.prepare(batch, epoch=0, training=True) if prepare else batch


def _usual(folder: Path, total: int, *, augmented: bool) -> DataLoader[Any]:
    steps: list[Any] = [transforms.Resize((SIZE, SIZE))]
    if augmented:
        steps += [
            transforms.RandomHorizontalFlip(RECIPE["flip"]),
            transforms.RandomRotation(RECIPE["rotation_degrees"], interpolation=transforms.InterpolationMode.BILINEAR),
            transforms.ColorJitter(RECIPE["brightness"], RECIPE["contrast"], RECIPE["saturation"], RECIPE["hue"]),
            transforms.RandomApply([transforms.GaussianBlur(11, (0.3, 1.5))], RECIPE["blur_probability"]),
            transforms.RandomApply([v2.JPEG((60, 100))], RECIPE["jpeg_probability"]),
        ]
    steps.append(transforms.ToTensor())
    if augmented:
        noise = transforms.Lambda(lambda image: (image + 0.02 * torch.randn_like(image)).clamp_(0, 1))
        steps.append(transforms.RandomApply([noise], RECIPE["noise_probability"]))
    steps.append(transforms.Normalize(MEAN, STD))
    images = ImageFolder(str(folder), transforms.Compose(steps))
    sampler = RandomSampler(images, num_samples=total)
    return DataLoader(images, batch_size=BATCH, sampler=sampler, num_workers=2, persistent_workers=True)


def draw_images(folder: Path, count: int = NUM_IMAGES) -> Path:
    """Make real/ and fake/ with JPEGs of 224 to 256 px and about 15 KB: the size of face crops."""
    rng = np.random.default_rng(0)
    for number in range(count):
        path = folder / ("real", "fake")[number % 2] / f"{number:04}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        side = int(rng.integers(SIZE, 257))
        picture = np.zeros((side, side, 3))
        for cells, share in ((4, 0.6), (24, 0.25), (112, 0.15)):
            noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
            picture += share * np.asarray(noise.resize((side, side), Image.Resampling.BICUBIC))
        Image.fromarray(picture.astype(np.uint8)).save(path, quality=90)
    return folder


if __name__ == "__main__":
    results = run(quick="--quick" in sys.argv)
    print(json.dumps(results, indent=1))
    sys.exit(0 if all(record["holds"] for record in results) else 1)
