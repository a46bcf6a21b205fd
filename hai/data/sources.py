"""Turning a source, whatever its form and place, into rows: folder, CSV, pack, archive, local or a URL."""

from __future__ import annotations

import csv
import hashlib
import os
import posixpath
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final

from hai.data.archives import ARCHIVE_SUFFIXES, is_archive, unpack
from hai.data.content import Progress, stat_files
from hai.data.images import IMAGE_SUFFIXES
from hai.data.pack import PACK_FILE, copy_pack, load_pack
from hai.data.remote import is_remote_file, is_url, local_copy, open_url
from hai.data.rows import LABEL_CODES, Rows, source_name
from hai.errors import DataError
from hai.paths import cache_folder, locked
from hai.types import LABELS, SPLITS

if TYPE_CHECKING:
    from hai.config.schema import SourceConfig

__all__ = ["MANIPULATIONS", "load_source"]

MANIPULATIONS: Final = ("Deepfakes", "Face2Face", "FaceSwap", "NeuralTextures", "FaceShifter", "DeepFakeDetection")
"""Sub-folders of a class that name how its images were made, in any case; they become part of the source's name."""

_CANONICAL: Final = {name.lower(): name for name in MANIPULATIONS}
_CSV_NAME: Final = "labels.csv"
_HEADER: Final = "the first line must be path,label[,group][,split][,source]"
_FORMS: Final = "a folder with real/ and fake/ (also under train/ val/ test/), a CSV, a pack, or an archive of these"


def load_source(config: SourceConfig, faults: list[str], progress: Progress | None = None) -> Rows:
    """List the rows of one source.

    Args:
        config: the source.
        faults: every bad row is appended to it, one line each; the rows returned are the good ones.
        progress: called with (done, total) while something is copied or unpacked.

    Raises:
        DataError: nothing can be said about rows, because the source as a whole is unusable.
        StorageError: it cannot be reached or copied.
    """
    path, image_dir = config.path, config.image_dir
    if is_url(path):
        path = _copied(path, image_dir, progress)
    local = Path(os.path.abspath(os.path.expanduser(path)))
    if not local.exists():
        raise DataError(f"source {config.name}: path = {config.path}; there is no such file or folder")
    if local.is_file() and is_archive(local):
        local = _inside(_unpacked(local, progress))
        image_dir = str(local / image_dir) if image_dir and not is_url(image_dir) else image_dir
        local = _only_csv(local)
    if local.is_dir() and (local / PACK_FILE).is_file():
        return load_pack(local, config.name, progress)
    if local.is_dir() and not (local / _CSV_NAME).is_file():
        rows = _scan_folder(local, config.name)
    elif local.is_dir() or local.suffix.lower() == ".csv":
        table = local / _CSV_NAME if local.is_dir() else local
        if image_dir is None and is_url(config.path) and config.path.lower().endswith(".csv"):
            image_dir = config.path.rpartition("/")[0]
        return _load_csv(table, image_dir, config.name, faults, progress)
    else:
        raise DataError(f"source {config.name}: path = {config.path}; must be {_FORMS}")
    odd = [i for i, file in enumerate(rows.file) if not file.isprintable() and not _is_utf8(file)]
    faults += [f"{rows.file[i]!r}: the name is not UTF-8; rename the file" for i in odd]
    rows.stats = stat_files(rows.file)
    faults += [f"{rows.file[i]}: missing; a link that leads nowhere?" for i in (rows.stats[:, 0] < 0).nonzero()[0]]
    return rows


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _copied(url: str, image_dir: str | None, progress: Progress | None) -> str:
    """Bring what a URL names to this machine; the images of a lone CSV follow when it has been read."""
    fs, path = open_url(url)
    if url.lower().endswith((".csv", *ARCHIVE_SUFFIXES)):
        return str(local_copy(url, None, progress))
    if is_remote_file(fs, f"{path}/{PACK_FILE}"):
        key = hashlib.sha256(fs.unstrip_protocol(path).encode()).hexdigest()[:20]
        return str(copy_pack(url, cache_folder() / "packs" / key, progress=progress))
    return str(local_copy(url, None, progress))


