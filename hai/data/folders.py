"""Walking through folders of data the same way everywhere: sorted, hidden files left out, links followed once."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from hai.errors import DataError
from hai.types import SPLITS

__all__ = ["VIDEO_SUFFIXES", "class_folders", "label_of", "visible", "walk"]

VIDEO_SUFFIXES: Final = frozenset(
    (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp", ".ts")
)
"""File name endings, lower case, that count as videos in a folder."""

_LITTER: Final = "__MACOSX"


def visible(folder: Path) -> list[Path]:
    """List what lies in a folder, sorted, without hidden files."""
    return sorted(item for item in folder.iterdir() if not item.name.startswith(".") and item.name != _LITTER)


def label_of(folder: str, classes: Sequence[str]) -> int | None:
    """Return the position of the class that a folder's name stands for, in any case of letters."""
    names = [name.strip().lower() for name in classes]
    return names.index(folder.strip().lower()) if folder.strip().lower() in names else None


def class_folders(root: Path, classes: Sequence[str]) -> Iterator[tuple[int, int, Path]]:
    """Yield (split or -1, label, folder) for each folder of a class, also under train/, val/ and test/."""
    for item in visible(root):
        if not item.is_dir():
            continue
        label = label_of(item.name, classes)
        if label is not None:
            yield -1, label, item
        elif item.name.lower() in SPLITS:
            for inner in visible(item):
                label = label_of(inner.name, classes)
                if inner.is_dir() and label is not None:
                    yield SPLITS.index(item.name.lower()), label, inner


def walk(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield each folder with its files, both in sorted order; links are followed, but no folder is entered twice.

    Raises:
        DataError: a folder in it cannot be read.
    """
    seen: set[str] = set()
    for current, folders, files in os.walk(folder, followlinks=True, onerror=_refuse):
        real = os.path.realpath(current)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(inner for inner in folders if not inner.startswith(".") and inner != _LITTER)
        yield current, sorted(file for file in files if not file.startswith("."))


def _refuse(error: OSError) -> None:
    raise DataError(f"{error.filename}: cannot be read ({error.strerror}); allow it, or take the folder out") from error
