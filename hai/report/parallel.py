"""Parallel coordinates: where on each parameter's axis a trial stands, however numbers, words and gaps are mixed."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, TypeGuard

from hai.console import shown
from hai.masking import masked, without_secrets
from hai.sweep.records import TrialRecord

__all__ = ["Axis", "Lines", "draw_lines", "is_number", "label_of", "metric_axis", "param_axis"]

_TOP: Final = 64
_HEIGHT: Final = 300
_GAP: Final = 34
_SIDE: Final = 64
_SPACING: Final = (128, 300)
_WIDTH: Final = 960
_LABEL: Final = 16
_MOST_TICKS: Final = 12
_MOST_APART: Final = 0.6
_GOLDEN: Final = 0.618034
_TONES: Final = ((0.9, "tone-4"), (0.7, "tone-3"), (0.4, "tone-2"), (0.0, "tone-1"))
"""Shares of the trials that a trial must be better than, and how its line then looks."""

_MOST_STEPS: Final = 8
_NUMBERS: Final = {"loguniform": True, "uniform": False, "randint": False}
"""Distributions of numbers, and whether their axis is logarithmic."""


@dataclass(frozen=True)
class Axis:
    """One axis: what it measures and where its values lie.

    Args:
        title: short name.
        name: whole name.
        ticks: (share of the height from the bottom, text).
        shares: of each trial, in 0-1 from the bottom; None: it has no value here.
        gap: text of the place for trials without a value, "" where all have one.
        low, high: bounds of a numeric axis, else None.
        is_log: its scale.
    """

    title: str
    name: str
    ticks: list[tuple[float, str]]
    shares: list[float | None]
    gap: str
    low: float | None = None
    high: float | None = None
    is_log: bool = False


@dataclass(frozen=True)
class Lines:
    """Coordinates of the drawing, in units of its width and height.

    Args:
        width, height: of the whole.
        top, bottom: of the axes.
        axes: {x, title, name, gap, ticks: [(y, text)]} each.
        gap: y of the values that are missing.
        lines: {path, number, kind, tone, points, text} each, the best last: it is drawn on top.
        strength: opacity of a line, less where there are many.
    """

    width: float
    height: float
    top: float
    bottom: float
    gap: float
    axes: list[dict[str, Any]]
    lines: list[dict[str, Any]]
    strength: float


def is_number(value: Any) -> TypeGuard[float]:
    """Say whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def label_of(value: Any) -> str:
    """Write a parameter's value for people, without secrets: words as they are, numbers with four digits."""
    if isinstance(value, str):
        return without_secrets(value)
    return shown(value) if is_number(value) else json.dumps(masked(value), ensure_ascii=False, default=str)


def param_axis(key: str, title: str, entry: Any, trials: Sequence[TrialRecord]) -> Axis:
    """Lay out a parameter over all trials.

    Args:
        key: dotted key.
        title: short name.
        entry: of the search space: {distribution: arguments}; other entries are read from the values.
        trials: all that are drawn.
    """
    values = [trial.params[key] for trial in trials if key in trial.params]
    kind, arguments = _declared(entry)
    numbers = [value for value in values if value is not None]
    is_numeric = bool(numbers) and kind not in ("choice", "grid") and all(is_number(value) for value in numbers)
    gap = "not set" if len(values) < len(trials) or (is_numeric and len(numbers) < len(values)) else ""
    bounds = [bound for bound in arguments if is_number(bound)][:2] if isinstance(arguments, list) else []
    if not is_numeric:
        return _categories(key, title, arguments if isinstance(arguments, list) else [], trials, gap)
    whole = all(isinstance(value, int) for value in numbers)
    if kind == "randint" and whole and len(bounds) == 2 and bounds[1] - bounds[0] < _MOST_STEPS:
        return _categories(key, title, list(range(int(bounds[0]), int(bounds[1]) + 1)), trials, gap)
    low, high = min([*numbers, *bounds]), max([*numbers, *bounds])
    is_log = low > 0 and _NUMBERS.get(kind, high / low >= 100)
    given = [trial.params.get(key) for trial in trials]
    return _numeric(key, title, given, low, high, is_log=is_log, is_whole=whole, gap=gap)


def metric_axis(title: str, name: str, mode: str, trials: Sequence[TrialRecord]) -> Axis:
    """Lay out the metric that trials are compared by, the better the higher up."""
    found = [trial.value for trial in trials if is_number(trial.value)]
    gap = "no value" if len(found) < len(trials) else ""
    if not found:
        return Axis(title, name, [], [None] * len(trials), gap)
    low, high = min(found), max(found)
    axis = _numeric(name, title, [trial.value for trial in trials], low, high, is_log=False, is_whole=False, gap=gap)
    if mode == "max":
        return axis
    flipped = [None if share is None else 1 - share for share in axis.shares]
    return Axis(title, name, [(1 - share, text) for share, text in axis.ticks], flipped, gap, low, high)


def _declared(entry: Any) -> tuple[str, Any]:
    """Read the distribution of an entry of the search space and its arguments."""
    if isinstance(entry, list):
        return "choice", entry
    if isinstance(entry, dict):
        for kind in (*_NUMBERS, "choice", "grid"):
            if kind in entry:
                return kind, entry[kind]
    return "", None


