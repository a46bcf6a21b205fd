"""The verb `predict`: arguments checked at once, files scored in time, one row for each."""

from __future__ import annotations

import math
import os
import re
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from hai.calibration import common_threshold
from hai.errors import ConfigError, StorageError
from hai.faces.settings import CropSettings, with_model
from hai.paths import cache_folder
from hai.predict.aggregate import AGGREGATES
from hai.predict.files import Row, check_output, find_rows
from hai.predict.pictures import View
from hai.predict.table import FORMATS, tell, write_tables
from hai.progress import progress_bar

if TYPE_CHECKING:
    from hai.trained import Trained

__all__ = [
    "end_process",
    "option_faults",
    "predict_files",
    "probability_at",
    "run_prediction",
    "view_for",
    "work_seconds",
]

_LEAST_MEGAPIXELS: Final = 120.0
"""What is looked at in any case: photographs of phones are larger than what one trains with."""
_CONTESTS: Final = ("dacon", "aifactory")
_SPARE_SHARE, _SPARE_SECONDS = 0.05, 5.0
"""What is kept back of a time limit for the table and the end of the process: the share, at most so many seconds."""


def run_prediction(
    checkpoints: Sequence[str],
    inputs: Sequence[str],
    output: str,
    *,
    format: str = "full",
    frames: int = 16,
    faces: str = "auto",
    aggregate: str = "mean",
    sample: str | None = None,
    time_limit: str | None = None,
    tta: str | None = None,
    detector_model: str | None = None,
) -> int:
    """Write a table with the probability of fake of every image and video found.

    Args:
        checkpoints: REFs; the logits of several are averaged.
        inputs: image and video files, folders (searched deeply) and archives.
        output: the CSV; it appears when it is whole. Beside that of a contest lies the full one, `NAME.full.csv`.
        format: `full`, or the columns of a contest: `dacon`, `aifactory`.
        frames: frames to look at in each video, evenly spread.
        faces: `auto` cuts faces out where the training data were cut so; `always` everywhere; `never`.
        aggregate: of the logits of a video's frames: `mean`, `median`, `topk` (of the highest quarter) or `max`.
        sample: a contest's sample file, whose names and order the table takes.
        time_limit: such as `60m`; fewer frames are looked at where the time is short, and files that are not reached
            are listed as unusable.
        tta: `flip`: average with the mirrored picture.
        detector_model: the model file of mediapipe; default: where it lay when the training images were cut out.

    Returns:
        Exit status 0; unusable files are listed in the table.

    Raises:
        HaiError: for wrong arguments, inputs or checkpoints.
    """
    started = time.monotonic()
    target = Path(output)
    seconds = _check(checkpoints, inputs, target, format, frames, faces, aggregate, sample, time_limit, tta)
    with ExitStack() as stack:
        rows = find_rows(inputs, stack, sample=sample, unique=format in _CONTESTS)

        from hai.trained import best_device, load_trained

        device = best_device()
        models = [load_trained(reference, device) for reference in checkpoints]
        for reference, model in zip(checkpoints, models, strict=True):
            if model.config.task != "detector":
                raise ConfigError(f"--checkpoint = {reference}; is a {model.config.task}; use hai rank or hai compare")
        views = [view_for(model, faces, detector_model) for model in models]
        if detector_model is not None and not any(view.cut and view.cut.detector_model for view in views):
            raise ConfigError(f"--detector-model = {detector_model}; mediapipe cuts no faces out here; leave it out")
        if faces == "always":
            rows = [replace(row, is_ready=False) for row in rows]
        ends = started + work_seconds(seconds) if seconds else math.inf
        fewest = predict_files(
            rows, models, views, frames=frames, how=aggregate, flip=tta == "flip", ends=ends, stack=stack
        )
        _finish(rows, len(models), time_limit)
        threshold = common_threshold([model.threshold for model in models])
        try:  # before what was unpacked is removed, which takes a while and may fail
            full = write_tables(target, rows, threshold, format)
        except OSError as error:
            raise StorageError(_saved_elsewhere(target, rows, threshold, format, error)) from None
    tell(target, full, rows, threshold, format, cut=any(view.cut is not None for view in views))
    if fewest < frames:
        print(f"note: {fewest} to {frames} frames of each video were looked at, for --time-limit {time_limit}")
    return 0


def work_seconds(limit: float) -> float:
    """Return how long files may be worked on within a time limit, both in seconds."""
    return limit - min(_SPARE_SHARE * limit, _SPARE_SECONDS)


def end_process(status: int) -> NoReturn:
    """Exit, at once where a batch for which there was no time is still being scored: it would be waited for."""
    from hai.predict.lanes import is_scoring

    if is_scoring():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def view_for(model: Trained, faces: str, detector_model: str | None = None) -> View:
    """Say how files become pictures for a model.

    Args:
        model: a detector.
        faces: auto, always or never.
        detector_model: see `run_prediction`.

    Raises:
        ConfigError: its faces were cut by a detector that cannot be had here.
    """
    layout, cut = model.layout, None
    if faces != "never":
        cut = model.crop_settings
        if cut is None and faces == "always":
            cut = CropSettings(image_size=0, format="png")
    if cut is not None:
        from hai.faces.crops import FaceCutter

        try:
            cut = with_model(cut, detector_model)
            FaceCutter.of(cut)
        except ConfigError as error:
            raise ConfigError(f"{error}; or leave faces as they are with --faces never") from None
    return View(layout.size, layout.geometry, max(layout.max_megapixels, _LEAST_MEGAPIXELS), cut)


