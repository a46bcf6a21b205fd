"""A ranker's scores of a split next to the names of the images, and the numbers and tables made of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from hai.rank_metrics import comparison_metrics, pair_counts, ranker_metrics
from hai.results import PREDICTIONS, csv_text
from hai.score_scale import Scale, fit_comparison_scale, fit_scale
from hai.types import Arrays, Record

if TYPE_CHECKING:
    from hai.data.manifest import Manifest

__all__ = ["COMPARISONS", "RankScores", "comparisons_among", "ranking_tables", "summarise_ranking"]

COMPARISONS: Final = "comparisons.csv"

_PREFERENCES = {1: "left", -1: "right", 0: "tie"}


@dataclass(frozen=True)
class RankScores:
    """Scores of N images, in the order of a table for people.

    Args:
        path: names relative to the source [N].
        tier: 0 the best [N]; all 0 for images that are known by comparisons only.
        tiers: names of the tiers, the best first; empty for images that are known by comparisons only.
        score: higher is better [N].
        spread: standard deviation of the heads' scores [N]; 0 with one head.
        group: images of one group are not independent; "" = the image stands alone [N].
        source: where it comes from [N].
        image_id: the user's names of the images [N]; None without them.
        human: a person's score of each image, NaN where there is none [N]; None without such a column.
        comparisons: rows left, right, preference (+1 left, -1 right, 0 tie) [P, 3]; empty where there are tiers.
        scale: what turns these scores into probabilities, Elo and tiers.
        read: returns the bytes of the image file of a row.
    """

    path: list[str]
    tier: NDArray[Any]
    tiers: tuple[str, ...]
    score: NDArray[np.float64]
    spread: NDArray[np.float64]
    group: list[str]
    source: list[str]
    image_id: list[str] | None
    human: NDArray[np.float64] | None
    comparisons: NDArray[Any]
    scale: Scale
    read: Callable[[int], bytes]

    @classmethod
    def of(cls, predictions: Arrays, manifest: Manifest, scale: Scale | None = None) -> RankScores:
        """Name a ranker's predictions, ordered by source and path.

        Args:
            predictions: `index` int64 [N], `score`, `spread` [N].
            manifest: what `index` points into.
            scale: stored with the checkpoint; None: fitted to these scores.
        """
        index = predictions["index"]
        order = np.array(sorted(range(len(index)), key=lambda i: (manifest.source[index[i]], manifest.path[index[i]])))
        rows = index[order]
        comparisons = comparisons_among(manifest, rows)
        tier, tiers = manifest.label[rows].astype(np.int64), manifest.labels if len(manifest.labels) > 1 else ()
        score = predictions["score"][order].astype(np.float64)
        if scale is None:
            scale = fit_scale(score, tier, len(tiers)) if tiers else fit_comparison_scale(score, comparisons)
        return cls(
            path=[manifest.path[i] for i in rows],
            tier=tier,
            tiers=tiers,
            score=score,
            spread=predictions["spread"][order].astype(np.float64),
            group=[manifest.group[i] for i in rows],
            source=[manifest.source[i] for i in rows],
            image_id=None if manifest.image_id is None else [manifest.image_id[i] for i in rows],
            human=None if manifest.score is None else manifest.score[rows],
            comparisons=comparisons,
            scale=scale,
            read=lambda row: manifest.read(int(rows[row])),
        )

    def __len__(self) -> int:
        return len(self.path)

    @property
    def num_per_tier(self) -> list[int]:
        """Count the images of each tier."""
        return [int((self.tier == code).sum()) for code in range(len(self.tiers))]

    @property
    def called(self) -> NDArray[np.int64] | None:
        """Name the tier that each score lies in [N]; None when the scale was fitted to no tiers or to other ones."""
        return self.scale.tier_of(self.score) if len(self.scale.thresholds) + 1 == len(self.tiers) else None


def comparisons_among(manifest: Manifest, index: NDArray[np.int64]) -> NDArray[np.int64]:
    """Choose the comparisons between these rows of a manifest, by their positions in `index` [P, 3]."""
    position = np.full(len(manifest), -1, dtype=np.int64)
    position[index] = np.arange(len(index))
    comparisons = manifest.comparisons.astype(np.int64)
    comparisons[:, :2] = position[comparisons[:, :2]]
    return comparisons[(comparisons[:, :2] >= 0).all(axis=1)]


def summarise_ranking(scores: RankScores, seed: int) -> Record:
    """Compute everything that evaluation.json says about the scores.

    Returns:
        `n`, `num_groups`, `num_pairs`, `num_correct`, `metrics` {name: {value, low, high}} with 95 % intervals over
        groups, `tiers`, `confusion_matrix` (rows: tier, columns: called tier; both best first), `scale` and
        `per_source`, a list of records with `source` and the same counts and metrics. Pairs are of images of different
        tiers, or the comparisons that are no tie. Without tiers `tiers` is empty, and `confusion_matrix` too, as it is
        when the model knows other tiers.
    """
    whole = _part(scores, np.arange(len(scores)), seed)
    sources, names = np.array(scores.source), sorted(set(scores.source))
    parts = [whole]
    if len(names) > 1:
        parts = [_part(scores, np.flatnonzero(sources == name), seed) for name in names]
    per_source = [{"source": name, **part} for name, part in zip(names, parts, strict=True)]
    return {**whole, "tiers": list(scores.tiers), "scale": scores.scale.record(), "per_source": per_source}


def _part(scores: RankScores, rows: NDArray[np.int64], seed: int) -> Record:
    group, score = [scores.group[i] for i in rows], scores.score[rows]
    record: Record = {"n": len(rows), "num_groups": len(set(group) - {""}) + group.count("")}
    if not scores.tiers:
        return record | _compared(scores, rows, seed)
    tier, called = scores.tier[rows], None if scores.called is None else scores.called[rows]
    human = None if scores.human is None else scores.human[rows]
    correct, pairs = pair_counts(score, tier)
    confusion = np.zeros((len(scores.tiers), len(scores.tiers)), dtype=np.int64)
    if called is not None:
        np.add.at(confusion, (tier, called), 1)
    metrics = ranker_metrics(score, tier, group=group, human=human, predicted_tier=called, seed=seed)
    return record | {
        "num_pairs": pairs,
        "num_correct": correct,
        "metrics": metrics,
        "confusion_matrix": [] if called is None else confusion.tolist(),
    }


def _compared(scores: RankScores, rows: NDArray[np.int64], seed: int) -> Record:
    """Measure the comparisons between images of these rows."""
    inside = np.isin(scores.comparisons[:, :2], rows).all(axis=1)
    comparisons = scores.comparisons[inside]
    decided = comparisons[comparisons[:, 2] != 0]
    lead = (scores.score[decided[:, 0]] - scores.score[decided[:, 1]]) * decided[:, 2]
    return {
        "num_pairs": len(decided),
        "num_ties": len(comparisons) - len(decided),
        "num_correct": int((lead > 0).sum()),
        "metrics": comparison_metrics(scores.score, comparisons, group=scores.group, seed=seed),
        "confusion_matrix": [],
    }


def ranking_tables(scores: RankScores) -> dict[str, str]:
    """Write the scores as CSV, by file name: one line per image, and one per comparison where there are any."""
    human = [""] * len(scores) if scores.human is None else [_digits(value) for value in scores.human]
    names = scores.image_id or [""] * len(scores)
    elo = scores.scale.elo(scores.score)
    tier = [scores.tiers[code] if scores.tiers else "" for code in scores.tier]
    called = [""] * len(scores) if scores.called is None else [scores.tiers[code] for code in scores.called]
    images = [
        [scores.path[i], tier[i], f"{scores.score[i]:.9g}", called[i], f"{elo[i]:.1f}", _digits(scores.spread[i]),
         scores.group[i], scores.source[i], human[i], names[i]]
        for i in range(len(scores))
    ]  # fmt: skip
    head = [
        "filename",
        "tier",
        "score",
        "predicted_tier",
        "elo",
        "spread",
        "group",
        "source",
        "human_score",
        "image_id",
    ]
    tables = {PREDICTIONS: csv_text(head, images)}
    if len(scores.comparisons):
        left, right, preference = scores.comparisons.T
        probability = scores.scale.probability(scores.score[left], scores.score[right])
        lines = [
            [scores.path[i], scores.path[j], _PREFERENCES[int(outcome)], _digits(p)]
            for i, j, outcome, p in zip(left, right, preference, probability, strict=True)
        ]
        tables[COMPARISONS] = csv_text(["left", "right", "preference", "probability_left"], lines)
    return tables


def _digits(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.7g}"
