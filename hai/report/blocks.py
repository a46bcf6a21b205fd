"""What the pages of all tasks are made of: numbers, plots and thumbnails ready for a template."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from hai.errors import DataError
from hai.types import Record

__all__ = [
    "GALLERY_SIZE",
    "INTERVALS",
    "Meanings",
    "markup",
    "metric_row",
    "number",
    "picture",
    "size_text",
    "thumbnail",
]

GALLERY_SIZE: Final = 12
"""Most pictures, or pairs of pictures, of a gallery."""

INTERVALS: Final = (
    "Intervals are 95 % bootstrap intervals that draw whole groups: images of one group are not independent."
)
"""How the numbers in ranges came about, a sentence."""

Meanings = dict[str, tuple[str, str]]
"""Title and meaning of each metric, the most telling first."""

_THUMBNAIL_PIXELS = 176


def number(value: float | None) -> str:
    """Write a number with three decimals."""
    if value is None or not np.isfinite(value):
        return "n/a"
    return f"{value:.3f}"


def size_text(summary: Record) -> str:
    """Say how many images there are, and in how many groups where that is another number."""
    images, groups = f"{summary['n']:,} images", f"{summary['num_groups']:,} independent groups"
    return images if summary["n"] == summary["num_groups"] else f"{images} in {groups}"


def markup(svg: str | None) -> Any:
    """Mark a plot as safe to insert: `hai.report.plots` draws it from numbers and our own words."""
    from markupsafe import Markup

    return None if svg is None else Markup(svg)


def metric_row(title: str, meaning: str, metric: Record) -> Record:
    """Lay out a metric {value, low, high} with its bar from 0 to 1, None where it does not lie there."""
    bar = None
    if all(metric[part] is not None and 0 <= metric[part] <= 1 for part in ("value", "low", "high")):
        low, width = 100 * metric["low"], 100 * (metric["high"] - metric["low"])
        bar = {"low": f"{low:.1f}", "width": f"{width:.1f}", "value": f"{100 * metric['value']:.1f}"}
    return {"title": title, "meaning": meaning, "bar": bar, **metric}


def thumbnail(read: Callable[[int], bytes], row: int) -> str | None:
    """Shrink an image file, whose size the manifest has checked, to a JPEG data URI; None: it became unreadable."""
    from hai.data.images import decode_image

    try:
        return picture(decode_image(read(row), math.inf))
    except DataError:
        return None


def picture(pixels: NDArray[np.uint8]) -> str:
    """Shrink an image [H, W, 3] to a JPEG data URI."""
    from PIL import Image

    image = Image.fromarray(pixels)
    image.thumbnail((_THUMBNAIL_PIXELS, _THUMBNAIL_PIXELS))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
