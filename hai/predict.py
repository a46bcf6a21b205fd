"""Score images that have no labels: find them, predict them in batches, write the table."""

from __future__ import annotations

import csv
import math
import os
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from hai.calibration import common_threshold
from hai.data.archives import is_archive, unpack
from hai.data.folders import VIDEO_SUFFIXES
from hai.data.images import IMAGE_SUFFIXES, decode_image, fit_image
from hai.errors import ConfigError, DataError
from hai.paths import cache_folder
from hai.progress import progress_bar
from hai.types import LABELS

if TYPE_CHECKING:
    from hai.trained import Layout, Trained

__all__ = ["check_output", "find_files", "load_picture", "num_threads", "run_prediction"]

_FORMATS: Final = ("full", "dacon", "aifactory")
_BATCH_SIZE: Final = 32
_MOST_THREADS: Final = 16
_UNKNOWN: Final = 0.5
"""P(fake) of an unusable file where a contest wants a number for every file."""


@dataclass
class _Row:
    """A file that the table has a row for; `name` is relative to its --input."""

    name: str
    path: Path
    logits: list[float] = field(default_factory=list)
    probability: float = _UNKNOWN
    error: str = ""


def run_prediction(
    checkpoints: Sequence[str],
    inputs: Sequence[str],
    output: str,
    *,
    format: str = "full",
    frames: int = 16,
    faces: str = "auto",
    time_limit: str | None = None,
    tta: str | None = None,
) -> int:
    """Write a table with the probability of fake of every image found.

    Args:
        checkpoints: REFs; the logits of several are averaged.
        inputs: image files, folders (searched deeply) and archives.
        output: the CSV; it appears when it is whole.
        format: `full`, or the columns of a contest: `dacon`, `aifactory`.
        frames: frames to look at in each video.
        faces: `auto` cuts faces out where the training data were cut so.
        time_limit: such as `60m`; files not reached by then are listed as unusable.
        tta: `flip`: average with the mirrored image's logit.

    Returns:
        Exit status 0; unusable files are listed in the table.

    Raises:
        HaiError: for wrong arguments, inputs or checkpoints.
    """
    started = time.monotonic()
    target = Path(output)
    seconds = _check(checkpoints, inputs, target, format, frames, faces, time_limit, tta)
    with ExitStack() as stack:
        rows = [_Row(*found) for name in inputs for found in find_files(name, stack)]
        _check_names([row.name for row in rows], inputs, format)

        from hai.trained import best_device, load_trained

        device = best_device()
        models = [load_trained(reference, device) for reference in checkpoints]
        for reference, model in zip(checkpoints, models, strict=True):
            if model.config.task != "detector":
                raise ConfigError(f"--checkpoint = {reference}; is a {model.config.task}; use hai rank or hai compare")
        show = stack.enter_context(progress_bar("scoring", "files"))
        _score(rows, models, started + seconds if seconds else math.inf, show, flip=tta == "flip")
    _finish(rows, len(models), time_limit)
    threshold = common_threshold([model.threshold for model in models])
    _write_table(target, rows, threshold, format)
    _tell(target, rows, threshold, format)
    return 0


# -- arguments ---------------------------------------------------------------------------------------------------------


def _check(
    checkpoints: Sequence[str],
    inputs: Sequence[str],
    target: Path,
    format: str,
    frames: int,
    faces: str,
    time_limit: str | None,
    tta: str | None,
) -> float | None:
    """Check all arguments at once; returns the time limit in seconds."""
    problems = []
    if format not in _FORMATS:
        problems.append(f"--format = {format}; must be one of {', '.join(_FORMATS)}")
    if faces not in ("auto", "always", "never"):
        problems.append(f"--faces = {faces}; must be auto, always or never")
    if faces == "always":
        problems.append(
            "--faces = always; no face detector is installed with this version; cut the faces out first, or leave the "
            "option out"
        )
    if frames < 1:
        problems.append(f"--frames = {frames}; must be at least 1")
    if not checkpoints:
        problems.append("--checkpoint is missing; give a run folder, a checkpoint or a URL of either")
    if len(checkpoints) > 1 and format in ("dacon", "aifactory"):
        problems.append(
            f"--checkpoint is given {len(checkpoints)} times; --format {format} allows one model, no ensemble; give one"
        )
    if tta not in (None, "flip"):
        problems.append(f"--tta = {tta}; must be flip, or left out")
    if tta is not None and format == "dacon":
        problems.append(f"--tta = {tta}; --format dacon allows no test-time augmentation; leave it out")
    if not inputs:
        problems.append("--input is missing; give images, folders or archives")
    problems += [f"--input = {name}; no such file or folder" for name in inputs if not Path(name).exists()]
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


