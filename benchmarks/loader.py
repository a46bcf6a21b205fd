"""The loader against the usual one: ImageFolder, Pillow, ToTensor, Normalize and a DataLoader's worker processes.

Contestants take turns; a record is the median over turns of the ratio within a turn, above 1 where hai is faster. Next
to wall time stands the time on the processors, of workers too. Ours has as many threads as theirs has workers, as many
as there are CPUs; theirs gets whole batches, as many for each worker.

- `loader_wall_ratio`, `loader_cpu_ratio`: batches of faces as each side hands them over, decoded and resized to 224 px.
  The products differ: ours are uint8, because normalisation happens on the device, which is not counted here; theirs
  are normalised float32, because the usual loader knows no other way.
- `prepared_wall_ratio`, `prepared_cpu_ratio`: the same product on both sides, normalised float32; ours by this
  machine's CPU too.
- `cached_wall_ratio`: uint8 batches from the second epoch on, read from the decoded cache; `cached_memcpy_ratio`: their
  rate as a share of plainly copying as many bytes, by as many threads.
- `large_wall_ratio`, `large_cpu_ratio`: photographs of 1500x1200 px resized to 756 px, in batches of 16; the products
  differ as above.
- `augmented_*_ratio`: with the changes of configs/detector/baseline.yaml (flip, rotation, colour jitter, JPEG, blur,
  noise), all of it on this machine's CPU, ending in normalised float32 on both sides. Against the same operations of
  torchvision on Pillow's images, and, as `augmented_v2_*`, on uint8 tensors with transforms v2.
- `augmented_plain_ratio`: with all this, against the usual loader without any augmentation.
- `decode_levels`, `resize_levels`: the largest difference to Pillow, in levels of 255, over the drawn pictures and some
  JPEGs of other kinds; and over photographs of `HAI_TEST_DATA`, by default ../shared/data beside the checkout, without
  a value where there are none.
- `memory_ratio`: largest memory of the process tree, ours over theirs, each in processes of its own that import nothing
  of the other; left out with --quick.
- `*_images_per_second`, `*_megabytes`: what these are made of.

Run alone with `python -m benchmarks.loader [--quick]`. The images are made: JPEGs of 224 to 256 px, about 18 KB, and
of 1500x1200 px, about 450 KB.
"""

from __future__ import annotations

import functools
import io
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from benchmarks._images import draw_faces, draw_photographs
from benchmarks._measure import Cost, interleaved, main, missing, peak_memory, ratios, real_data, record, timed
from benchmarks.peers.contestant import BATCH, SIZE
from hai.config.load import load_config
from hai.config.schema import RunConfig
from hai.cpus import num_cpus
from hai.data.dataset import ImageDataset
from hai.data.images import decode_image, fit_image
from hai.data.manifest import Manifest, build_manifest

LARGE, LARGE_BATCH = 756, 16
_ROOT = Path(__file__).resolve().parent.parent
WALL, CPU = 0, 1
RATIOS: tuple[tuple[str, str, str, int, float | None], ...] = (
    ("loader_wall_ratio", "usual", "loader", WALL, 6.0),
    ("loader_cpu_ratio", "usual", "loader", CPU, 5.0),
    ("prepared_wall_ratio", "usual", "prepared", WALL, None),
    ("prepared_cpu_ratio", "usual", "prepared", CPU, None),
    ("cached_wall_ratio", "usual", "cached", WALL, 25.0),
    ("cached_memcpy_ratio", "memcpy", "cached", WALL, 0.25),
    ("large_wall_ratio", "usual_large", "large", WALL, 2.5),
    ("large_cpu_ratio", "usual_large", "large", CPU, None),
    ("augmented_wall_ratio", "usual_augmented", "augmented", WALL, 2.0),
    ("augmented_cpu_ratio", "usual_augmented", "augmented", CPU, 2.0),
    ("augmented_v2_wall_ratio", "usual_v2", "augmented", WALL, 2.0),
    ("augmented_v2_cpu_ratio", "usual_v2", "augmented", CPU, 2.0),
    ("augmented_plain_ratio", "usual", "augmented", WALL, 1.0),
)
"""Name, contestant above the line, below the line, of which cost, floor."""


