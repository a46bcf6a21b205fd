"""What a detector's logits mean: the temperature that makes them probabilities, and the threshold between the classes.

Both are fitted to the validation split at every evaluation and stored with the checkpoint. `hai.score_scale` does the
same for rankers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hai.metrics import best_threshold, threshold_interval
from hai.results import probability_of
from hai.types import Record

__all__ = ["Calibration", "calibrate", "common_threshold", "fit_temperature"]

Floats = NDArray[np.float64]

_RANGE: Final = 100.0
"""A temperature stays within this factor of the logits' root mean square; a useless model would drive it away."""


@dataclass(frozen=True)
class Calibration:
    """How the logits of fake against real are read; the defaults read them as they are.

    Args:
        temperature: divides logits; > 0.
        threshold: on the calibrated P(fake), from which an image is called fake.
        threshold_low, threshold_high: 95 % interval of the threshold over groups; None: not known.
        num_images: it was fitted to.
        num_groups: of them that are independent.
    """

    temperature: float = 1.0
    threshold: float = 0.5
    threshold_low: float | None = None
    threshold_high: float | None = None
    num_images: int = 0
    num_groups: int = 0

    @property
    def is_fitted(self) -> bool:
        """Say whether any images had a say; a checkpoint that was saved before any evaluation has the defaults."""
        return self != Calibration()

    def record(self) -> Record:
        """Return the calibration as JSON."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: Record) -> Calibration:
        """Read the calibration out of a checkpoint's record; what is missing has its default."""
        return cls(**{name: record[name] for name in cls.__dataclass_fields__ if record.get(name) is not None})


def calibrate(label: ArrayLike, logit: ArrayLike, group: Sequence[str] | None = None, *, seed: int = 0) -> Calibration:
    """Fit the temperature, then the threshold with the best macro-F1 and its interval.

    Args:
        label: [N], 0 real, 1 fake.
        logit: of fake against real [N].
        group: [N] names; images of one group are not independent; "" stands alone.
        seed: of the bootstrap.
    """
    labels, logits = np.asarray(label), np.asarray(logit, dtype=np.float64)
    temperature = fit_temperature(labels, logits, group)
    probability = probability_of(logits / temperature)
    low, high = threshold_interval(labels, probability, group, seed=seed)
    return Calibration(
        temperature=temperature,
        threshold=best_threshold(labels, probability),
        threshold_low=low,
        threshold_high=high,
        num_images=len(labels),
        num_groups=len(labels) if group is None else len(set(group) - {""}) + list(group).count(""),
    )


def fit_temperature(label: ArrayLike, logit: ArrayLike, group: Sequence[str] | None = None) -> float:
    """Minimise the log-loss of sigmoid(logit / T), convex in 1 / T, by bisection of its slope.

    Every group counts once, however many images it has. The targets are not 0 and 1 but what so many groups can
    vouch for, so that images that happen to be separated do not ask for endless confidence.

    Args:
        label: [N], 0 real, 1 fake.
        logit: of fake against real [N].
        group: [N] names; "" stands alone.

    Returns:
        T > 0; 1 where there is only one class, or a logit that is not finite.

    Source: Guo et al., On Calibration of Modern Neural Networks, 2017, section 4.2; targets: Platt, Probabilistic
    Outputs for Support Vector Machines, 1999, section 2.2.
    """
    is_fake, logits = np.asarray(label) == 1, np.asarray(logit, dtype=np.float64)
    unit = math.sqrt(float(np.mean(logits**2))) if len(logits) else 0.0
    if is_fake.all() or not is_fake.any() or not 0 < unit < math.inf:
        return 1.0
    weight = _weights(group, len(logits))
    num_fake, num_real = float(weight[is_fake].sum()), float(weight[~is_fake].sum())
    target = np.where(is_fake, (num_fake + 1) / (num_fake + 2), 1 / (num_real + 2))
    scaled = logits / unit
    low, high = math.log(1 / _RANGE), math.log(_RANGE)  # of unit / T
    for _ in range(60):
        middle = (low + high) / 2
        slope = weight * scaled * (probability_of(math.exp(middle) * scaled) - target)
        if float(slope.sum()) < 0:  # sharper is better still
            low = middle
        else:
            high = middle
    return unit / math.exp((low + high) / 2)


def _weights(group: Sequence[str] | None, size: int) -> Floats:
    """Share 1 among the images of each group [N]."""
    if group is None:
        return np.ones(size)
    names: NDArray[Any] = np.asarray(group, dtype=np.str_)
    _, place, count = np.unique(names, return_inverse=True, return_counts=True)
    return np.where(names == "", 1.0, 1.0 / count[place])


def common_threshold(thresholds: Sequence[float]) -> float:
    """Average the thresholds of an ensemble as its scores are averaged, as logits."""
    if len(thresholds) == 1:
        return thresholds[0]
    kept = [min(max(value, 1e-9), 1 - 1e-9) for value in thresholds]
    return 0.5 * (1.0 + math.tanh(0.5 * sum(math.log(value / (1 - value)) for value in kept) / len(kept)))
