"""What a detector's page says about its scores: decisions, curves, sources and the worst mistakes."""

from __future__ import annotations

from typing import Final

import numpy as np

from hai.calibration import Calibration
from hai.metrics import point_metrics, pr_curve, reliability_curve, roc_curve
from hai.report.blocks import GALLERY_SIZE, INTERVALS, Meanings, markup, metric_row, number, size_text, thumbnail
from hai.report.plots import curve_plot, reliability_plot, score_plot
from hai.results import Scores, probability_of
from hai.types import LABELS, Record

__all__ = ["METRICS", "build_row", "calibration_text", "lay_out_detection", "threshold_text"]

METRICS: Final[Meanings] = {
    "f1_macro": ("Macro-F1", "Mean of the F1 scores of both classes; a rare class counts as much as a common one."),
    "roc_auc": ("ROC-AUC", "Chance that a random fake scores above a random real image; 0.5 is guessing."),
    "accuracy": ("Accuracy", "Share of images on the right side of the threshold."),
    "average_precision": ("Average precision", "Mean precision over all recalls of fakes; guessing gives their share."),
    "equal_error_rate": ("Equal error rate", "Error where as many real as fake images are mistaken; lower is better."),
    "expected_calibration_error": (
        "Calibration error",
        "Mean distance between a probability and the share of fakes that have it; lower is better.",
    ),
    "precision_real": ("Precision, real", "Of the images called real, the share that is."),
    "recall_real": ("Recall, real", "Of the real images, the share called real."),
    "f1_real": ("F1, real", "Harmonic mean of precision and recall of real images."),
    "precision_fake": ("Precision, fake", "Of the images called fake, the share that is."),
    "recall_fake": ("Recall, fake", "Of the fakes, the share that is caught."),
    "f1_fake": ("F1, fake", "Harmonic mean of precision and recall of fakes."),
}
"""Title and meaning of each metric, the most telling first."""

_HEADLINE = "f1_macro"
_TILES = ("roc_auc", "accuracy", "recall_fake", "recall_real", "equal_error_rate", "expected_calibration_error")
_SOURCE_METRICS = ("f1_macro", "roc_auc", "accuracy")
_SOURCE_NOTE = (
    "A source of one class is ranked against the other class of its data set, so that macro-F1 and ROC-AUC mean "
    "something; counts and accuracy are its own."
)


def threshold_text(fitted: Calibration, chosen: str) -> str:
    """Say where the threshold comes from, and how sure it is where that is known.

    Args:
        fitted: holds it.
        chosen: what to add about the images that it was chosen on, a sentence.
    """
    if not fitted.is_fitted:
        return (
            f"The threshold {fitted.threshold:.3f} is the default: nothing was fitted, as the checkpoint was saved "
            "before any evaluation."
        )
    if fitted.threshold_low is None or fitted.threshold_high is None:
        return f"The threshold has the best macro-F1 on the validation split. {chosen}"
    images = f"{fitted.num_images:,} validation images"
    if fitted.num_groups != fitted.num_images:
        images += f" in {fitted.num_groups:,} independent groups"
    return (
        f"The threshold {fitted.threshold:.3f} has the best macro-F1 on {images}; its 95 % interval is "
        f"{fitted.threshold_low:.3f} to {fitted.threshold_high:.3f}. {chosen}"
    )


def calibration_text(fitted: Calibration, scores: Scores) -> str:
    """Say what the temperature does to the calibration error of these scores."""
    if fitted.temperature == 1.0:
        return "Probabilities are the model's own; no temperature was fitted."
    inside = np.clip(scores.probability_fake, 1e-15, 1 - 1e-15)
    plain = probability_of(fitted.temperature * (np.log(inside) - np.log1p(-inside)))
    before, after = (
        point_metrics(scores.label, probability)["expected_calibration_error"]
        for probability in (plain, scores.probability_fake)
    )
    return (
        f"Logits are divided by the temperature {fitted.temperature:.3f}, which was fitted to the validation split and "
        f"is stored with the checkpoint: the calibration error of these images is {number(after)}, without it "
        f"{number(before)}."
    )


def lay_out_detection(summary: Record, scores: Scores | None) -> Record:
    """Lay out a result of `hai.results.summarise` and the scores it was made of for the template."""
    return _results(summary) | (_pictures(scores, summary) if scores else {})


