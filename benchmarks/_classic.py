"""The usual loader: ImageFolder, Pillow, torchvision's transforms and a DataLoader with two worker processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader, RandomSampler
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.transforms import InterpolationMode, v2

from hai.data.augment import MEAN, STD

__all__ = ["BATCH", "RECIPE", "SIZE", "usual_loader"]

SIZE, BATCH = 224, 64
RECIPE = {
    "flip": 0.5, "rotation_degrees": 10, "brightness": 0.15, "contrast": 0.15, "saturation": 0.15, "hue": 0.05,
    "jpeg_probability": 0.3, "noise_probability": 0.1, "blur_probability": 0.05,
}  # fmt: skip
"""Augmentation as strong as in the detector's recipe; what it leaves out is as the config has it by default."""


def usual_loader(
    folder: Path, total: int, *, size: int = SIZE, augmented: Literal["", "pillow", "tensors"] = ""
) -> DataLoader[Any]:
    """Build a loader of normalised float32 batches [64, 3, S, S].

    Args:
        folder: real/ and fake/ with images.
        total: images of an epoch, drawn without repetition as long as there are enough.
        size: height and width, pixels.
        augmented: nothing; RECIPE on Pillow's images; or RECIPE in transforms v2 on uint8 tensors, which is what
            torchvision's documentation recommends for speed.
    """
    build = _on_tensors if augmented == "tensors" else _on_pillow
    images = ImageFolder(str(folder), build(size, bool(augmented)))
    sampler = RandomSampler(images, num_samples=total)
    return DataLoader(images, batch_size=BATCH, sampler=sampler, num_workers=2, persistent_workers=True)


def _on_pillow(size: int, augmented: bool) -> Any:
    steps: list[Any] = [transforms.Resize((size, size))]
    if augmented:
        steps += [
            transforms.RandomHorizontalFlip(RECIPE["flip"]),
            transforms.RandomRotation(RECIPE["rotation_degrees"], interpolation=InterpolationMode.BILINEAR),
            transforms.ColorJitter(RECIPE["brightness"], RECIPE["contrast"], RECIPE["saturation"], RECIPE["hue"]),
            transforms.RandomApply([transforms.GaussianBlur(11, (0.3, 1.5))], RECIPE["blur_probability"]),
            transforms.RandomApply([v2.JPEG((60, 100))], RECIPE["jpeg_probability"]),
        ]
    steps.append(transforms.ToTensor())
    if augmented:
        noise = transforms.Lambda(lambda image: (image + 0.02 * torch.randn_like(image)).clamp_(0, 1))
        steps.append(transforms.RandomApply([noise], RECIPE["noise_probability"]))
    return transforms.Compose([*steps, transforms.Normalize(MEAN, STD)])


def _on_tensors(size: int, augmented: bool) -> Any:
    steps: list[Any] = [v2.PILToTensor(), v2.Resize((size, size), antialias=True)]
    if augmented:
        steps += [
            v2.RandomHorizontalFlip(RECIPE["flip"]),
            v2.RandomRotation(RECIPE["rotation_degrees"], interpolation=InterpolationMode.BILINEAR),
            v2.ColorJitter(RECIPE["brightness"], RECIPE["contrast"], RECIPE["saturation"], RECIPE["hue"]),
            v2.RandomApply([v2.GaussianBlur(11, (0.3, 1.5))], RECIPE["blur_probability"]),
            v2.RandomApply([v2.JPEG((60, 100))], RECIPE["jpeg_probability"]),
        ]
    steps.append(v2.ToDtype(torch.float32, scale=True))
    if augmented:
        steps.append(v2.RandomApply([v2.GaussianNoise(sigma=0.02)], RECIPE["noise_probability"]))
    return v2.Compose([*steps, v2.Normalize(MEAN, STD)])
