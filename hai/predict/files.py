"""The files of a prediction: found in folders and archives, named, put in the order of a contest's sample."""

from __future__ import annotations

import csv
import os
import re
import sys
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hai.data.archives import is_archive, listed, unpack
from hai.data.folders import VIDEO_SUFFIXES, walk
from hai.data.images import IMAGE_SUFFIXES
from hai.errors import DataError
from hai.faces.contact import CONTACT_SHEET
from hai.faces.settings import PREPROCESS
from hai.paths import cache_folder
from hai.types import LABELS, SPLITS

__all__ = ["Row", "Source", "check_output", "find_files", "find_rows", "is_ready_crop", "is_video"]

Source = Path | bytes | NDArray[np.uint8]
"""An image or video file, the content of an image file, or pixels [H, W, 3], RGB."""

_NOT_THERE = "is in the sample and not in the input"
_BESIDE_DATA = frozenset((".csv", ".html", ".json", ".jsonl", ".log", ".md", ".rst", ".txt", ".xml", ".yaml", ".yml"))
"""File name endings, lower case, of what lies beside data and goes without saying."""


@dataclass
class Row:
    """A file that the table has a row for.

    Args:
        name: relative to its --input, or as the sample writes it.
        source: the file, its content, or pixels [H, W, 3], RGB; None: nowhere.
        is_ready: the file is a face crop that `hai preprocess` made.
        logits: of fake against real, one of each model.
        num_frames: pictures that were scored.
        num_faces: of them cut out around a face.
        error: why there is no score.
    """

    name: str
    source: Source | None
    is_ready: bool = False
    logits: list[float] = field(default_factory=list)
    num_frames: int = 0
    num_faces: int = 0
    error: str = ""
    probability: float = 0.5


def is_video(source: Source | None) -> bool:
    """Tell by its name whether a file is a video."""
    return isinstance(source, Path) and source.suffix.lower() in VIDEO_SUFFIXES


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


def find_rows(inputs: Sequence[str], stack: ExitStack, *, sample: str | None, unique: bool) -> list[Row]:
    """Find the files of all inputs, in the order that the table will have.

    Args:
        inputs: image and video files, folders (searched deeply) and archives.
        stack: removes what is unpacked.
        sample: a CSV whose rows say which files are wanted, in which order and under which names.
        unique: no name may occur twice.

    Raises:
        DataError: there is nothing, a name occurs twice, or the sample cannot be used.
    """
    rows = [Row(found, path, is_ready_crop(path)) for name in inputs for found, path in find_files(name, stack)]
    if not rows:
        raise DataError(f"--input = {', '.join(inputs)}; no image or video in it; a folder is searched deeply")
    if sample is None:
        _check_names([row.name for row in rows], unique)
        return rows
    return _as_in(Path(sample), rows)


def _check_names(names: Sequence[str], unique: bool) -> None:
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if not twice:
        return
    what = "name that occurs" if len(twice) == 1 else f"{len(twice)} names that occur"
    line = f"--input: {what} in more than one input: {', '.join(twice[:3])}{', ...' if len(twice) > 3 else ''}"
    if unique:
        raise DataError(f"{line}; a contest's table needs one row per name; give one folder that holds all files")
    print(f"note: {line}", file=sys.stderr)


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
        yield from _in_folder(path, name)
    elif is_archive(path):
        cache_folder().mkdir(parents=True, exist_ok=True)
        room = tempfile.TemporaryDirectory(prefix="predict-", dir=cache_folder(), ignore_cleanup_errors=True)
        yield from _in_folder(unpack(path, Path(stack.enter_context(room)) / "files"), name)
    else:
        yield path.name, path


def _in_folder(folder: Path, shown: str) -> Iterator[tuple[str, Path]]:
    names, others = [], Counter[str]()
    for parent, files in walk(folder):
        if PREPROCESS in files and CONTACT_SHEET in files:  # an overview of the crops that lie below
            files.remove(CONTACT_SHEET)
        for file in files:
            suffix = os.path.splitext(file)[1].lower()
            if suffix in IMAGE_SUFFIXES | VIDEO_SUFFIXES:
                names.append((Path(parent) / file).relative_to(folder).as_posix())
            elif suffix not in _BESIDE_DATA:
                others[suffix or "no ending"] += 1
    if others:
        kinds = ", ".join(f"{count} with {suffix}" for suffix, count in others.most_common(5))
        print(f"note: {shown}: left out as neither images nor videos by their names: {kinds}", file=sys.stderr)
    for name in sorted(names, key=_natural_key):
        yield name, folder / name


