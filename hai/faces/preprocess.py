"""What `hai preprocess` does: raw videos and images to a folder of face crops that training reads."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import hai
from hai.data.content import stat_files
from hai.data.layouts import Folders, RawFile, RawSet, list_raw
from hai.errors import ConfigError, DataError, StorageError
from hai.faces.contact import CONTACT_SHEET, draw_contact_sheet
from hai.faces.crops import Harvest
from hai.faces.detectors import describe_detector
from hai.faces.division import name_of, plan_splits, regroup
from hai.faces.journal import JOURNAL, CropRecord, FileRecord, append_record, as_lines, load_records, save_text
from hai.faces.pool import Cropper, Job
from hai.faces.settings import PREPROCESS, CropSettings, as_record
from hai.faces.summary import summarise
from hai.paths import locked
from hai.types import LABELS

__all__ = ["Request", "run_preprocessing"]

_LABELS_CSV: Final = "labels.csv"
_VERSION: Final = 1
_MOST_NAME: Final = 180  # bytes of a file's own name in those of its crops, which may have 255
_HEX: Final = 12
_COMPARED: Final = 1 << 16  # bytes that tell two files of one name and size apart


@dataclass(frozen=True)
class Request:
    """What is to be preprocessed, and where to."""

    input: Path
    output: Path
    settings: CropSettings
    split_ratio: float = 0.8
    """Share of train in what has no official split; the rest is val."""
    seed: int = 42
    split_files: Path | None = None
    folders: Folders = "auto"

    def check(self) -> None:
        """Raise ConfigError with all that is wrong, before anything is read."""
        wrong = []
        if not self.input.is_dir():
            wrong.append(f"--input = {self.input}; there is no such folder")
        if not 0 <= self.split_ratio <= 1:
            wrong.append(f"--split-ratio = {self.split_ratio:g}; must be between 0 and 1, the share of train")
        if self.output.is_file():
            wrong.append(f"--output = {self.output}; is a file; name a folder")
        if Path(os.path.abspath(self.output)).is_relative_to(os.path.abspath(self.input)):
            wrong.append(f"--output = {self.output}; lies in --input, where it would become input; name another folder")
        if wrong:
            raise ConfigError("\n".join(wrong))


def run_preprocessing(
    request: Request,
    cropper: Cropper,
    *,
    say: Callable[[str], None],
    show: Callable[[int, int], None] = lambda done, total: None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any] | None:
    """Cut out the faces of a raw data set; the same call again goes on where it stopped.

    Args:
        request: what and where to.
        cropper: cuts, on this machine or on a cluster.
        say: takes a line for people.
        show: takes (done, total) files.
        stop: asked now and then; files in work are finished.

    Returns:
        The contents of preprocess.json; None if it was stopped before the end.

    Raises:
        ConfigError: an argument is wrong, or the output was begun with other settings.
        DataError: the input cannot be used.
        StorageError: the output cannot be written, or a machine does not see the input.
    """
    request.check()
    raw = list_raw(request.input, split_files=request.split_files, folders=request.folders)
    for line in raw.problems:
        say(f"warning: {line}")
    try:
        request.output.mkdir(parents=True, exist_ok=True)
        with locked(f"preprocess {os.path.abspath(request.output)}"):
            head, former = _head(request, raw)
            records = load_records(request.output / JOURNAL)
            _check_names(request, raw, former, records)
            done = _done(request, raw, records, say)
            raw = regroup(raw, done)
            splits = plan_splits(raw, done, request.split_ratio, request.seed)
            save_text(request.output / PREPROCESS, _json({**head, "status": "running"}))
            if not _crop_all(request, raw, splits, records, done, cropper, show, stop):
                return None
            return _finish(request, raw, done, head)
    except OSError as error:
        raise StorageError(f"--output = {request.output}; cannot be written ({error.strerror or error})") from None


# -- what there is already ---------------------------------------------------------------------------------------------


def _head(request: Request, raw: RawSet) -> tuple[dict[str, Any], str]:
    """Describe what is done and how; refuse to go on in a folder that was begun in another way.

    Returns:
        The description, and the input of the run before, "" if this is the first.
    """
    settings = request.settings
    names = [name for name in (settings.detector, settings.fallback_detector) if name]
    head = {
        "version": _VERSION,
        "hai": hai.__version__,
        "settings": as_record(settings),
        "detectors": [describe_detector(name, settings.detector_model) for name in names],
        "split_ratio": request.split_ratio,
        "seed": request.seed,
        "folders": request.folders,
        "input": os.path.abspath(raw.root),
        "layout": raw.layout,
    }
    path = request.output / PREPROCESS
    if not path.exists():
        if any(request.output.glob("*/*/*.[jp][pn]g")):
            raise ConfigError(f"--output = {request.output}; holds images that are not ours; name an empty folder")
        return head, ""
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        old, new = _flat(before), _flat(json.loads(_json(head)))
    except (ValueError, LookupError, TypeError, AttributeError):
        raise DataError(f"{path}: is damaged; remove {request.output} and begin again") from None
    changed = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    if changed:
        lines = [f"{key} = {new.get(key)!r}; {request.output} was begun with {old.get(key)!r}" for key in changed]
        raise ConfigError("\n".join(lines) + "\nname another --output, or repeat the command as it was")
    return head, str(before.get("input", ""))


def _flat(head: dict[str, Any]) -> dict[str, Any]:
    """Return what must not change between the runs that fill one folder, by name."""
    detectors = {f"detector {part['name']}": part for part in head["detectors"]}
    settings = {name: value for name, value in head["settings"].items() if name != "detector_model"}
    return settings | detectors | {name: head[name] for name in ("version", "split_ratio", "seed", "folders")}


def _check_names(request: Request, raw: RawSet, former: str, records: dict[str, FileRecord]) -> None:
    """Refuse another input than the former one if files of both have one name: the crops of one would be lost."""
    if former in ("", os.path.abspath(raw.root)):
        return
    names = [
        name
        for name, path in ((name_of(raw, file), file.path) for file in raw.files)
        if (record := records.get(name)) and not record.error and _is_other(path, record.size, Path(former) / name)
    ]
    if names:
        raise ConfigError(
            f"--input = {request.input}; holds other files under the same names ({', '.join(names[:3])}"
            f"{', ...' if len(names) > 3 else ''}) than {former}, which {request.output} was made from; name another "
            "--output"
        )


def _is_other(path: Path, size: int, former: Path) -> bool:
    """Say whether a file is not the one of that size that was done; where that is gone the size alone says so."""
    if _sizes([str(path)]) != [size]:
        return True
    if not (path.is_file() and former.is_file()):
        return False
    with path.open("rb") as this, former.open("rb") as that:
        return this.read(_COMPARED) != that.read(_COMPARED)


def _done(
    request: Request, raw: RawSet, records: dict[str, FileRecord], say: Callable[[str], None]
) -> dict[str, FileRecord]:
    """Return the records of files that need not be done again; what could not be used is tried again."""
    names = [name_of(raw, file) for file in raw.files]
    sizes = dict(zip(names, _sizes([str(file.path) for file in raw.files]), strict=True))
    crops = [(name, crop) for name, record in records.items() for crop in record.crops]
    found = _sizes([str(request.output / crop.path) for _, crop in crops])
    changed = {name for (name, crop), size in zip(crops, found, strict=True) if size != crop.num_bytes}
    done = {
        name: record
        for name, record in records.items()
        if not record.error and sizes.get(name, record.size) == record.size and name not in changed
    }
    if done:
        say(f"going on: {len(done)} files are done")
    elsewhere = sum(name not in sizes for name in done)
    if elsewhere:
        say(f"note: {elsewhere} of them are not in {request.input} now; their crops stay")
    return done


def _sizes(files: list[str]) -> list[int]:
    """Return the bytes of files, many at once where one takes long; -1 for what is no file."""
    sizes: list[int] = stat_files(files)[:, 0].tolist()
    return sizes


# -- crops -------------------------------------------------------------------------------------------------------------


def _crop_all(
    request: Request,
    raw: RawSet,
    splits: dict[str, str],
    records: dict[str, FileRecord],
    done: dict[str, FileRecord],
    cropper: Cropper,
    show: Callable[[int, int], None],
    stop: Callable[[], bool],
) -> bool:
    """Do what is not done yet, recording each file in `done` and on disk; returns False if it was stopped.

    What `records` say of a file is superseded, and crops that only they know are removed.
    """
    files = {name_of(raw, file): file for file in raw.files}
    jobs = [Job(name, file.path, file.kind) for name, file in files.items() if name not in done]
    total, num_done = len(files), len(files) - len(jobs)
    show(num_done, total)
    for job, harvest in cropper(jobs, request.settings, stop):
        if harvest.is_missing and job.path.exists():
            raise StorageError(
                f"--input: a machine of the cluster does not see {job.path}; put the data where all machines see them "
                "under one path, or run without RAY_ADDRESS"
            )
        record = _keep(request, files[job.name], job.name, splits[job.name], harvest)
        if job.name in records:
            for path in {crop.path for crop in records[job.name].crops} - {crop.path for crop in record.crops}:
                (request.output / path).unlink(missing_ok=True)
        append_record(request.output / JOURNAL, record)
        done[job.name] = record
        num_done += 1
        show(num_done, total)
    return num_done == total


def _keep(request: Request, file: RawFile, name: str, split: str, harvest: Harvest) -> FileRecord:
    """Write the crops of a file; returns its record."""
    folder = f"{split}/{LABELS[file.label]}"
    crops = []
    if harvest.crops:
        (request.output / folder).mkdir(parents=True, exist_ok=True)
    for crop in harvest.crops:
        place = f"-{crop.frame:05d}" if file.kind == "video" else ""
        person = f"-{crop.face}" if request.settings.faces == "all" else ""
        path = f"{folder}/{_stem(name, file.source)}{place}{person}.{request.settings.format}"
        (request.output / path).write_bytes(crop.data)
        box = (round(crop.box[0], 2), round(crop.box[1], 2), round(crop.box[2], 2), round(crop.box[3], 2))
        score = round(crop.score, 4)
        crops.append(CropRecord(path, crop.frame, crop.face, box, score, crop.detector, len(crop.data)))
    return FileRecord(
        path=name,
        size=_sizes([str(file.path)])[0],
        kind=file.kind,
        label=file.label,
        source=file.source,
        group=file.group or name,
        video=file.video or name,
        split=split,
        num_frames=harvest.num_frames,
        num_found=harvest.num_found,
        error=harvest.error,
        crops=crops,
    )


def _stem(name: str, source: str) -> str:
    """Name a file's crops: readable, and different for every file whatever its folder."""
    stem = unicodedata.normalize("NFC", "-".join(filter(None, (source, Path(name).stem))))
    short = re.sub(r"[^\w.-]+", "_", stem).encode()[:_MOST_NAME].decode(errors="ignore")
    readable = short.strip("._-") or "file"
    return f"{readable}-{hashlib.sha256(name.encode('utf-8', 'surrogateescape')).hexdigest()[:_HEX]}"


# -- the end -----------------------------------------------------------------------------------------------------------


def _finish(request: Request, raw: RawSet, done: dict[str, FileRecord], head: dict[str, Any]) -> dict[str, Any]:
    records = [done[name] for name in sorted(done)]
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(("path", "label", "group", "split", "source", "video"))
    for record in records:
        rows.writerows(
            (crop.path, LABELS[record.label], record.group, record.split, record.source, record.video)
            for crop in record.crops
        )
    save_text(request.output / JOURNAL, as_lines(records))
    save_text(request.output / _LABELS_CSV, table.getvalue())
    result = {**head, "status": "finished", "summary": summarise(records, request.settings.detector)}
    save_text(request.output / PREPROCESS, _json(result))
    sheet = request.output / CONTACT_SHEET
    sheet.write_bytes(draw_contact_sheet(records, raw.root, request.output))
    return result


def _json(record: dict[str, Any]) -> str:
    return json.dumps(record, indent=1, ensure_ascii=False) + "\n"
