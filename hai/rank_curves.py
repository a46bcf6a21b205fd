"""What lies behind the plots and galleries of a ranker's page: reliability of pairs, and the pairs it orders worst."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hai.rank_metrics import resampled_weights
from hai.score_scale import Scale

__all__ = [
    "Disagreement",
    "Reliability",
    "comparison_reliability",
    "pair_reliability",
    "worst_comparisons",
    "worst_pairs",
]

Floats = NDArray[np.float64]

_NUM_BINS, _FINE = 10, 10
_SIDES: Final[tuple[Literal["left", "right"], ...]] = ("left", "right")  # equal scores count half on either side
_MOST_IMAGES = 10_000


@dataclass(frozen=True)
class Reliability:
    """Pairs in bins of the predicted probability that the image with the higher score is the better one.

    Args:
        confidence: mean predicted probability of each bin [B], in 0.5-1.
        frequency: share of its pairs where that is so [B].
        low, high: 95 % bootstrap interval over groups of images [B].
        count: pairs in each bin [B].
    """

    confidence: Floats
    frequency: Floats
    low: Floats
    high: Floats
    count: Floats


class Disagreement(NamedTuple):
    """A pair in the wrong order: `better` is, the scores say `worse` is."""

    better: int
    worse: int
    probability: float
    """What the scores give the better one."""


def pair_reliability(
    score: Floats, tier: NDArray[Any], group: Sequence[str], scale: Scale, *, bootstrap: int = 200, seed: int = 0
) -> Reliability:
    """Compare predicted and true order of all pairs of different tiers, without enumerating them.

    Of more than 10,000 images so many are drawn: the curve is for the eye.

    Args:
        score: [N].
        tier: [N], 0 the best.
        group: [N]; the bootstrap draws whole groups, "" = the image stands alone.
        scale: turns score differences into probabilities.
        bootstrap: how many resamples the intervals come from.
        seed: of the resamples.
    """
    if len(score) > _MOST_IMAGES:
        drawn = np.random.default_rng(seed).permutation(len(score))[:_MOST_IMAGES]
        score, tier, group = score[drawn], tier[drawn], [group[i] for i in drawn]
    ones = np.ones((1, len(score)))
    fine = np.linspace(0.5, 1.0, _NUM_BINS * _FINE + 1)
    right, wrong = _pair_counts(score, tier, _differences(fine, scale), ones)
    shape = (_NUM_BINS, _FINE)
    count = (right + wrong)[0].reshape(shape)
    total = count.sum(axis=1)
    middle = ((fine[1:] + fine[:-1]) / 2).reshape(shape)
    confidence = _share((count * middle).sum(axis=1), total)
    frequency = _share(right[0].reshape(shape).sum(axis=1), total)
    edges = _differences(fine[::_FINE], scale)
    shares = []
    for weights in resampled_weights(group, len(score), bootstrap, seed):
        right, wrong = _pair_counts(score, tier, edges, weights)
        shares.append(_share(right, right + wrong))
    low, high = _bounds(np.concatenate(shares))
    return Reliability(confidence, frequency, low, high, total)


def comparison_reliability(
    score: Floats,
    comparisons: NDArray[Any],
    group: Sequence[str],
    scale: Scale,
    *,
    bootstrap: int = 200,
    seed: int = 0,
) -> Reliability:
    """Compare predicted and given order of explicit comparisons; a tie counts half on either side.

    Args:
        score: [N].
        comparisons: rows left, right, preference (+1 left, -1 right, 0 tie) [P, 3].
        group: [N]; the bootstrap draws whole groups, "" = the image stands alone.
        scale: turns score differences into probabilities.
        bootstrap: how many resamples the intervals come from.
        seed: of the resamples.
    """
    left, right, preference = np.asarray(comparisons, dtype=np.int64).T
    difference = score[left] - score[right]
    probability = np.asarray(scale.probability(np.abs(difference), np.zeros(len(difference))))
    outcome = (1.0 + preference * np.sign(difference)) / 2
    member = np.eye(_NUM_BINS)[np.clip(((probability - 0.5) * 2 * _NUM_BINS).astype(np.int64), 0, _NUM_BINS - 1)]
    total = member.sum(axis=0)
    shares = []
    for weights in resampled_weights(group, len(score), bootstrap, seed):
        weight = weights[:, left] * weights[:, right]
        shares.append(_share(weight @ (member * outcome[:, None]), weight @ member))
    low, high = _bounds(np.concatenate(shares))
    return Reliability(_share(probability @ member, total), _share(outcome @ member, total), low, high, total)


def _differences(probability: Floats, scale: Scale) -> Floats:
    """Find the score differences that have these probabilities in 0.5-1."""
    with np.errstate(divide="ignore"):
        return np.asarray(scale.temperature * (np.log(probability) - np.log1p(-probability)))


def _pair_counts(score: Floats, tier: NDArray[Any], edges: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Weigh the pairs of different tiers in right and in wrong order, by score difference; equal scores count half.

    Args:
        edges: of the bins of absolute differences, from 0 to infinity [B + 1].
        weights: of the images [R, N]; a pair weighs their product.

    Returns:
        Right and wrong [R, B].
    """
    signed = np.concatenate([-edges[::-1], edges[1:]])
    above = np.zeros((len(weights), len(signed)))  # pairs whose better image leads by more than this
    rows = [np.flatnonzero(tier == code) for code in np.unique(tier)]
    rows = [own[np.argsort(score[own], kind="stable")] for own in rows]
    for position, better in enumerate(rows):
        for worse in rows[position + 1 :]:
            below = np.concatenate([np.zeros((len(weights), 1)), weights[:, worse].cumsum(axis=1)], axis=1)
            for k, edge in enumerate(signed):
                for side in _SIDES:
                    led = below[:, np.searchsorted(score[worse], score[better] - edge, side=side)]
                    above[:, k] += (weights[:, better] * led).sum(axis=1) / len(_SIDES)
    counts = above[:, :-1] - above[:, 1:]
    num_bins = len(edges) - 1
    return counts[:, num_bins:], counts[:, num_bins - 1 :: -1]