def _natural_key(name: str) -> tuple[Any, ...]:
    pieces = [re.split(r"(\d+)", part.casefold()) for part in name.split("/")]
    return tuple(
        tuple((int(piece), "") if piece.isdecimal() else (-1, piece) for piece in part) for part in pieces
    ), name


def is_ready_crop(path: Path) -> bool:
    """Tell whether `hai preprocess` wrote the file: as SPLIT/LABEL/NAME in a folder that holds its preprocess.json.

    Other files in such a folder, a contest's videos below it for one, are no crops.
    """
    folder = Path(os.path.abspath(path.parent))
    is_in_place = folder.name in LABELS and folder.parent.name in SPLITS and path.suffix in (".jpg", ".png")
    return is_in_place and _is_made_of_crops(folder.parents[1])


@lru_cache(maxsize=4096)
def _is_made_of_crops(folder: Path) -> bool:
    return (folder / PREPROCESS).is_file()


def _as_in(sample: Path, rows: Sequence[Row]) -> list[Row]:
    """Return a row for each line of the sample: of the file with that name, else of the one at the end of whose path
    the name stands, or the other way round. A file that the sample names in full is no other line's.

    Raises:
        DataError: the sample cannot be read or has no file names, or it is unclear which file is whose.
    """
    keys = {name: _composed(name) for name in _names_in(sample)}
    in_full = set(keys.values())
    by_name: dict[str, list[Row]] = {}
    by_end: dict[str, list[Row]] = {}
    for row in {row.source: row for row in rows}.values():
        full, *ends = _ends(row.name)
        by_name.setdefault(full, []).append(row)
        for end in ends if full not in in_full else ():
            by_end.setdefault(end, []).append(row)
    wanted, unclear, taken = [], [], dict[Source | None, str]()
    for name, key in keys.items():
        found = by_name.get(key, [])
        if not found:
            shorter = [end for end in _ends(key)[1:] if end not in in_full]
            found = by_end.get(key, []) + [row for end in shorter for row in by_name.get(end, [])]
        if not found:
            wanted.append(Row(name, None, error=_NOT_THERE))
            continue
        wanted.append(Row(name, found[0].source, found[0].is_ready))
        first = taken.setdefault(found[0].source, name)
        if len(found) > 1:
            choice = list(dict.fromkeys(row.name for row in found))
            which = " or ".join(choice[:3]) + (" of more than one --input" if len(choice) == 1 else "")
            unclear.append(f"{name} could be {which}; give the folder that is meant, or one that holds all")
        elif keys[first] != key:
            unclear.append(f"{first} and {name} could both be {found[0].name}; give the folder that holds both")
    if unclear:
        raise DataError(listed([f"--sample = {sample}: {line}" for line in unclear]))
    left = sum(row.source not in taken for row in rows)
    if left == len(rows):
        raise DataError(
            f"--sample = {sample}: names none of the files in --input; its first is {wanted[0].name!r}, "
            f"theirs {rows[0].name!r}; give the folder that its names start from"
        )
    if left:
        print(f"note: {left} files of the input are not in {sample} and are left out", file=sys.stderr)
    return wanted


def _ends(name: str) -> list[str]:
    """List a path, then what is left of it as folder after folder is taken from its front."""
    parts = _composed(name).split("/")
    return ["/".join(parts[place:]) for place in range(len(parts))]


def _composed(name: str) -> str:
    """Write a name's letters in one way: macOS takes accents and Korean syllables apart in file names."""
    return unicodedata.normalize("NFC", name)


def _names_in(sample: Path) -> list[str]:
    try:
        with open(sample, encoding="utf-8-sig", newline="") as file:
            table = csv.reader(file)
            header = [column.strip() for column in next(table, [])]
            if "filename" not in header:
                raise DataError(f"--sample = {sample}: no column filename; columns are {', '.join(header) or 'none'}")
            place = header.index("filename")
            names = [line[place].strip() for line in table if len(line) > place and line[place].strip()]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"--sample = {sample}: cannot be read as a CSV in UTF-8 ({error})") from None
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice or not names:
        reason = f"{twice[0]!r} occurs twice" if twice else "it has no rows"
        raise DataError(f"--sample = {sample}: {reason}; one row per file is needed")
    return names