def _results(summary: Record) -> Record:
    """Lay out the numbers."""
    named = {name: build_row(name, record) for name, record in summary["metrics"].items()}
    order = [name for name in METRICS if name in named] + [name for name in named if name not in METRICS]
    (tn, fp), (fn, tp) = summary["confusion_matrix"]
    real, fake = tn + fp, fn + tp
    size = size_text(summary)
    return {
        "headline": named.get(_HEADLINE),
        "tiles": [named[name] for name in _TILES if name in named and name != _HEADLINE],
        "metrics": [named[name] for name in order],
        "metrics_text": f"{size}. {INTERVALS}",
        "size": f"{size}: {real:,} real, {fake:,} fake",
        "verdict": {"caught": round(100 * tp / fake), "flagged": round(100 * fp / real)} if real and fake else None,
        "confusion": {"tn": tn, "fp": fp, "fn": fn, "tp": tp, "real": real, "fake": fake},
        "threshold": summary["threshold"],
        "many_sources": len(summary["per_source"]) > 1,
        "source_note": _SOURCE_NOTE if any("num_others" in row for row in summary["per_source"]) else "",
        "source_titles": ["real", "fake", "mistakes", *(METRICS[name][0] for name in _SOURCE_METRICS)],
        "per_source": [_source_row(row) for row in summary["per_source"]],
        "errors": _error_table(summary.get("errors", [])),
    }


def build_row(name: str, record: Record) -> Record:
    """Lay out the metric of that name with its title and meaning."""
    base = name.removeprefix("video_")
    title, meaning = METRICS.get(base, (base.replace("_", " "), ""))
    if base != name:
        title, meaning = f"{title}, per video", f"{meaning} Over videos instead of frames."
    return metric_row(title, meaning, record)


def _source_row(row: Record) -> Record:
    (tn, fp), (fn, tp) = row["confusion_matrix"]
    metrics = [build_row(name, row["metrics"][name]) for name in _SOURCE_METRICS]
    return {"source": row["source"], "counts": [tn + fp, fn + tp, fp + fn], "metrics": metrics}


def _error_table(records: list[Record]) -> list[Record]:
    """Lay out the table of errors: a record per fact, its ranges as rows with bars on one scale."""
    most = max([0.01, *(record["error"]["high"] for record in records)])
    facts: dict[str, list[Record]] = {}
    for record in records:
        scaled = {part: f"{100 * record['error'][part] / most:.1f}" for part in ("value", "low", "high")}
        width = f"{100 * (record['error']['high'] - record['error']['low']) / most:.1f}"
        facts.setdefault(record["fact"], []).append({**record, "bar": {**scaled, "width": width}})
    return [{"fact": fact, "rows": rows} for fact, rows in facts.items()]


def _pictures(scores: Scores, summary: Record) -> Record:
    """Draw the curves of the scores and choose the worst mistakes."""
    label, probability, threshold = scores.label, scores.probability_fake, summary["threshold"]
    (tn, fp), (fn, tp) = summary["confusion_matrix"]
    drawn: Record = {"score_svg": score_plot(label, probability, threshold, key="score")}
    drawn["reliability_svg"] = reliability_plot(*reliability_curve(label, probability, 10), key="reliability")
    if tn + fp and fn + tp:
        share = (fn + tp) / len(label)
        false_rate, true_rate = roc_curve(label, probability)[:2]
        recall, precision = pr_curve(label, probability)[:2]
        drawn["roc_svg"] = curve_plot(
            false_rate, true_rate, key="roc",
            labels=("false positive rate: real called fake", "true positive rate: fakes caught"),
            curve=f"AUC {number(summary['metrics']['roc_auc']['value'])}",
            operating_point=(fp / (tn + fp), tp / (fn + tp)), chance=((0.0, 1.0), (0.0, 1.0)),
        )  # fmt: skip
        drawn["pr_svg"] = curve_plot(
            recall, precision, key="pr", steps=True,
            labels=("recall: fakes caught", "precision: fakes among the called"),
            curve=f"average precision {number(summary['metrics']['average_precision']['value'])}",
            operating_point=(tp / (fn + tp), tp / (tp + fp)) if tp + fp else None, chance=((0.0, 1.0), (share, share)),
        )  # fmt: skip
    wrong = scores.predictions(threshold) != label
    worst = np.argsort(-np.abs(probability - threshold), kind="stable")
    for name, value in (("mistakes_fp", 0), ("mistakes_fn", 1)):
        rows = [int(i) for i in worst if wrong[i] and label[i] == value][:GALLERY_SIZE]
        drawn[name] = [_shot(scores, row) for row in rows]
    return {name: markup(value) if name.endswith("_svg") else value for name, value in drawn.items()}


def _shot(scores: Scores, row: int) -> Record:
    label = int(scores.label[row])
    return {
        "image": thumbnail(scores.read, row),
        "path": scores.path[row],
        "source": scores.source[row],
        "label": LABELS[label],
        "prediction": LABELS[1 - label],
        "probability": float(scores.probability_fake[row]),
    }