def check_output(target: Path) -> list[str]:
    """Make the folder of an output file; return what is wrong with it, a line each."""
    if target.is_dir():
        return [f"--output = {target}; is a folder; name a file such as {target / 'predictions.csv'}"]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=".hai-"):
            return []
    except OSError as error:
        return [f"--output = {target}; the folder cannot be written ({error.strerror}); choose another"]


def _check_names(names: Sequence[str], inputs: Sequence[str], format: str) -> None:
    if not names:
        raise DataError(f"--input = {', '.join(inputs)}; no image or video in it; a folder is searched deeply")
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if not twice:
        return
    what = "name that occurs" if len(twice) == 1 else f"{len(twice)} names that occur"
    line = f"--input: {what} in more than one input: {', '.join(twice[:3])}{', ...' if len(twice) > 3 else ''}"
    if format != "full":
        raise DataError(f"{line}; --format {format} needs one row per name; give one folder that holds all files")
    print(f"note: {line}", file=sys.stderr)


# -- files -------------------------------------------------------------------------------------------------------------


def find_files(name: str, stack: ExitStack) -> Iterator[tuple[str, Path]]:
    """Find the images and videos of one --input, in natural order (2 before 10).

    Args:
        name: an image or video file, whatever its ending; a folder; or an archive, which is unpacked.
        stack: removes what was unpacked.

    Yields:
        The name relative to the input, and where the file lies.
    """
    path = Path(name)
    if path.is_dir():
        yield from _in_folder(path)
    elif is_archive(path):
        cache_folder().mkdir(parents=True, exist_ok=True)
        room = stack.enter_context(tempfile.TemporaryDirectory(prefix="predict-", dir=cache_folder()))
        yield from _in_folder(unpack(path, Path(room) / "files"))
    else:
        yield path.name, path


def _in_folder(folder: Path) -> Iterator[tuple[str, Path]]:
    names = []
    for parent, folders, files in os.walk(folder, followlinks=False):
        folders[:] = [name for name in folders if not name.startswith(".") and name != "__MACOSX"]
        names += [
            (Path(parent) / name).relative_to(folder).as_posix()
            for name in files
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES
        ]
    for name in sorted(names, key=_natural_key):
        yield name, folder / name


def _natural_key(name: str) -> tuple[Any, ...]:
    pieces = [re.split(r"(\d+)", part.casefold()) for part in name.split("/")]
    return tuple(
        tuple((int(piece), "") if piece.isdecimal() else (-1, piece) for piece in part) for part in pieces
    ), name


# -- scores ------------------------------------------------------------------------------------------------------------


class _Pictures:
    """A batch of files for the loader; what cannot be used becomes an error in its row and a black picture."""

    def __init__(self, rows: Sequence[_Row], layout: Layout) -> None:
        self.rows, self._layout = rows, layout

    def __len__(self) -> int:
        return len(self.rows)

    def load(self, start: int, stop: int, out: NDArray[np.uint8]) -> None:
        """Decode and fit files start to stop into out [stop - start, S, S, 3]."""
        for row, picture in zip(self.rows[start:stop], out, strict=True):
            try:
                picture[...] = load_picture(row.path, self._layout)
            except DataError as error:
                row.error = str(error)
                picture[...] = 0


