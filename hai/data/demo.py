"""The demo data set: real photographs from installed packages, and local manipulations of them, made on the spot.

The photographs come with scikit-image and scikit-learn, so nothing is downloaded. A region is a tile of a photograph,
overlaps no other and is one group; whole photographs, not only regions, are on one side of the split. A region gives
several views, and a view one real image and its fake, in which a soft-edged part is redrawn (hai/data/manipulate.py).
Both share crop, exposure, grain and JPEG quality: neither the file nor a thumbnail tells the label, local texture does.

The bundled photographs were scaled down and denoised; a camera's are not, and detectors live on what manipulation does
to the grain. So every view, real or fake, first gets a grain of its own.
"""

from __future__ import annotations

import csv
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hai.data.draws import hash_keys, uniform
from hai.data.manipulate import METHODS, NUM_DRAWS, manipulate
from hai.errors import ConfigError, DataError
from hai.types import LABELS

__all__ = ["build_demo"]

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]

_FORMAT: Final = 1  # changes with every change to the images
_SIZE: Final = 128  # height and width of the images, pixels
_TILE: Final = 144  # least height and width of a region, pixels
_ZOOM: Final = 1.3  # largest scale at which a view is taken from its region
_GRAIN: Final = (2.0, 5.0)  # deviation of the grain, levels of 255
_QUALITY: Final = (88, 96)  # JPEG quality
_LEAST_DETAIL: Final = 1.5  # mean high-pass amplitude, levels of 255: below are empty skies and blur
_VIEWS: Final = {"train": 12, "val": 16, "test": 10}


@dataclass(frozen=True)
class _Photo:
    file: str
    split: str
    licence: str

    @property
    def name(self) -> str:
        return Path(self.file).stem


_PHOTOS: Final = (
    _Photo("skimage/data/astronaut.png", "train", "NASA, public domain"),
    _Photo("skimage/data/brick.png", "train", "CC0Textures, CC0"),
    _Photo("skimage/data/coins.png", "train", "Brooklyn Museum, no known copyright restrictions"),
    _Photo("skimage/data/grass.png", "train", "linolafett on DeviantArt, CC0"),
    _Photo("skimage/data/gravel.png", "train", "CC0Textures, CC0"),
    _Photo(
        "skimage/data/ihc.png", "train", "Center for Microscopy and Molecular Imaging, no known copyright restrictions"
    ),
    _Photo("skimage/data/rocket.jpg", "train", "SpaceX, public domain"),
    _Photo("skimage/data/camera.png", "val", "Lav Varshney, CC0"),
    _Photo("sklearn/datasets/images/flower.jpg", "val", "vultilion on Flickr, CC BY 2.0"),
    _Photo("skimage/data/chelsea.png", "test", "Stefan van der Walt, CC0"),
    _Photo("skimage/data/coffee.png", "test", "Rachel Michetti, CC0"),
    _Photo("sklearn/datasets/images/china.jpg", "test", "danielbuechele on Flickr, CC BY 2.0"),
)


def build_demo(task: str, output: Path, *, seed: int = 0, progress: Callable[[int, int], None] | None = None) -> Path:
    """Make the demo data set of a task: `{train,val,test}/{real,fake}/*.jpg` and labels.csv.

    A finished set of the same task and seed is left as it is; an interrupted call leaves nothing behind that looks
    finished. Equal seeds give equal images.

    Args:
        task: `detector`.
        output: folder to make.
        seed: seed of the views and the manipulations.
        progress: called with (images written, images in all).

    Returns:
        `output`.

    Raises:
        ConfigError: there is no demo of this task.
        DataError: the photographs are not installed, or `output` holds something else.
    """
    if task != "detector":
        raise ConfigError(f"task = {task!r}; the demo data are for one of: detector; choose that")
    identity: dict[str, str | int] = {"format": _FORMAT, "task": task, "seed": seed}
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        _check_finished(output, identity)
        return output
    regions = [(photo, number, tile) for photo in _PHOTOS for number, tile in enumerate(_tiles(_load_photo(photo)))]
    regions = [(photo, number, tile) for photo, number, tile in regions if _detail(tile) >= _LEAST_DETAIL]
    total = 2 * sum(_VIEWS[photo.split] for photo, _, _ in regions)
    output.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        rows: list[tuple[str, str, str, str]] = []
        for photo, number, tile in regions:
            group = f"{photo.name}_{number:02}"
            for view in range(_VIEWS[photo.split]):
                method, quality, real, fake = _pair(tile, int(hash_keys(seed, *photo.name.encode(), number, view)))
                for label, image, name in zip(LABELS, (real, fake), ("", f"_{method}"), strict=True):
                    path = f"{photo.split}/{label}/{group}_{view:02}{name}.jpg"
                    (building / path).parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(np.rint(image * 255).astype(np.uint8)).save(building / path, quality=quality)
                    rows.append((path, label, group, photo.split))
            if progress:
                progress(len(rows), total)
        _save_description(building, rows, identity)
        building.chmod(0o755)
        building.replace(output)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    return output


