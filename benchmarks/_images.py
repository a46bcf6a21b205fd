"""Pictures for suites, made on the spot: nothing has to be fetched, and every machine measures the same files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["draw_faces", "draw_photographs"]

_LABELS = ("real", "fake")


def draw_faces(folder: Path, count: int = 640) -> Path:
    """Make real/ and fake/ with JPEGs of 224 to 256 px and about 18 KB: the size of face crops."""
    rng = np.random.default_rng(0)
    for number in range(count):
        side = int(rng.integers(224, 257))
        _save(_picture(rng, side, side, ((4, 0.6), (24, 0.25), (112, 0.15))), folder, number)
    return folder


def draw_photographs(folder: Path, count: int = 24) -> Path:
    """Make real/ and fake/ with JPEGs of 1500x1200 px and about 0.5 MB, as cameras write them."""
    rng = np.random.default_rng(1)
    for number in range(count):
        _save(_picture(rng, 1200, 1500, ((4, 0.6), (60, 0.25), (500, 0.15))), folder, number)
    return folder


def _picture(
    rng: np.random.Generator, height: int, width: int, layers: tuple[tuple[int, float], ...]
) -> NDArray[np.uint8]:
    """Add up smooth noise, coarse and fine: (cells along a side, share) each."""
    picture = np.zeros((height, width, 3))
    for cells, share in layers:
        noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        picture += share * np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC))
    return picture.astype(np.uint8)


def _save(picture: NDArray[np.uint8], folder: Path, number: int) -> None:
    path = folder / _LABELS[number % 2] / f"{number:04}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path, quality=90)