def run(quick: bool) -> list[dict[str, Any]]:
    """Measure; each record says whether it keeps its floor."""
    before = os.environ.get("HAI_CACHE")
    with tempfile.TemporaryDirectory(prefix="hai-benchmark-") as name:
        scratch = Path(name)
        os.environ["HAI_CACHE"] = str(scratch / "cache")
        try:
            faces, large = draw_faces(scratch / "faces"), draw_photographs(scratch / "photographs")
            return [
                *_speed(faces, large, repeats=1 if quick else 5, passes=1 if quick else 2),
                *_exactness(faces, large),
                *([] if quick else _memory(faces, repeats=3)),
            ]
        finally:
            os.environ.pop("HAI_CACHE")
            if before is not None:
                os.environ["HAI_CACHE"] = before


# -- speed -------------------------------------------------------------------------------------------------------------


def _speed(faces: Path, large: Path, *, repeats: int, passes: int) -> list[dict[str, Any]]:
    from benchmarks._classic import usual_loader  # not above: the process that only loads shall not pay for torchvision

    recipe = load_config(str(_ROOT / "configs" / "detector" / "baseline.yaml")).augment.model_dump()
    count, half, few = _whole(640 * passes), _whole(320 * passes), _whole(48 * passes, LARGE_BATCH)
    usual_of = functools.partial(usual_loader, workers=num_cpus())
    usual = {
        "usual": usual_of(faces, total=count),
        "usual_large": usual_of(large, total=few, batch=LARGE_BATCH, size=LARGE),
        "usual_augmented": usual_of(faces, total=half, recipe=recipe),
        "usual_v2": usual_of(faces, total=half, recipe=recipe, tensors=True),
    }
    for loader in usual.values():  # starts its workers, which stay: before torch has threads, which no fork survives
        next(iter(loader))
    contestants: dict[str, Callable[[], Cost]] = {
        name: functools.partial(_per_image, loader.__iter__, len(loader.sampler))  # type: ignore[arg-type]
        for name, loader in usual.items()
    }
    cached = _dataset(faces, cache="on")
    for _ in _batches(cached, len(cached), prepare=False):
        pass  # fills the cache
    augmented = functools.partial(_dataset, faces, augment=recipe)
    contestants |= {
        "loader": lambda: _per_image(lambda: _batches(_dataset(faces), 3 * count, prepare=False), 3 * count),
        "prepared": lambda: _per_image(lambda: _batches(_dataset(faces), 2 * count, prepare=True), 2 * count),
        "cached": lambda: _per_image(lambda: _batches(cached, 16 * count, prepare=False), 16 * count),
        "large": lambda: _per_image(
            lambda: _batches(_dataset(large, LARGE), 2 * few, prepare=False, size=LARGE_BATCH), 2 * few
        ),
        "augmented": lambda: _per_image(lambda: _batches(augmented(), count, prepare=True), count),
        "memcpy": functools.partial(_memcpy, 16 * count),
    }  # fmt: skip
    costs = interleaved(contestants, repeats)
    records = [record(name, ratios(costs[a], costs[b], cost), floor=floor) for name, a, b, cost, floor in RATIOS]
    for name, taken in costs.items():
        records.append(record(f"{name}_images_per_second", [1 / cost.wall for cost in taken]))
    return records


