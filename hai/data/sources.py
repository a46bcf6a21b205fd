"""Turning a source, whatever its form and place, into rows: folder, CSV, pack, archive, local or a URL."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hai.data.archives import ARCHIVE_SUFFIXES, is_archive, shown, unpack
from hai.data.content import Progress, stat_files
from hai.data.fetch import fetch
from hai.data.folders import VIDEO_SUFFIXES, class_folders, label_of, visible, walk
from hai.data.identities import join_groups
from hai.data.images import IMAGE_SUFFIXES
from hai.data.kaggle import is_kaggle, kaggle_data
from hai.data.layouts import MANIPULATIONS, is_layout, list_raw
from hai.data.pack import PACK_FILE, copy_pack, load_pack
from hai.data.remote import is_remote_file, is_remote_folder, is_url, local_copy, open_url, plain_url
from hai.data.rows import COMPARED, LABEL_CODES, Rows, source_name
from hai.data.tables import ImageFolder, read_table, settle_files
from hai.errors import DataError, StorageError
from hai.faces.settings import PREPROCESS, as_record, load_settings
from hai.paths import cache_folder, is_mount, locked
from hai.types import LABELS, SPLITS

if TYPE_CHECKING:
    from hai.config.schema import SourceConfig

__all__ = ["DETECTOR", "Form", "folder_table", "load_source", "locate_source"]

logger = logging.getLogger(__name__)

_MANY: Final = 1000
_COLUMNS: Final = ("path", "label", "group", "split", "source", "video")
_HEADER: Final = "path,label[,group][,split][,source][,video]"


@dataclass(frozen=True)
class Form:
    """What the sources of a task look like."""

    task: str
    classes: tuple[str, ...]
    """Names of the folders that label what is in them, in any case of letters; the position is the label."""
    tables: tuple[str, ...]
    """Names of CSVs that speak for the folder they lie in."""
    shown: str
    """All forms, for people."""
    parts: Mapping[str, str]
    """Sub-folders of a class, in lower case, that become part of the source's name."""
    read_csv: Callable[[Path, str | None, str, list[str], Progress | None], Rows]
    """Lists the rows of a CSV: table, image_dir, name, faults, progress."""
    images: str = ""
    """Folder beside a CSV that its paths start from, if it is there."""

    def label_of(self, folder: str) -> int | None:
        """Return the label that a folder's name stands for."""
        return label_of(folder, self.classes)


def load_source(
    config: SourceConfig, faults: list[str], progress: Progress | None = None, *, form: Form | None = None
) -> Rows:
    """List the rows of one source.

    Args:
        config: the source.
        faults: every bad row is appended to it, one line each; the rows returned are the good ones.
        progress: called with (done, total) while something is copied or unpacked.
        form: what a source looks like; default: the detector's.

    Raises:
        DataError: nothing can be said about rows, because the source as a whole is unusable.
        StorageError: it cannot be reached or copied.
    """
    form = form or DETECTOR
    local, image_dir = locate_source(config, form, progress)
    if local.is_dir() and (local / PACK_FILE).is_file():
        return _of_task(load_pack(local, config.name, progress), form, config)
    table = folder_table(local, form, config.name) if local.is_dir() else local
    _refuse_unfinished(local if table is None else table.parent, config.name)
    if table is not None and table.suffix.lower() == ".csv":
        rows = form.read_csv(table, image_dir, config.name, faults, progress)
        _note_crops(rows, table.parent, config.name)
        _warn_of_mount(rows, config.name)
        return rows
    if table is not None:
        raise DataError(f"source {config.name}: path = {config.path}; must be {form.shown}")
    if form.task == DETECTOR.task and is_layout(local):
        rows = _read_layout(local, config.name)
    else:
        rows = _scan_folder(local, config.name, form, faults)
    odd = {i for i, file in enumerate(rows.file) if not file.isprintable() and not _is_utf8(file)}
    faults += [f"{rows.file[i]!r}: the name is not UTF-8; rename the file" for i in sorted(odd)]
    if odd:
        rows.drop(odd)
    rows.stats = stat_files(rows.file)
    _note_crops(rows, local, config.name)
    _warn_of_mount(rows, config.name)
    faults += [f"{rows.file[i]}: missing; a link that leads nowhere?" for i in (rows.stats[:, 0] < 0).nonzero()[0]]
    return rows


