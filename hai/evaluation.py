"""Measure a checkpoint on labelled images: evaluation.json, tables of predictions and report.html."""

from __future__ import annotations

import os
import re
import shlex
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from hai.checkpoint.reach import reach
from hai.checkpoint.records import CONFIG, METRICS, REPORT, parse_records, save_json, save_text
from hai.checkpoint.remote import check_storage, is_bucket, local_folder, open_remote
from hai.checkpoint.runs import read_run_file
from hai.config.schema import DataConfig, RunConfig, SourceConfig
from hai.data.remote import plain_url
from hai.error_table import error_table, image_facts
from hai.errors import ConfigError, DataError, StorageError
from hai.explain import Explained, explain_mistakes
from hai.masking import without_secrets
from hai.metrics import detector_metrics
from hai.progress import progress_bar
from hai.provenance import provenance
from hai.rank_results import RankScores, ranking_tables, summarise_ranking
from hai.report import ReportData, write_report
from hai.report.detector import calibration_text, threshold_text
from hai.report.robustness import robustness_rows
from hai.report.training import data_notes, provenance_facts
from hai.results import Scores, prediction_tables, summarise
from hai.score_scale import Scale
from hai.types import SPLITS, Arrays, Batch, Record

if TYPE_CHECKING:
    import torch

    from hai.data.manifest import Manifest
    from hai.tasks.base import Dataset
    from hai.trained import Trained

__all__ = ["EVALUATION", "evaluate_checkpoint", "run_evaluation"]

EVALUATION: Final = "evaluation.json"
_CHANGEABLE: Final = ("data.", "train.eval_batch_size", "seed")


@dataclass(frozen=True)
class _Results:
    """What came out of a split, laid out for files, page and console.

    Args:
        scores: of all images, with their names.
        summary: what evaluation.json says about them.
        tables: CSVs by file name.
        counts: of images, for the console.
        served: how they were read, for the console.
        threshold_note: where that comes from, a sentence for the page.
        usage: a verb and its options that score images without labels.
        measure: turns predictions of some of the images into metrics.
        calibration_note: how logits became probabilities, a sentence or two for the page.
        explained: of a detector: pictures of its worst mistakes by source.
    """

    scores: Scores | RankScores
    summary: Record
    tables: dict[str, str]
    counts: str
    served: str
    threshold_note: str
    usage: tuple[str, str]
    measure: Callable[[Arrays], dict[str, Record]]
    calibration_note: str = ""
    explained: dict[str, list[Explained]] = field(default_factory=dict)


def run_evaluation(
    checkpoint: str,
    data: str,
    *,
    split: str = "test",
    output: str | None = None,
    image_dir: str | None = None,
    robustness: bool = False,
    overrides: Sequence[str] = (),
) -> int:
    """Carry out the verb, see `evaluate_checkpoint`; exit status 0."""
    evaluate_checkpoint(
        checkpoint, data, split=split, output=output, image_dir=image_dir, robustness=robustness, overrides=overrides
    )
    return 0


