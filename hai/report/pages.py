"""The report of a run or an evaluation: one HTML page that holds everything it shows."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

import hai
from hai.checkpoint.records import save_text
from hai.errors import DataError
from hai.metrics import pr_curve, reliability_curve, roc_curve
from hai.report.plots import curve_plot, reliability_plot, score_plot, training_plot
from hai.results import Scores
from hai.types import LABELS, Record

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["METRICS", "ReportData", "build_report", "write_report"]

METRICS: Final[dict[str, tuple[str, str]]] = {
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

_TILES = ("roc_auc", "accuracy", "recall_fake", "recall_real", "equal_error_rate", "expected_calibration_error")
_SOURCE_METRICS = ("f1_macro", "roc_auc", "accuracy")
_GALLERY_SIZE, _THUMBNAIL_PIXELS = 12, 176


@dataclass(frozen=True)
class ReportData:
    """What a page shows; parts without data are left out.

    Args:
        name: name of the run.
        title: what the page is about, such as "Evaluation on test".
        status: running, finished, failed, interrupted or evaluated.
        facts: (name, text) pairs below the headline.
        summary: result of `hai.results.summarise`, or None.
        scores: what the summary was made of.
        headline: metric in large digits.
        split: what the scores were measured on.
        threshold_note: how the threshold was chosen, a sentence.
        history: records of metrics.jsonl.
        best: {metric, value, step, checkpoint} of the best checkpoint.
        notes: warnings that a reader must see.
        commands: (text, command) pairs that make this again.
        versions: package versions by name.
        config: the resolved config as YAML.
        written: date and time, or "".
    """

    name: str
    title: str
    status: str
    facts: list[tuple[str, str]] = field(default_factory=list)
    summary: Record | None = None
    scores: Scores | None = None
    headline: str = "f1_macro"
    split: str = ""
    threshold_note: str = ""
    history: list[Record] = field(default_factory=list)
    best: Record | None = None
    notes: list[str] = field(default_factory=list)
    commands: list[tuple[str, str]] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    config: str = ""
    written: str = ""


def write_report(path: Path, run: ReportData) -> None:
    """Write the page of a run, whole or not at all."""
    save_text(path, build_report(run))


def build_report(run: ReportData) -> str:
    """Write a run as one HTML page without scripts or outside references."""
    context: dict[str, Any] = {
        "run": run,
        "version": hai.__version__,
        "versions": " · ".join(f"{name} {value}" for name, value in run.versions.items()),
        **_training(run),
        **(_results(run, run.summary) if run.summary else {"metrics": []}),
        **(_pictures(run.scores, run.summary) if run.summary and run.scores else {}),
    }
    return _environment().get_template("report.html").render(context)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader

    environment = Environment(
        loader=PackageLoader("hai", "report/templates"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["number"] = _number
    return environment


def _number(value: float | None) -> str:
    """Write a number with three decimals."""
    if value is None or not np.isfinite(value):
        return "n/a"
    return f"{value:.3f}"


def _markup(svg: str | None) -> Any:
    """Mark a plot as safe to insert: `hai.report.plots` draws it from numbers and our own words."""
    from markupsafe import Markup

    return None if svg is None else Markup(svg)


def _training(run: ReportData) -> Record:
    """Draw the training curves."""
    keys = {name for record in run.history for name in record}
    best_step = run.best["step"] if run.best else None
    scores = {
        f"val/{name}": title for name, (title, _) in METRICS.items() if name in ("f1_macro", "roc_auc", "accuracy")
    }
    panels = [
        ("Loss", training_plot(run.history, {"train/loss": "training", "val/loss": "validation"}, title="loss",
                               key="loss", best_step=best_step)),
        ("Validation", training_plot(run.history, scores, title="validation metric", key="val", best_step=best_step)),
        ("Learning rate", training_plot(run.history, {"train/learning_rate": "learning rate"}, title="learning rate",
                                        key="rate", smooth=False)),
    ]  # fmt: skip
    text = ""
    if keys and run.best:
        title = METRICS.get(run.best["metric"].removeprefix("val/"), (run.best["metric"],))[0]
        text = f"The best checkpoint, by validation {title} ({_number(run.best['value'])}), is of step {best_step}."
    return {"training": [(title, _markup(svg)) for title, svg in panels if svg], "training_text": text}


def _results(run: ReportData, summary: Record) -> Record:
    """Lay out the numbers."""
    named = {name: _metric(name, record) for name, record in summary["metrics"].items()}
    order = [name for name in METRICS if name in named] + [name for name in named if name not in METRICS]
    (tn, fp), (fn, tp) = summary["confusion_matrix"]
    real, fake = tn + fp, fn + tp
    images, groups = f"{summary['n']:,} images", f"{summary['num_groups']:,} independent groups"
    size = images if summary["n"] == summary["num_groups"] else f"{images} in {groups}"
    return {
        "headline": named.get(run.headline),
        "tiles": [named[name] for name in _TILES if name in named and name != run.headline],
        "metrics": [named[name] for name in order],
        "metrics_text": f"{size}. Intervals are 95 % bootstrap intervals that draw whole groups: images of one group "
        "are not independent.",
        "size": f"{size}: {real:,} real, {fake:,} fake",
        "verdict": {"caught": round(100 * tp / fake), "flagged": round(100 * fp / real)} if real and fake else None,
        "confusion": {"tn": tn, "fp": fp, "fn": fn, "tp": tp, "real": real, "fake": fake},
        "threshold": summary["threshold"],
        "many_sources": len(summary["per_source"]) > 1,
        "source_titles": [METRICS[name][0] for name in _SOURCE_METRICS],
        "per_source": [_source_row(row) for row in summary["per_source"]],
    }


def _metric(name: str, record: Record) -> Record:
    base = name.removeprefix("video_")
    title, meaning = METRICS.get(base, (base.replace("_", " "), ""))
    if base != name:
        title, meaning = f"{title}, per video", f"{meaning} Over videos instead of frames."
    bar = None
    if all(record[part] is not None and 0 <= record[part] <= 1 for part in ("value", "low", "high")):
        low, width = 100 * record["low"], 100 * (record["high"] - record["low"])
        bar = {"low": f"{low:.1f}", "width": f"{width:.1f}", "value": f"{100 * record['value']:.1f}"}
    return {"title": title, "meaning": meaning, "bar": bar, **record}


def _source_row(row: Record) -> Record:
    (tn, fp), (fn, tp) = row["confusion_matrix"]
    metrics = [_metric(name, row["metrics"][name]) for name in _SOURCE_METRICS]
    return {
        "source": row["source"],
        "num_real": tn + fp,
        "num_fake": fn + tp,
        "num_mistakes": fp + fn,
        "metrics": metrics,
    }


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
            curve=f"AUC {_number(summary['metrics']['roc_auc']['value'])}",
            operating_point=(fp / (tn + fp), tp / (fn + tp)), chance=((0.0, 1.0), (0.0, 1.0)),
        )  # fmt: skip
        drawn["pr_svg"] = curve_plot(
            recall, precision, key="pr", steps=True,
            labels=("recall: fakes caught", "precision: fakes among the called"),
            curve=f"average precision {_number(summary['metrics']['average_precision']['value'])}",
            operating_point=(tp / (fn + tp), tp / (tp + fp)) if tp + fp else None, chance=((0.0, 1.0), (share, share)),
        )  # fmt: skip
    wrong = scores.predictions(threshold) != label
    worst = np.argsort(-np.abs(probability - threshold), kind="stable")
    for name, value in (("mistakes_fp", 0), ("mistakes_fn", 1)):
        rows = [int(i) for i in worst if wrong[i] and label[i] == value][:_GALLERY_SIZE]
        drawn[name] = [_shot(scores, row) for row in rows]
    return {name: _markup(value) if name.endswith("_svg") else value for name, value in drawn.items()}


def _shot(scores: Scores, row: int) -> Record:
    label = int(scores.label[row])
    return {
        "image": _thumbnail(scores, row),
        "path": scores.path[row],
        "source": scores.source[row],
        "label": LABELS[label],
        "prediction": LABELS[1 - label],
        "probability": float(scores.probability_fake[row]),
    }


def _thumbnail(scores: Scores, row: int) -> str | None:
    """Shrink an image to a JPEG data URI; None when its file has become unreadable."""
    from PIL import Image

    from hai.data.images import decode_image

    try:
        image = Image.fromarray(decode_image(scores.read(row)))
    except DataError:
        return None
    image.thumbnail((_THUMBNAIL_PIXELS, _THUMBNAIL_PIXELS))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