def _check_finished(output: Path, identity: dict[str, str | int]) -> None:
    """Accept a folder that holds the whole set of this identity, refuse any other."""
    problem = "is not empty and holds no demo data"
    if (output / "demo.json").is_file():
        with open(output / "demo.json", encoding="utf-8") as file:
            found = json.load(file)
        if found == identity:
            with open(output / "labels.csv", encoding="utf-8", newline="") as table:
                missing = [row["path"] for row in csv.DictReader(table) if not (output / row["path"]).is_file()]
            if not missing:
                return
            problem = f"lacks {len(missing)} of its images, first {missing[0]}"
        else:
            problem = f"holds the demo data {found}, not {identity}"
    raise DataError(f"output = {output}: {problem}; name an empty or new folder, or delete this one")


def _save_description(folder: Path, rows: list[tuple[str, str, str, str]], identity: dict[str, str | int]) -> None:
    with open(folder / "labels.csv", "w", encoding="utf-8", newline="") as table:
        csv.writer(table, lineterminator="\n").writerows([("path", "label", "group", "split"), *rows])
    credits = "\n".join(f"| {photo.name} | {photo.split} | {photo.licence} |" for photo in _PHOTOS)
    with open(folder / "README.md", "w", encoding="utf-8") as file:
        file.write(
            "# Demo data of hai\n\nViews of these photographs, and the same views with a part redrawn: good for trying "
            "the pipeline, not for detecting deepfakes.\nThe photographs come with scikit-image and scikit-learn and "
            f"are free to use; they were cropped, scaled and changed here.\n\n| photograph | split | licence |\n"
            f"|---|---|---|\n{credits}\n"
        )
    with open(folder / "demo.json", "w", encoding="utf-8") as file:
        json.dump(identity, file)


def _load_photo(photo: _Photo) -> Pixels:
    """Read a bundled photograph, RGB [H, W, 3]."""
    package, _, file = photo.file.partition("/")
    spec = find_spec(package)
    path = Path(spec.origin).parent / file if spec and spec.origin else None
    if path is None or not path.is_file():
        raise DataError(f"{photo.file}: the photograph is not installed; pip install 'hai[demo]'")
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def _tiles(photo: Pixels) -> Iterator[Pixels]:
    """Cut a photograph [H, W, 3] into as many regions as fit."""
    height, width = photo.shape[:2]
    rows, columns = height // _TILE, width // _TILE
    for row in range(rows):
        for column in range(columns):
            yield photo[
                row * height // rows : (row + 1) * height // rows,
                column * width // columns : (column + 1) * width // columns,
            ]


def _detail(tile: Pixels) -> float:
    """Measure the mean high-pass amplitude of a region, levels of 255."""
    gray = tile.mean(axis=2)
    windows = np.lib.stride_tricks.sliding_window_view(gray, (3, 3))
    return float(np.abs(gray[1:-1, 1:-1] - windows.mean(axis=(2, 3))).mean())


def _pair(tile: Pixels, key: int) -> tuple[str, int, Floats, Floats]:
    """Take a view of a region and manipulate it.

    Returns:
        The method, the JPEG quality, and the real and the fake image, both [S, S, 3], 0-1.
    """
    draws = uniform(key, 0, np.arange(8 + NUM_DRAWS))
    largest = min(*tile.shape[:2], round(_SIZE * _ZOOM))
    side = _SIZE + int(draws[0] * (largest - _SIZE + 1))
    top, left = (int(draw * (extent - side + 1)) for draw, extent in zip(draws[1:3], tile.shape[:2], strict=True))
    crop = Image.fromarray(np.ascontiguousarray(tile[top : top + side, left : left + side]))
    view = np.asarray(crop.resize((_SIZE, _SIZE), Image.Resampling.BICUBIC), dtype=np.float32) / 255
    if draws[3] < 0.5:
        view = view[:, ::-1]
    view = view ** np.float32(0.8 + 0.45 * draws[4])

    # two independent normal fields by the Box-Muller transform: the camera's grain, and the manipulation's own
    radius, turn = uniform(key, 1, np.arange(2 * _SIZE * _SIZE).reshape(2, _SIZE, _SIZE))
    radius = np.sqrt(-2.0 * np.log1p(-radius))
    low, high = _GRAIN
    grain = radius * np.cos(2.0 * np.pi * turn) * (low + (high - low) * draws[5]) / 255
    noise = np.asarray(radius * np.sin(2.0 * np.pi * turn), dtype=np.float32)

    real = np.clip(view + grain[..., None], 0.0, 1.0).astype(np.float32)
    method = list(METHODS)[int(draws[6] * len(METHODS))]
    quality = _QUALITY[0] + int(draws[7] * (_QUALITY[1] - _QUALITY[0] + 1))
    return method, quality, real, manipulate(real, method, noise, draws[8:])
