"""The plots of a ranker's page: scores of each tier, accuracy by tier gap, reliability of P(one beats another)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hai.rank_curves import Reliability
from hai.report.drawing import ACCENT, INK, MUTED, inline_svg, open_figure
from hai.types import Record

__all__ = ["gap_plot", "pair_reliability_plot", "tier_plot"]

Floats = NDArray[np.float64]


def tier_plot(
    score: Floats,
    tier: NDArray[Any],
    called: NDArray[Any],
    tiers: Sequence[str],
    thresholds: Sequence[float],
    *,
    key: str,
) -> str:
    """Plot the distribution of the scores of each tier, the best on top; images called another tier are drawn solid.

    Args:
        score: [N].
        tier: [N], 0 the best.
        called: the tiers that the scores lie in [N].
        tiers: their names.
        thresholds: borders between neighbouring tiers.
    """
    edges = np.histogram_bin_edges(score, int(np.clip(len(score) / 6, 12, 40)))
    with open_figure(5.6, max(2.0, 0.6 + 0.9 * len(tiers)), rows=len(tiers)) as (figure, axes):
        for code, (axis, name) in enumerate(zip(axes, tiers, strict=True)):
            own = tier == code
            base = np.zeros(len(edges) - 1)
            for part, alpha in ((score[own & (called != code)], 1.0), (score[own & (called == code)], 0.42)):
                share = np.histogram(part, edges)[0] / max(1, own.sum()) * 100
                axis.stairs(base + share, edges, baseline=base, fill=True, color=ACCENT, alpha=alpha, linewidth=0)
                base = base + share
            for threshold in thresholds:
                axis.axvline(threshold, color=INK, linewidth=0.9, alpha=0.55)
            if own.any():
                axis.axvline(np.median(score[own]), color=INK, linewidth=1.4, linestyle=(0, (2, 2)))
            axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=11, color=INK, parse_math=False)
            axis.set_yticks([])
            axis.spines["left"].set_visible(False)
            axis.grid(visible=False)
            axis.set_ylim(bottom=0)
        axes[-1].set_xlabel("score")
        return inline_svg(figure, key, f"Distribution of the scores in {len(tiers)} tiers, the best on top")


def gap_plot(metrics: dict[str, Record], *, key: str) -> str | None:
    """Plot pair accuracy over how many tiers lie between the two images, with intervals; None without pairs."""
    prefix = "pair_accuracy_gap_"
    found = {int(name.removeprefix(prefix)): metric for name, metric in metrics.items() if name.startswith(prefix)}
    found = {gap: metric for gap, metric in sorted(found.items()) if metric["value"] is not None}
    if not found:
        return None
    gaps, values = list(found), [metric["value"] for metric in found.values()]
    with open_figure(5.6, 3.6) as (figure, (axis,)):
        axis.axhline(0.5, color=MUTED, linewidth=1.0, linestyle=(0, (3, 3)), label="guessing")
        for gap, metric in found.items():
            if metric["low"] is not None and metric["high"] is not None:
                axis.vlines(gap, metric["low"], metric["high"], color=ACCENT, linewidth=7, alpha=0.25)
            axis.annotate(
                f"{metric['value']:.3f}", (gap, metric["value"]), xytext=(9, -3), textcoords="offset points", fontsize=9
            )
        axis.plot(gaps, values, "o-", color=ACCENT, markersize=6, linewidth=1.2)
        axis.set(xlim=(min(gaps) - 0.5, max(gaps) + 0.6), ylim=(min(0.4, *values) - 0.02, 1.03), xticks=gaps)
        axis.set(xlabel="tiers apart", ylabel="share of pairs in the right order")
        axis.grid(visible=False, axis="x")
        axis.legend(loc="lower right", fontsize=8.5)
        return inline_svg(figure, key, f"Pair accuracy by tier gap, {len(gaps)} gaps")


def pair_reliability_plot(curve: Reliability, *, key: str) -> str:
    """Plot how often the image with the higher score is the better one against its predicted probability."""
    used = curve.count > 0
    x, y, count = curve.confidence[used], curve.frequency[used], curve.count[used]
    with open_figure(5.6, 3.6) as (figure, (axis,)):
        axis.plot((0.5, 1), (0.5, 1), color=MUTED, linewidth=1.0, linestyle=(0, (3, 3)), label="perfectly calibrated")
        axis.vlines(x, curve.low[used], curve.high[used], color=ACCENT, linewidth=1.4, alpha=0.6)
        axis.plot(x, y, color=ACCENT, linewidth=1.2, alpha=0.6)
        sizes = 12 + 110 * np.sqrt(count / count.max()) if len(count) else count
        axis.scatter(x, y, s=sizes, color=ACCENT, linewidth=0, zorder=4)
        axis.plot([], [], "o", color=ACCENT, markersize=5, label="pairs (area: how many)")
        lowest = min([0.45, *(curve.low[used] - 0.03)])
        axis.set(xlim=(0.48, 1.02), ylim=(lowest, 1.02))
        axis.set(xlabel="predicted P(higher score is better)", ylabel="share where it is better")
        axis.legend(loc="lower right", fontsize=8.5)
        return inline_svg(figure, key, f"Reliability of the pair probabilities in {len(x)} bins")