def evaluate_checkpoint(
    checkpoint: str,
    data: str | None,
    *,
    split: str = "test",
    output: str | None = None,
    image_dir: str | None = None,
    robustness: bool = False,
    overrides: Sequence[str] = (),
    quiet: bool = False,
) -> Record:
    """Predict the images of a split once each, measure, write the files and say what came out.

    Args:
        checkpoint: REF: a run folder (its best), a checkpoint, or a URL of either.
        data: DATA: a folder, CSV, pack or zip; rows without a split count as the split. None: the data that the run
            was trained with, divided as they were then.
        split: train, val or test.
        output: folder or URL; default: `evaluation/<split>/` in the run.
        image_dir: folder that a CSV's paths start from.
        robustness: also measure compressed, blurred, noisy, smaller, darker and brighter images.
        overrides: `key=value` over the run's config, for keys that leave the model as it is.
        quiet: print nothing.

    Returns:
        What evaluation.json says.

    Raises:
        HaiError: for wrong arguments, data or checkpoints.
    """
    _check(data, split, overrides)
    from hai.trained import best_device, load_trained

    trained = load_trained(checkpoint, best_device(), overrides)
    target = output or f"{trained.run}/evaluation/{split}"
    _check_output(target)
    config = trained.config
    if data is not None:
        config = config.model_copy(update={"data": _data_config(config.data, data, image_dir, split)})
    manifest = _manifest(config, data, split)
    results = _RESULTS[config.task](trained, manifest, _predictions(trained, config, manifest, split))
    record = {
        "task": config.task,
        **results.summary,
        **({"robustness": _robustness(trained, manifest, split, results)} if robustness else {}),
        "checkpoint": {
            "path": str(trained.checkpoint.path),
            "step": trained.checkpoint.step,
            "sha256": trained.checkpoint.sha256,
        },
        "data": {
            "path": without_secrets(data or _names_of(config.data)),
            "identity": manifest.identity,
            "split": split,
            "num_unreadable": len(manifest.problems),
        },
        **provenance(),
    }
    _write(target, record, results.tables, _page(trained, manifest, results, record, checkpoint))
    if quiet:
        return record
    _tell(record, f"{record['data']['path']}, split {split}: {record['n']} images {results.counts}", results.served)
    for name in (EVALUATION, *results.tables, REPORT):
        print(without_secrets(f"{target.rstrip('/')}/{name}"))
    return record


# -- before ------------------------------------------------------------------------------------------------------------


def _check(data: str | None, split: str, overrides: Sequence[str]) -> None:
    problems = []
    if split not in SPLITS:
        problems.append(f"--split = {split}; must be one of {', '.join(SPLITS)}")
    if data is not None and "://" not in data and not Path(data).expanduser().exists():
        problems.append(f"--data = {data}; no such file or folder")
    for override in overrides:
        key = override.partition("=")[0].strip()
        if not key.startswith(_CHANGEABLE) or key.startswith("data.sources"):
            problems.append(
                f"command line: {key}; the model is as it was trained, and --data says what to measure; only other "
                "data.* keys, train.eval_batch_size and seed may be given"
            )
    if problems:
        raise ConfigError("\n".join(problems))


def _check_output(target: str) -> None:
    """Refuse a place that cannot be written before the work is done; a local folder is not made yet."""
    if is_bucket(target):
        check_storage(target)
        return
    folder = local_folder(target)
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise ConfigError(f"--output = {target}; {nearest} is not a folder that can be written; choose another")


def _data_config(config: DataConfig, data: str, image_dir: str | None, split: str) -> DataConfig:
    name = re.sub(r"\.(csv|zip|tar|tgz|tar\.gz)$", "", plain_url(data).rstrip("/").rpartition("/")[2]) or "data"
    if name in ("labels", "metadata", "comparisons") and "/" in data:
        name = data.rstrip("/").split("/")[-2] or name
    source = SourceConfig(name=name, path=data, image_dir=image_dir, splits=[cast(Any, split)])
    return config.model_copy(update={"sources": [source]})


def _names_of(config: DataConfig) -> str:
    return ", ".join(source.path for source in config.sources)


def _manifest(config: RunConfig, data: str | None, split: str) -> Manifest:
    """Read the images of the split; when there are none, say which splits there are."""
    from hai.data.manifest import build_manifest

    with progress_bar("reading") as show:
        manifest = build_manifest(config.data, config.seed, task=config.task, require=(), progress=show)
    if not len(manifest.indices(split)) and data is None:
        raise DataError(f"{_names_of(config.data)}: no image in the split {split}")
    if not len(manifest.indices(split)):
        (source,) = config.data.sources
        everything = config.data.model_copy(update={"sources": [source.model_copy(update={"splits": None})]})
        manifest = build_manifest(everything, config.seed, task=config.task, require=())
        counts = {name: len(manifest.indices(name)) for name in SPLITS}
        present = ", ".join(f"{name} ({count})" for name, count in counts.items() if count)
        raise DataError(f"{data}: no image in the split {split}; present: {present or 'none'}; choose with --split")
    return manifest


