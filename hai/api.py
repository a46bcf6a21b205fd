"""hai from Python: split, train, tune, evaluate, load what was trained, each as its verb does it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hai.types import Record

if TYPE_CHECKING:
    from hai.predict.detector import Detector
    from hai.ranking import Ranker
    from hai.sweep.records import TrialRecord

__all__ = ["Run", "Sweep", "evaluate", "load", "load_ranker", "split_data", "train", "tune"]


@dataclass(frozen=True)
class Run:
    """A run that `train` has carried out.

    Args:
        folder: where it is kept, a folder or a URL; `evaluate` and `load_ranker` take it, and so does the command line.
        status: finished or interrupted.
        step: optimizer steps done.
        best: {metric, value, step, checkpoint} of the best checkpoint; None before the first evaluation.
    """

    folder: str
    status: str
    step: int
    best: Record | None

    def __str__(self) -> str:
        return self.folder


@dataclass(frozen=True)
class Sweep:
    """A sweep that `tune` has carried out.

    Args:
        folder: where it is kept, a folder or a URL.
        status: finished or interrupted.
        best: values of the best trial so far, by dotted key; empty before the first evaluation.
        best_checkpoint: the best trial's run, which `evaluate` and `load_ranker` take; "" before there is one.
        trials: their records.
        report: where the page is.
    """

    folder: str
    status: str
    best: dict[str, Any]
    best_checkpoint: str
    trials: list[TrialRecord]
    report: str

    def __str__(self) -> str:
        return self.folder


def split_data(
    data: str | Path,
    output: str | Path,
    *,
    image_dir: str | Path | None = None,
    ratios: tuple[float, float, float] = (0.8, 0.1, 0.1),
    seed: int = 42,
) -> Path:
    """Divide images over train, val and test, groups and near-duplicates kept together; the same as `hai data split`.

    Args:
        data: folder, CSV, pack or zip.
        output: the CSV to write.
        image_dir: folder that the CSV's paths start from.
        ratios: shares of train, val and test.
        seed: another seed makes another division.

    Raises:
        HaiError: as the verb.
    """
    from hai.config.load import config_from_yaml_text
    from hai.config.text import dump_yaml
    from hai.data.index import split_data as write_split
    from hai.data.tiers import task_of

    source = {"path": str(data), "image_dir": None if image_dir is None else str(image_dir)}
    text = dump_yaml({"data": {"sources": [source], "max_bad_fraction": 1.0, "split_ratios": list(ratios)}})
    config = config_from_yaml_text(text, "split_data").data
    write_split(config, seed, output, task=task_of(config))
    return Path(output)


def train(
    config: str | Path,
    *overrides: str,
    name: str | None = None,
    storage: str | Path | None = None,
    restart: bool = False,
) -> Run:
    """Train or go on training; the same as `hai train`.

    Args:
        config: YAML file.
        overrides: `key=value`, as on the command line.
        name: of the run; default: the config file's name.
        storage: folder or URL that holds the runs; default: HAI_STORAGE, else runs/.
        restart: begin anew; the old run is kept aside.

    Raises:
        HaiError: as the verb.
    """
    from hai.checkpoint.reach import reach
    from hai.checkpoint.records import SUMMARY, parse_json
    from hai.checkpoint.remote import locate
    from hai.config.load import load_config
    from hai.launch.train import run_training

    run = load_config(config, overrides)
    named = name or run.name or Path(config).stem
    kept = str(storage or run.storage or os.environ.get("HAI_STORAGE") or "runs")
    run_training(run.model_copy(update={"name": named, "storage": kept}), restart=restart)
    location = locate(kept, named)
    remote = location.remote
    if remote is not None:
        content = reach(remote.url, lambda: remote.read(SUMMARY))
    else:
        content = (location.path / SUMMARY).read_bytes() if (location.path / SUMMARY).is_file() else None
    summary = parse_json(content) or {}
    status, step = str(summary.get("status", "interrupted")), int(summary.get("step", 0))
    return Run(f"{kept.rstrip('/')}/{named}", status, step, summary.get("best"))


def tune(config: str | Path, *overrides: str, name: str | None = None, storage: str | Path | None = None) -> Sweep:
    """Try many values of a config, or go on trying; the same as `hai tune`.

    Args:
        config: YAML file of a sweep.
        overrides: `key=value`, as on the command line.
        name: of the sweep; default: the file's name.
        storage: folder or URL where it is kept; default: HAI_STORAGE, else runs/.

    Raises:
        HaiError: as the verb.
    """
    from hai.checkpoint.records import REPORT
    from hai.checkpoint.remote import locate
    from hai.config.sweep import load_sweep
    from hai.launch.sweep import run_sweep
    from hai.sweep.folder import load_sweep_files

    sweep = load_sweep(config, overrides)
    named = name or sweep.base.name or Path(config).stem
    kept = str(storage or sweep.base.storage or os.environ.get("HAI_STORAGE") or "runs")
    run_sweep(sweep, name=named, storage=kept)
    summary, trials = load_sweep_files(locate(kept, named))
    best, folder = summary.get("best") or {}, f"{kept.rstrip('/')}/{named}"
    checkpoint = f"{folder}/{best['checkpoint']}" if best else ""
    status = str(summary.get("status", "interrupted"))
    return Sweep(folder, status, best.get("params", {}), checkpoint, trials, f"{folder}/{REPORT}")


def evaluate(
    checkpoint: Run | str | Path,
    data: str | Path,
    *,
    split: str = "test",
    output: str | Path | None = None,
    image_dir: str | Path | None = None,
    robustness: bool = False,
) -> Record:
    """Measure a checkpoint on labelled images; the same as `hai evaluate`.

    Args:
        checkpoint: what `train` returned, a run or checkpoint folder, or a URL of either.
        data: folder, CSV, pack or zip.
        split: train, val or test.
        output: where the files go; default: `evaluation/<split>/` in the run.
        image_dir: folder that the CSV's paths start from.
        robustness: also measure compressed, blurred, noisy, smaller, darker and brighter images.

    Returns:
        What evaluation.json says.

    Raises:
        HaiError: as the verb.
    """
    from hai.evaluation import evaluate_checkpoint

    return evaluate_checkpoint(
        str(checkpoint),
        str(data),
        split=split,
        output=None if output is None else str(output),
        image_dir=None if image_dir is None else str(image_dir),
        robustness=robustness,
    )


def load(
    checkpoint: Run | str | Path, device: str | None = None, *, detector_model: str | Path | None = None
) -> Detector | Ranker:
    """Load what was trained, ready to score: `hai.load(run)(["a.jpg", "b.jpg"])` is P(fake) of each, or its score.

    Args:
        checkpoint: what `train` returned, a run or checkpoint folder, or a URL of either.
        device: where to compute; None: a GPU if there is one.
        detector_model: the model file of mediapipe, where that cut the training images out and its file lies elsewhere
            now.

    Returns:
        A Detector, to be called with images and videos, or a Ranker, to be called with images.

    Raises:
        HaiError: there is no whole checkpoint.
    """
    import torch

    from hai.predict.detector import Detector
    from hai.ranking import Ranker
    from hai.trained import best_device, load_trained

    trained = load_trained(str(checkpoint), best_device() if device is None else torch.device(device))
    return Ranker(trained) if trained.config.task == "ranker" else Detector(trained, detector_model)


def load_ranker(checkpoint: Run | str | Path, device: str | None = None) -> Ranker:
    """Load a ranker, to be called with images: `.compare(left, right)`, `.rank(files)`, `.score(images)`.

    Args:
        checkpoint: what `train` returned, a run or checkpoint folder, or a URL of either.
        device: where to compute; None: a GPU if there is one.

    Raises:
        HaiError: there is no whole checkpoint of a ranker.
    """
    from hai.ranking import load_ranker as load

    return load(str(checkpoint), device)
