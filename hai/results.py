"""Scores of a split next to the names of the images they belong to, and the numbers made of them."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from hai.by_source import BOTH_CLASSES, View, family_of, view_of
from hai.metrics import confusion_matrix, detector_metrics
from hai.types import LABELS, Arrays, Record

if TYPE_CHECKING:
    from hai.data.manifest import Manifest

__all__ = ["PREDICTIONS", "Scores", "csv_text", "prediction_tables", "probability_of", "summarise"]

PREDICTIONS: Final = "predictions.csv"


@dataclass(frozen=True)
class Scores:
    """Scores of N labelled images, in the order of a table for people.

    Args:
        path: names relative to the source [N].
        label: 0 real, 1 fake [N].
        probability_fake: in 0-1 [N].
        group: images of one group are not independent; "" = the image stands alone [N].
        source: where it comes from [N].
        read: returns the bytes of the image file of a row.
        video: frames of one are judged together; "" = the image stands alone; None: groups are videos [N].
        index: positions in the manifest [N]; None: there is none.
    """

    path: list[str]
    label: NDArray[Any]
    probability_fake: NDArray[np.float64]
    group: list[str]
    source: list[str]
    read: Callable[[int], bytes]
    video: list[str] | None = None
    index: NDArray[np.int64] | None = None

    @classmethod
    def of(cls, predictions: Arrays, manifest: Manifest, temperature: float = 1.0) -> Scores:
        """Name a detector's predictions, ordered by source and path.

        Args:
            predictions: `index` int64 [N], `label` [N], `logit` of fake against real [N].
            manifest: what `index` points into.
            temperature: divides the logits, > 0.
        """
        rows = [int(i) for i in predictions["index"]]
        order = sorted(range(len(rows)), key=lambda i: (manifest.source[rows[i]], manifest.path[rows[i]]))
        rows = [rows[i] for i in order]
        logit = predictions["logit"].astype(np.float64)[order] / temperature
        return cls(
            path=[manifest.path[i] for i in rows],
            label=predictions["label"][order],
            probability_fake=probability_of(logit),
            group=[manifest.group[i] for i in rows],
            source=[manifest.source[i] for i in rows],
            read=lambda row: manifest.read(rows[row]),
            video=None if manifest.video is None else [manifest.video[i] for i in rows],
            index=np.array(rows, dtype=np.int64),
        )

    def __len__(self) -> int:
        return len(self.path)

    def predictions(self, threshold: float) -> NDArray[np.int64]:
        """Call each image real (0) or fake (1)."""
        return (self.probability_fake >= threshold).astype(np.int64)


def probability_of(logit: NDArray[np.float64]) -> NDArray[np.float64]:
    """Turn logits of fake against real into probabilities of fake, without overflow."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logit)))


def summarise(scores: Scores, threshold: float, seed: int) -> Record:
    """Compute everything that evaluation.json says about the scores.

    Returns:
        `n`, `num_groups`, `num_correct`, `metrics` {name: {value, low, high}} with 95 % intervals over groups,
        `confusion_matrix` (rows: real, fake; columns: called real, called fake), `threshold` and `per_source`, a list
        of records with `source`, `n`, `num_groups`, `num_correct`, `metrics`, `confusion_matrix`. A source of one class
        has `num_others`: how many examples of the other class in its data set (`name` of `name/part`) its f1_macro,
        roc_auc, average_precision and equal_error_rate are measured against.
    """
    everything = np.arange(len(scores))
    whole = _part(scores, View(everything, everything), threshold, seed)
    sources, families = np.array(scores.source), np.array([family_of(name) for name in scores.source])
    names = sorted(set(scores.source))
    parts = [whole]
    if len(names) > 1:
        views = [view_of(name, sources, families, scores.label) for name in names]
        parts = [_part(scores, view, threshold, seed) for view in views]
    per_source = [{"source": name, **part} for name, part in zip(names, parts, strict=True)]
    return {**whole, "labels": list(LABELS), "threshold": threshold, "per_source": per_source}


def _part(scores: Scores, view: View, threshold: float, seed: int) -> Record:
    group = [scores.group[i] for i in view.own]
    confusion = confusion_matrix(scores.label[view.own], scores.probability_fake[view.own], threshold)
    record = {
        "n": len(view.own),
        "num_groups": len(set(group) - {""}) + group.count(""),
        "num_correct": int(np.trace(confusion)),
        "metrics": _measured(scores, view.own, threshold, seed),
        "confusion_matrix": confusion.tolist(),
    }
    if len(view.both) > len(view.own):
        both = _measured(scores, view.both, threshold, seed)
        record["num_others"] = len(view.both) - len(view.own)
        record["metrics"] |= {name: both[name] for name in BOTH_CLASSES}
    return record


def _measured(
    scores: Scores, rows: NDArray[np.int64], threshold: float, seed: int
) -> dict[str, dict[str, float | None]]:
    group = [scores.group[i] for i in rows]
    video = None if scores.video is None else [scores.video[i] for i in rows]
    label, probability = scores.label[rows], scores.probability_fake[rows]
    return detector_metrics(label, probability, group, threshold, seed=seed, video=video)


def prediction_tables(scores: Scores, threshold: float) -> dict[str, str]:
    """Write the scores as CSV, by file name: one line per image."""
    called = scores.predictions(threshold)
    rows = [
        [
            scores.path[i],
            LABELS[int(scores.label[i])],
            f"{scores.probability_fake[i]:.7g}",
            LABELS[int(called[i])],
            scores.group[i],
            scores.source[i],
        ]
        for i in range(len(scores))
    ]
    return {PREDICTIONS: csv_text(["path", "label", "probability_fake", "prediction", "group", "source"], rows)}


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Write a table as CSV; what UTF-8 cannot write of a file's name stands in backslashes."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(columns)
    table.writerows(rows)
    return text.getvalue().encode("utf-8", "backslashreplace").decode("utf-8")