# -- predictions -------------------------------------------------------------------------------------------------------


class _Counted:
    """A data set that tells how far its batches have come."""

    def __init__(self, dataset: Dataset, show: Callable[[int, int], None]) -> None:
        self._dataset, self._show = dataset, show

    def __len__(self) -> int:
        return len(self._dataset)

    def strata(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        return self._dataset.strata()

    def batches(
        self, requests: Iterable[tuple[int, NDArray[np.int64]]], *, device: torch.device, training: bool
    ) -> Generator[Batch, None, None]:
        done = 0
        with closing(self._dataset.batches(requests, device=device, training=training)) as batches:
            for batch in batches:
                yield batch
                done += len(batch["index"])
                self._show(done, len(self))

    def names(self, positions: NDArray[np.int64]) -> list[str]:
        return self._dataset.names(positions)

    def prepare(self, batch: Batch, *, epoch: int, training: bool) -> Batch:
        return self._dataset.prepare(batch, epoch=epoch, training=training)


def _predictions(trained: Trained, config: RunConfig, manifest: Manifest, split: str) -> Arrays:
    """Predict the split in full precision, so that each score equals that of `hai predict` and `hai rank`."""
    from hai.data.dataset import ImageDataset
    from hai.distributed import Workers
    from hai.predictions import predict_split
    from hai.tasks import build_task

    with progress_bar("scoring") as show:
        dataset = _Counted(ImageDataset(manifest, config, split), show)
        return predict_split(
            trained.model,
            build_task(config),
            dataset,
            Workers(device=trained.device),
            batch_size=config.train.eval_batch_size or config.train.global_batch_size,
        )


def _robustness(trained: Trained, manifest: Manifest, split: str, results: _Results) -> Record:
    from hai.robustness import measure_robustness, sample_rows

    with progress_bar("disturbing") as show:
        return measure_robustness(
            trained, manifest, sample_rows(manifest, manifest.indices(split)), results.measure, show
        )


# -- results -----------------------------------------------------------------------------------------------------------


def _detection(trained: Trained, manifest: Manifest, predictions: Arrays) -> _Results:
    scores = Scores.of(predictions, manifest, trained.temperature)
    fitted = trained.calibration
    summary = summarise(scores, trained.threshold, trained.config.seed) | {
        "threshold_interval": [fitted.threshold_low, fitted.threshold_high],
        "temperature": trained.temperature,
    }
    (tn, fp), (fn, tp) = summary["confusion_matrix"]
    assert scores.index is not None, "they are of a manifest"
    with progress_bar("looking") as show:
        facts = image_facts(manifest, scores.index, trained.layout.max_megapixels, show)
    summary["errors"] = error_table(scores, trained.threshold, facts)

    def measure(predictions: Arrays) -> dict[str, Record]:
        of = Scores.of(predictions, manifest, trained.temperature)
        return detector_metrics(
            of.label, of.probability_fake, of.group, trained.threshold, seed=trained.config.seed, video=of.video
        )

    with progress_bar("explaining") as show:
        explained = explain_mistakes(trained, scores, show)
    return _Results(
        scores,
        summary,
        prediction_tables(scores, trained.threshold),
        f"({tn + fp} real, {fn + tp} fake)",
        f"threshold {trained.threshold:.3f}",
        threshold_text(fitted, "It was chosen in training and is stored with the checkpoint."),
        ("predict", "--input FOLDER --output scores.csv"),
        measure,
        calibration_text(fitted, scores),
        explained,
    )


def _ranking(trained: Trained, manifest: Manifest, predictions: Arrays) -> _Results:
    scores = RankScores.of(predictions, manifest, Scale.from_record(trained.checkpoint.meta["fitted"]))
    summary = summarise_ranking(scores, trained.config.seed)
    per_tier = ", ".join(f"{count} {name}" for name, count in zip(scores.tiers, scores.num_per_tier, strict=True))
    return _Results(
        scores,
        summary,
        ranking_tables(scores),
        f"({per_tier or f'{len(scores.comparisons)} comparisons'})",
        f"{summary['num_correct']} of {summary['num_pairs']} pairs in the right order",
        "The borders between tiers were fitted to the validation split in training and are stored with the checkpoint.",
        ("rank", "--input FOLDER --output ranking.csv"),
        lambda some: summarise_ranking(RankScores.of(some, manifest, scores.scale), trained.config.seed)["metrics"],
    )


_RESULTS: Final = {"detector": _detection, "ranker": _ranking}


def _page(trained: Trained, manifest: Manifest, results: _Results, record: Record, reference: str) -> ReportData:
    data, checkpoint = record["data"], record["checkpoint"]
    verb, options = results.usage
    images = f"{data['path']}, split {data['split']}"
    return ReportData(
        name=Path(trained.run).name,
        title=f"Evaluation on {images}",
        status="evaluated",
        task=trained.config.task,
        facts=[
            ("Images", images),
            ("Data identity", data["identity"][:12]),
            ("Checkpoint", f"{Path(checkpoint['path']).name}, sha256 {checkpoint['sha256'][:12]}"),
            *provenance_facts(record),
        ],
        summary=record,
        scores=results.scores,
        explained=results.explained,
        split={"train": "training", "val": "validation"}.get(data["split"], data["split"]),
        threshold_note=results.threshold_note,
        calibration_note=results.calibration_note,
        history=parse_records(read_run_file(trained.run, METRICS)),
        best=trained.checkpoint.meta.get("best"),
        notes=data_notes(manifest),
        commands=[
            ("Evaluate again:", record["command"]),
            (
                "Try it on your own images:",
                f"hai {verb} --checkpoint {shlex.quote(without_secrets(reference))} {options}",
            ),
        ],
        versions=record["versions"],
        config=without_secrets(read_run_file(trained.run, CONFIG).decode("utf-8", "replace")),
        written=time.strftime("%Y-%m-%d %H:%M %Z"),
    )


def _write(target: str, record: Record, tables: dict[str, str], page: ReportData) -> None:
    """Write the files into a local folder, or beside it and then onto the storage."""
    remote = open_remote(target)
    try:
        if remote is None:
            _write_files(local_folder(target), record, tables, page)
            return
        with tempfile.TemporaryDirectory() as folder:
            _write_files(Path(folder), record, tables, page)
            for name in (*tables, REPORT, EVALUATION):
                path = Path(folder) / name
                reach(target, lambda name=name, path=path: remote.put(path, name))  # type: ignore[misc]
    except OSError as error:
        raise StorageError(f"--output = {target}; cannot be written ({error}); choose another folder") from None


def _write_files(folder: Path, record: Record, tables: dict[str, str], page: ReportData) -> None:
    os.makedirs(folder, exist_ok=True)
    for name, text in tables.items():
        save_text(folder / name, text)
    write_report(folder / REPORT, page)
    save_json(folder / EVALUATION, record)


def _tell(record: Record, images: str, served: str) -> None:
    from hai.console import print_table

    print(f"{images} in {record['num_groups']} groups, checkpoint of step {record['checkpoint']['step']}, {served}")
    rows = []
    for name, metric in record["metrics"].items():
        known = metric["low"] is not None and metric["high"] is not None
        interval = f"{metric['low']:.3f} to {metric['high']:.3f}" if known else None
        rows.append([name, None if metric["value"] is None else round(metric["value"], 4), interval])
    print_table(["metric", "value", "95 % interval"], rows)
    if "robustness" in record:
        print(f"{record['robustness']['n']} of these images as they are and changed")
        print_table(*robustness_rows(record["robustness"]))