def _refuse_unfinished(folder: Path, name: str) -> None:
    """Refuse crops that are not all there: the table of their groups, sources and videos is written at the end."""
    try:
        status = json.loads((folder / PREPROCESS).read_text(encoding="utf-8"))["status"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return  # what is damaged gets a warning
    if status == "running":
        raise DataError(
            f"source {name}: {folder} is not finished; run the same hai preprocess command again to finish it, or wait "
            "for the one that runs"
        )


def _note_crops(rows: Rows, folder: Path, name: str) -> None:
    """Keep what preprocess.json says of how the images were cut out, so that prediction cuts alike."""
    path = folder / PREPROCESS
    if not path.is_file():
        return
    try:
        rows.crop_settings = as_record(load_settings(path))
    except DataError as error:
        rows.warnings.append(f"source {name}: {error}; hai predict --faces auto will cut nothing")


def _warn_of_mount(rows: Rows, name: str) -> None:
    if len(rows.file) > _MANY and is_mount(Path(rows.file[0])):
        rows.warnings.append(
            f"source {name}: {len(rows.file)} files lie on a network drive, where each costs a round trip; "
            "hai data pack makes a few large files of them, which are copied here once"
        )


def locate_source(config: SourceConfig, form: Form, progress: Progress | None = None) -> tuple[Path, str | None]:
    """Bring a source to this machine and unpack it.

    Returns:
        The local folder or file, and where its CSV's paths start if that is known.

    Raises:
        DataError: there is no such thing.
        StorageError: it cannot be reached or copied.
    """
    path, image_dir = config.path, config.image_dir
    if is_kaggle(path):
        path = str(_fetched(path, progress))
    elif is_url(path):
        path = _copied(path, image_dir, progress)
    local = Path(os.path.abspath(os.path.expanduser(path)))
    if not local.exists():
        raise DataError(f"source {config.name}: path = {config.path}; there is no such file or folder")
    if (local / PACK_FILE).is_file() and is_mount(local) and not is_mount(cache_folder()):
        local = _pack_from_mount(local, progress)
    if is_kaggle(config.path) or (local.is_file() and is_archive(local)):
        local = _inside(local if local.is_dir() else _unpacked(local, progress), form)
        image_dir = str(local / os.path.expanduser(image_dir)) if image_dir and not is_url(image_dir) else image_dir
        local = _only_csv(local, form)
    elif image_dir is None and is_url(config.path) and config.path.lower().endswith(".csv"):
        image_dir = config.path.rpartition("/")[0]
        if form.images and is_remote_folder(f"{image_dir}/{form.images}"):
            image_dir = f"{image_dir}/{form.images}"
    return local, image_dir


def folder_table(folder: Path, form: Form, name: str) -> Path | None:
    """Find the CSV that speaks for a folder.

    Raises:
        DataError: there are several.
    """
    found = [folder / table for table in form.tables if (folder / table).is_file()]
    if len(found) > 1:
        both = " and ".join(table.name for table in found)
        raise DataError(f"source {name}: {folder} holds {both}; name the one that is meant as the source's path")
    return found[0] if found else None


def _of_task(rows: Rows, form: Form, config: SourceConfig) -> Rows:
    """Refuse a pack of the other task; number a ranker's labels as the config does."""
    held = f"source {config.name}: path = {config.path}; the pack holds {', '.join(rows.labels)}"
    if (rows.labels == LABELS) != (form.task == "detector"):
        raise DataError(f"{held}, which is no data of the {form.task}")
    if rows.labels not in (LABELS, COMPARED):
        codes = [form.label_of(label) for label in rows.labels]
        unknown = [label for label, code in zip(rows.labels, codes, strict=True) if code is None]
        if unknown:
            raise DataError(f"{held}; {', '.join(unknown)} is not in data.tiers = {list(form.classes)}")
        rows.label = [codes[label] or 0 for label in rows.label]
        rows.labels = form.classes
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
    if plain_url(url).lower().endswith((".csv", *ARCHIVE_SUFFIXES)):
        return str(local_copy(url, None, progress))
    if is_remote_file(fs, f"{path}/{PACK_FILE}"):
        return str(copy_pack(url, cache_folder() / "packs" / _key(fs.unstrip_protocol(path)), progress=progress))
    return str(local_copy(url, None, progress))


def _pack_from_mount(pack: Path, progress: Progress | None) -> Path:
    """Copy a pack from a network drive; where there is no room for it, it is read where it lies."""
    try:
        return copy_pack(pack, cache_folder() / "packs" / _key(str(pack)), progress=progress)
    except StorageError as error:
        logger.warning("%s; the pack is read from the network drive", error)
        return pack


def _fetched(source: str, progress: Progress | None) -> Path:
    """Fetch from Kaggle, once."""
    data = kaggle_data(source)
    folder = cache_folder() / "fetched" / f"{data.name}-{_key(data.source)}"
    return fetch(source, folder, show=lambda what: nullcontext(progress or (lambda done, total: None))).path


def _key(place: str) -> str:
    return hashlib.sha256(place.encode("utf-8", "surrogateescape")).hexdigest()[:20]


def _unpacked(archive: Path, progress: Progress | None) -> Path:
    """Unpack an archive once; a changed archive is another one."""
    found = archive.stat()
    key = hashlib.sha256(
        f"{archive} {found.st_size} {found.st_mtime_ns}".encode("utf-8", "surrogateescape")
    ).hexdigest()
    to = cache_folder() / "unpacked" / f"{archive.name.split('.')[0]}-{key[:16]}"
    with locked(str(to)):
        return unpack(archive, to, progress=progress)


def _inside(folder: Path, form: Form) -> Path:
    """Step into the lone folder that archives often wrap everything in."""
    while True:
        items = visible(folder)
        if len(items) != 1 or not items[0].is_dir() or items[0].name.lower() in SPLITS:
            return folder
        if form.label_of(items[0].name) is not None or (form.task == DETECTOR.task and is_layout(folder)):
            return folder
        folder = items[0]


def _only_csv(folder: Path, form: Form) -> Path:
    """Find the CSV of an unpacked archive under another name than the usual, if it has one and nothing better."""
    if any((folder / name).is_file() for name in (*form.tables, PACK_FILE)) or any(class_folders(folder, form.classes)):
        return folder
    if form.task == DETECTOR.task and is_layout(folder):
        return folder
    tables = [item for item in visible(folder) if item.suffix.lower() == ".csv"]
    return tables[0] if len(tables) == 1 else folder


def _read_layout(root: Path, name: str) -> Rows:
    """List frames or crops that lie as one of the known data sets does."""
    found = list_raw(root, kind="image")
    rows = Rows()
    for file in found.files:
        path = file.path.relative_to(found.root).as_posix()
        split = SPLITS.index(file.split) if file.split else -1
        rows.add(path, str(file.path), file.label, split, file.group, source_name(name, file.source))
        rows.video.append(file.video)
    rows.warnings = [f"source {name}: {problem}" for problem in found.problems]
    rows.has_test_list = {file.split for file in found.files} == {"", "test"}
    return rows


def _scan_folder(root: Path, name: str, form: Form, faults: list[str]) -> Rows:
    rows = Rows(labels=form.classes)
    others: Counter[str] = Counter()
    classes = list(class_folders(root, form.classes))
    if not classes:
        found = ", ".join(item.name for item in visible(root)[:8]) or "nothing"
        wanted = " or ".join(f"{label}/" for label in form.classes)
        raise DataError(f"source {name}: {root} has no {wanted} folder (found: {found}); a source is {form.shown}")
    if form.task == "ranker":
        faults += _strangers(root, form)
    start = len(str(root)) + 1
    for split, label, folder in classes:
        for current, files in walk(folder):
            parts = current[len(str(folder)) + 1 :].split(os.sep)
            made = next((part for part in parts if part.lower() in form.parts), "")
            group = "/".join(part for part in parts if part and part is not made)
            source = source_name(name, form.parts[made.lower()] if made else "")
            for file in files:
                suffix = os.path.splitext(file)[1].lower()
                if suffix in IMAGE_SUFFIXES:
                    path = f"{current}/{file}"
                    rows.add(path[start:], path, label, split, group, source)
                else:
                    others[suffix or "no suffix"] += 1
    if form.task == DETECTOR.task:
        joined, lines = join_groups(rows.group, rows.label, [SPLITS[k] if k >= 0 else "" for k in rows.split])
        rows.warnings += [f"source {name}: {line}" for line in lines]
        if joined != rows.group:
            rows.video = [
                f"{LABELS[label]}/{source}/{group}" if group else ""
                for label, source, group in zip(rows.label, rows.source, rows.group, strict=True)
            ]
            rows.group = joined
    if not rows.path:
        hint = f"known endings are {', '.join(sorted(IMAGE_SUFFIXES))}"
        hint = "videos become face crops with `hai preprocess`" if VIDEO_SUFFIXES & others.keys() else hint
        raise DataError(f"source {name}: {root} holds no images; {hint}")
    if others:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(5))
        rows.warnings.append(f"source {name}: {others.total()} files are not images and were left out ({kinds})")
    return rows


