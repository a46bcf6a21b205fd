"""Packs: the images of a manifest in a few large files per split, with an index, to copy and to read fast.

A pack is a folder:

```
pack.json                      the commit marker, written last: names, bytes and sha256 of the other files
index-<hash>.parquet           one row per example
train-00000-<hash>.pack ...    8 bytes of magic, then the image files one after another, unchanged
```

Equal manifests give equal bytes. Names carry the hash of the content, so a pack can be built over an older one: at
every moment pack.json names files that are whole.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from hai.data.columns import read_columns, renamed, write_columns
from hai.data.comparisons import comparison_arrays, comparisons_of
from hai.data.content import Progress, hash_files, stat_files
from hai.data.remote import copy_file, open_url
from hai.data.rows import Packed, Rows, source_name, without_root
from hai.errors import DataError, StorageError
from hai.paths import check_room, locked
from hai.types import LABELS, SPLITS

if TYPE_CHECKING:
    from hai.data.manifest import Manifest

__all__ = ["PACK_FILE", "build_pack", "copy_pack", "load_pack"]

PACK_FILE: Final = "pack.json"
"""A folder with this file is a pack."""

_MAGIC: Final = b"HAIPACK1"
_OURS: Final = re.compile(
    r"(?:(?:train|val|test)-\d{5}-[0-9a-f]{16}\.pack|index-[0-9a-f]{16}\.parquet)(?:(?:\.[0-9a-f]{8})?\.part)?"
)


def build_pack(
    manifest: Manifest, output: str | Path, *, part_bytes: int = 512 << 20, progress: Progress | None = None
) -> Path:
    """Write the images of a manifest as a pack.

    Args:
        manifest: what to pack, all splits.
        output: a local folder; an older pack in it is replaced.
        part_bytes: a part is closed when it holds this much.
        progress: called with examples (done, total).

    Returns:
        The folder.

    Raises:
        DataError: an image has changed since the manifest was built.
        StorageError: the folder cannot be written or the disk is too small.
    """
    folder = Path(output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        check_room(folder, int(manifest.length.sum()), f"{folder}: the pack")
        files, columns = _write_parts(manifest, folder, part_bytes, progress)
        index = _index_bytes(manifest, columns, [str(entry["name"]) for entry in files])
        digest = hashlib.sha256(index).hexdigest()
        name = f"index-{digest[:16]}.parquet"
        _write_whole(folder / name, index)
        marker = {"format": 1, "index": {"name": name, "bytes": len(index), "sha256": digest}, "parts": files}
        _write_whole(folder / PACK_FILE, (json.dumps(marker, indent=1) + "\n").encode())
        kept = {name, *(str(entry["name"]) for entry in files)}
        for item in folder.iterdir():
            if _OURS.fullmatch(item.name) and item.name not in kept:
                item.unlink()
    except OSError as error:
        raise StorageError(f"{folder}: the pack cannot be written ({error.strerror or error})") from None
    return folder


def _write_parts(
    manifest: Manifest, folder: Path, part_bytes: int, progress: Progress | None
) -> tuple[list[dict[str, Any]], dict[str, NDArray[np.int64]]]:
    size = len(manifest)
    part, offset = np.zeros(size, dtype=np.int64), np.zeros(size, dtype=np.int64)
    order = np.argsort(manifest.split, kind="stable")
    files: list[dict[str, Any]] = []
    done = 0
    for split, split_name in enumerate(SPLITS):
        rows = order[manifest.split[order] == split]
        lengths = manifest.length[rows]
        parts = (np.cumsum(lengths) - lengths) // part_bytes
        for number, members in enumerate(np.split(rows, np.flatnonzero(np.diff(parts)) + 1) if len(rows) else []):
            temporary = folder / f"{split_name}-{number:05d}-{'0' * 16}.pack.part"
            hasher = hashlib.sha256(_MAGIC)
            with open(temporary, "wb") as file:
                file.write(_MAGIC)
                for i in members.tolist():
                    data = manifest.read(i)
                    if hashlib.sha256(data).digest() != manifest.sha256[i].tobytes():
                        raise DataError(f"{manifest.path[i]}: changed since the manifest was built; start again")
                    part[i], offset[i] = len(files), file.tell()
                    file.write(data)
                    hasher.update(data)
                    done += 1
                    if progress:
                        progress(done, size)
                length = file.tell()
                file.flush()
                os.fsync(file.fileno())
            digest = hasher.hexdigest()
            name = f"{split_name}-{number:05d}-{digest[:16]}.pack"
            os.replace(temporary, folder / name)
            files.append({"name": name, "bytes": length, "sha256": digest})
    return files, {"part": part, "offset": offset}


def _write_whole(path: Path, data: bytes) -> None:
    temporary = path.with_name(path.name + ".part")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _index_bytes(manifest: Manifest, columns: dict[str, NDArray[np.int64]], names: list[str]) -> bytes:
    """Encode the index; the part of the source's name that a config chose is left to the next config."""
    found: dict[str, Any] = {
        "path": manifest.path,
        "part": columns["part"].astype(np.int32),
        "offset": columns["offset"],
        "length": manifest.length,
        "sha256": manifest.sha256,
        "label": manifest.label,
        "split": manifest.split,
        "group": manifest.group,
        "source": without_root(manifest.source),
        "width": manifest.width,
        "height": manifest.height,
    }
    optional = {"video": manifest.video, "image_id": manifest.image_id, "score": manifest.score}
    found |= {name: values for name, values in optional.items() if values is not None}
    if len(manifest.comparisons):
        found |= comparison_arrays(manifest.comparisons, len(manifest))
    notes = {"labels": json.dumps(manifest.labels)} if manifest.labels != LABELS else {}
    if manifest.crop_settings is not None:
        notes["crop_settings"] = json.dumps(manifest.crop_settings)
    buffer = io.BytesIO()
    write_columns(buffer, found, notes)
    return buffer.getvalue()


