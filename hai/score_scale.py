"""What a ranker's score means: a probability of beating another, a place on an Elo-like scale, a tier."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hai.types import Record

__all__ = ["Scale", "fit_comparison_scale", "fit_scale"]

Floats = NDArray[np.float64]

_MOST_PAIRS: Final = 200_000
_RANGE: Final = 1e3
"""A temperature stays within this factor of the scores' deviation: perfectly ordered pairs would drive it to 0."""


@dataclass(frozen=True)
class Scale:
    """A monotone reading of scores, fitted on the validation split.

    Args:
        temperature: P(left beats right) = 1 / (1 + exp(-(left - right) / temperature)); > 0.
        center: score that has 1500 points, the mean of the validation split.
        thresholds: falling; an image is of the first tier whose threshold its score reaches, else of the last [K - 1].
            Empty: no tiers.
    """

    temperature: float = 1.0
    center: float = 0.0
    thresholds: tuple[float, ...] = field(default=())

    def probability(self, left: ArrayLike, right: ArrayLike) -> Any:
        """Return the probability that images with scores `left` are better than those with scores `right`."""
        difference = np.asarray(left, dtype=np.float64) - np.asarray(right, dtype=np.float64)
        return 0.5 * (1.0 + np.tanh(0.5 * difference / self.temperature))

    def elo(self, score: ArrayLike) -> Any:
        """Return points: 1500 at the center, 400 more for odds of 10 to 1. Source: Elo, The Rating of Chessplayers."""
        return 1500.0 + 400.0 / math.log(10.0) * (np.asarray(score, dtype=np.float64) - self.center) / self.temperature

    def tier_of(self, score: ArrayLike) -> Any:
        """Return the tier codes of scores, 0 the best."""
        values = np.asarray(score, dtype=np.float64)
        return (values[..., None] < np.asarray(self.thresholds, dtype=np.float64)).sum(axis=-1)

    def record(self) -> Record:
        """Return the scale as JSON."""
        return {"temperature": self.temperature, "center": self.center, "thresholds": list(self.thresholds)}

    @classmethod
    def from_record(cls, record: Record) -> Scale:
        """Read the scale out of a checkpoint's record; what is missing has its default."""
        return cls(
            temperature=float(record.get("temperature", 1.0)),
            center=float(record.get("center", 0.0)),
            thresholds=tuple(float(value) for value in record.get("thresholds") or ()),
        )


def fit_scale(score: ArrayLike, tier: ArrayLike, num_tiers: int) -> Scale:
    """Fit a scale to graded images.

    The temperature minimises the log-loss over pairs of different tiers (of 200,000 drawn ones where there are more),
    the thresholds the sum of distances between predicted and true tier.

    Args:
        score: [N].
        tier: codes [N], 0 the best.
        num_tiers: K.
    """
    values, codes = np.asarray(score, dtype=np.float64), np.asarray(tier, dtype=np.int64)
    if not len(values):
        return Scale()
    size = len(values)
    if size * size <= 2 * _MOST_PAIRS:
        left, right = np.nonzero(codes[:, None] < codes[None, :])
    else:
        left, right = np.random.default_rng(0).integers(0, size, size=(2, 4 * _MOST_PAIRS))
        better = np.flatnonzero(codes[left] < codes[right])[:_MOST_PAIRS]
        left, right = left[better], right[better]
    return Scale(
        temperature=_temperature(values[left] - values[right], float(values.std())),
        center=float(values.mean()),
        thresholds=_thresholds(values, codes, num_tiers),
    )


def fit_comparison_scale(score: ArrayLike, comparisons: NDArray[Any]) -> Scale:
    """Fit a scale to comparisons [P, 3]: positions left and right in `score`, preference (+1 left, -1 right, 0 tie)."""
    values = np.asarray(score, dtype=np.float64)
    if not len(values):
        return Scale()
    left, right, preference = np.asarray(comparisons, dtype=np.int64).reshape(-1, 3).T
    lead = ((values[left] - values[right]) * preference)[preference != 0]
    return Scale(_temperature(lead, float(values.std())), float(values.mean()))


def _temperature(lead: Floats, deviation: float) -> float:
    """Minimise the log-loss of sigmoid(lead / T), which is convex in 1 / T, by bisection of its slope."""
    if not len(lead) or deviation <= 0:
        return 1.0
    low, high = math.log(1 / _RANGE), math.log(_RANGE)  # of deviation / T
    unit = lead / deviation
    for _ in range(60):
        middle = (low + high) / 2
        wrong = 0.5 * (1.0 - np.tanh(0.5 * math.exp(middle) * unit))
        if float((unit * wrong).mean()) > 0:  # sharper is better still
            low = middle
        else:
            high = middle
    return deviation / math.exp((low + high) / 2)


def _thresholds(score: Floats, tier: NDArray[np.int64], num_tiers: int) -> tuple[float, ...]:
    """Cut the sorted scores into K tiers with the smallest sum of |predicted - true|, by dynamic programming."""
    order = np.argsort(-score, kind="stable")
    ordered, codes = score[order], tier[order]
    size = len(ordered)
    may_cut = np.concatenate([[True], ordered[1:] < ordered[:-1], [True]])
    costs = [np.concatenate([[0], np.abs(codes - code).cumsum()]).astype(np.float64) for code in range(num_tiers)]
    best = np.where(may_cut, costs[0], np.inf)
    choices: list[NDArray[np.int64]] = []
    for code in range(1, num_tiers):
        lead = best - costs[code]
        lowest = np.minimum.accumulate(lead)
        is_new = np.concatenate([[True], lead[1:] < lowest[:-1]])
        choices.append(np.maximum.accumulate(np.where(is_new, np.arange(size + 1), 0)))
        best = np.where(may_cut, lowest + costs[code], np.inf)
    cuts, end = [], size
    for choice in reversed(choices):
        end = int(choice[end])
        cuts.append(end)
    cuts.reverse()
    edges = []
    for cut in cuts:
        if cut == 0:
            edges.append(float(np.nextafter(ordered[0], np.inf)))
        elif cut == size:
            edges.append(float(ordered[-1]))
        else:
            middle = (ordered[cut - 1] + ordered[cut]) / 2
            edges.append(float(middle if middle > ordered[cut] else ordered[cut - 1]))
    return tuple(edges)
