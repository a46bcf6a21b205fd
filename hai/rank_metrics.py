"""Metrics of a ranker, exact over all pairs without listing them: sorting counts 25 million in milliseconds.

Pairs are of images of different tiers. A pair is correct when the better image's score is higher; equal scores are
wrong. A metric that is not defined, such as one over no pair, is None. Intervals are 95 % percentile bootstrap
intervals over images, or over whole groups of images where there are groups: a resample of images is a weight for each,
and a pair weighs the product of its two.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hai.errors import DataError
from hai.types import Record

__all__ = [
    "comparison_metrics",
    "comparison_point_metrics",
    "concordance",
    "pair_counts",
    "point_metrics",
    "ranker_metrics",
    "resampled_weights",
]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_CHUNK = 1_000_000
"""Resampled images handled at once: 8 MB an array."""


class _Ranked:
    """Scores of a split, sorted once; `metrics` weighs the images as often as asked.

    Args:
        score: [N].
        tier: codes [N], 0 the best.
        human: a person's score [N], NaN where there is none; None: no such column.
        predicted_tier: codes [N]; None: not predicted.
    """

    def __init__(
        self, score: ArrayLike, tier: ArrayLike, human: ArrayLike | None, predicted_tier: ArrayLike | None
    ) -> None:
        self.score = np.asarray(score, dtype=np.float64)
        self.tier: Ints = np.asarray(tier, dtype=np.int64)
        if not np.isfinite(self.score).all():
            raise DataError("scores: NaN or Inf; the model has diverged; lower optim.learning_rate and train again")
        order = np.argsort(self.score, kind="stable")
        self._tier, self._place = self.tier[order], _places(self.score[order])
        self.order = order
        self._num_tiers = int(self.tier.max(initial=-1)) + 1
        self._predicted = None if predicted_tier is None else np.asarray(predicted_tier, dtype=np.int64)[order]
        self._human: tuple[Ints, Ints, Ints] | None = None
        if human is not None:
            given = np.asarray(human, dtype=np.float64)[order]
            known = np.flatnonzero(np.isfinite(given))
            ranks = np.unique(given[known], return_inverse=True)[1].reshape(-1).astype(np.int64)
            self._human = known, _places(self.score[order][known]), ranks

    def pairs(self, weights: Floats) -> tuple[dict[int, Floats], dict[int, Floats], Floats]:
        """Weigh correct pairs and all pairs by tier gap, and the pairs of equal scores: each [R].

        Args:
            weights: of the images in the order of their scores [R, N].
        """
        size = int(self._place[-1]) + 1 if len(self._place) else 0
        correct: dict[int, Floats] = {}
        total: dict[int, Floats] = {}
        equal = np.zeros(len(weights))
        members = [np.flatnonzero(self._tier == code) for code in range(self._num_tiers)]
        for worse in range(1, self._num_tiers):
            below = _cumulated(weights[:, members[worse]], self._place[members[worse]], size)
            for better in range(worse):
                own, place = weights[:, members[better]], self._place[members[better]]
                gap = worse - better
                won = np.einsum("rn,rn->r", own, below[:, place])
                tied = np.einsum("rn,rn->r", own, below[:, place + 1]) - won
                correct[gap] = correct.get(gap, 0.0) + won
                total[gap] = total.get(gap, 0.0) + own.sum(axis=1) * below[:, -1]
                equal += tied
        return correct, total, equal

    def metrics(self, weights: Floats) -> dict[str, Floats]:
        """Compute every metric for each row of weights: name -> [R], NaN where it is not defined."""
        weights = weights[:, self.order]
        correct, total, equal = self.pairs(weights)
        zero = np.zeros(len(weights))
        right, pairs = sum(correct.values(), zero), sum(total.values(), zero)
        found = {"pair_accuracy": _ratio(right, pairs)}
        for gap in range(1, max(self._num_tiers, 2)):
            found[f"pair_accuracy_gap_{gap}"] = _ratio(correct.get(gap, zero), total.get(gap, zero))
        found["srcc"] = _spearman(weights, self._place, -self._tier + self._num_tiers - 1)
        same_score = _cumulated(weights, self._place, int(self._place[-1]) + 1 if len(self._place) else 0)
        in_score = np.diff(same_score, axis=1)
        whole = weights.sum(axis=1)
        untied = whole * (whole - 1) / 2 - (in_score * (in_score - 1) / 2).sum(axis=1)
        found["kendall_tau"] = _ratio(2 * right + equal - pairs, np.sqrt(pairs * np.maximum(untied, 0)))
        if self._human is not None:
            known, place, rank = self._human
            found["srcc_score"] = _spearman(weights[:, known], place, rank)
        if self._predicted is not None:
            hit = (self._predicted == self._tier).astype(np.float64)
            found["tier_accuracy"] = _ratio(weights @ hit, whole)
            found["quadratic_weighted_kappa"] = self._kappa(weights, self._predicted, whole)
        return found

    def _kappa(self, weights: Floats, predicted: Ints, whole: Floats) -> Floats:
        size = max(self._num_tiers, int(predicted.max(initial=0)) + 1)
        seen = weights @ (predicted - self._tier).astype(np.float64) ** 2
        truth, called = weights @ np.eye(size)[self._tier], weights @ np.eye(size)[predicted]
        codes = np.arange(size)
        square = (codes[:, None] - codes[None, :]).astype(np.float64) ** 2
        by_chance = np.einsum("ri,ij,rj->r", truth, square, called)
        return 1.0 - _ratio(seen * whole, by_chance)


def _places(ascending: NDArray[Any]) -> Ints:
    """Number the distinct values of a sorted array, [N]."""
    places: Ints = np.concatenate([[0], np.cumsum(np.diff(ascending) > 0)]).astype(np.int64)[: len(ascending)]
    return places


def _cumulated(weights: Floats, place: Ints, size: int) -> Floats:
    """Sum weights [R, N] over all places below each one: [R, size + 1]; `place` [N] ascends."""
    sums = np.concatenate([np.zeros((len(weights), 1)), weights.cumsum(axis=1)], axis=1)
    return sums[:, np.searchsorted(place, np.arange(size + 1))]


def _spearman(weights: Floats, place: Ints, rank: Ints) -> Floats:
    """Correlate mid-ranks of two orders, given by the number of each value's distinct one; the first ascends."""
    whole = weights.sum(axis=1, keepdims=True)
    middle = (whole + 1) / 2
    x = _mid_ranks(weights, place) - middle
    order = np.argsort(rank, kind="stable")
    y = np.empty_like(x)
    y[:, order] = _mid_ranks(weights[:, order], _places(rank[order])) - middle
    product = np.sqrt((weights * x * x).sum(axis=1) * (weights * y * y).sum(axis=1))
    return _ratio((weights * x * y).sum(axis=1), product)


