"""The report of a training run, made from its folder and the predictions of its best evaluation."""

from __future__ import annotations

import dataclasses
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hai.calibration import calibrate
from hai.checkpoint.records import CONFIG, LABEL_AUDIT, METRICS, REPORT, SUMMARY, load_json, load_records, save_text
from hai.errors import DataError
from hai.label_audit import audit_table, out_of_fold_scores
from hai.masking import without_secrets
from hai.provenance import hardware_text
from hai.rank_results import RankScores, summarise_ranking
from hai.report.detector import calibration_text, threshold_text
from hai.report.pages import ReportData, write_report
from hai.results import Scores, summarise
from hai.types import SPLITS, Arrays, Record

if TYPE_CHECKING:
    from hai.data.manifest import Manifest

__all__ = ["data_notes", "provenance_facts", "write_training_report"]

Features = Callable[[], NDArray[np.float32]]
"""Reads the kept features of the training images, [N, D], in the order of the manifest."""

_LARGEST_NOTES = 20
_TITLES = {"detector": "Training of a deepfake detector", "ranker": "Training of an image ranker"}
_OWN_IMAGES = {
    "detector": "hai predict --checkpoint {run} --input FOLDER --output predictions.csv",
    "ranker": "hai rank --checkpoint {run} --input FOLDER --output ranking.csv",
}


def write_training_report(
    run_folder: Path,
    predictions: Arrays | None = None,
    manifest: Manifest | None = None,
    *,
    features: Features | None = None,
    seed: int = 0,
) -> Path:
    """Write `report.html` into a run folder, and `label_audit.csv` of a ranker that has learned from tiers.

    Args:
        run_folder: local run folder; what it lacks is left out of the page.
        predictions: of the validation split by the best checkpoint, with `index`; None: curves only.
        manifest: what `index` points into; its warnings go onto the page.
        features: of a ranker whose backbone stays frozen; the labels of its training images are audited with them.
        seed: of the bootstrap.

    Returns:
        The page's path.
    """
    summary = load_json(run_folder / SUMMARY) or {}
    config = run_folder / CONFIG
    task = summary.get("task", "detector")
    run = ReportData(
        name=summary.get("name") or run_folder.name,
        title=_TITLES[task],
        status=summary.get("status", "running"),
        task=task,
        facts=_facts(summary, manifest),
        history=load_records(run_folder / METRICS),
        best=summary.get("best"),
        notes=data_notes(manifest),
        commands=_commands(run_folder, summary, task),
        versions=summary.get("versions", {}),
        config=without_secrets(config.read_text(encoding="utf-8")) if config.exists() else "",
        written=time.strftime("%Y-%m-%d %H:%M %Z"),
    )
    if predictions is not None and manifest is not None and len(predictions["index"]):
        if task == "ranker":
            run = _ranked(run, predictions, manifest, features, seed)
            assert isinstance(run.scores, RankScores)
            if run.scores.tiers:
                audited = {"val": run.scores} | ({"train": run.trained_on} if run.trained_on else {})
                save_text(run_folder / LABEL_AUDIT, audit_table(audited))
        else:
            run = _detected(run, predictions, manifest, seed)
    path = run_folder / REPORT
    write_report(path, run)
    return path


def _detected(run: ReportData, predictions: Arrays, manifest: Manifest, seed: int) -> ReportData:
    groups = [manifest.group[row] for row in predictions["index"]]
    fitted = calibrate(predictions["label"], predictions["logit"], groups)
    scores = Scores.of(predictions, manifest, fitted.temperature)
    return dataclasses.replace(
        run,
        split="validation",
        scores=scores,
        summary=summarise(scores, fitted.threshold, seed),
        threshold_note=threshold_text(
            fitted,
            "It was chosen on these same images and is stored with the checkpoint, so numbers that depend on it "
            "flatter a little; an evaluation on a test split does not.",
        ),
        calibration_note=calibration_text(fitted, scores),
    )


def _ranked(
    run: ReportData, predictions: Arrays, manifest: Manifest, features: Features | None, seed: int
) -> ReportData:
    scores = RankScores.of(predictions, manifest)
    return dataclasses.replace(
        run,
        split="validation",
        scores=scores,
        summary=summarise_ranking(scores, seed),
        trained_on=_out_of_fold(manifest, features, seed) if features and scores.tiers else None,
        threshold_note="The borders between tiers were fitted to these same validation images and are stored with the "
        "checkpoint, so numbers that depend on them flatter a little; an evaluation on a test split does not.",
    )


def _out_of_fold(manifest: Manifest, features: Features, seed: int) -> RankScores | None:
    """Score the training images by models that have not seen their groups; None when there are too few groups."""
    rows = manifest.indices("train")
    try:
        score = out_of_fold_scores(features(), manifest.label[rows], [manifest.group[i] for i in rows], seed=seed)
    except DataError:
        return None
    return RankScores.of({"index": rows, "score": score, "spread": np.zeros(len(rows))}, manifest)


def provenance_facts(record: Record) -> list[tuple[str, str]]:
    """Lay out commit, hardware and command of a record for a page."""
    facts = []
    if "commit" in record:
        facts.append(("Commit", record["commit"] or "not a git checkout"))
    if record.get("hardware"):
        facts.append(("Hardware", hardware_text(record["hardware"])))
    if record.get("command"):
        facts.append(("Command", record["command"]))
    return facts


def _facts(summary: Record, manifest: Manifest | None) -> list[tuple[str, str]]:
    facts = []
    if manifest is not None:
        parts = [f"{split} {_counts(manifest.label[manifest.indices(split)], manifest.labels)}" for split in SPLITS]
        facts.append(("Images", "; ".join(parts)))
        facts.append(("Data identity", manifest.identity[:12]))
    if "step" in summary:
        of = f" of {summary['total_steps']:,}" if "total_steps" in summary else ""
        facts.append(("Step", f"{summary['step']:,}{of} (epoch {summary.get('epoch', 0):.4g})"))
    if summary.get("best"):
        facts.append(("Checkpoint", f"{summary['best'].get('checkpoint', '')} (the best)"))
    return [*facts, *provenance_facts(summary)]


def _counts(label: NDArray[Any], names: tuple[str, ...]) -> str:
    if len(names) == 1:  # known by comparisons only
        return f"{len(label):,} images"
    return ", ".join(f"{np.sum(label == code):,} {name}" for code, name in enumerate(names))


def data_notes(manifest: Manifest | None) -> list[str]:
    """Collect what a reader should know about the data: warnings and unreadable images, the first 20."""
    if manifest is None:
        return []
    notes = [*manifest.warnings, *(f"{problem.path}: {problem.reason}" for problem in manifest.problems)]
    more = len(notes) - _LARGEST_NOTES
    return notes if more <= 0 else [*notes[:_LARGEST_NOTES], f"and {more:,} more, see log.txt"]


def _commands(run_folder: Path, summary: Record, task: str) -> list[tuple[str, str]]:
    commands = [("Train again:", summary["command"])] if summary.get("command") else []
    run = shlex.quote(str(run_folder.relative_to(Path.cwd()) if run_folder.is_relative_to(Path.cwd()) else run_folder))
    return [
        *commands,
        ("Measure it on new images:", f"hai evaluate --checkpoint {run} --data FOLDER_OR_CSV"),
        ("Try it on your own:", _OWN_IMAGES[task].format(run=run)),
    ]
