"""What a ranker's page says about its scores: tiers, pairs, the order, the worst disagreements and doubtful labels."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from hai.label_audit import audit_labels
from hai.rank_curves import Disagreement, comparison_reliability, pair_reliability, worst_comparisons, worst_pairs
from hai.rank_results import RankScores
from hai.report.blocks import GALLERY_SIZE, INTERVALS, Meanings, markup, metric_row, size_text, thumbnail
from hai.report.rank_plots import gap_plot, pair_reliability_plot, tier_plot
from hai.types import Record

__all__ = ["METRICS", "build_row", "lay_out_ranking"]

METRICS: Final[Meanings] = {
    "pair_accuracy": (
        "Pair accuracy",
        "Of the pairs of images of different tiers, or of the comparisons, the share in the right order; 0.5 is "
        "guessing.",
    ),
    "srcc": ("SRCC", "Spearman's rank correlation of the scores and the tiers; 1 is the same order, 0 is guessing."),
    "srcc_score": ("SRCC with human scores", "The same, with the people's scores of the images instead of the tiers."),
    "kendall_tau": ("Kendall's tau", "Share of pairs in the right order minus share in the wrong one; 0 is guessing."),
    "tier_accuracy": ("Tier accuracy", "Share of images whose score lies in their own tier."),
    "quadratic_weighted_kappa": (
        "Weighted kappa",
        "Agreement of called and true tiers beyond chance; a tier that is far off counts more.",
    ),
}
"""Title and meaning of each metric, the most telling first."""

_HEADLINE = "pair_accuracy"
_TILES = ("srcc", "srcc_score", "kendall_tau", "pair_accuracy_gap_1", "tier_accuracy", "quadratic_weighted_kappa")
_SOURCE_METRICS = ("pair_accuracy", "srcc", "srcc_score", "tier_accuracy")
_GAP = "pair_accuracy_gap_"


def lay_out_ranking(summary: Record, scores: RankScores, split: str, trained_on: RankScores | None) -> Record:
    """Lay out a result of `hai.rank_results.summarise_ranking` for the template.

    Args:
        summary: the numbers.
        scores: what they were made of.
        split: what the scores are of, such as "validation".
        trained_on: the training images with out-of-fold scores, whose labels are audited too.
    """
    laid = _results(summary)
    scale = scores.scale
    if scores.tiers:
        laid |= _tiers(scores, summary)
        curve = pair_reliability(scores.score, scores.tier, scores.group, scale)
        pairs = worst_pairs(scores.score, scores.tier, scale, GALLERY_SIZE)
        laid["audits"] = [] if scores.called is None else [_audit(split, scores)]
        if trained_on:
            laid["audits"].append(_audit("training", trained_on) | {"out_of_fold": True})
    else:
        curve = comparison_reliability(scores.score, scores.comparisons, scores.group, scale)
        pairs = worst_comparisons(scores.score, scores.comparisons, scale, GALLERY_SIZE)
    if curve.count.any():
        laid["reliability_svg"] = markup(pair_reliability_plot(curve, key="reliability"))
    laid["gap_svg"] = markup(gap_plot(summary["metrics"], key="gap"))
    laid["disagreements"] = [_pair(scores, pair) for pair in pairs]
    laid["order"] = [_shot(scores, row) for row in _evenly(scores.score)]
    return laid


def _results(summary: Record) -> Record:
    """Lay out the numbers."""
    metrics = summary["metrics"]
    named = {name: build_row(name, record) for name, record in metrics.items()}
    order = [name for name in METRICS if name in named] + [name for name in named if name not in METRICS]
    pairs = f"{summary['num_correct']:,} of {summary['num_pairs']:,} pairs in the right order"
    source_metrics = [name for name in _SOURCE_METRICS if name in metrics]
    return {
        "headline": named[_HEADLINE],
        "tiles": [named[name] for name in _TILES if name in named],
        "metrics": [named[name] for name in order],
        "metrics_text": f"{size_text(summary)}, {summary['num_pairs']:,} pairs. {INTERVALS}",
        "size": f"{size_text(summary)}: {pairs}",
        "verdict": summary["num_pairs"] > 0,
        "many_sources": len(summary["per_source"]) > 1,
        "source_titles": ["images", "groups", "pairs", *(METRICS[name][0] for name in source_metrics)],
        "per_source": [
            {
                "source": row["source"],
                "counts": [row["n"], row["num_groups"], row["num_pairs"]],
                "metrics": [build_row(name, row["metrics"][name]) for name in source_metrics],
            }
            for row in summary["per_source"]
        ],
    }


def build_row(name: str, record: Record) -> Record:
    """Lay out the metric of that name with its title and meaning."""
    if name.startswith(_GAP):
        gap = int(name.removeprefix(_GAP))
        apart = "one tier" if gap == 1 else f"{gap} tiers"
        return metric_row(f"Pair accuracy, {apart} apart", f"The same over pairs that are {apart} apart.", record)
    return metric_row(*METRICS.get(name, (name.replace("_", " "), "")), record)


def _tiers(scores: RankScores, summary: Record) -> Record:
    tiers, called = scores.tiers, scores.called
    borders = list(scores.scale.thresholds) if called is not None else []
    plot = tier_plot(scores.score, scores.tier, scores.tier if called is None else called, tiers, borders, key="tiers")
    tints = ("real", "fake", "bad")
    rows = [
        {
            "name": name,
            "total": sum(counts),
            "cells": [{"count": count, "tint": tints[min(2, abs(code - k))]} for k, count in enumerate(counts)],
        }
        for code, (name, counts) in enumerate(zip(tiers, summary["confusion_matrix"], strict=False))
    ]
    return {"tiers": tiers, "confusion": rows, "tier_svg": markup(plot)}


def _evenly(score: NDArray[np.float64]) -> list[int]:
    """Choose images at even ranks, from the highest score to the lowest."""
    ranked = np.argsort(-score, kind="stable")
    chosen = np.unique(np.linspace(0, len(ranked) - 1, min(GALLERY_SIZE, len(ranked))).round().astype(np.int64))
    return [int(row) for row in ranked[chosen]]


def _audit(split: str, scores: RankScores) -> Record:
    findings = audit_labels(scores.score, scores.tier, scores.scale)
    shown = [
        _shot(scores, found.row) | {"suggested": scores.tiers[found.suggested], "strength": found.strength}
        for found in findings[:GALLERY_SIZE]
    ]
    return {"split": split, "n": len(scores), "num_findings": len(findings), "shown": shown}


def _pair(scores: RankScores, pair: Disagreement) -> Record:
    return {
        "better": _shot(scores, pair.better),
        "worse": _shot(scores, pair.worse),
        "probability": pair.probability,
    }


def _shot(scores: RankScores, row: int) -> Record:
    return {
        "image": thumbnail(scores.read, row),
        "path": scores.path[row],
        "source": scores.source[row],
        "tier": scores.tiers[scores.tier[row]] if scores.tiers else None,
        "score": float(scores.score[row]),
    }
