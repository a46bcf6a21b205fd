"""The plots of a report as inline SVG that follows the page's colours, light and dark."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hai.report.drawing import ACCENT, FAKE, INK, MUTED, REAL, SERIES, inline_svg, open_figure
from hai.types import Record

__all__ = ["curve_plot", "reliability_plot", "score_plot", "training_plot", "wilson"]

Floats = NDArray[np.float64]

_MAX_POINTS = 600


def _thin(count: int, limit: int = _MAX_POINTS) -> NDArray[np.int64]:
    """Choose at most `limit` of `count` positions, evenly, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, limit)).round().astype(np.int64))


def _series(history: Sequence[Record], key: str) -> tuple[Floats, Floats]:
    """Read the finite values of a metric over the steps."""
    pairs = [(record["step"], record[key]) for record in history if isinstance(record.get(key), int | float)]
    points = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    points = points[np.isfinite(points).all(axis=1)]
    return points[:, 0], points[:, 1]


def training_plot(
    history: Sequence[Record],
    keys: dict[str, str],
    *,
    title: str,
    key: str,
    best_step: int | None = None,
    smooth: bool = True,
) -> str | None:
    """Plot metrics over the optimizer steps.

    Args:
        history: records of metrics.jsonl.
        keys: metric key -> label in the legend; metrics without values are left out.
        title: what the panel shows, for the axis and for screen readers.
        best_step: step of the best checkpoint, marked by a line.
        smooth: draw long series faint, with their moving average on top.

    Returns:
        SVG, or None when no metric has a value.
    """
    found = {label: _series(history, name) for name, label in keys.items()}
    found = {label: series for label, series in found.items() if len(series[0])}
    if not found:
        return None
    with open_figure() as (figure, (axis,)):
        for colour, (label, (steps, values)) in zip(SERIES, found.items(), strict=False):
            chosen = _thin(len(steps))
            if smooth and len(steps) > 60:
                axis.plot(steps[chosen], values[chosen], color=colour, alpha=0.3, linewidth=1.0)
                values = _smooth(values)
            marker: dict[str, Any] = {"marker": "o", "markersize": 3.2} if len(steps) <= 60 else {}
            axis.plot(steps[chosen], values[chosen], color=colour, label=label, **marker)
        if best_step is not None:
            axis.axvline(best_step, color=MUTED, linewidth=1.0, linestyle=(0, (3, 3)), label="best checkpoint")
        axis.set_xlabel("optimizer step")
        axis.set_ylabel(title)
        if len(found) > 1 or best_step is not None:
            axis.legend(loc="best", fontsize=8.5)
        return inline_svg(figure, key, f"{title} over {len(history)} records")


def _smooth(values: Floats) -> Floats:
    """Average over a centred window of 2 % of the series, shorter at its ends."""
    half = max(1, len(values) // 100)
    total = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    low, high = np.maximum(at - half, 0), np.minimum(at + half + 1, len(values))
    return np.asarray((total[high] - total[low]) / (high - low))


def curve_plot(
    x: ArrayLike,
    y: ArrayLike,
    *,
    key: str,
    labels: tuple[str, str],
    curve: str,
    operating_point: tuple[float, float] | None,
    chance: tuple[tuple[float, float], tuple[float, float]],
    steps: bool = False,
) -> str:
    """Plot a ROC or precision-recall curve in the unit square.

    Args:
        x, y: points of the curve, in order; any number, thinned here.
        labels: names of the two axes.
        curve: text of the legend.
        operating_point: where the stored threshold puts the model.
        chance: (x, x), (y, y) of the line that guessing reaches.
        steps: draw as a step function, right for precision over recall.
    """
    xs, ys = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    chosen = _thin(len(xs), 1000)
    with open_figure(4.1, 3.8) as (figure, (axis,)):
        axis.plot(*chance, color=MUTED, linewidth=1.0, linestyle=(0, (3, 3)), label="guessing")
        axis.fill_between(xs[chosen], ys[chosen], color=ACCENT, alpha=0.08, linewidth=0, step="pre" if steps else None)
        axis.plot(xs[chosen], ys[chosen], color=ACCENT, label=curve, drawstyle="steps-pre" if steps else "default")
        if operating_point is not None:
            axis.plot(*operating_point, "o", color=FAKE, markersize=7, label="at the threshold", zorder=5)
        axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel=labels[0], ylabel=labels[1])
        axis.set_box_aspect(0.9)
        axis.legend(loc="lower right" if not steps else "lower left", fontsize=8.5)
        return inline_svg(figure, key, f"{labels[1]} against {labels[0]}; {curve}")


