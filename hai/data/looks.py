"""One pass over the files of a manifest: the facts of their headers, and small pictures of what they show."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hai.data.content import Progress, in_threads
from hai.data.duplicates import SIDE
from hai.data.file_facts import FileFacts, file_facts
from hai.data.images import decode_small
from hai.data.manifest import Manifest
from hai.data.separable import Column
from hai.errors import DataError

__all__ = ["BYTES_PER_PIXEL", "DETAIL_SIDE", "FACTS", "PATCH", "Looks", "look_at", "without_detail"]

PATCH: Final = 8
"""Height and width of the thumbnail that a classifier sees, pixels."""

DETAIL_SIDE: Final = 64
"""Pixels of the shorter side that must not be enough to hold all that an image shows."""

_LEAST_DETAIL: Final = 0.045
"""Share of the contrast that is lost at that size: faces of 48 pixels that were enlarged lose less, sharp ones more."""

BYTES_PER_PIXEL: Final = "bytes per pixel"
"""Name of a fact that says what the file size says where all images have as many pixels."""

FACTS: Final = {
    "file size": ("bytes",),
    BYTES_PER_PIXEL: ("bytes per pixel",),
    "dimensions": ("width", "height", "aspect"),
    "format": ("format",),
    "JPEG quantisation tables": ("tables", "quality"),
    "chroma subsampling": ("subsampling",),
    "coding": ("coding",),
    "colours": ("colours",),
    "EXIF": ("exif",),
    "other metadata": ("metadata",),
}
"""What a file says besides its picture: name of each fact -> its columns."""

_SUFFIXES: Final = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png", ".apng"),
    "WebP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp", ".dib"),
    "TIFF": (".tif", ".tiff"),
}


@dataclass(frozen=True, eq=False)
class Looks:
    """What was seen of some images of a manifest, a row each."""

    rows: NDArray[np.int64]
    """Their positions in the manifest, ascending, [M]."""
    columns: dict[str, Column]
    """Facts by name, see FACTS, [M]."""
    gray: NDArray[np.uint8]
    """Thumbnails to compare, [M, 32, 32]; black where an image has become unreadable."""
    patch: NDArray[np.uint8]
    """Thumbnails to classify, [M, 8, 8, 3]."""
    oddities: dict[str, list[int]]
    """What a reader may not expect -> positions in the manifest."""


def look_at(
    manifest: Manifest, rows: NDArray[np.int64], max_megapixels: float, progress: Progress | None = None
) -> Looks:
    """Read images of a manifest once and keep what says how they were made and roughly what they show.

    Args:
        manifest: the examples.
        rows: which of them, ascending.
        max_megapixels: as in decode_image.
        progress: called with (done, total).
    """
    facts = [FileFacts()] * len(rows)
    gray = np.zeros((len(rows), SIDE, SIDE), dtype=np.uint8)
    patch = np.zeros((len(rows), PATCH, PATCH, 3), dtype=np.uint8)
    positions = rows.tolist()
    done = 0

    def measure(at: int) -> FileFacts:
        try:
            data = manifest.read(positions[at])
            small = Image.fromarray(decode_small(data, SIDE + SIDE // 4, max_megapixels))
        except DataError:
            return FileFacts(oddities=["changed or gone since it was checked"])
        gray[at] = np.asarray(small.convert("L").resize((SIDE, SIDE), Image.Resampling.BILINEAR))
        patch[at] = np.asarray(small.resize((PATCH, PATCH), Image.Resampling.BILINEAR))
        return file_facts(data)

    def keep(chunk: Sequence[int], results: list[FileFacts]) -> None:
        nonlocal done
        for at, found in zip(chunk, results, strict=True):
            facts[at] = found
        done += len(results)
        if progress:
            progress(done, len(positions))

    in_threads(measure, range(len(positions)), keep)
    oddities: dict[str, list[int]] = {}
    for row, found in zip(positions, facts, strict=True):
        suffix = os.path.splitext(manifest.path[row])[1].lower()
        endings = _SUFFIXES.get(found.format, ())
        known = (
            found.format == "unknown" or suffix in endings or not any(suffix in others for others in _SUFFIXES.values())
        )
        for oddity in dict.fromkeys([*found.oddities, *([] if known else ["another format than the name says"])]):
            oddities.setdefault(oddity, []).append(row)
    return Looks(rows, _columns(manifest, rows, facts), gray, patch, oddities)


def without_detail(manifest: Manifest, rows: NDArray[np.int64], max_megapixels: float) -> list[int]:
    """Find images that show no more than they would at 64 pixels: enlarged tiny faces, and blurred ones.

    Args:
        manifest: the examples.
        rows: those to look at; images that are hardly larger than 64 pixels are left out.
        max_megapixels: as in decode_image.
    """
    larger = [row for row in rows.tolist() if min(manifest.width[row], manifest.height[row]) >= 1.5 * DETAIL_SIDE]
    lost = np.ones(len(larger))

    def measure(row: int) -> float:
        try:
            gray = Image.fromarray(decode_small(manifest.read(row), 224, max_megapixels)).convert("L")
        except DataError:  # look_at says so
            return 1.0
        scale = DETAIL_SIDE / min(gray.size)
        tiny = gray.resize([max(1, round(side * scale)) for side in gray.size], Image.Resampling.LANCZOS)
        again = np.asarray(tiny.resize(gray.size, Image.Resampling.BICUBIC), dtype=np.float32)
        pixels = np.asarray(gray, dtype=np.float32)
        return float(np.sqrt(np.mean((pixels - again) ** 2)) / max(1.0, pixels.std()))

    def keep(chunk: Sequence[int], results: list[float]) -> None:
        lost[list(chunk)] = results

    in_threads(measure, larger, keep)
    return [row for row, share in zip(larger, lost.tolist(), strict=True) if share < _LEAST_DETAIL]


def _columns(manifest: Manifest, rows: NDArray[np.int64], facts: list[FileFacts]) -> dict[str, Column]:
    length, width, height = (
        column[rows].astype(np.float64) for column in (manifest.length, manifest.width, manifest.height)
    )
    return {
        "bytes": length,
        "bytes per pixel": np.round(length / (width * height), 4),
        "width": width,
        "height": height,
        "aspect": np.round(width / height, 3),
        "quality": np.array([found.quality for found in facts]),
        "format": [found.format for found in facts],
        "tables": [found.tables for found in facts],
        "subsampling": [found.subsampling for found in facts],
        "coding": [found.coding for found in facts],
        "colours": [found.colours for found in facts],
        "exif": [found.exif for found in facts],
        "metadata": [found.metadata for found in facts],
    }
