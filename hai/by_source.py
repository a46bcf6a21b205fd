"""A detector's metrics source by source; fakes of one kind are judged against the real images of their data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hai.metrics import point_metrics

__all__ = ["BOTH_CLASSES", "View", "family_of", "metrics_by_source", "view_of"]

BOTH_CLASSES: Final = ("f1_macro", "roc_auc", "average_precision", "equal_error_rate")
"""Metrics that say little or nothing without examples of both classes."""

_TRACKED: Final = ("accuracy", "f1_macro", "roc_auc")


class View(NamedTuple):
    """Which examples speak for a source."""

    own: NDArray[np.int64]
    """Positions of its own."""
    both: NDArray[np.int64]
    """The same; if they are of one class, with those of the other class in its data set."""


def family_of(source: str) -> str:
    """Return the data set of a source `name` or `name/part`."""
    return source.partition("/")[0]


def view_of(source: str, sources: NDArray[Any], families: NDArray[Any], label: NDArray[Any]) -> View:
    """Find the examples of a source.

    Args:
        source: its name.
        sources: of each example [N].
        families: of each source, by family_of [N].
        label: 0 real, 1 fake [N].
    """
    own = np.flatnonzero(sources == source)
    held = np.unique(label[own])
    if len(held) != 1:
        return View(own, own)
    others = np.flatnonzero((families == family_of(source)) & (label != held[0]))
    return View(own, np.sort(np.concatenate([own, others])))


def metrics_by_source(
    label: NDArray[Any], probability_fake: NDArray[Any], source: Sequence[str]
) -> dict[str, float | None]:
    """Measure each data set and each part of it, at the threshold 0.5.

    Args:
        label: [N], 0 real, 1 fake.
        probability_fake: [N], 0-1.
        source: [N], `name` or `name/part`.

    Returns:
        `METRIC/SOURCE` -> value for accuracy, f1_macro and roc_auc. `METRIC/name` covers all parts of a data set; in a
        part of one class, f1_macro and roc_auc are against the other class in its data set. Empty for a single source.
    """
    sources = np.array(source)
    families = np.array([family_of(name) for name in source])
    parts, names = np.unique(sources).tolist(), np.unique(families).tolist()
    if len(parts) == 1:
        return {}
    views = {}
    if len(names) > 1:
        for name in names:
            rows = np.flatnonzero(families == name)
            views[name] = View(rows, rows)
    views |= {part: view_of(part, sources, families, label) for part in parts if part not in names}
    result: dict[str, float | None] = {}
    for name, view in sorted(views.items()):
        own, both = (point_metrics(label[rows], probability_fake[rows]) for rows in view)
        result |= {f"{metric}/{name}": (both if metric in BOTH_CLASSES else own)[metric] for metric in _TRACKED}
    return result
