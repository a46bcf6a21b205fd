"""Where a detector errs: its errors by brightness, size of the face, JPEG quality and source."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from hai.data.looks import look_at
from hai.faces.journal import JOURNAL, load_records
from hai.results import Scores
from hai.types import Record

if TYPE_CHECKING:
    from hai.data.manifest import Manifest

__all__ = ["ImageFacts", "error_rate", "error_table", "image_facts"]

_MOST_BINS: Final = 4
_Z: Final = 1.959964

Floats = NDArray[np.float64]
Range = Callable[[float, float], str]


@dataclass(frozen=True)
class ImageFacts:
    """What is known of N images besides their scores.

    Args:
        brightness: mean grey level, 0-100 % [N].
        size: pixels [N], NaN where unknown, see `size_is_of_face`.
        size_is_of_face: sizes are longer sides of faces in their frames, as `hai preprocess` noted them; otherwise
            shorter sides of image files.
        quality: JPEG quality that a file's tables stand for, NaN for other formats [N].
    """

    brightness: Floats
    size: Floats
    size_is_of_face: bool
    quality: Floats


def image_facts(
    manifest: Manifest,
    rows: NDArray[np.int64],
    max_megapixels: float,
    progress: Callable[[int, int], None] | None = None,
) -> ImageFacts:
    """Read the facts of images of a manifest from their files.

    Args:
        manifest: the examples.
        rows: which of them, in any order [N].
        max_megapixels: as in `decode_image`.
        progress: called with (done, total).
    """
    order = np.argsort(rows, kind="stable")
    looks = look_at(manifest, rows[order], max_megapixels, progress)
    brightness, quality = np.empty(len(rows)), np.empty(len(rows))
    brightness[order] = looks.gray.mean(axis=(1, 2), dtype=np.float64) / 2.55
    quality[order] = looks.columns["quality"]
    quality[quality == 0] = np.nan
    faces = _face_sizes(manifest, rows)
    if faces is not None:
        return ImageFacts(brightness, faces, True, quality)
    sides = np.minimum(manifest.width[rows], manifest.height[rows]).astype(np.float64)
    return ImageFacts(brightness, sides, False, quality)


def _face_sizes(manifest: Manifest, rows: NDArray[np.int64]) -> Floats | None:
    """Look up the faces that were cut out; None where the images were not made by `hai preprocess`."""
    sizes: dict[str, dict[str, float]] = {}
    found = np.full(len(rows), np.nan)
    for position, row in enumerate(rows.tolist()):
        file, path = manifest.file[row], manifest.path[row]
        if not file.endswith(f"/{path}"):
            continue
        root = file.removesuffix(path)
        if root not in sizes:
            records = load_records(Path(root) / JOURNAL, mend=False).values()
            crops = [crop for record in records for crop in record.crops]
            sizes[root] = {crop.path: max(crop.box[2] - crop.box[0], crop.box[3] - crop.box[1]) for crop in crops}
        found[position] = sizes[root].get(path, np.nan)
    return None if np.isnan(found).all() else found


def error_table(scores: Scores, threshold: float, facts: ImageFacts) -> list[Record]:
    """Count errors in ranges of each fact that have about as many images each, and in each source.

    Returns:
        A record per range with `fact`, `range` (words), `n`, `num_real`, `num_fake`, `num_false_alarms` (real called
        fake), `num_missed` (fakes called real) and `error`, the share of wrong calls {value, low, high}. A fact that is
        the same for all images is left out.
    """
    size = "face size" if facts.size_is_of_face else "image size"
    divided: list[tuple[str, list[tuple[str, NDArray[np.bool_]]]]] = [
        ("brightness", _ranges(facts.brightness, lambda low, high: f"{low:.0f} to {high:.0f} %", 1.0, "unknown")),
        (size, _ranges(facts.size, _span("px"), 1.0, "no face noted")),
        ("JPEG quality", _ranges(facts.quality, _span(""), 1.0, "no JPEG")),
    ]
    names = sorted(set(scores.source))
    sources = np.array(scores.source)
    divided.append(("source", [(name, sources == name) for name in names]))
    called = scores.predictions(threshold)
    return [
        _record(fact, words, scores, called, np.flatnonzero(chosen))
        for fact, ranges in divided
        if len(ranges) > 1
        for words, chosen in ranges
    ]


def _span(unit: str) -> Range:
    unit = f" {unit}" if unit else ""
    return lambda low, high: f"{low:.0f}{unit}" if low == high else f"{low:.0f} to {high:.0f}{unit}"


def _ranges(values: Floats, words: Range, step: float, unknown: str) -> list[tuple[str, NDArray[np.bool_]]]:
    """Divide values, rounded to steps, into at most four ranges of about equal counts; equal values stay together."""
    rounded = np.round(values / step) * step
    known = np.isfinite(rounded)
    ranges = []
    if known.any():
        cuts = np.quantile(rounded[known], np.arange(1, _MOST_BINS) / _MOST_BINS, method="higher")
        second = np.unique(rounded[known])[:2].max()  # a cut at the smallest would have nothing below it
        cuts = np.unique(np.maximum(cuts, second))
        bins = np.searchsorted(cuts, rounded, side="right")
        for number in np.unique(bins[known]).tolist():
            chosen = known & (bins == number)
            own = rounded[chosen]
            ranges.append((words(float(own.min()), float(own.max())), chosen))
    if not known.all():
        ranges.append((unknown, ~known))
    return ranges


def _record(fact: str, words: str, scores: Scores, called: NDArray[np.int64], rows: NDArray[np.int64]) -> Record:
    label = scores.label[rows].astype(np.int64)
    wrong = called[rows] != label
    value, low, high = error_rate(wrong, [scores.group[row] for row in rows.tolist()])
    return {
        "fact": fact,
        "range": words,
        "n": len(rows),
        "num_real": int((label == 0).sum()),
        "num_fake": int((label == 1).sum()),
        "num_false_alarms": int((wrong & (label == 0)).sum()),
        "num_missed": int((wrong & (label == 1)).sum()),
        "error": {"value": value, "low": low, "high": high},
    }


def error_rate(wrong: NDArray[np.bool_], group: Sequence[str]) -> tuple[float, float, float]:
    """Return the share of wrong calls with its 95 % interval.

    The interval is Wilson's for as many independent images as the groups are worth: the variance over groups says how
    many, and where none or all are wrong, their number. Unlike a bootstrap it does not shrink to nothing there.

    Args:
        wrong: [N], N > 0.
        group: images of one are not independent; "" stands alone [N].

    Source: Korn and Graubard, Confidence intervals for proportions with small expected number of positive counts
        estimated from survey data, 1998; Wilson, JASA 22 (1927).
    """
    names = np.array([name or f"\0{position}" for position, name in enumerate(group)])
    ids = np.unique(names, return_inverse=True)[1]
    num_groups, share = int(ids.max()) + 1, float(wrong.mean())
    count = float(num_groups)
    if 0 < share < 1 and num_groups > 1:
        excess = np.bincount(ids, weights=wrong - share)
        variance = num_groups / (num_groups - 1) * float((excess**2).sum()) / len(wrong) ** 2
        if variance > 0:
            count = min(share * (1 - share) / variance, len(wrong))
    centre = (share + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
    half = _Z / (1 + _Z**2 / count) * np.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    return share, max(0.0, float(centre - half)), min(1.0, float(centre + half))
