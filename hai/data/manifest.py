"""The manifest: every usable example of a run with its content hash, label, source, group and split."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import dataclass, field, fields
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hai.data.columns import read_columns, taken, write_columns
from hai.data.comparisons import (
    comparison_arrays,
    comparison_units,
    comparisons_of,
    keep_comparisons,
    refuse_equal,
)
from hai.data.content import Progress
from hai.data.duplicates import close_pairs, perceptual_hashes
from hai.data.gather import (
    Table,
    content_codes,
    divide,
    is_divided,
    join_comparisons,
    join_sources,
    leaks,
    near_leaks,
    refuse_contradictions,
    refuse_empty,
    units_of,
)
from hai.data.rows import COMPARED, Rows, raise_faults
from hai.data.sources import DETECTOR, load_source
from hai.data.splits import codes_of, linked
from hai.data.tiers import ranked_form
from hai.errors import DataError, StorageError
from hai.types import LABELS, SPLITS, Record

if TYPE_CHECKING:
    from hai.config.schema import DataConfig, SourceConfig

__all__ = ["Manifest", "Problem", "build_manifest", "load_manifest", "save_manifest"]

_PIECE: Final = 1 << 16
"""Rows that are looked at together where all of them would take much memory."""


class Problem(NamedTuple):
    """A file that is no example, and why."""

    path: str
    reason: str


@dataclass(frozen=True, eq=False)
class Manifest:
    """Columns, one row per example, ordered by hash, label, source, group and split: paths do not matter."""

    path: list[str]
    """Name shown to people: relative to its source, / between parts."""
    file: list[str]
    """Local absolute file that holds the bytes: the image file or a part of a pack."""
    offset: NDArray[np.int64]
    """Where the image starts in `file`, bytes; > 0 in a pack."""
    length: NDArray[np.int64]
    """Bytes of the image."""
    sha256: NDArray[np.uint8]
    """Content hash, [N, 32]."""
    label: NDArray[np.int8]
    """Position in `labels`: 0 real, 1 fake; or the tier, 0 the best."""
    split: NDArray[np.int8]
    """Position in SPLITS."""
    source: list[str]
    """Name of the source, or `name/part`."""
    group: list[str]
    """What must stay together, such as a video; "" if the example stands alone. With several sources: `name/group`."""
    width: NDArray[np.int32]
    """Pixels as a person sees it."""
    height: NDArray[np.int32]
    """Pixels as a person sees it."""
    video: list[str] | None = None
    """Which frames are of one video, "" stands alone; None: those of one group."""
    problems: tuple[Problem, ...] = ()
    """Files that are no examples because they cannot be read or decoded."""
    warnings: tuple[str, ...] = ()
    """Lines that a person should see."""
    labels: tuple[str, ...] = LABELS
    """Names of the label codes: real and fake, the tiers from the best on, or ("image",) with comparisons."""
    image_id: list[str] | None = None
    """A ranker's names for images."""
    score: NDArray[np.float64] | None = None
    """A ranker's `data.score_column`, NaN where it is empty."""
    comparisons: NDArray[np.int32] = field(default_factory=lambda: np.zeros((0, 3), dtype=np.int32))
    """Left row, right row and preference (1 left, -1 right, 0 tie), each within one split, in order, [P, 3]."""
    crop_settings: Record | None = None
    """How `hai preprocess` cut the images out; None: it did not."""

    def __len__(self) -> int:
        return len(self.path)

    @cached_property
    def identity(self) -> str:
        """Hash of all (content, label, group, split) and comparisons, in hex: what a resumed run must find again."""
        group, _ = codes_of(self.group)
        content = content_codes(self.sha256)
        order = np.lexsort((self.split, group, self.label, content))
        hasher, facts = hashlib.sha256(), np.stack([self.label, self.split], axis=1).view(np.uint8)
        for some in np.split(order, range(_PIECE, len(order), _PIECE)):
            hasher.update(np.concatenate([self.sha256[some], facts[some]], axis=1).tobytes())
        for start in range(0, len(order), _PIECE):
            names = "\0".join(taken(self.group, order[start : start + _PIECE]))
            hasher.update((("\0" if start else "") + names).encode("utf-8", "surrogateescape"))
        if len(self.comparisons):
            content = content.astype(np.int32)
            left, right, preference = self.comparisons.T
            rows = np.stack([self.split[left].astype(np.int32), content[left], content[right], preference], axis=1)
            hasher.update(b"\0comparisons\0" + rows[np.lexsort(rows.T)].astype("<i4").tobytes())
        return hasher.hexdigest()

    def indices(self, split: str) -> NDArray[np.int64]:
        """Return the positions of a split's examples, ascending."""
        return np.flatnonzero(self.split == SPLITS.index(split))

    def read(self, i: int) -> bytes:
        """Read the file of an example; safe in threads.

        Raises:
            DataError: it is gone or its length has changed.
        """
        offset, length = int(self.offset[i]), int(self.length[i])
        try:
            if offset:
                part = _part(self.file[i])  # held while it is read: the cache may already have another or none
                data = os.pread(part.descriptor, length, offset)
            else:
                with open(self.file[i], "rb", buffering=0) as file:
                    data = os.pread(file.fileno(), length + 1, 0)
        except OSError as error:
            raise DataError(f"{self.file[i]}: {self.path[i]} cannot be read ({error.strerror or error})") from None
        if len(data) != length:
            raise DataError(f"{self.file[i]}: {self.path[i]} has changed since it was indexed; start again")
        return data

    def table(self) -> list[Record]:
        """Count examples: a record per source and split, `source`, `split`, each of `labels`, `groups`.

        With comparisons also `comparisons`.
        """
        source, names = codes_of(self.source)
        group, _ = codes_of(self.group)
        compared = np.bincount(self.comparisons[:, 0], minlength=len(self))
        alone = np.array([not name for name in self.group], dtype=np.bool_)
        records: list[Record] = []
        for s, name in enumerate(names):
            for k, split in enumerate(SPLITS):
                rows = (source == s) & (self.split == k)
                if rows.any():
                    counts = np.bincount(self.label[rows], minlength=len(self.labels))
                    num_groups = len(np.unique(group[rows & ~alone])) + int((rows & alone).sum())
                    counted = dict(zip(self.labels, counts.tolist(), strict=True))
                    if self.labels == COMPARED:
                        counted["comparisons"] = int(compared[rows].sum())
                    records.append({"source": name, "split": split, **counted, "groups": num_groups})
        return records