def _mid_ranks(weights: Floats, place: Ints) -> Floats:
    if not len(place):
        return np.zeros_like(weights)
    below = _cumulated(weights, place, int(place[-1]) + 1)
    return ((below[:, :-1] + below[:, 1:] + 1) / 2)[:, place]


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    ratio: Floats = np.full(len(numerator), np.nan)
    return np.divide(numerator, denominator, out=ratio, where=denominator > 0)


def pair_counts(score: ArrayLike, tier: ArrayLike) -> tuple[int, int]:
    """Count correctly ordered pairs of different tiers, and all of them."""
    ranked = _Ranked(score, tier, None, None)
    correct, total, _ = ranked.pairs(np.ones((1, len(ranked.score))))
    return round(sum(float(value[0]) for value in correct.values())), round(sum(float(v[0]) for v in total.values()))


def point_metrics(
    score: ArrayLike, tier: ArrayLike, *, human: ArrayLike | None = None, predicted_tier: ArrayLike | None = None
) -> dict[str, float | None]:
    """Compute the metrics of a split, without intervals.

    Args:
        score: higher is better, finite [N].
        tier: codes [N], 0 the best.
        human: a person's score [N], NaN where there is none.
        predicted_tier: codes [N].

    Returns:
        `pair_accuracy`, `pair_accuracy_gap_1`, ... for pairs whose tiers differ by 1, ..., `srcc` (Spearman) and
        `kendall_tau` (tau-b) against the tier order, positive where better tiers score higher; `srcc_score` against
        `human`; `tier_accuracy` and `quadratic_weighted_kappa` of the predicted tiers.

    Source: Kendall, The treatment of ties in ranking problems, 1945; Cohen, Weighted kappa, 1968.
    """
    ranked = _Ranked(score, tier, human, predicted_tier)
    found = ranked.metrics(np.ones((1, len(ranked.score))))
    return {name: _number(value[0]) for name, value in found.items()}