def _numeric(
    name: str, title: str, given: Sequence[Any], low: float, high: float, *, is_log: bool, is_whole: bool, gap: str
) -> Axis:
    from matplotlib.ticker import LogLocator, MaxNLocator

    if low == high:
        low, high = (low / 2, high * 2) if is_log else (low - (abs(low) / 10 or 1), high + (abs(high) / 10 or 1))
    locator: Any = (
        LogLocator(subs=(1.0,) if high / low >= 1000 else (1.0, 2.0, 5.0), numticks=99)
        if is_log
        else MaxNLocator(5, steps=[1, 2, 2.5, 5, 10], integer=is_whole)
    )
    ends = (math.log(low), math.log(high)) if is_log else (low, high)

    def share(value: float) -> float:
        return ((math.log(value) if is_log else value) - ends[0]) / (ends[1] - ends[0])

    slack = 1e-6 * (ends[1] - ends[0])
    ticks = [float(tick) for tick in locator.tick_values(low, high)]
    ticks = [tick for tick in ticks if tick > 0 or not is_log]
    ticks = [tick for tick in ticks if -slack <= share(tick) * (ends[1] - ends[0]) <= ends[1] - ends[0] + slack]
    if len(ticks) < 2:
        ticks = [low, high]
    ticks = ticks[:: math.ceil(len(ticks) / _MOST_TICKS)]
    shares = [share(value) if is_number(value) else None for value in given]
    return Axis(title, name, [(share(tick), shown(tick)) for tick in ticks], shares, gap, low, high, is_log)


def _categories(key: str, title: str, declared: list[Any], trials: Sequence[TrialRecord], gap: str) -> Axis:
    values = {_identity(value): value for value in declared}
    for trial in trials:
        if key in trial.params:
            values.setdefault(_identity(trial.params[key]), trial.params[key])
    if all(is_number(value) for value in values.values()):
        values = dict(sorted(values.items(), key=lambda item: item[1]))
    height = {identity: (i + 0.5) / len(values) for i, identity in enumerate(values)}
    apart = min(_MOST_APART, len(trials) / 50) / max(1, len(values))
    shares = [
        height[_identity(trial.params[key])] + apart * ((trial.number * _GOLDEN) % 1 - 0.5)
        if key in trial.params
        else None
        for trial in trials
    ]  # lines of one category lie side by side, so that one sees how many there are
    ticks = [(height[identity], label_of(value)) for identity, value in values.items()]
    return Axis(title, key, ticks[:: math.ceil(len(ticks) / _MOST_TICKS)], shares, gap)


def _identity(value: Any) -> str:
    """Make a value comparable: 1 and 1.0 are one, 1 and true are two."""
    return repr(float(value)) if is_number(value) else json.dumps(value, sort_keys=True, default=str)


def draw_lines(axes: Sequence[Axis], trials: Sequence[TrialRecord], texts: Sequence[str], best: str) -> Lines:
    """Draw a line for each trial.

    Args:
        axes: the last one is the metric.
        trials: as the axes know them.
        texts: what a trial's line says under the mouse.
        best: id of the trial that stands out.
    """
    spacing = min(_SPACING[1], max(_SPACING[0], (_WIDTH - 2 * _SIDE) / max(1, len(axes) - 1)))
    bottom = _TOP + _HEIGHT
    gap = bottom + _GAP
    height = (gap if any(axis.gap for axis in axes) else bottom) + 18

    def y_of(share: float | None) -> float:
        return gap if share is None else bottom - share * _HEIGHT

    order = _worst_first(axes[-1].shares)
    lines = []
    for place, i in enumerate(order):
        points = [(_SIDE + spacing * k, y_of(axis.shares[i])) for k, axis in enumerate(axes)]
        scored = axes[-1].shares[i] is not None
        lines.append(
            {
                "path": _curve(points),
                "points": [(f"{x:.1f}", f"{y:.1f}") for x, y in points],
                "number": trials[i].number,
                "kind": trials[i].status,
                "tone": next(tone for least, tone in _TONES if place >= least * len(order)) if scored else "unscored",
                "is_best": trials[i].id == best,
                "text": texts[i],
            }
        )
    lines.sort(key=lambda line: bool(line["is_best"]))
    return Lines(
        width=2 * _SIDE + spacing * (len(axes) - 1),
        height=height,
        top=_TOP,
        bottom=bottom,
        gap=gap,
        axes=[
            {
                "x": _SIDE + spacing * k,
                "title": _short(axis.title, int(spacing / 8)),
                "name": axis.name,
                "gap": axis.gap,
                "raised": k % 2 == 1,
                "ticks": [(f"{y_of(share):.1f}", _short(text, _LABEL), text) for share, text in axis.ticks],
            }
            for k, axis in enumerate(axes)
        ],
        lines=lines,
        strength=round(max(0.3, min(1.0, 5 / math.sqrt(max(1, len(trials))))), 2),
    )


def _worst_first(shares: Sequence[float | None]) -> list[int]:
    known = [-1.0 if share is None else share for share in shares]
    return sorted(range(len(known)), key=known.__getitem__)


def _curve(points: Sequence[tuple[float, float]]) -> str:
    """Join points by curves that cross each axis at a right angle, so that one can follow them by eye."""
    path = [f"M{points[0][0]:.1f} {points[0][1]:.1f}"]
    for (x, y), (right, there) in pairwise(points):
        bend = (right - x) * 0.4
        path.append(f"C{x + bend:.1f} {y:.1f} {right - bend:.1f} {there:.1f} {right:.1f} {there:.1f}")
    return "".join(path)


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"
