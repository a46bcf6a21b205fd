"""The plots of a sweep's page: learning curves of all trials, and the best value found so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from hai.report.drawing import ACCENT, BAD, GOOD, INK, MUTED, inline_svg, open_figure
from hai.report.parallel import is_number
from hai.sweep.records import TrialRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["learning_plot", "search_plot"]

Floats = NDArray[np.float64]

_MOST_POINTS: Final = 12_000
_STATUSES: Final = {"finished": (ACCENT, "o"), "stopped": (MUTED, "o"), "failed": (BAD, "X"), "running": (MUTED, "D")}
_ABOVE: Final[dict[str, Any]] = {
    "loc": "lower left",
    "bbox_to_anchor": (0.0, 1.0),
    "borderaxespad": 0.0,
    "ncols": 4,
    "fontsize": 8.5,
    "handlelength": 1.5,
    "columnspacing": 1.2,
}
"""A legend that hides no trial."""


def learning_plot(trials: Sequence[TrialRecord], title: str, best: str, *, key: str) -> str | None:
    """Plot the validation values of each trial over its steps; None when no trial has any.

    Args:
        trials: of the sweep.
        title: of the metric, for the axis.
        best: id of the trial that stands out.
        key: unique within the page.
    """
    curves = {trial.id: _curve(trial) for trial in trials}
    curves = {trial: curve for trial, curve in curves.items() if len(curve)}
    if not curves:
        return None
    limit = max(8, _MOST_POINTS // len(curves))
    faint = max(0.12, min(0.6, 4 / np.sqrt(len(curves))))
    with open_figure(5.6, 3.7) as (figure, (axis,)):
        for trial in sorted(trials, key=lambda trial: trial.id == best):
            if trial.id not in curves:
                continue
            steps, values = _thinned(curves[trial.id], limit).T
            is_best = trial.id == best
            colour, width = (GOOD, 2.4) if is_best else (BAD if trial.status == "failed" else ACCENT, 1.1)
            alpha = 1.0 if is_best else faint
            axis.plot(steps, values, color=colour, linewidth=width, alpha=alpha, zorder=3 if is_best else 2)
            if trial.status == "stopped" or len(steps) == 1 or is_best:
                size = 4.5 if is_best else 2.6
                axis.plot(steps[-1], values[-1], "o", color=colour, markersize=size, alpha=alpha, zorder=3)
            joint = _joint(trial, curves)
            if joint is not None:
                ends = [joint, (steps[0], values[0])]
                axis.plot(*zip(*ends, strict=True), color=colour, linewidth=width, alpha=alpha, linestyle=(0, (1, 2)))
        _legend(axis, trials, curves, best)
        axis.set(xlabel="optimizer step", ylabel=f"{title} on validation")
        return inline_svg(figure, key, f"Learning curves of {len(curves)} trials")


def search_plot(trials: Sequence[TrialRecord], title: str, mode: str, *, key: str) -> str | None:
    """Plot each trial's value over its number, with the best so far; None when fewer than two trials have a value."""
    from matplotlib.ticker import MaxNLocator

    found = [(trial.number, trial.value, trial.status) for trial in trials if is_number(trial.value)]
    if len(found) < 2:
        return None
    numbers = np.array([number for number, _, _ in found])
    values = np.array([value for _, value, _ in found])
    best = (np.maximum if mode == "max" else np.minimum).accumulate(values)
    with open_figure(5.6, 3.7) as (figure, (axis,)):
        steps = [*numbers, numbers[-1] + 1], [*best, best[-1]]
        axis.step(*steps, where="post", color=INK, linewidth=1.4, label="best so far")
        for status, (colour, marker) in _STATUSES.items():
            chosen = np.array([kind == status for _, _, kind in found])
            if chosen.any():
                name = {"stopped": "stopped early"}.get(status, status)
                axis.plot(numbers[chosen], values[chosen], marker, color=colour, alpha=0.7, markersize=4, label=name)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set(xlabel="trial", ylabel=f"{title} on validation")
        axis.legend(**_ABOVE)
        return inline_svg(figure, key, f"Values of {len(found)} trials and the best so far")


def _curve(trial: TrialRecord) -> Floats:
    points = [point for point in trial.history if is_number(point[1])]
    if not points and is_number(trial.value):
        points = [(trial.step, trial.value)]
    return np.array(points, dtype=np.float64).reshape(-1, 2)


def _thinned(curve: Floats, limit: int) -> Floats:
    chosen = np.unique(np.linspace(0, len(curve) - 1, min(limit, len(curve))).round().astype(np.int64))
    return curve[chosen]


def _joint(trial: TrialRecord, curves: dict[str, Floats]) -> tuple[float, float] | None:
    """Find where a trial left its parent's curve: the last point up to the checkpoint it started from."""
    parent, _, name = trial.parent.partition("/step_")
    if parent not in curves or not name.isdigit():
        return None
    before = curves[parent][curves[parent][:, 0] <= int(name)]
    if not len(before) or before[-1, 0] >= curves[trial.id][0, 0]:
        return None
    return float(before[-1, 0]), float(before[-1, 1])


def _legend(axis: Axes, trials: Sequence[TrialRecord], curves: Mapping[str, object], best: str) -> None:
    shown = [trial for trial in trials if trial.id in curves]
    if best in curves and len(shown) > 1:
        axis.plot([], [], color=GOOD, linewidth=2.4, label="best trial")
    if any(trial.status == "stopped" for trial in shown):
        axis.plot([], [], "o-", color=ACCENT, markersize=2.6, linewidth=1.1, alpha=0.6, label="stopped early")
    if any(trial.status == "failed" for trial in shown):
        axis.plot([], [], color=BAD, linewidth=1.1, label="failed")
    if any(trial.parent for trial in shown):
        axis.plot([], [], color=ACCENT, linewidth=1.1, linestyle=(0, (1, 2)), label="went on from another")
    if axis.get_legend_handles_labels()[0]:
        axis.legend(**_ABOVE)