def _whole(total: int, batch: int = BATCH) -> int:
    """Round up to whole batches, as many for each worker of the usual loader."""
    turn = batch * num_cpus()
    return -(-total // turn) * turn


def _per_image(batches: Callable[[], Iterator[Any]], total: int) -> Cost:
    """Return what an image costs, from the start of a loader to its last batch."""

    def load() -> None:
        loaded = sum(len(batch["image"] if isinstance(batch, dict) else batch[0]) for batch in batches())
        assert loaded == total, (loaded, total)

    cost = timed(load)
    return Cost(cost.wall / total, cost.cpu / total)


def _memcpy(total: int) -> Cost:
    """Return what copying the pixels of an image costs, a batch at a time, by threads that share each batch."""
    count = num_cpus()
    source = np.ones((10 * BATCH, SIZE, SIZE, 3), dtype=np.uint8)
    target = np.ones((BATCH, SIZE, SIZE, 3), dtype=np.uint8)
    bounds = [(BATCH * part // count, BATCH * (part + 1) // count) for part in range(count)]

    def copy(start: int, part: tuple[int, int]) -> None:
        np.copyto(target[slice(*part)], source[start + part[0] : start + part[1]])

    def load() -> None:
        for start in range(0, total, BATCH):
            for task in [threads.submit(copy, start % len(source), part) for part in bounds]:
                task.result()

    with ThreadPoolExecutor(count) as threads:
        cost = timed(load)
    return Cost(cost.wall / total, cost.cpu / total)


_manifests: dict[Path, Manifest] = {}


def _dataset(
    folder: Path, size: int = SIZE, *, cache: str = "off", augment: dict[str, Any] | None = None
) -> ImageDataset:
    data = {
        "sources": [{"path": str(folder), "splits": ["train"]}],
        "image_size": size,
        "cache_decoded": cache,
        "num_threads": num_cpus(),
    }
    config = RunConfig.model_validate({"data": data, "augment": augment or {}})
    if folder not in _manifests:
        _manifests[folder] = build_manifest(config.data, 1, require=("train",))
    return ImageDataset(_manifests[folder], config, "train")


def _batches(
    dataset: ImageDataset, total: int, *, prepare: bool, size: int = BATCH
) -> Iterator[dict[str, torch.Tensor]]:
    rng = np.random.default_rng(0)
    rounds = -(-total // len(dataset))
    order = np.concatenate([rng.permutation(len(dataset)) for _ in range(rounds)])[:total]
    requests = ((0, order[start : start + size]) for start in range(0, total, size))
    with closing(dataset.batches(requests, device=torch.device("cpu"), training=True)) as batches:
        for batch in batches:
            yield dataset.prepare(batch, epoch=0, training=True) if prepare else batch


# -- exactness ---------------------------------------------------------------------------------------------------------


def _exactness(faces: Path, large: Path) -> list[dict[str, Any]]:
    """Compare with Pillow: JPEGs of many kinds, and resizes down and up."""
    drawn = [*sorted(faces.rglob("*.jpg"))[:64], *sorted(large.rglob("*.jpg"))[:4]]
    data = real_data()
    taken = [file for name in ("quality/images", "faces/real") for file in sorted((data / name).glob("*"))[:64]]
    return [*_differences("drawn pictures", drawn), *_differences("photographs", taken)]


def _differences(kind: str, files: list[Path]) -> list[dict[str, Any]]:
    contents = [file.read_bytes() for file in files]
    contents += [variant for content in contents[:8] for variant in _other_kinds(content)]
    names = [f"{work}_levels: {len(contents)} {kind}" for work in ("decode", "resize")]
    if not contents:
        return [missing(names[0], 0.0), missing(names[1], 1.0)]
    decoded, resized = 0, 0
    for content in contents:
        with Image.open(io.BytesIO(content)) as opened:
            picture = ImageOps.exif_transpose(opened).convert("RGB")
        pixels = decode_image(content)
        decoded = max(decoded, _levels(pixels, picture))
        for size in (SIZE, 380):
            expected = picture.resize((size, size), Image.Resampling.BILINEAR)
            resized = max(resized, _levels(fit_image(pixels, size, "resize"), expected))
    return [record(names[0], [decoded], most=0.0), record(names[1], [resized], most=1.0)]


def _other_kinds(content: bytes) -> Iterator[bytes]:
    with Image.open(io.BytesIO(content)) as picture:
        for mode, settings in (
            ("RGB", {"subsampling": "4:4:4"}),
            ("RGB", {"subsampling": "4:2:2", "quality": 60}),
            ("RGB", {"progressive": True}),
            ("L", {}),
        ):
            file = io.BytesIO()
            picture.convert(mode).save(file, "JPEG", **settings)
            yield file.getvalue()


def _levels(pixels: Any, expected: Image.Image) -> int:
    return int(np.abs(pixels.astype(np.int16) - np.asarray(expected).astype(np.int16)).max())


# -- memory ------------------------------------------------------------------------------------------------------------


def _memory(faces: Path, repeats: int) -> list[dict[str, Any]]:
    def peak(*command: str) -> float:
        return peak_memory([sys.executable, "-m", *command], cwd=_ROOT).bytes / 1e6

    total = str(_whole(10 * BATCH))
    usual = functools.partial(peak, "benchmarks._classic", str(faces), str(num_cpus()), total)
    ours = functools.partial(peak, "benchmarks.loader", "load", str(faces), total)
    peaks = interleaved({"usual": usual, "loader": ours}, repeats)
    return [
        record("memory_ratio", ratios(peaks["loader"], peaks["usual"]), most=1.0),
        *(record(f"{name}_megabytes", taken) for name, taken in peaks.items()),
    ]


if __name__ == "__main__":
    if sys.argv[1:2] == ["load"]:  # and nothing else, to have its memory watched
        for _ in _batches(_dataset(Path(sys.argv[2])), int(sys.argv[3]), prepare=False):
            pass
        sys.exit()
    main(run)
