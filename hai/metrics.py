"""The detector's metrics over a whole split, with bootstrap intervals over groups, and the curves behind them.

Conventions: the class fake is positive; an example is predicted fake if its probability is at least the threshold. A
metric whose definition divides by zero (precision of a class that was never predicted, any ranking metric with one
class) is None, not 0; `f1_macro` is the mean over the classes that occur among labels or predictions. `video_*` judges
each video by the mean of its frames' logits; where videos are not named, groups are videos if some hold several
examples and none both classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hai.errors import DataError

__all__ = [
    "LESS_IS_BETTER",
    "METRICS",
    "best_threshold",
    "confusion_matrix",
    "detector_metrics",
    "point_metrics",
    "pr_curve",
    "reliability_curve",
    "roc_curve",
    "threshold_interval",
    "video_predictions",
]

METRICS: Final = (
    "accuracy",
    "precision_real",
    "recall_real",
    "f1_real",
    "precision_fake",
    "recall_fake",
    "f1_fake",
    "f1_macro",
    "roc_auc",
    "average_precision",
    "equal_error_rate",
    "expected_calibration_error",
)
"""Names of the metrics; each exists once more as `video_NAME` where groups are videos."""

LESS_IS_BETTER: Final = ("equal_error_rate", "expected_calibration_error")

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_NUM_BINS = 15
_SMALLEST = 1e-7  # probabilities this near to 0 and 1 have rounded; their logits would be infinite
_CHUNK = 2_000_000  # resampled examples handled at once: 16 MB an array


class _Ranked:
    """Examples in falling order of probability, with what every weighted metric needs of them."""

    def __init__(self, label: Ints, probability: Floats) -> None:
        self.order = np.argsort(-probability, kind="stable")
        ordered = probability[self.order]
        self.ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))  # the last example of each tie
        self.scores = ordered[self.ends]
        self.is_fake = label[self.order].astype(np.float64)
        one_hot = np.eye(_NUM_BINS)[_bins(ordered, _NUM_BINS)]
        self.bin_gaps = one_hot * (ordered - self.is_fake)[:, None]

    def counts(self, weights: Floats) -> tuple[Floats, Floats]:
        """Return true and false positives [R, 1 + U] when nothing and the first 1..U distinct scores are called fake.

        Args:
            weights: [R, N], how often each example counts, in `order`.
        """
        fakes = weights * self.is_fake
        reals = weights - fakes
        zero = np.zeros((len(weights), 1))
        true = np.concatenate([zero, fakes.cumsum(axis=1)[:, self.ends]], axis=1)
        false = np.concatenate([zero, reals.cumsum(axis=1)[:, self.ends]], axis=1)
        return true, false

    def metrics(self, weights: Floats, threshold: float) -> dict[str, Floats]:
        """Return each metric [R] of weighted examples, NaN where undefined."""
        true, false = self.counts(weights)
        num_fake, num_real = true[:, -1], false[:, -1]
        total = num_fake + num_real
        called = int(np.searchsorted(-self.scores, -threshold, side="right"))
        tp, fp = true[:, called], false[:, called]
        fn, tn = num_fake - tp, num_real - fp
        f1_real, f1_fake, f1_macro = _f1(tp, fp, fn, tn)
        return {
            "accuracy": _ratio(tp + tn, total),
            "precision_real": _ratio(tn, tn + fn),
            "recall_real": _ratio(tn, num_real),
            "f1_real": f1_real,
            "precision_fake": _ratio(tp, tp + fp),
            "recall_fake": _ratio(tp, num_fake),
            "f1_fake": f1_fake,
            "f1_macro": f1_macro,
            "roc_auc": _ratio(_area(true, false), num_fake * num_real),
            "average_precision": _average_precision(true, false),
            "equal_error_rate": _equal_error_rate(true, false),
            "expected_calibration_error": _ratio(np.abs(weights @ self.bin_gaps).sum(axis=1), total),
        }


def _ratio(numerator: NDArray[Any], denominator: NDArray[Any]) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(denominator > 0, numerator / denominator, np.nan)


def _area(true: Floats, false: Floats) -> Floats:
    area: Floats = np.asarray(np.trapezoid(true, false, axis=1))
    return area


def _f1(tp: Floats, fp: Floats, fn: Floats, tn: Floats) -> tuple[Floats, Floats, Floats]:
    real, fake = _ratio(2 * tn, 2 * tn + fn + fp), _ratio(2 * tp, 2 * tp + fp + fn)
    macro = np.where(np.isnan(real), fake, np.where(np.isnan(fake), real, (real + fake) / 2))
    return real, fake, macro


def _average_precision(true: Floats, false: Floats) -> Floats:
    # Source: the step-wise sum of scikit-learn, which does not interpolate between points.
    precision = np.nan_to_num(_ratio(true[:, 1:], true[:, 1:] + false[:, 1:]))
    return _ratio((np.diff(true, axis=1) * precision).sum(axis=1), true[:, -1])


def _equal_error_rate(true: Floats, false: Floats) -> Floats:
    # Where the ROC, straight between its points, meets the line on which misses and false alarms are equally frequent.
    alarms, misses = _ratio(false, false[:, -1:]), 1 - _ratio(true, true[:, -1:])
    ahead = misses - alarms
    last = np.maximum(np.argmax(ahead <= 0, axis=1), 1)
    rows = np.arange(len(true))
    share = _ratio(ahead[rows, last - 1], ahead[rows, last - 1] - ahead[rows, last])
    rate: Floats = alarms[rows, last - 1] + share * (alarms[rows, last] - alarms[rows, last - 1])
    return rate


def _bins(probability: Floats, num_bins: int) -> Ints:
    return np.minimum((probability * num_bins).astype(np.int64), num_bins - 1)


def _checked(label: ArrayLike, probability: ArrayLike) -> tuple[Ints, Floats]:
    labels, probabilities = np.asarray(label), np.asarray(probability, dtype=np.float64)
    if labels.shape != probabilities.shape or labels.ndim != 1 or not len(labels):
        raise DataError(
            f"metrics: label {list(labels.shape)}, probability {list(probabilities.shape)}; "
            "two equally long lists of at least one example"
        )
    for wrong, what in (
        (np.isnan(probabilities), "NaN; the model's outputs are broken"),
        (~np.isnan(probabilities) & ~((probabilities >= 0) & (probabilities <= 1)), "outside 0-1"),
    ):
        if wrong.any():
            raise DataError(f"metrics: {wrong.sum()} of {len(labels)} probabilities are {what}")
    odd = (labels != 0) & (labels != 1)
    if odd.any():
        raise DataError(f"metrics: {odd.sum()} of {len(labels)} labels are neither 0 (real) nor 1 (fake)")
    return labels.astype(np.int64), probabilities


def _group_ids(group: Sequence[str] | NDArray[Any] | None, size: int) -> Ints:
    """Number the groups from 0; an example without a group ("") is one of its own."""
    if group is None:
        return np.arange(size, dtype=np.int64)
    if len(group) != size:
        raise DataError(f"metrics: {len(group)} groups for {size} examples; one each, empty where there is none")
    names = np.asarray(group, dtype=np.str_)
    alone = names == ""
    distinct, ids = np.unique(names, return_inverse=True)
    ids = ids.astype(np.int64)
    ids[alone] = len(distinct) + np.arange(alone.sum())
    return np.unique(ids, return_inverse=True)[1].astype(np.int64)


def _videos(label: Ints, probability: Floats, ids: Ints) -> tuple[Ints, Floats] | None:
    """Return label and probability per group, or None if groups are not videos."""
    size = np.bincount(ids)
    fakes = np.bincount(ids, weights=label)
    if size.max() == 1 or np.any((fakes > 0) & (fakes < size)):
        return None
    clipped = np.clip(probability, _SMALLEST, 1 - _SMALLEST)
    logit = np.bincount(ids, weights=np.log(clipped) - np.log1p(-clipped)) / size
    return (fakes > 0).astype(np.int64), 1 / (1 + np.exp(-logit))


def video_predictions(
    label: ArrayLike, probability_fake: ArrayLike, group: Sequence[str] | NDArray[Any]
) -> tuple[Ints, Floats] | None:
    """Judge each video by the mean of its frames' logits.

    Args:
        label: [N], 0 real, 1 fake.
        probability_fake: [N], 0-1.
        group: [N] names; "" stands alone.

    Returns:
        Label and probability [V] of the videos; None where groups are not videos.
    """
    labels, probabilities = _checked(label, probability_fake)
    return _videos(labels, probabilities, _group_ids(group, len(labels)))


def _levels(label: Ints, probability: Floats, ids: Ints, frames_of: Ints) -> list[tuple[str, _Ranked, Ints]]:
    """Return prefix, ranking and group of each ranked unit: for examples, and for videos where there are any."""
    frames = _Ranked(label, probability)
    levels = [("", frames, ids[frames.order])]
    videos = _videos(label, probability, frames_of)
    if videos is not None:
        ranked = _Ranked(*videos)
        group = np.zeros(len(videos[0]), dtype=np.int64)
        group[frames_of] = ids
        levels.append(("video_", ranked, group[ranked.order]))
    return levels


def point_metrics(
    label: ArrayLike,
    probability_fake: ArrayLike,
    threshold: float = 0.5,
    group: Sequence[str] | NDArray[Any] | None = None,
    video: Sequence[str] | NDArray[Any] | None = None,
) -> dict[str, float | None]:
    """Compute every metric without intervals.

    Args:
        label: [N], 0 real, 1 fake.
        probability_fake: [N], 0-1.
        threshold: from which an example is predicted fake.
        group: [N] names; "" stands alone.
        video: [N] names; "" stands alone; None: groups are videos.

    Raises:
        DataError: no examples, NaN or other impossible values; says how many.
    """
    labels, probabilities = _checked(label, probability_fake)
    result: dict[str, float | None] = {}
    groups = _group_ids(group, len(labels))
    frames_of = groups if video is None else _group_ids(video, len(labels))
    for prefix, ranked, ids in _levels(labels, probabilities, groups, frames_of):
        for name, value in ranked.metrics(np.ones((1, len(ids))), threshold).items():
            result[prefix + name] = None if np.isnan(value[0]) else float(value[0])
    return result


def detector_metrics(
    label: ArrayLike,
    probability_fake: ArrayLike,
    group: Sequence[str] | NDArray[Any] | None = None,
    threshold: float = 0.5,
    *,
    bootstrap: int = 1000,
    seed: int = 0,
    video: Sequence[str] | NDArray[Any] | None = None,
) -> dict[str, dict[str, float | None]]:
    """Compute every metric with its 95 % interval.

    Groups, not examples, are drawn with replacement, since the frames of a video are not independent; the interval is
    between the 2.5 and 97.5 percentiles over the draws for which the metric is defined.

    Args:
        label: [N], 0 real, 1 fake.
        probability_fake: [N], 0-1.
        group: [N] names; "" stands alone.
        threshold: from which an example is predicted fake.
        bootstrap: number of draws; 0: no intervals (None).
        seed: of the draws.
        video: [N] names; "" stands alone; None: groups are videos.

    Returns:
        Name -> `value`, `low`, `high`; None where undefined.

    Raises:
        DataError: no examples, NaN or other impossible values; says how many.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13; groups: Field and Welsh, 2007.
    """
    labels, probabilities = _checked(label, probability_fake)
    ids = _group_ids(group, len(labels))
    levels = _levels(labels, probabilities, ids, ids if video is None else _group_ids(video, len(labels)))
    values = point_metrics(labels, probabilities, threshold, group, video)
    draws: dict[str, list[Floats]] = {name: [] for name in values}
    for times in _draws(ids, bootstrap, seed):
        for prefix, ranked, level_ids in levels:
            for name, value in ranked.metrics(times[:, level_ids], threshold).items():
                draws[prefix + name].append(value)
    result: dict[str, dict[str, float | None]] = {}
    for name, point in values.items():
        defined = np.concatenate(draws[name]) if draws[name] else np.empty(0)
        defined = defined[~np.isnan(defined)]
        low, high = np.percentile(defined, [2.5, 97.5]) if point is not None and len(defined) else (None, None)
        result[name] = {
            "value": point,
            "low": None if low is None else float(low),
            "high": None if high is None else float(high),
        }
    return result


def confusion_matrix(label: ArrayLike, probability_fake: ArrayLike, threshold: float = 0.5) -> Ints:
    """Count examples [2, 2] by label (row) and prediction (column), real first."""
    labels, probabilities = _checked(label, probability_fake)
    predictions = (probabilities >= threshold).astype(np.int64)
    return np.bincount(2 * labels + predictions, minlength=4).reshape(2, 2).astype(np.int64)


def best_threshold(label: ArrayLike, probability_fake: ArrayLike) -> float:
    """Find the threshold with the best macro-F1 among all that give different predictions.

    Returns:
        The midpoint between two neighbouring scores; of several equally good thresholds the one nearest to 0.5. It lies
        just above 1 if nothing should be called fake although a score is 1.
    """
    ranked = _Ranked(*_checked(label, probability_fake))
    return float(_best_thresholds(ranked, np.ones((1, len(ranked.order))))[0])


def threshold_interval(
    label: ArrayLike,
    probability_fake: ArrayLike,
    group: Sequence[str] | NDArray[Any] | None = None,
    *,
    bootstrap: int = 200,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the 95 % interval of `best_threshold`: percentiles over draws of whole groups with replacement.

    Args:
        label: [N], 0 real, 1 fake.
        probability_fake: [N], 0-1.
        group: [N] names; "" stands alone.
        bootstrap: number of draws.
        seed: of the draws.
    """
    labels, probabilities = _checked(label, probability_fake)
    ranked, ids = _Ranked(labels, probabilities), _group_ids(group, len(labels))
    found = [_best_thresholds(ranked, times[:, ids[ranked.order]]) for times in _draws(ids, bootstrap, seed)]
    low, high = np.percentile(np.concatenate(found), [2.5, 97.5])
    return float(low), float(high)


