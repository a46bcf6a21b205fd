"""How well something tells classes apart that should not: a tiny classifier's cross-validated AUC, with an interval.

The classifier is a ridge regression on whether a number lies in each of up to 32 bins, or a text is each of the
commonest values, so it finds any dependence on one fact, and sums over several. What belongs together is in one fold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hai.data.draws import hash_keys
from hai.data.splits import codes_of
from hai.label_audit import out_of_fold_scores
from hai.rank_metrics import concordance, resampled_weights

__all__ = ["FEWEST", "Column", "Plan", "Separation", "drawn_rows", "features_of", "large_unit", "plan_test", "separate"]

Column = NDArray[Any] | Sequence[str]
"""A fact of each image: numbers or texts, [N]."""

FEWEST: Final = 8
"""Images that each class needs to be tested at all."""

_BINS: Final = 32
_FOLDS: Final = 5
_RESAMPLES: Final = 300
_SAMPLE_DRAW: Final = 0x41554449
"""Key that keeps these draws apart from all others of the same seed."""


class Separation(NamedTuple):
    """How well the classes can be told apart: AUC and its 95 % interval; 0.5 is guessing."""

    value: float
    low: float
    high: float
    scores: NDArray[np.float64]
    """Out-of-fold scores of the rows of the plan, higher for the earlier class."""


class Plan(NamedTuple):
    """Which images are tested, and how they are divided."""

    rows: NDArray[np.int64]
    """The images tested, ascending."""
    target: NDArray[np.int64]
    """Their classes."""
    fold: NDArray[np.int64]
    """Their parts, 0 to `folds` - 1."""
    folds: int
    num_units: int
    """What is independent among them: groups, or images without one."""
    is_grouped: bool
    """Whether what belongs together is in one fold; not where a class has a single group."""
    resamples: list[NDArray[np.float64]]


def plan_test(target: NDArray[Any], unit: NDArray[np.int64], most: int, seed: int) -> Plan | None:
    """Choose images to test on, and divide them into folds.

    Args:
        target: class of each image, [N]; -1: none.
        unit: number of what it belongs with, [N].
        most: images to take at most; whole units, of large ones a part, as even over the classes as they go.
        seed: of the draws.

    Returns:
        None: fewer than two classes have enough images.
    """
    target = target.astype(np.int64)
    counts = np.bincount(target[target >= 0])
    usable = np.flatnonzero(counts >= FEWEST)
    if len(usable) < 2:
        return None
    rows = np.flatnonzero(np.isin(target, usable))
    rows = rows[_drawn(target[rows], unit[rows], most, seed)]
    classes, units = target[rows], np.unique(unit[rows], return_inverse=True)[1].reshape(-1)
    folds, is_grouped = _num_folds(classes, units), True
    if folds < 2:
        units, folds, is_grouped = np.arange(len(rows)), _FOLDS, False
    first, shuffled = _units(classes, units, seed)
    order = np.lexsort((shuffled, first))
    fold = np.empty(len(order), dtype=np.int64)
    fold[order] = np.arange(len(order)) % folds
    named = [str(code) for code in units.tolist()]
    resamples = list(resampled_weights(named, len(rows), _RESAMPLES, seed))
    return Plan(rows, classes, fold[units], folds, len(order), is_grouped, resamples)


def _units(target: NDArray[np.int64], unit: NDArray[np.int64], seed: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return for each unit its lowest class and a random number, [U]."""
    first = np.full(int(unit.max()) + 1, np.iinfo(np.int64).max)
    np.minimum.at(first, unit, target)
    return first, hash_keys(seed, _SAMPLE_DRAW, np.arange(len(first)))


def _num_folds(target: NDArray[np.int64], unit: NDArray[np.int64]) -> int:
    """Return how many folds can all hold, and all lack, some unit of every class."""
    pairs = np.unique(np.stack([target, unit], axis=1), axis=0)
    return min(_FOLDS, int(np.unique(pairs[:, 0], return_counts=True)[1].min()))


