"""The report of a run or an evaluation: one HTML page that holds everything it shows."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hai
from hai.checkpoint.records import save_text
from hai.explain import Explained
from hai.rank_results import RankScores
from hai.report import detector, ranking
from hai.report.blocks import markup, number
from hai.report.explained import lay_out_explained
from hai.report.plots import training_plot
from hai.report.robustness import lay_out_robustness
from hai.results import Scores
from hai.types import Record

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["ReportData", "build_report", "render_page", "write_report"]

_METRICS = {"detector": detector.METRICS, "ranker": ranking.METRICS}
_CURVES = {
    "detector": ("f1_macro", "roc_auc", "accuracy"),
    "ranker": ("pair_accuracy", "srcc", "srcc_score"),
}


@dataclass(frozen=True)
class ReportData:
    """What a page shows; parts without data are left out.

    Args:
        name: name of the run.
        title: what the page is about, such as "Evaluation on test".
        status: running, finished, failed, interrupted or evaluated.
        task: detector or ranker.
        facts: (name, text) pairs below the headline.
        summary: result of `hai.results.summarise` or `hai.rank_results.summarise_ranking`, or None.
        scores: what the summary was made of.
        explained: of a detector: pictures of its worst mistakes by source.
        trained_on: of a ranker: its training images with out-of-fold scores, for the label audit.
        split: what the scores were measured on.
        threshold_note: how the threshold was chosen, a sentence or two.
        calibration_note: how logits became probabilities, a sentence or two.
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
    task: str = "detector"
    facts: list[tuple[str, str]] = field(default_factory=list)
    summary: Record | None = None
    scores: Scores | RankScores | None = None
    explained: dict[str, list[Explained]] = field(default_factory=dict)
    trained_on: RankScores | None = None
    split: str = ""
    threshold_note: str = ""
    calibration_note: str = ""
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
    parts = {**_training(run), **_results(run)}
    if run.summary and "robustness" in run.summary:
        parts |= lay_out_robustness(run.summary["robustness"], _METRICS[run.task])
    return render_page(f"{run.task}.html", run, parts)


def render_page(template: str, run: ReportData, parts: Record) -> str:
    """Fill in a template of this package that extends base.html."""
    context: dict[str, Any] = {
        "run": run,
        "version": hai.__version__,
        "versions": " · ".join(f"{name} {value}" for name, value in run.versions.items()),
        **parts,
    }
    return _environment().get_template(template).render(context)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader

    environment = Environment(
        loader=PackageLoader("hai", "report/templates"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["number"] = number
    return environment


def _results(run: ReportData) -> Record:
    if run.summary is None or run.scores is None:
        return {}
    if isinstance(run.scores, RankScores):
        return ranking.lay_out_ranking(run.summary, run.scores, run.split, run.trained_on)
    return detector.lay_out_detection(run.summary, run.scores) | lay_out_explained(run.explained, run.scores)


def _training(run: ReportData) -> Record:
    """Draw the training curves."""
    keys = {name for record in run.history for name in record}
    best_step = run.best["step"] if run.best else None
    named = _METRICS[run.task]
    scores = {f"val/{name}": named[name][0] for name in _CURVES[run.task]}
    panels = [
        ("Loss", training_plot(run.history, {"train/loss": "training", "val/loss": "validation"}, title="loss",
                               key="loss", best_step=best_step)),
        ("Validation", training_plot(run.history, scores, title="validation metric", key="val", best_step=best_step)),
        ("Learning rate", training_plot(run.history, {"train/learning_rate": "learning rate"}, title="learning rate",
                                        key="rate", smooth=False)),
    ]  # fmt: skip
    text = ""
    if keys and run.best:
        title = named.get(run.best["metric"].removeprefix("val/"), (run.best["metric"],))[0]
        text = f"The best checkpoint, by validation {title} ({number(run.best['value'])}), is of step {best_step}."
        if run.task == "detector":
            text += " In these curves an image counts as fake from 0.5; the threshold is fitted afterwards."
    return {"training": [(title, markup(svg)) for title, svg in panels if svg], "training_text": text}