def _marker(text: bytes, where: str) -> list[dict[str, Any]]:
    """Return the files that pack.json names, the index first."""
    try:
        content = json.loads(text)
        files = [content["index"], *content["parts"]]
        for entry in files:
            name, length, digest = entry["name"], entry["bytes"], entry["sha256"]
            if not (_OURS.fullmatch(name) and isinstance(length, int) and re.fullmatch("[0-9a-f]{64}", digest)):
                raise ValueError(f"entry {name!r}")
        if content["format"] != 1:
            raise DataError(f"{where}: format = {content['format']}; this version reads format 1, update it")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{where}: damaged ({type(error).__name__}: {error}); build or copy the pack again") from None
    return files


def copy_pack(url: str | Path, to: str | Path, *, progress: Progress | None = None) -> Path:
    """Copy a pack to this machine; an interrupted copy goes on, every file is verified, pack.json comes last.

    Args:
        url: a local folder or a URL.
        to: the local folder; files that it already holds are not copied again.
        progress: called with bytes (done, total).

    Returns:
        `to` as a path.

    Raises:
        DataError: there is no pack, or a file of it is damaged.
        StorageError: it cannot be read or written.
    """
    to = Path(to)
    fs, path = open_url(str(url))
    try:
        text: bytes = fs.cat_file(f"{path}/{PACK_FILE}")
    except FileNotFoundError:
        raise DataError(f"{url}: has no {PACK_FILE}; it is no pack, or its copy was never finished") from None
    except Exception as error:  # every backend has its own exceptions
        raise StorageError(f"{url}: cannot be read ({error})") from None
    files = _marker(text, f"{url}/{PACK_FILE}")
    total, done = sum(entry["bytes"] for entry in files), 0

    def add(count: int) -> None:
        nonlocal done
        done += count
        if progress:
            progress(done, total)

    with locked(str(to.absolute())):
        to.mkdir(parents=True, exist_ok=True)
        targets = [to.absolute() / entry["name"] for entry in files]
        here = [str(target) for target in targets]
        held = hash_files(here, stat_files(here))
        missing = sum(entry["bytes"] for entry, target in zip(files, targets, strict=True) if not target.exists())
        check_room(to, missing, f"{url}: the copy")
        for i, (entry, target) in enumerate(zip(files, targets, strict=True)):
            if not held.error[i] and held.sha256[i].tobytes().hex() == entry["sha256"]:
                add(entry["bytes"])
                continue
            copy_file(fs, f"{path}/{entry['name']}", target, entry["bytes"], sha256=entry["sha256"], progress=add)
        _write_whole(to / PACK_FILE, text)
        kept = {entry["name"] for entry in files}
        for item in to.iterdir():
            if _OURS.fullmatch(item.name) and item.name not in kept:
                item.unlink()
    return to


def load_pack(folder: str | Path, name: str, progress: Progress | None = None) -> Rows:
    """List the rows of a local pack whose every file is verified (once; the verdict is remembered).

    Args:
        folder: the pack.
        name: of the source that it serves as.
        progress: called with (done, total) files while they are verified.

    Raises:
        DataError: a file is missing or damaged, by name.
    """
    import pyarrow as pa

    folder = Path(os.path.abspath(folder))
    try:
        text = (folder / PACK_FILE).read_bytes()
    except OSError as error:
        raise DataError(f"{folder}: not a pack, {PACK_FILE} cannot be read ({error.strerror or error})") from None
    files = _marker(text, str(folder / PACK_FILE))
    paths = [str(folder / entry["name"]) for entry in files]
    stats = stat_files(paths)
    found = hash_files(paths, stats, progress)
    faults = []
    for i, entry in enumerate(files):
        if stats[i, 0] < 0:
            faults.append(f"{paths[i]}: missing; copy or build the pack again")
        elif stats[i, 0] != entry["bytes"]:
            faults.append(f"{paths[i]}: damaged, {stats[i, 0]} bytes instead of {entry['bytes']}; copy the pack again")
        elif found.sha256[i].tobytes().hex() != entry["sha256"]:
            faults.append(f"{paths[i]}: damaged, its content is not what {PACK_FILE} says; copy the pack again")
    if faults:
        raise DataError("\n".join(faults))
    try:
        columns, notes = read_columns(paths[0], distinct=("path", "image_id"), repeated=("group", "source", "video"))
        part = columns["part"]
        labels, crop_settings = notes.get(b"labels"), notes.get(b"crop_settings")
        rows = Rows(
            labels=tuple(json.loads(labels)) if labels else LABELS,
            video=columns.get("video", []),
            image_id=columns.get("image_id", []),
            score=columns["score"].tolist() if "score" in columns else [],
            comparisons=list(map(tuple, comparisons_of(columns).tolist())),
            path=columns["path"],
            file=[paths[1 + p] for p in part.tolist()],
            label=columns["label"].tolist(),
            split=columns["split"].tolist(),
            group=columns["group"],
            source=renamed(columns["source"], lambda inner: source_name(name, inner)),
            stats=stats[1 + part],
            crop_settings=json.loads(crop_settings) if crop_settings else None,
        )
        rows.packed = Packed(*(columns[column] for column in ("offset", "length", "sha256", "width", "height")))
    except (pa.ArrowException, KeyError, ValueError, IndexError, TypeError, RecursionError, DataError) as error:
        raise DataError(f"{paths[0]}: not an index of a pack ({error}); build it again") from None
    return rows