def reliability_plot(confidence: ArrayLike, frequency: ArrayLike, count: ArrayLike, *, key: str) -> str:
    """Plot how often an image is fake against how probable the model called it, with 95 % Wilson intervals.

    Args:
        confidence: mean predicted probability of fake of each bin.
        frequency: share of fakes in each bin.
        count: images in each bin; empty bins are left out.
    """
    counts = np.asarray(count, dtype=np.float64)
    used = counts > 0
    x, y, counts = np.asarray(confidence)[used], np.asarray(frequency)[used], counts[used]
    low, high = wilson(y, counts)
    with open_figure(4.1, 3.8) as (figure, (axis,)):
        axis.plot((0, 1), (0, 1), color=MUTED, linewidth=1.0, linestyle=(0, (3, 3)), label="perfectly calibrated")
        axis.vlines(x, low, high, color=ACCENT, linewidth=1.4, alpha=0.6)
        axis.plot(x, y, color=ACCENT, linewidth=1.2, alpha=0.6)
        sizes = 12 + 110 * np.sqrt(counts / counts.max()) if len(counts) else counts
        axis.scatter(x, y, s=sizes, color=ACCENT, linewidth=0, zorder=4)
        axis.plot([], [], "o", color=ACCENT, markersize=5, label="images (area: how many)")
        axis.set(xlim=(-0.04, 1.04), ylim=(-0.04, 1.04))
        axis.set(xlabel="predicted probability of fake", ylabel="share that is fake")
        axis.set_box_aspect(0.9)
        axis.legend(loc="upper left", fontsize=8.5)
        return inline_svg(figure, key, f"Reliability of the probabilities in {len(x)} bins")


def wilson(share: Floats, count: Floats) -> tuple[Floats, Floats]:
    """Bound a share of successes.

    Source: Wilson, Probable inference, the law of succession, and statistical inference, JASA 22 (1927), z = 1.96.
    """
    z = 1.959964
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return centre - half, centre + half


def score_plot(label: ArrayLike, probability_fake: ArrayLike, threshold: float, *, key: str, num_bins: int = 40) -> str:
    """Plot the distribution of the scores of each class; what the threshold gets wrong is drawn solid."""
    labels, scores = np.asarray(label), np.asarray(probability_fake, dtype=np.float64)
    edges = np.linspace(0.0, 1.0, num_bins + 1)
    with open_figure(5.6, 4.1, rows=2) as (figure, axes):
        for axis, value, name, colour in zip(axes, (0, 1), ("real", "fake"), (REAL, FAKE), strict=True):
            chosen = scores[labels == value]
            is_wrong = (chosen >= threshold) != bool(value)
            base = np.zeros(num_bins)
            for part, alpha in ((chosen[is_wrong], 1.0), (chosen[~is_wrong], 0.42)):
                share = np.histogram(part, edges)[0] / max(1, len(chosen)) * 100
                axis.stairs(base + share, edges, baseline=base, fill=True, color=colour, alpha=alpha, linewidth=0)
                base = base + share
            axis.axvline(threshold, color=INK, linewidth=1.2)
            axis.set_ylabel(f"% of {name} images")
            axis.grid(visible=False, axis="x")
            wrong = f"{is_wrong.sum()} of {len(chosen)} {name} images on the wrong side"
            axis.set_title(wrong, fontsize=8.5, loc="left" if value else "right", color=INK)
            axis.set_ylim(bottom=0)
        axes[1].set(xlim=(-0.01, 1.01), xlabel="probability of fake")
        return inline_svg(figure, key, "Distribution of the scores of real and of fake images")
