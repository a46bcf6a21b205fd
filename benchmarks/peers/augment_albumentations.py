"""Albumentations on OpenCV's images in a DataLoader's workers, as its documentation recommends; float32."""

from collections.abc import Callable, Iterator

import albumentations as A
import cv2
import torch
from albumentations.pytorch import ToTensorV2
from torch.utils.data import DataLoader, Dataset

from benchmarks.peers.contestant import BATCH, MEAN, SIZE, STD, Job, image_paths, serve_batches


class Images(Dataset[tuple[torch.Tensor, int]]):
    def __init__(self, paths: list[tuple[str, int]], change: A.Compose) -> None:
        self._paths, self._change = paths, change

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, at: int) -> tuple[torch.Tensor, int]:
        path, label = self._paths[at]
        image = cv2.cvtColor(cv2.imread(path, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
        return self._change(image=image)["image"], label


def prepare(job: Job) -> Callable[[], Iterator[torch.Tensor]]:
    cv2.setNumThreads(0)  # the workers are as many as the cores
    recipe = job.recipe
    around = {name: (1 - recipe[name], 1 + recipe[name]) for name in ("brightness", "contrast", "saturation")}
    change = A.Compose(
        [
            A.Resize(SIZE, SIZE),
            A.ImageCompression(quality_range=tuple(recipe["jpeg_quality"]), p=recipe["jpeg_probability"]),
            A.HorizontalFlip(p=recipe["flip"]),
            A.Rotate(
                limit=recipe["rotation_degrees"], border_mode=cv2.BORDER_CONSTANT, p=recipe["rotation_probability"]
            ),
            A.ColorJitter(**around, hue=(-recipe["hue"], recipe["hue"]), p=recipe["jitter_probability"]),
            A.GaussianBlur(blur_limit=0, sigma_limit=tuple(recipe["blur_sigma"]), p=recipe["blur_probability"]),
            A.GaussNoise(std_range=(recipe["noise_std"],) * 2, p=recipe["noise_probability"]),
            A.Normalize(MEAN, STD),
            ToTensorV2(),
        ]
    )
    images = Images(image_paths(job.folder), change)
    loader = DataLoader(images, BATCH, shuffle=True, num_workers=job.workers, persistent_workers=True)
    return lambda: (batch for batch, _ in loader)


if __name__ == "__main__":
    serve_batches(prepare)
