"""The report of a training run, made from its folder and the predictions of its best evaluation."""

from __future__ import annotations

import dataclasses
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hai.checkpoint.records import CONFIG, METRICS, REPORT, SUMMARY, load_json, load_records
from hai.metrics import best_threshold
from hai.provenance import hardware_text, without_secrets
from hai.report.pages import ReportData, write_report
from hai.results import Scores, summarise
from hai.types import SPLITS, Arrays, Record

if TYPE_CHECKING:
    from hai.data.manifest import Manifest

__all__ = ["data_notes", "provenance_facts", "write_training_report"]

_LARGEST_NOTES = 20


def write_training_report(
    run_folder: Path, predictions: Arrays | None = None, manifest: Manifest | None = None, *, seed: int = 0
) -> Path:
    """Write `report.html` into a run folder.

    Args:
        run_folder: local run folder; what it lacks is left out of the page.
        predictions: of the validation split by the best checkpoint: `index`, `label`, `logit`; None: curves only.
        manifest: what `index` points into; its warnings go onto the page.
        seed: of the bootstrap.

    Returns:
        The page's path.
    """
    summary = load_json(run_folder / SUMMARY) or {}
    config = run_folder / CONFIG
    run = ReportData(
        name=summary.get("name") or run_folder.name,
        title=f"Training of a deepfake {summary.get('task', 'detector')}",
        status=summary.get("status", "running"),
        facts=_facts(summary, manifest),
        history=load_records(run_folder / METRICS),
        best=summary.get("best"),
        notes=data_notes(manifest),
        commands=_commands(run_folder, summary),
        versions=summary.get("versions", {}),
        config=without_secrets(config.read_text(encoding="utf-8")) if config.exists() else "",
        written=time.strftime("%Y-%m-%d %H:%M %Z"),
    )
    if predictions is not None and manifest is not None and len(predictions["index"]):
        scores = Scores.of(predictions, manifest)
        threshold = best_threshold(scores.label, scores.probability_fake)
        run = dataclasses.replace(
            run,
            split="validation",
            scores=scores,
            summary=summarise(scores, threshold, seed),
            threshold_note="It was chosen on these same validation images for the best macro-F1 and is stored with the "
            "checkpoint, so numbers that depend on it flatter a little; an evaluation on a test split does not.",
        )
    path = run_folder / REPORT
    write_report(path, run)
    return path


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
        counts = [(split, manifest.label[manifest.indices(split)]) for split in SPLITS]
        parts = [f"{split} {np.sum(label == 0):,} real, {np.sum(label == 1):,} fake" for split, label in counts]
        facts.append(("Images", "; ".join(parts)))
        facts.append(("Data identity", manifest.identity[:12]))
    if "step" in summary:
        of = f" of {summary['total_steps']:,}" if "total_steps" in summary else ""
        facts.append(("Step", f"{summary['step']:,}{of} (epoch {summary.get('epoch', 0):.4g})"))
    if summary.get("best"):
        facts.append(("Checkpoint", f"{summary['best'].get('checkpoint', '')} (the best)"))
    return [*facts, *provenance_facts(summary)]


def data_notes(manifest: Manifest | None) -> list[str]:
    """Collect what a reader should know about the data: warnings and unreadable images, the first 20."""
    if manifest is None:
        return []
    notes = [*manifest.warnings, *(f"{problem.path}: {problem.reason}" for problem in manifest.problems)]
    more = len(notes) - _LARGEST_NOTES
    return notes if more <= 0 else [*notes[:_LARGEST_NOTES], f"and {more:,} more, see log.txt"]


def _commands(run_folder: Path, summary: Record) -> list[tuple[str, str]]:
    commands = [("Train again:", summary["command"])] if summary.get("command") else []
    run = shlex.quote(str(run_folder.relative_to(Path.cwd()) if run_folder.is_relative_to(Path.cwd()) else run_folder))
    return [
        *commands,
        ("Measure it on new images:", f"hai evaluate --checkpoint {run} --data FOLDER_OR_CSV"),
        ("Try it on your own:", f"hai predict --checkpoint {run} --input FOLDER --output predictions.csv"),
    ]