def load_picture(path: Path, layout: Layout) -> NDArray[np.uint8]:
    """Load an image file as a model wants it, [S, S, 3]; raises DataError with the reason alone."""
    if path.suffix.lower() in VIDEO_SUFFIXES:
        raise DataError("video needs a decoder that this version does not have; extract its frames as images")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})") from None
    return fit_image(decode_image(data, layout.max_megapixels), layout.size, layout.geometry)


def _score(
    rows: list[_Row], models: Sequence[Trained], deadline: float, show: Callable[[int, int], None], *, flip: bool
) -> None:
    """Add each model's logit to each row, until the deadline; files are read once per distinct input of the models."""
    from hai.data.loader import RingLoader

    layouts = list(dict.fromkeys(model.layout for model in models))
    done, slowest, begun = 0, 0.0, time.monotonic()
    for layout in layouts:
        jobs = (_Pictures(rows[at : at + _BATCH_SIZE], layout) for at in range(0, len(rows), _BATCH_SIZE))
        chosen = [model for model in models if model.layout == layout]
        device = chosen[0].device
        with closing(RingLoader(jobs, size=layout.size, device=device, num_threads=num_threads())) as loader:
            for job, images in loader:
                if any(not row.error for row in job.rows):
                    for model in chosen:
                        for row, logit in zip(job.rows, model.logits(images, flip=flip), strict=True):
                            row.logits.append(float(logit))
                done += len(job)
                show(done, len(rows) * len(layouts))
                slowest, begun = max(slowest, time.monotonic() - begun), time.monotonic()
                if begun + 2 * slowest > deadline:
                    return


def num_threads() -> int:
    """Return how many threads decode images."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(_MOST_THREADS, usable)


def _finish(rows: Sequence[_Row], num_models: int, time_limit: str | None) -> None:
    """Turn logits into probabilities, and what has none into an error."""
    for row in rows:
        if not row.error and len(row.logits) < num_models:
            row.error = f"not reached within --time-limit = {time_limit}"
        if not row.error:
            logit = sum(row.logits) / num_models
            row.probability = _probability(logit)
            if not math.isfinite(logit):
                row.error = "the model's score is not a number"


def _probability(logit: float) -> float:
    return 0.5 * (1.0 + math.tanh(0.5 * logit))


# -- the table ---------------------------------------------------------------------------------------------------------


def _write_table(target: Path, rows: Sequence[_Row], threshold: float, format: str) -> None:
    """Write the CSV under a temporary name, then put it in place."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    encoding = "utf-8-sig" if format == "dacon" else "utf-8"
    try:
        with open(temporary, "w", encoding=encoding, errors="backslashreplace", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(
                {
                    "full": ["filename", "probability_fake", "prediction", "num_frames", "num_faces", "error"],
                    "dacon": ["filename", "prob"],
                    "aifactory": ["filename", "label"],
                }[format]
            )
            for row in rows:
                label = int(row.probability >= threshold)
                if format == "full":
                    scored = ["", "", 0] if row.error else [f"{row.probability:.7g}", LABELS[label], 1]
                    table.writerow([row.name, *scored, 0, row.error])
                else:
                    table.writerow([row.name, f"{row.probability:.7g}" if format == "dacon" else label])
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _tell(target: Path, rows: Sequence[_Row], threshold: float, format: str) -> None:
    scored = [row for row in rows if not row.error]
    fakes = sum(row.probability >= threshold for row in scored)
    bad = [row for row in rows if row.error]
    print(
        f"{len(rows)} files: {len(scored) - fakes} real, {fakes} fake at the threshold {threshold:.3f}"
        + (f", {len(bad)} unusable" if bad else "")
        + f" -> {target}"
    )
    for row in bad[:10]:
        print(f"unusable: {row.name}: {row.error}", file=sys.stderr)
    if len(bad) > 10:
        print(f"unusable: and {len(bad) - 10} more" + (", see the table" if format == "full" else ""), file=sys.stderr)
    if bad and format != "full":
        value = f"prob {_UNKNOWN}" if format == "dacon" else f"label {int(threshold <= _UNKNOWN)}"
        print(f"note: unusable files have {value} in the table, which must have no gaps", file=sys.stderr)
