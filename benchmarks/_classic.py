"""The usual loader: ImageFolder, torchvision's transforms and a DataLoader with worker processes.

Nothing of hai is imported: other environments use this too, and `python -m benchmarks._classic FOLDER WORKERS TOTAL`
loads and does nothing else, to have its memory watched.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, RandomSampler
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import default_loader
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import InterpolationMode, v2

from benchmarks.peers.contestant import BATCH, MEAN, SIZE, STD

__all__ = ["BATCH", "SIZE", "usual_loader"]


def usual_loader(
    folder: Path,
    workers: int,
    total: int | None = None,
    *,
    batch: int = BATCH,
    size: int = SIZE,
    recipe: Mapping[str, Any] | None = None,
    tensors: bool = False,
) -> DataLoader[Any]:
    """Build a loader of normalised float32 batches [B, 3, S, S].

    Args:
        folder: real/ and fake/ with images.
        workers: processes.
        total: images of an epoch, whole batches and as many for each worker, drawn without repetition as long as there
            are enough; None: each image once.
        batch: images of a batch.
        size: height and width, pixels.
        recipe: strengths and probabilities of the changes, named as in the config's `augment`; None: no changes.
        tensors: decode to uint8 tensors and change them with transforms v2, which is what torchvision's documentation
            recommends for speed, instead of Pillow's images.
    """
    assert total is None or total % (workers * batch) == 0, (total, workers, batch)
    read = functools.partial(decode_image, mode=ImageReadMode.RGB) if tensors else default_loader
    images = ImageFolder(str(folder), _pipeline(size, recipe, tensors), loader=read)
    sampler = RandomSampler(images, num_samples=total)
    return DataLoader(images, batch, sampler=sampler, num_workers=workers, persistent_workers=True)


def _pipeline(size: int, recipe: Mapping[str, Any] | None, tensors: bool) -> Any:
    """Build the changes in the order in which ours come."""
    kind: Any = v2 if tensors else transforms  # which have the same names but for JPEG and noise
    steps = [kind.Resize((size, size))]
    if recipe:
        rotation = kind.RandomRotation(recipe["rotation_degrees"], interpolation=InterpolationMode.BILINEAR)
        jitter = kind.ColorJitter(recipe["brightness"], recipe["contrast"], recipe["saturation"], recipe["hue"])
        blur = kind.GaussianBlur(2 * math.ceil(3 * recipe["blur_sigma"][1]) + 1, recipe["blur_sigma"])
        steps += [
            kind.RandomApply([v2.JPEG(recipe["jpeg_quality"])], recipe["jpeg_probability"]),
            kind.RandomHorizontalFlip(recipe["flip"]),
            kind.RandomApply([rotation], recipe["rotation_probability"]),
            kind.RandomApply([jitter], recipe["jitter_probability"]),
            kind.RandomApply([blur], recipe["blur_probability"]),
        ]
    steps.append(v2.ToDtype(torch.float32, scale=True) if tensors else transforms.ToTensor())
    if recipe:
        noise = v2.GaussianNoise(sigma=recipe["noise_std"])
        steps.append(kind.RandomApply([noise], recipe["noise_probability"]))
    return kind.Compose([*steps, kind.Normalize(MEAN, STD)])


if __name__ == "__main__":
    for _ in usual_loader(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])):
        pass
