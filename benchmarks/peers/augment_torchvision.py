"""torchvision v2 on uint8 tensors in a DataLoader's workers, float32 at the end, as its documentation recommends."""

import math
from collections.abc import Callable, Iterator

import torch
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

from benchmarks.peers.contestant import BATCH, MEAN, SIZE, STD, Job, serve_batches


def prepare(job: Job) -> Callable[[], Iterator[torch.Tensor]]:
    recipe = job.recipe
    jitter = v2.ColorJitter(recipe["brightness"], recipe["contrast"], recipe["saturation"], recipe["hue"])
    rotation = v2.RandomRotation(recipe["rotation_degrees"], interpolation=v2.InterpolationMode.BILINEAR)
    blur = v2.GaussianBlur(2 * math.ceil(3 * recipe["blur_sigma"][1]) + 1, recipe["blur_sigma"])
    steps = v2.Compose(
        [
            v2.Resize((SIZE, SIZE), antialias=True),
            v2.RandomApply([v2.JPEG(recipe["jpeg_quality"])], recipe["jpeg_probability"]),
            v2.RandomHorizontalFlip(recipe["flip"]),
            v2.RandomApply([rotation], recipe["rotation_probability"]),
            v2.RandomApply([jitter], recipe["jitter_probability"]),
            v2.RandomApply([blur], recipe["blur_probability"]),
            v2.ToDtype(torch.float32, scale=True),
            v2.RandomApply([v2.GaussianNoise(sigma=recipe["noise_std"])], recipe["noise_probability"]),
            v2.Normalize(MEAN, STD),
        ]
    )
    images = ImageFolder(str(job.folder), steps, loader=lambda path: decode_image(path, ImageReadMode.RGB))
    loader = DataLoader(images, BATCH, shuffle=True, num_workers=job.workers, persistent_workers=True)
    return lambda: (batch for batch, _ in loader)


if __name__ == "__main__":
    serve_batches(prepare)
