"""Finding images whose score contradicts their tier, with scores of models that never learned from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hai.errors import DataError
from hai.rank_results import RankScores
from hai.results import csv_text
from hai.score_scale import Scale

__all__ = ["Finding", "audit_labels", "audit_table", "out_of_fold_scores"]

_CLEAR = 0.9
_PENALTIES = np.logspace(-4, 2, 13)  # in units of a standardised feature's variance


class Finding(NamedTuple):
    """An image whose tier is in doubt.

    Args:
        row: position in the scores that were audited.
        suggested: the tier that its score lies in.
        strength: probability that it is on the far side of its tier's border, compared with an image on the border.
    """

    row: int
    suggested: int
    strength: float


def audit_labels(score: NDArray[np.float64], tier: NDArray[Any], scale: Scale) -> list[Finding]:
    """Find images whose score lies two tiers or more away from theirs, or clearly (90 %) beyond its border.

    Args:
        score: [N], of models that have not seen the image's tier.
        tier: [N], 0 the best.
        scale: fitted to such scores.

    Returns:
        The findings, the strongest first.
    """
    suggested = scale.tier_of(score)
    findings = []
    for row in np.flatnonzero(suggested != tier):
        own, other = int(tier[row]), int(suggested[row])
        border = scale.thresholds[own] if other > own else scale.thresholds[own - 1]
        strength = float(scale.probability(max(score[row], border), min(score[row], border)))
        if abs(other - own) >= 2 or strength >= _CLEAR:
            findings.append(Finding(int(row), other, strength))
    return sorted(findings, key=lambda finding: (-finding.strength, finding.row))


def out_of_fold_scores(
    embeddings: NDArray[np.float32], tier: NDArray[Any], group: Sequence[str], *, folds: int = 5, seed: int = 0
) -> NDArray[np.float64]:
    """Score each image by a ridge regression on the features of the other groups.

    Args:
        embeddings: [N, D].
        tier: [N], 0 the best.
        group: [N], what must stay together; "" = the image stands alone.
        folds: parts of the groups.
        seed: of the parts.

    Returns:
        [N], higher is better, in units of tiers.

    Raises:
        DataError: there are fewer groups than folds.
    """
    names = [name or f"\0{row}" for row, name in enumerate(group)]
    unique, code = np.unique(np.array(names), return_inverse=True)
    if len(unique) < folds:
        raise DataError(f"label audit: groups = {len(unique)}; out-of-fold scores need {folds} or more")
    fold = np.random.default_rng(seed).permutation(len(unique))[code] % folds
    target = -np.asarray(tier, dtype=np.float64)
    score = np.empty(len(target))
    for k in range(folds):
        held_out = fold == k
        score[held_out] = _ridge(embeddings[~held_out], target[~held_out], embeddings[held_out])
    return score


def _ridge(known: NDArray[np.float32], target: NDArray[np.float64], asked: NDArray[np.float32]) -> NDArray[np.float64]:
    """Predict by ridge regression on standardised features, its penalty chosen by leave-one-out error.

    Leaving one out changes its residual e to e / (1 - h), h its leverage. Source: Allen, The relationship between
    variable selection and data augmentation and a method for prediction, Technometrics 16 (1974).
    """
    mean, scale = known.mean(axis=0), known.std(axis=0)
    scale[scale == 0] = 1.0
    x = ((known - mean) / scale).astype(np.float64)
    centre = target.mean()
    eigenvalues, vectors = np.linalg.eigh(x.T @ x)
    rotated = x @ vectors
    moments, squares = rotated.T @ (target - centre), rotated**2
    best, weights = np.inf, np.zeros(x.shape[1])
    for penalty in len(x) * _PENALTIES:
        shrunk = 1.0 / (np.maximum(eigenvalues, 0.0) + penalty)
        residual = target - centre - rotated @ (shrunk * moments)
        error = float(np.mean((residual / (1.0 - squares @ shrunk - 1.0 / len(x))) ** 2))
        if error < best:
            best, weights = error, vectors @ (shrunk * moments)
    return np.asarray(((asked - mean) / scale) @ weights + centre)


def audit_table(audited: Mapping[str, RankScores]) -> str:
    """Write the findings as CSV, the strongest first.

    Args:
        audited: scores by the split they are of.
    """
    rows = []
    for split, scores in audited.items():
        for row, suggested, strength in audit_labels(scores.score, scores.tier, scores.scale):
            tiers = [scores.tiers[scores.tier[row]], scores.tiers[suggested]]
            numbers = [f"{strength:.4f}", f"{scores.score[row]:.7g}"]
            rows.append([scores.path[row], *tiers, *numbers, split, scores.group[row], scores.source[row]])
    rows.sort(key=lambda row: -float(row[3]))
    return csv_text(["filename", "tier", "suggested_tier", "strength", "score", "split", "group", "source"], rows)