def _unpacked(archive: Path, progress: Progress | None) -> Path:
    """Unpack an archive once; a changed archive is another one."""
    found = archive.stat()
    key = hashlib.sha256(
        f"{archive} {found.st_size} {found.st_mtime_ns}".encode("utf-8", "surrogateescape")
    ).hexdigest()
    to = cache_folder() / "unpacked" / f"{archive.name.split('.')[0]}-{key[:16]}"
    with locked(str(to)):
        return unpack(archive, to, progress=progress)


def _visible(folder: Path) -> list[Path]:
    return sorted(item for item in folder.iterdir() if not item.name.startswith(".") and item.name != "__MACOSX")


def _inside(folder: Path) -> Path:
    """Step into the lone folder that archives often wrap everything in."""
    while True:
        items = _visible(folder)
        if len(items) != 1 or not items[0].is_dir() or items[0].name.lower() in (*LABELS, *SPLITS):
            return folder
        folder = items[0]


def _only_csv(folder: Path) -> Path:
    """Find the CSV of an unpacked archive under another name than labels.csv, if it has one and nothing better."""
    if (folder / _CSV_NAME).is_file() or (folder / PACK_FILE).is_file() or any(_class_folders(folder)):
        return folder
    tables = [item for item in _visible(folder) if item.suffix.lower() == ".csv"]
    return tables[0] if len(tables) == 1 else folder


def _class_folders(root: Path) -> Iterator[tuple[int, int, Path]]:
    """Yield (split or -1, label, folder) for each class folder, in any case of letters."""
    for item in _visible(root):
        name = item.name.lower()
        if not item.is_dir():
            continue
        if name in LABELS:
            yield -1, LABELS.index(name), item
        elif name in SPLITS:
            for inner in _visible(item):
                if inner.is_dir() and inner.name.lower() in LABELS:
                    yield SPLITS.index(name), LABELS.index(inner.name.lower()), inner


def _scan_folder(root: Path, name: str) -> Rows:
    rows = Rows()
    others: Counter[str] = Counter()
    classes = list(_class_folders(root))
    if not classes:
        found = ", ".join(item.name for item in _visible(root)[:8]) or "nothing"
        raise DataError(f"source {name}: {root} has no real/ or fake/ folder (found: {found}); a source is {_FORMS}")
    start = len(str(root)) + 1
    for split, label, folder in classes:
        for current, files in _walk(folder):
            parts = current[len(str(folder)) + 1 :].split(os.sep)
            made = next((part for part in parts if part.lower() in _CANONICAL), "")
            group = "/".join(part for part in parts if part and part is not made)
            source = source_name(name, _CANONICAL[made.lower()] if made else "")
            for file in files:
                suffix = os.path.splitext(file)[1].lower()
                if suffix in IMAGE_SUFFIXES:
                    path = f"{current}/{file}"
                    rows.add(path[start:], path, label, split, group, source)
                else:
                    others[suffix or "no suffix"] += 1
    if not rows.path:
        raise DataError(f"source {name}: {root} holds no images; known endings are {', '.join(sorted(IMAGE_SUFFIXES))}")
    if others:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(5))
        rows.warnings.append(f"source {name}: {others.total()} files are not images and were left out ({kinds})")
    return rows


