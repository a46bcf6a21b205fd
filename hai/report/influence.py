"""How much each parameter of a sweep alone tells about the ranking of its trials, next to what chance would tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from hai.report.parallel import is_number, label_of

__all__ = ["FEWEST_TRIALS", "Influence", "influences"]

FEWEST_TRIALS: Final = 15
"""Trials with a value below which nothing is said: chance would look like a finding."""

_PERMUTATIONS: Final = 2000
_CONFIDENCE: Final = 0.95

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Influence:
    """One parameter.

    Args:
        key: dotted key.
        share: of the variance of the trials' ranks that it explains alone, in 0-1.
        chance: share that shuffled ranks stay below in 95 of 100 sweeps, for all parameters together.
    """

    key: str
    share: float
    chance: float


def influences(params: Sequence[dict[str, Any]], value: Sequence[float], *, seed: int = 0) -> list[Influence]:
    """Measure each parameter, the most telling first; parameters that hardly vary are left out.

    A number enters as its rank and the square of it, so that a best value in the middle shows; anything else, and
    whether a conditional parameter is set, as classes. The share is R^2 of the least-squares fit to the ranks of the
    values; the level of chance comes from 2000 permutations, corrected for the number of parameters (Bonferroni).

    Args:
        params: of each trial [N].
        value: validation value of each trial [N], finite.
        seed: of the permutations.

    Returns:
        Nothing below 15 trials, and where all values are equal.
    """
    ranks = _ranks(np.asarray(value, dtype=np.float64))
    ranks = ranks - ranks.mean()
    if len(ranks) < FEWEST_TRIALS or not ranks.any():
        return []
    ranks = ranks / np.linalg.norm(ranks)
    keys = list(dict.fromkeys(key for trial in params for key in trial))
    bases = {key: _basis([trial.get(key) for trial in params]) for key in keys}
    bases = {key: basis for key, basis in bases.items() if 0 < basis.shape[1] <= len(ranks) / 3}
    if not bases:
        return []
    rng = np.random.default_rng(seed)
    shuffled = rng.permuted(np.tile(ranks, (_PERMUTATIONS, 1)), axis=1).T
    level = 1 - (1 - _CONFIDENCE) / len(bases)
    found = [
        Influence(
            key,
            share=float(np.sum((basis.T @ ranks) ** 2)),
            chance=float(np.quantile(np.sum((basis.T @ shuffled) ** 2, axis=0), level)),
        )
        for key, basis in bases.items()
    ]
    return sorted(found, key=lambda influence: -influence.share)


def _ranks(values: Floats) -> Floats:
    """Rank values, ties at their mean."""
    _, inverse, count = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(count) - (count - 1) / 2)[inverse])


def _basis(values: Sequence[Any]) -> Floats:
    """Span what a parameter can tell: orthonormal columns [N, K], without the constant."""
    known = np.array([value is not None for value in values])
    columns = [known.astype(np.float64)]
    if all(is_number(value) for value in values if value is not None):
        rank = np.zeros(len(values))
        rank[known] = _ranks(np.array([value for value in values if value is not None], dtype=np.float64))
        rank[known] -= rank[known].mean() if known.any() else 0.0
        columns += [rank, rank**2]
    else:
        labels = np.array([label_of(value) for value in values])
        columns += [(labels == label).astype(np.float64) for label in np.unique(labels)]
    matrix = np.stack(columns, axis=1)
    left, size, _ = np.linalg.svd(matrix - matrix.mean(axis=0), full_matrices=False)
    return np.asarray(left[:, size > 1e-9 * max(1.0, size[0])])