class _Part:
    """An open part of a pack; it closes when the last reader has let go of it."""

    def __init__(self, file: str) -> None:
        self.descriptor = os.open(file, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


_part = lru_cache(maxsize=128)(_Part)


def build_manifest(
    data: DataConfig,
    seed: int,
    *,
    task: str = "detector",
    require: tuple[str, ...] = ("train", "val"),
    progress: Progress | None = None,
) -> Manifest:
    """Find, check and divide the examples of all sources.

    Args:
        data: the sources and the rules.
        seed: of the split of rows that have none.
        task: detector (real or fake) or ranker (tiers or comparisons).
        require: splits that must not be empty. A detector's `train` must also hold both classes; each of a ranker's
            two tiers, or a comparison.
        progress: called with (done, total) while something takes long.

    Raises:
        DataError: every bad row of every source, one line each; or too many unreadable images, or an empty split.
        StorageError: a source cannot be reached or copied.
    """
    if not data.sources:
        raise DataError("data.sources: empty; name at least one, such as data.sources=[{path: faces/labels.csv}]")
    faults: list[str] = []
    loaded: list[tuple[SourceConfig, Rows]] = []
    form = ranked_form(data) if task == "ranker" else DETECTOR
    for config in data.sources:
        try:
            loaded.append((config, load_source(config, faults, progress, form=form)))
        except DataError as error:
            faults += str(error).split("\n")
    if faults:
        raise_faults(faults)
    labels, comparisons = _common_labels(loaded), join_comparisons(loaded)
    has_scores = any(rows.score for _, rows in loaded)
    table = join_sources(loaded, data.max_megapixels, progress, consume=True)
    num_rows = len(table.path)
    problems = tuple(Problem(table.path[i], error) for i, error in enumerate(table.error) if error)
    if len(problems) > data.max_bad_fraction * len(table.path):
        raise_faults(
            [f"{problem.path}: {problem.reason}" for problem in problems],
            f"{len(problems)} of {len(table.path)} images cannot be used, more than "
            f"data.max_bad_fraction = {data.max_bad_fraction:g}; mend or remove them, or raise it",
        )
    warnings = [line for _, rows in loaded for line in rows.warnings]
    usable = np.array([not error for error in table.error], dtype=np.bool_)
    faults = refuse_equal(table, comparisons[usable[comparisons[:, :2]].all(axis=1)])
    if faults:
        raise_faults(faults)
    if lost := int((~usable[comparisons[:, :2]].all(axis=1)).sum()):
        warnings.append(f"{lost} of {len(comparisons)} comparisons name unusable images and are left out")
    table = table.rows(usable)
    refuse_contradictions(table, labels)
    near = _near_duplicates(table, data, progress) if task == "ranker" and is_divided(table, data) else None
    unit = units_of(table, data, near)
    if len(comparisons):
        position = np.full(num_rows, -1, dtype=np.int32)
        position[table.number] = np.arange(len(table.path), dtype=np.int32)
        here = np.concatenate([position[comparisons[:, :2]], comparisons[:, 2:]], axis=1)
        unit = comparison_units(table, here[(here[:, :2] >= 0).all(axis=1)], unit, len(data.sources))
    numbers = table.number
    table = divide(table, data, seed, unit)
    warnings += leaks(table)
    if near is not None:
        by_number = np.zeros(num_rows, dtype=np.int64)
        by_number[numbers] = near
        warnings += near_leaks(table, by_number)
    source, _ = codes_of(table.source)
    group, _ = codes_of(table.group)
    table.reorder(np.lexsort((table.split, group, source, table.label, table.content)))
    comparisons, notes = keep_comparisons(table, comparisons, num_rows, data)
    refuse_empty(table, require, labels, comparisons)
    columns = {item.name: getattr(table, item.name) for item in fields(Manifest) if hasattr(table, item.name)}
    if table.video == table.group:
        columns["video"] = None
    if task == "detector":
        columns["image_id"] = None
    if not has_scores:
        columns["score"] = None
    crop_settings, doubts = _common_crop_settings(loaded)
    return Manifest(
        **columns,
        problems=problems,
        warnings=(*warnings, *notes, *doubts),
        labels=labels,
        comparisons=comparisons,
        crop_settings=crop_settings,
    )


def _common_labels(loaded: list[tuple[SourceConfig, Rows]]) -> tuple[str, ...]:
    """Return what all sources' labels are; tiers and comparisons do not mix."""
    compared = [config.name for config, rows in loaded if rows.labels == COMPARED]
    if compared and len(compared) < len(loaded):
        graded = [config.name for config, rows in loaded if rows.labels != COMPARED]
        raise DataError(
            f"data.sources: {', '.join(compared)} hold comparisons and {', '.join(graded)} tiers; a run's sources must "
            "be all of one kind, train one after the other"
        )
    return loaded[0][1].labels


def _common_crop_settings(loaded: list[tuple[SourceConfig, Rows]]) -> tuple[Record | None, list[str]]:
    """Return how the images were cut out, and a warning where the sources were not all cut in one way."""
    cut = [(config.name, rows.crop_settings) for config, rows in loaded if rows.crop_settings is not None]
    if not cut:
        return None, []
    name, first = cut[0]
    others = [other for other, settings in cut if settings != first]
    if not others:
        return first, []
    return first, [
        f"sources {name} and {', '.join(others)} were cut out by different settings of hai preprocess; hai predict "
        f"will cut faces as {name} was"
    ]


def _near_duplicates(table: Table, data: DataConfig, progress: Progress | None) -> NDArray[np.int64] | None:
    """Number the sets of images that look alike, [N]; None: not asked for."""
    if data.near_duplicate_distance is None:
        return None

    def read(i: int) -> bytes:
        with open(table.file[i], "rb") as file:
            file.seek(int(table.offset[i]))
            return file.read(int(table.length[i]))

    hashes = perceptual_hashes(table.sha256, read, data.max_megapixels, progress)
    return linked(len(hashes), close_pairs(hashes, data.near_duplicate_distance))


def save_manifest(manifest: Manifest, path: str | Path) -> None:
    """Write a manifest as a parquet file, whole or not at all."""
    columns = {item.name: getattr(manifest, item.name) for item in fields(Manifest)}
    problems, warnings, labels = (columns.pop(name) for name in ("problems", "warnings", "labels"))
    crop_settings = columns.pop("crop_settings")
    columns.pop("comparisons")
    columns = {name: column for name, column in columns.items() if column is not None}
    if len(manifest.comparisons):
        columns |= comparison_arrays(manifest.comparisons, len(manifest))
    notes = {"problems": [list(problem) for problem in problems], "warnings": list(warnings), "labels": list(labels)}
    text = json.dumps(notes | ({"crop_settings": crop_settings} if crop_settings is not None else {}))
    target = Path(path)
    temporary = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_columns(temporary, columns, {"hai": text, "identity": manifest.identity})
        os.replace(temporary, target)
    except OSError as error:
        raise StorageError(f"{target}: cannot be written ({error.strerror or error})") from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def load_manifest(path: str | Path) -> Manifest:
    """Read a manifest that save_manifest wrote on this machine.

    Raises:
        DataError: it is missing or damaged.
    """
    import pyarrow as pa

    try:
        columns, metadata = read_columns(
            path, distinct=("path", "image_id"), repeated=("file", "source", "group", "video")
        )
        notes = json.loads(metadata[b"hai"])
        comparisons = comparisons_of(columns)
        problems = tuple(Problem(*problem) for problem in notes["problems"])
        labels = tuple(notes.get("labels", LABELS))  # older ones hold none
        manifest = Manifest(
            **columns,
            problems=problems,
            warnings=tuple(notes["warnings"]),
            labels=labels,
            comparisons=comparisons,
            crop_settings=notes.get("crop_settings"),
        )
        if manifest.identity.encode() != metadata[b"identity"]:
            raise ValueError("its content is not what its identity says")
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError, RecursionError, DataError) as error:
        raise DataError(f"{path}: not a manifest, or damaged ({error}); index the data again") from None
    return manifest