def ranker_metrics(
    score: ArrayLike,
    tier: ArrayLike,
    *,
    group: Sequence[str] | None = None,
    human: ArrayLike | None = None,
    predicted_tier: ArrayLike | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, Record]:
    """Compute the metrics of a split with intervals.

    Args:
        score: higher is better, finite [N].
        tier: codes [N], 0 the best.
        group: images of one group are drawn together; "" = the image stands alone [N].
        human: a person's score [N], NaN where there is none.
        predicted_tier: codes [N].
        bootstrap: number of resamples; 0: no intervals.
        seed: of the resamples.

    Returns:
        Name -> `value`, `low`, `high`, names as in `point_metrics`.
    """
    ranked = _Ranked(score, tier, human, predicted_tier)
    size = len(ranked.score)
    values = ranked.metrics(np.ones((1, size)))
    parts = [ranked.metrics(weights) for weights in resampled_weights(group, size, bootstrap, seed)]
    return {name: _interval(value[0], [part[name] for part in parts]) for name, value in values.items()}


def concordance(score: ArrayLike, tier: ArrayLike, resamples: Iterable[Floats]) -> Record:
    """Measure how often the better of two images of different tiers has the higher score, equal scores counting half.

    With two tiers this is the area under the ROC curve.

    Args:
        score: finite [N].
        tier: codes [N], 0 the best.
        resamples: weights of the images [R, N], as of `resampled_weights`.

    Returns:
        `value`, `low`, `high`.

    Source: Harrell et al., Evaluating the yield of medical tests, JAMA 247 (1982).
    """
    ranked = _Ranked(score, tier, None, None)

    def share(weights: Floats) -> Floats:
        correct, total, equal = ranked.pairs(weights[:, ranked.order])
        zero = np.zeros(len(weights))
        return _ratio(sum(correct.values(), zero) + equal / 2, sum(total.values(), zero))

    value = share(np.ones((1, len(ranked.score))))[0]
    return _interval(value, [share(weights) for weights in resamples])


def comparison_point_metrics(score: ArrayLike, comparisons: NDArray[Any]) -> dict[str, float | None]:
    """Compute `pair_accuracy` over the comparisons that are no tie; see `comparison_metrics`."""
    values = np.asarray(score, dtype=np.float64)
    return {"pair_accuracy": _number(_agreement(values, comparisons, np.ones((1, len(values))))[0])}


def comparison_metrics(
    score: ArrayLike,
    comparisons: NDArray[Any],
    *,
    group: Sequence[str] | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, Record]:
    """Compute `pair_accuracy` over the comparisons that are no tie, with its interval over images.

    Args:
        score: [N], higher is better.
        comparisons: rows left, right, preference (+1 left, -1 right, 0 tie) [P, 3], positions in `score`.
        group: of the images [N].
        bootstrap: number of resamples.
        seed: of the resamples.
    """
    values = np.asarray(score, dtype=np.float64)
    point = _agreement(values, comparisons, np.ones((1, len(values))))[0]
    parts = [
        _agreement(values, comparisons, weights) for weights in resampled_weights(group, len(values), bootstrap, seed)
    ]
    return {"pair_accuracy": _interval(point, parts)}


def _agreement(score: Floats, comparisons: NDArray[Any], weights: Floats) -> Floats:
    left, right, preference = np.asarray(comparisons, dtype=np.int64).reshape(-1, 3).T
    decided = preference != 0
    left, right, preference = left[decided], right[decided], preference[decided]
    correct = ((score[left] - score[right]) * preference > 0).astype(np.float64)
    weight = weights[:, left] * weights[:, right]
    return _ratio(weight @ correct, weight.sum(axis=1))


def resampled_weights(group: Sequence[str] | None, size: int, bootstrap: int, seed: int) -> Iterator[Floats]:
    """Yield the weights of the images in resamples of whole groups, [R, N] at a time; "" = the image stands alone."""
    if size == 0 or bootstrap == 0:
        return
    names = [name or f"\0{row}" for row, name in enumerate(group)] if group is not None else None
    code = np.arange(size) if names is None else np.unique(np.array(names), return_inverse=True)[1].reshape(-1)
    count = int(code.max()) + 1
    rng = np.random.default_rng(seed)
    at_once = max(1, _CHUNK // size)
    for start in range(0, bootstrap, at_once):
        drawn = rng.multinomial(count, np.full(count, 1 / count), size=min(at_once, bootstrap - start))
        yield drawn[:, code].astype(np.float64)


def _interval(value: float, parts: list[Floats]) -> Record:
    drawn = np.concatenate(parts) if parts else np.zeros(0)
    drawn = drawn[np.isfinite(drawn)]
    known = np.isfinite(value) and len(drawn) > 0
    low, high = np.quantile(drawn, (0.025, 0.975)) if known else (np.nan, np.nan)
    return {"value": _number(value), "low": _number(low), "high": _number(high)}


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