def _share(part: Floats, total: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(total > 0, part / total, np.nan)


def _bounds(shares: Floats) -> tuple[Floats, Floats]:
    """Take the 2.5 and 97.5 % quantiles over the resamples [R, B] that have a value; NaN where none has."""
    known = np.isfinite(shares).any(axis=0)
    bounds = np.full((2, shares.shape[1]), np.nan)
    bounds[:, known] = np.nanquantile(shares[:, known], (0.025, 0.975), axis=0)
    return bounds[0], bounds[1]


def worst_pairs(score: Floats, tier: NDArray[Any], scale: Scale, limit: int) -> list[Disagreement]:
    """Choose the pairs whose order contradicts the tiers the most, each image at most once.

    The worst pair of those left always joins the lowest score left of its better tier to the highest score left of its
    worse one, and takes one image from either, so `limit` scores at both ends of a tier are enough.
    """
    lowest, highest = [], []
    for code in np.unique(tier):
        own = np.flatnonzero(tier == code)
        own = own[np.argsort(score[own], kind="stable")]
        lowest += own[:limit].tolist()
        highest += own[::-1][:limit].tolist()
    pairs = [(i, j) for i in lowest for j in highest if tier[i] < tier[j] and score[i] < score[j]]
    return _distinct(score, pairs, scale, limit)


def worst_comparisons(score: Floats, comparisons: NDArray[Any], scale: Scale, limit: int) -> list[Disagreement]:
    """Choose the comparisons that the scores contradict the most, each image at most once."""
    oriented = [(i, j) if preference > 0 else (j, i) for i, j, preference in comparisons.tolist() if preference]
    return _distinct(score, [(i, j) for i, j in oriented if score[i] < score[j]], scale, limit)


def _distinct(score: Floats, pairs: list[tuple[int, int]], scale: Scale, limit: int) -> list[Disagreement]:
    chosen: list[Disagreement] = []
    used: set[int] = set()
    for better, worse in sorted(pairs, key=lambda pair: score[pair[0]] - score[pair[1]]):
        if len(chosen) < limit and not used & {better, worse}:
            used |= {better, worse}
            chosen.append(Disagreement(better, worse, float(scale.probability(score[better], score[worse]))))
    return chosen