def _walk(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield each folder with its files, both in sorted order; links are followed, but no folder is entered twice."""
    seen: set[str] = set()
    for current, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(current)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(inner for inner in folders if not inner.startswith(".") and inner != "__MACOSX")
        yield current, sorted(file for file in files if not file.startswith("."))


def _load_csv(table: Path, image_dir: str | None, name: str, faults: list[str], progress: Progress | None) -> Rows:
    remote = image_dir if image_dir is not None and is_url(image_dir) else None
    folder = table.parent if image_dir is None else Path(os.path.abspath(os.path.expanduser(image_dir)))
    rows, lines = Rows(), list[int]()
    first_lines: dict[str, int] = {}
    columns: dict[str, int] = {}
    if remote is None and not folder.is_dir():
        raise DataError(f"source {name}: image_dir = {image_dir}; there is no such folder")
    for line, cells in _records(table):
        if not columns:
            columns = _columns(table, cells)
            continue
        if not any(cell.strip() for cell in cells):
            continue

        row = {column: cells[at].strip() if at < len(cells) else "" for column, at in columns.items()}
        path, rule = _relative(row["path"], folder if remote is None else None)
        label, split = LABEL_CODES.get(row["label"].lower()), row.get("split", "").lower()
        wrong = [rule] if rule else []
        if label is None:
            wrong.append(f"label = {row['label']!r}; must be real, fake, 0 or 1")
        if split and split not in SPLITS:
            wrong.append(f"split = {row['split']!r}; must be {', '.join(SPLITS)} or empty")
        if not rule and path in first_lines:
            wrong.append(f"path = {path!r}; already in line {first_lines[path]}, each file may occur once")
        elif not rule:
            first_lines[path] = line
        if wrong or label is None:
            faults += [f"{table}:{line}: {rule}" for rule in wrong]
            continue
        source = source_name(name, row.get("source", ""))
        rows.add(path, f"{folder}/{path}", label, SPLITS.index(split) if split else -1, row.get("group", ""), source)
        lines.append(line)
    if not columns:
        raise DataError(f"{table}: the file is empty; {_HEADER}")
    if not lines and not faults:
        raise DataError(f"{table}: there are no rows below the header")
    if remote is not None:
        folder = local_copy(remote, set(rows.path), progress)
        rows.file = [f"{folder}/{path}" for path in rows.path]
    rows.stats = stat_files(rows.file)
    for i in (rows.stats[:, 0] < 0).nonzero()[0]:
        faults.append(f"{table}:{lines[i]}: path = {rows.path[i]!r}; there is no such file in {remote or folder}")
    return rows


def _records(table: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, cells) of a CSV."""
    try:
        with open(table, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            for cells in reader:
                yield reader.line_num, cells
    except UnicodeDecodeError as error:
        raise DataError(f"{table}: not UTF-8 (byte {error.start} of a block); save it as CSV UTF-8") from None
    except csv.Error as error:
        raise DataError(f"{table}:{reader.line_num}: cannot be read as CSV ({error})") from None
    except OSError as error:
        raise DataError(f"{table}: cannot be read ({error.strerror or error})") from None


def _columns(table: Path, cells: list[str]) -> dict[str, int]:
    names = [cell.strip().lower() for cell in cells]
    known = ("path", "label", "group", "split", "source")
    wrong = [f"has no column {name!r}" for name in ("path", "label") if name not in names]
    wrong += [f"has the column {name!r} twice" for name in known if names.count(name) > 1]
    if wrong:
        raise DataError(
            f"{table}:1: {' and '.join(wrong)} (found: {', '.join(cells)}); needs path,label[,group][,split][,source]"
        )
    return {name: names.index(name) for name in known if name in names}


def _relative(path: str, folder: Path | None) -> tuple[str, str]:
    """Return a path relative to the folder, and the rule it breaks if any."""
    if not path:
        return "", "path is empty"
    if "\0" in path:
        return "", f"path = {path!r}; holds a zero byte"
    clean = path.replace("\\", "/")
    if clean.startswith("/") and folder is not None:
        clean = posixpath.relpath(posixpath.normpath(clean), folder)
    clean = posixpath.normpath(clean)
    if clean == "." or PurePosixPath(clean).is_absolute() or clean == ".." or clean.startswith("../"):
        return "", f"path = {path!r}; leaves its folder{f' {folder}' if folder else ''}, name that with image_dir"
    return clean, ""