def predict_files(
    rows: Sequence[Row],
    models: Sequence[Trained],
    views: Sequence[View],
    *,
    frames: int,
    how: str,
    flip: bool,
    ends: float,
    stack: ExitStack,
) -> int:
    """Score rows with each model; files are read once per distinct view.

    Args:
        rows: files.
        models: with their views.
        views: how files become pictures for each model.
        frames: of each video, at most.
        how: one of AGGREGATES.
        flip: average with the mirrored picture.
        ends: when the work must be done, by time.monotonic.
        stack: holds the progress bar.

    Returns:
        The fewest frames that were asked of a video.
    """
    from hai.predict.score import score_rows

    distinct = sorted(dict.fromkeys(views), key=lambda view: view.cut is not None)  # last, so that its faces are told
    show = stack.enter_context(progress_bar("scoring", "files"))
    fewest = frames
    for number, view in enumerate(distinct):

        def show_part(done: int, total: int, number: int = number) -> None:
            show(number * len(rows) + done, len(distinct) * len(rows))

        plan = score_rows(
            rows,
            [model for model, own in zip(models, views, strict=True) if own == view],
            view,
            frames=frames,
            how=how,
            flip=flip,
            seconds=(ends - time.monotonic()) / (len(distinct) - number),
            show=show_part,
        )
        fewest = min(fewest, plan.fewest)
    return fewest


def probability_at(logit: float) -> float:
    """Turn a logit of fake against real into the probability of fake."""
    return 0.5 * (1.0 + math.tanh(0.5 * logit))


def _saved_elsewhere(target: Path, rows: Sequence[Row], threshold: float, format: str, error: OSError) -> str:
    """Keep the work of hours where the output's disk has failed; returns what to say."""
    kept = cache_folder() / "predict" / target.name
    line = f"--output = {target}; cannot be written ({error.strerror or error})"
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_tables(kept, rows, threshold, format)
    except OSError:
        return f"{line}, nor can {kept}; make room and try again"
    return f"{line}; the whole table is at {kept} instead"


def _finish(rows: Sequence[Row], num_models: int, time_limit: str | None) -> None:
    """Turn logits into probabilities, and what has none into an error."""
    for row in rows:
        if not row.error and len(row.logits) < num_models:
            row.error = f"not reached within --time-limit = {time_limit}"
        if not row.error:
            logit = sum(row.logits) / num_models
            if math.isfinite(logit):
                row.probability = probability_at(logit)
            else:
                row.error = "the model's score is not a number"


# -- arguments ---------------------------------------------------------------------------------------------------------


def option_faults(frames: int, faces: str, aggregate: str) -> list[str]:
    """Say what is wrong with the options that decide how a file is looked at, each beginning with its name."""
    faults = []
    if faces not in ("auto", "always", "never"):
        faults.append(f"faces = {faces}; must be auto, always or never")
    if aggregate not in AGGREGATES:
        faults.append(f"aggregate = {aggregate}; must be one of {', '.join(AGGREGATES)}")
    if frames < 1:
        faults.append(f"frames = {frames}; must be at least 1")
    return faults


def _check(
    checkpoints: Sequence[str],
    inputs: Sequence[str],
    target: Path,
    format: str,
    frames: int,
    faces: str,
    aggregate: str,
    sample: str | None,
    time_limit: str | None,
    tta: str | None,
) -> float | None:
    """Check all arguments at once; returns the time limit in seconds."""
    problems = []
    if format not in FORMATS:
        problems.append(f"--format = {format}; must be one of {', '.join(FORMATS)}")
    problems += [f"--{fault}" for fault in option_faults(frames, faces, aggregate)]
    if not checkpoints:
        problems.append("--checkpoint is missing; give a run folder, a checkpoint or a URL of either")
    if len(checkpoints) > 1 and format in _CONTESTS:
        problems.append(
            f"--checkpoint is given {len(checkpoints)} times; --format {format} allows one model, no ensemble; give one"
        )
    if tta not in (None, "flip"):
        problems.append(f"--tta = {tta}; must be flip, or left out")
    if tta is not None and format == "dacon":
        problems.append(f"--tta = {tta}; --format dacon allows no test-time augmentation; leave it out")
    if not inputs:
        problems.append("--input is missing; give images, videos, folders or archives")
    problems += [f"--input = {name}; no such file or folder" for name in inputs if not Path(name).exists()]
    if sample is not None and not Path(sample).is_file():
        problems.append(f"--sample = {sample}; no such file")
    seconds = None
    if time_limit is not None:
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", time_limit.strip())
        seconds = float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]] if match else None
        if not seconds:
            problems.append(f"--time-limit = {time_limit}; must be a time such as 90s, 60m or 3h")
    problems += check_output(target)
    if problems:
        raise ConfigError("\n".join(problems))
    return seconds
