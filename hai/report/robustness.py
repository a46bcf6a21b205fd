"""What a page and the console say about robustness: curves over the strength of each change, and a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from hai.report.blocks import INTERVALS, Meanings, markup, number
from hai.report.drawing import ACCENT, FAKE, MUTED, inline_svg, open_figure
from hai.types import Record

__all__ = ["lay_out_robustness", "robustness_rows"]


class _Kind(NamedTuple):
    """How a kind of change is called, and its level."""

    title: str
    axis: str
    level: str


_KINDS: Final = {
    "jpeg": _Kind("JPEG compression", "quality", "quality {:g}"),
    "blur": _Kind("Blur", "sigma, pixels", "sigma {:g} px"),
    "noise": _Kind("Noise", "standard deviation, levels of 255", "deviation {:g} of 255"),
    "resize": _Kind("Smaller copies", "share of width and height", "{:g} of width and height"),
    "brightness": _Kind("Brightness", "factor", "times {:g}"),
}
_SHOWN: Final = ("f1_macro", "roc_auc", "pair_accuracy", "srcc", "accuracy", "srcc_score")
_AS_IS: Final = "as is"
_CHANGED: Final = "changed calls"
_THRESHOLD: Final = (
    "Where macro-F1 falls and ROC-AUC stays, real and fake images are still told apart and only the threshold no "
    "longer fits: choose it on validation images that have come the same way."
)


def robustness_rows(record: Record) -> tuple[list[str], list[list[Any]]]:
    """Write a result of `hai.robustness.measure_robustness` as columns and rows for the console."""
    names = _shown(record)
    has_calls = "changed_calls" in record["conditions"][0]
    columns = ["change", "level", *(word for name in names for word in (name, "95 % interval"))]
    rows = []
    for condition in record["conditions"]:
        row: list[Any] = list(_words(condition))
        for name in names:
            metric = condition["metrics"][name]
            known = metric["low"] is not None and metric["high"] is not None
            row.append(None if metric["value"] is None else round(metric["value"], 4))
            row.append(f"{metric['low']:.3f} to {metric['high']:.3f}" if known else None)
        rows.append([*row, *([f"{100 * condition['changed_calls']:.1f} %"] if has_calls else [])])
    return columns + [_CHANGED] * has_calls, rows


def lay_out_robustness(record: Record, titles: Meanings) -> Record:
    """Draw curves and a table for the template.

    Args:
        record: a result of `hai.robustness.measure_robustness`.
        titles: of the metrics.
    """
    names, conditions = _shown(record), record["conditions"]
    named = [titles[name][0] if name in titles else name for name in names]
    kinds = dict.fromkeys(condition["change"] for condition in conditions[1:])
    panels = [
        (_KINDS[kind].title, markup(_plot(kind, conditions, names, named, with_legend=number == 0)))
        for number, kind in enumerate(kinds)
    ]
    rows = []
    for condition in conditions:
        calls = condition.get("changed_calls")
        change, level = _words(condition)
        metrics = [condition["metrics"][name] for name in names]
        rows.append({
            "change": change,
            "level": level,
            "metrics": metrics,
            "calls": None if calls is None else f"{100 * calls:.1f} %",
        })  # fmt: skip
    return {
        "robustness": {
            "panels": panels,
            "titles": [*named, *([_CHANGED] if rows[0]["calls"] is not None else [])],
            "rows": rows,
            "worst": _worst(conditions, names, named),
            "text": f"The same {record['n']:,} images as they are (dashed) and after each change. {INTERVALS}",
            "note": _THRESHOLD if "roc_auc" in names else "",
        }
    }


def _shown(record: Record) -> list[str]:
    """Choose the two metrics that are shown: the first ones with a value."""
    metrics = record["conditions"][0]["metrics"]
    return [name for name in _SHOWN if name in metrics and metrics[name]["value"] is not None][:2]


def _words(condition: Record) -> tuple[str, str]:
    if condition["change"] == "none":
        return "none", _AS_IS
    kind = _KINDS[condition["change"]]
    return kind.title, kind.level.format(condition["level"])


def _worst(conditions: Sequence[Record], names: Sequence[str], titles: Sequence[str]) -> str:
    """Say which change costs most of the first metric."""
    if not names:
        return ""
    value_of = {i: condition["metrics"][names[0]]["value"] for i, condition in enumerate(conditions)}
    changed = {i: value for i, value in value_of.items() if i and value is not None}
    if not changed or min(changed.values()) >= value_of[0]:
        return ""
    lowest = min(changed, key=lambda i: changed[i])
    change, level = _words(conditions[lowest])
    return f"{titles[0]} falls lowest to {number(changed[lowest])} from {number(value_of[0])}: {change}, {level}."


def _plot(
    kind: str, conditions: Sequence[Record], names: Sequence[str], titles: Sequence[str], *, with_legend: bool
) -> str:
    """Plot metrics over the levels of a kind of change, the unchanged images where they belong among them."""
    own = [condition for condition in conditions if condition["change"] == kind]
    below = sum(condition["level"] < 1 for condition in own) if kind == "brightness" else 0
    own.insert(below, conditions[0])
    x = np.arange(len(own))
    with open_figure(4.1, 3.0) as (figure, (axis,)):
        for name, title, colour in zip(names, titles, (ACCENT, FAKE), strict=False):
            parts = {
                part: np.array([condition["metrics"][name][part] for condition in own], dtype=np.float64)
                for part in ("value", "low", "high")
            }
            axis.fill_between(x, parts["low"], parts["high"], color=colour, alpha=0.13, linewidth=0)
            axis.plot(x, parts["value"], color=colour, marker="o", markersize=3.6, label=title)
        axis.axvline(below, color=MUTED, linewidth=1.0, linestyle=(0, (3, 3)))
        labels = [_AS_IS if i == below else f"{condition['level']:g}" for i, condition in enumerate(own)]
        axis.set_xticks(x, labels)
        axis.set_ylim(_floor(conditions, names), 1.02)
        axis.set_xlabel(_KINDS[kind].axis)
        axis.grid(visible=False, axis="x")
        if with_legend:
            axis.legend(loc="lower left", fontsize=8.5)
        return inline_svg(figure, f"robust-{kind}", f"{' and '.join(titles)} over {_KINDS[kind].axis}")


def _floor(conditions: Sequence[Record], names: Sequence[str]) -> float:
    """Return where all the panels' axes begin: below what was measured, in tenths."""
    metrics = [condition["metrics"][name] for condition in conditions for name in names]
    values = [metric[part] for metric in metrics for part in ("value", "low")]
    return float(np.floor(min([0.9, *(value for value in values if value is not None)]) * 10) / 10)