def _best_thresholds(ranked: _Ranked, weights: Floats) -> Floats:
    """Return the threshold [R] with the best macro-F1 of examples weighted by `weights` [R, N], in `ranked.order`."""
    true, false = ranked.counts(weights)
    _, _, f1_macro = _f1(true, false, true[:, -1:] - true, false[:, -1:] - false)
    scores = ranked.scores
    neighbours_above = np.concatenate([[1.0], scores[:-1]])
    between = (neighbours_above + scores) / 2
    none_fake = between[0] if scores[0] < between[0] else np.nextafter(scores[0], 2.0)
    cuts = np.where(between[1:] > scores[1:], between[1:], scores[:-1])  # neighbouring floats have no number between
    thresholds = np.concatenate([[none_fake], cuts, [scores[-1] / 2]])
    is_best = f1_macro >= f1_macro.max(axis=1, keepdims=True) - 1e-12
    chosen: Floats = thresholds[np.where(is_best, np.abs(thresholds - 0.5), np.inf).argmin(axis=1)]
    return chosen


def _draws(ids: Ints, bootstrap: int, seed: int) -> Iterator[Floats]:
    """Draw groups with replacement; yields how often each counts, [R, G], in chunks whose examples fit into memory."""
    num_groups = int(ids.max()) + 1
    generator = np.random.default_rng(seed)
    rows = max(1, _CHUNK // len(ids))
    for start in range(0, bootstrap, rows):
        count = min(rows, bootstrap - start)
        drawn = generator.integers(0, num_groups, size=(count, num_groups))
        drawn += num_groups * np.arange(count)[:, None]
        times = np.bincount(drawn.ravel(), minlength=count * num_groups).reshape(count, num_groups)
        yield times.astype(np.float64)


def _curve(
    label: ArrayLike, probability_fake: ArrayLike, rates: Callable[[Floats, Floats], tuple[Floats, Floats]]
) -> tuple[Floats, Floats, Floats]:
    ranked = _Ranked(*_checked(label, probability_fake))
    true, false = (counts[0] for counts in ranked.counts(np.ones((1, len(ranked.order)))))
    return *rates(true, false), np.concatenate([[np.inf], ranked.scores])


def roc_curve(label: ArrayLike, probability_fake: ArrayLike) -> tuple[Floats, Floats, Floats]:
    """Return false-positive rate, true-positive rate and threshold, a point per distinct score, from (0, 0) to (1, 1).

    The rates of a class without examples are NaN.
    """
    return _curve(label, probability_fake, lambda true, false: (_ratio(false, false[-1:]), _ratio(true, true[-1:])))


def pr_curve(label: ArrayLike, probability_fake: ArrayLike) -> tuple[Floats, Floats, Floats]:
    """Return recall, precision and threshold, one point per distinct score, from recall 0 (where precision is 1) on.

    Recall without fakes is NaN.
    """

    def rates(true: Floats, false: Floats) -> tuple[Floats, Floats]:
        precision = _ratio(true, true + false)
        precision[0] = 1.0
        return _ratio(true, true[-1:]), precision

    return _curve(label, probability_fake, rates)


def reliability_curve(
    label: ArrayLike, probability_fake: ArrayLike, num_bins: int = _NUM_BINS
) -> tuple[Floats, Floats, Ints]:
    """Return mean probability of fake, share of fakes and number of examples in equally wide bins of the probability.

    Empty bins have NaN. `expected_calibration_error` is the mean gap between the first two, weighted by the third.

    Source: Naeini et al., Obtaining Well Calibrated Probabilities Using Bayesian Binning, 2015.
    """
    labels, probabilities = _checked(label, probability_fake)
    bins = _bins(probabilities, num_bins)
    count = np.bincount(bins, minlength=num_bins).astype(np.int64)
    mean = _ratio(np.bincount(bins, weights=probabilities, minlength=num_bins), count)
    share = _ratio(np.bincount(bins, weights=labels, minlength=num_bins), count)
    return mean, share, count
