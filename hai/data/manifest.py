"""The manifest: every usable example of a run with its content hash, label, source, group and split."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hai.data.content import Progress
from hai.data.gather import divide, hash_words, join_sources, leaks, refuse_contradictions, refuse_empty
from hai.data.rows import Rows, raise_faults
from hai.data.sources import load_source
from hai.data.splits import codes_of
from hai.errors import DataError, StorageError
from hai.types import LABELS, SPLITS, Record

if TYPE_CHECKING:
    from hai.config.schema import DataConfig, SourceConfig

__all__ = ["Manifest", "Problem", "build_manifest", "load_manifest", "save_manifest"]


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
    """0 real, 1 fake."""
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
    problems: tuple[Problem, ...] = ()
    """Files that are no examples because they cannot be read or decoded."""
    warnings: tuple[str, ...] = ()
    """Lines that a person should see."""

    def __len__(self) -> int:
        return len(self.path)

    @cached_property
    def identity(self) -> str:
        """Hash of all (content, label, group, split), in hex: what must not change when a run is resumed."""
        group, _ = codes_of(self.group)
        keys: list[NDArray[Any]] = [self.split, group, self.label, *hash_words(self.sha256)]
        order = np.lexsort(keys)
        facts = np.concatenate([self.sha256, np.stack([self.label, self.split], axis=1).view(np.uint8)], axis=1)
        hasher = hashlib.sha256(facts[order].tobytes())
        hasher.update("\0".join(self.group[i] for i in order.tolist()).encode("utf-8", "surrogateescape"))
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
                data = os.pread(_part(self.file[i]).descriptor, length, offset)
            else:
                with open(self.file[i], "rb", buffering=0) as file:
                    data = os.pread(file.fileno(), length + 1, 0)
        except OSError as error:
            raise DataError(f"{self.file[i]}: {self.path[i]} cannot be read ({error.strerror or error})") from None
        if len(data) != length:
            raise DataError(f"{self.file[i]}: {self.path[i]} has changed since it was indexed; start again")
        return data

    def table(self) -> list[Record]:
        """Count examples: one record per source and split, `source`, `split`, `real`, `fake`, `groups`."""
        source, names = codes_of(self.source)
        group, _ = codes_of(self.group)
        alone = np.array([not name for name in self.group], dtype=np.bool_)
        records: list[Record] = []
        for s, name in enumerate(names):
            for k, split in enumerate(SPLITS):
                rows = (source == s) & (self.split == k)
                if rows.any():
                    counts = np.bincount(self.label[rows], minlength=len(LABELS))
                    num_groups = len(np.unique(group[rows & ~alone])) + int((rows & alone).sum())
                    counted = dict(zip(LABELS, counts.tolist(), strict=True))
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
    require: tuple[str, ...] = ("train", "val"),
    progress: Progress | None = None,
) -> Manifest:
    """Find, check and divide the examples of all sources.

    Args:
        data: the sources and the rules.
        seed: of the split of rows that have none.
        require: splits that must not be empty; `train` must also hold both classes.
        progress: called with (done, total) while something takes long.

    Raises:
        DataError: every bad row of every source, one line each; or too many unreadable images, or an empty split.
        StorageError: a source cannot be reached or copied.
    """
    if not data.sources:
        raise DataError("data.sources: empty; name at least one, such as data.sources=[{path: faces/labels.csv}]")
    faults: list[str] = []
    loaded: list[tuple[SourceConfig, Rows]] = []
    for config in data.sources:
        try:
            loaded.append((config, load_source(config, faults, progress)))
        except DataError as error:
            faults += str(error).split("\n")
    if faults:
        raise_faults(faults)
    table = join_sources(loaded, data.max_megapixels, progress)
    problems = tuple(Problem(table.path[i], error) for i, error in enumerate(table.error) if error)
    if len(problems) > data.max_bad_fraction * len(table.path):
        raise_faults(
            [f"{problem.path}: {problem.reason}" for problem in problems],
            f"{len(problems)} of {len(table.path)} images cannot be used, more than "
            f"data.max_bad_fraction = {data.max_bad_fraction:g}; mend or remove them, or raise it",
        )
    table = table.rows(np.array([not error for error in table.error], dtype=np.bool_))
    refuse_contradictions(table)
    table = divide(table, data, seed)
    refuse_empty(table, require)
    warnings = [line for _, rows in loaded for line in rows.warnings] + leaks(table)
    source, _ = codes_of(table.source)
    group, _ = codes_of(table.group)
    table = table.rows(np.lexsort((table.split, group, source, table.label, table.content)))
    columns = {field.name: getattr(table, field.name) for field in fields(Manifest) if hasattr(table, field.name)}
    return Manifest(**columns, problems=problems, warnings=tuple(warnings))


def save_manifest(manifest: Manifest, path: str | Path) -> None:
    """Write a manifest as a parquet file, whole or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {field.name: getattr(manifest, field.name) for field in fields(Manifest)}
    problems, warnings = columns.pop("problems"), columns.pop("warnings")
    columns["sha256"] = pa.array([row.tobytes() for row in manifest.sha256], pa.binary(32))
    for name in ("path", "file", "source", "group"):
        columns[name] = pa.array(columns[name], pa.string())
    text = json.dumps({"problems": [list(problem) for problem in problems], "warnings": list(warnings)})
    table = pa.table(columns).replace_schema_metadata({"hai": text, "identity": manifest.identity})
    target = Path(path)
    temporary = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, temporary, compression="zstd")
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
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
        notes = json.loads(table.schema.metadata[b"hai"])
        columns: dict[str, Any] = {name: table[name] for name in table.column_names}
        digests = b"".join(columns["sha256"].to_pylist())
        for name, column in columns.items():
            columns[name] = column.to_pylist() if name in ("path", "file", "source", "group") else column.to_numpy()
        columns["sha256"] = np.frombuffer(digests, dtype=np.uint8).reshape(-1, 32)
        problems = tuple(Problem(*problem) for problem in notes["problems"])
        manifest = Manifest(**columns, problems=problems, warnings=tuple(notes["warnings"]))
        if manifest.identity.encode() != table.schema.metadata[b"identity"]:
            raise ValueError("its content is not what its identity says")
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: not a manifest, or damaged ({error}); index the data again") from None
    return manifest