def _drawn(target: NDArray[np.int64], unit: NDArray[np.int64], most: int, seed: int) -> NDArray[np.bool_]:
    """Choose units until each class has its part of `most`, of large units some images."""
    if len(target) <= most:
        return np.ones(len(target), dtype=np.bool_)
    codes = np.unique(unit, return_inverse=True)[1].reshape(-1)
    first, shuffled = _units(target, codes, seed)
    part = _fair_part(np.unique(target, return_counts=True)[1], most)
    rows = drawn_rows(codes, shuffled, part, seed)
    chosen = np.zeros(len(target), dtype=np.bool_)
    for code in np.unique(first):
        chosen[rows[first[codes[rows]] == code][:part]] = True
    return chosen


def large_unit(most: int) -> int:
    """Return how many images a unit may have to be drawn whole where `most` images are."""
    return max(most // 100, 16)


def drawn_rows(unit: NDArray[np.int64], shuffled: NDArray[np.uint64], most: int, seed: int) -> NDArray[np.int64]:
    """Order images at random, those of a unit together; those of a large unit apart, so that it does not fill a sample.

    Args:
        unit: number of each image's unit, [N].
        shuffled: a random number of each unit, [U].
        most: images that are going to be taken from the beginning.
        seed: of the draws.
    """
    own = hash_keys(seed, _SAMPLE_DRAW, 1, np.arange(len(unit)))
    place = np.where(np.bincount(unit)[unit] > large_unit(most), own, shuffled[unit])
    order: NDArray[np.int64] = np.lexsort((own, place))
    return order


def _fair_part(counts: NDArray[np.int64], most: int) -> int:
    """Return how many of each class make `most` together, when smaller classes give all they have."""
    left, part = most, most
    for k, count in enumerate(np.sort(counts).tolist()):
        part = left // (len(counts) - k)
        left -= min(count, part)
    return max(part, 1)


def features_of(columns: Mapping[str, Column], rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Turn facts into indicators of bins and common values, [len(rows), D]; a fact that never varies gives none."""
    parts = [np.zeros((len(rows), 0), dtype=np.bool_), *(_indicators(column, rows) for column in columns.values())]
    return np.concatenate(parts, axis=1).astype(np.float32)


def _indicators(column: Column, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    if isinstance(column, np.ndarray):
        values = column[rows]
        distinct = np.unique(values)
        if len(distinct) > _BINS:
            edges = np.unique(np.quantile(values, np.linspace(0, 1, _BINS + 1)[1:-1]))
            code = np.searchsorted(edges, values, side="right")
        else:
            code = np.searchsorted(distinct, values)
    else:
        code, names = codes_of([column[i] for i in rows.tolist()])
        place = np.full(len(names), _BINS)
        common = np.argsort(-np.bincount(code), kind="stable")[:_BINS]
        place[common] = np.arange(len(common))
        code = place[code]
    used = np.unique(code)
    return code[:, None] == used[None, :] if len(used) > 1 else np.zeros((len(rows), 0), dtype=np.bool_)


def separate(plan: Plan, features: NDArray[np.float32]) -> Separation:
    """Measure how well features tell the classes of a plan apart.

    Args:
        plan: who is tested.
        features: of its rows, [len(plan.rows), D]; D = 0: nothing varies, so nothing can be told.
    """
    if not features.shape[1]:
        return Separation(0.5, 0.5, 0.5, np.zeros(len(plan.rows)))
    named = [str(code) for code in plan.fold.tolist()]
    scores = out_of_fold_scores(features, plan.target, named, folds=plan.folds)
    found = concordance(np.round(scores, 9), plan.target, plan.resamples)
    if found["low"] is None:
        return Separation(found["value"], 0.0, 1.0, scores)
    return Separation(found["value"], found["low"], found["high"], scores)