def _strangers(root: Path, form: Form) -> list[str]:
    """Name the folders beside those of the tiers that hold images but are no tier: none is passed over."""
    known = [folder for _, _, folder in class_folders(root, form.classes)]
    beside = {item for parent in {folder.parent for folder in known} for item in visible(parent) if item.is_dir()}
    return [
        f"{item}: tier = {item.name!r}; must be one of {', '.join(form.classes)} (data.tiers)"
        for item in sorted(beside - set(known))
        if not (item.parent == root and item.name.lower() in SPLITS)
        and any(os.path.splitext(file)[1].lower() in IMAGE_SUFFIXES for _, files in walk(item) for file in files)
    ]


def _read_labels(table: Path, image_dir: str | None, name: str, faults: list[str], progress: Progress | None) -> Rows:
    folder = ImageFolder(table, image_dir, name)
    rows, lines = Rows(), list[int]()
    first_lines: dict[str, int] = {}
    before = len(faults)
    for line, row in read_table(table, _COLUMNS, 2, _HEADER, faults):
        path, rule = folder.relative(row["path"], "path")
        label, split = LABEL_CODES.get(row["label"].lower()), row.get("split", "").lower()
        wrong = [rule] if rule else []
        if label is None:
            wrong.append(f"label = {shown(row['label'])}; must be real, fake, 0 or 1")
        if split and split not in SPLITS:
            wrong.append(f"split = {shown(row['split'])}; must be {', '.join(SPLITS)} or empty")
        if not rule and path in first_lines:
            wrong.append(f"path = {shown(path)}; already in line {first_lines[path]}, each file may occur once")
        elif not rule:
            first_lines[path] = line
        if wrong or label is None:
            faults += [f"{table}:{line}: {rule}" for rule in wrong]
            continue
        source = source_name(name, row.get("source", ""))
        rows.add(path, "", label, SPLITS.index(split) if split else -1, row.get("group", ""), source)
        if "video" in row:
            rows.video.append(row["video"])
        lines.append(line)
    if not lines and len(faults) == before:
        raise DataError(f"{table}: there are no rows below the header")
    missing = settle_files(rows, folder, progress)
    faults += [f"{table}:{lines[i]}: path {rule}" for i, rule in missing.items()]
    return rows


DETECTOR: Final = Form(
    task="detector",
    classes=LABELS,
    tables=("labels.csv",),
    shown="a folder with real/ and fake/ (also under train/ val/ test/), a CSV, a pack, or an archive of these",
    parts={name.lower(): name for name in MANIPULATIONS},
    read_csv=_read_labels,
)
"""Sources of images that are real or fake."""
