"""Rows of a source before they are examples, and how their faults are reported: all at once."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from hai.data.archives import listed
from hai.errors import DataError
from hai.masking import without_secrets
from hai.paths import cache_folder
from hai.types import LABELS, Record

__all__ = ["COMPARED", "LABEL_CODES", "Packed", "Rows", "raise_faults", "source_name", "without_root"]

LABEL_CODES: Final = {"real": 0, "fake": 1, "0": 0, "1": 1}
"""What a label column may say, lower case."""

COMPARED: Final = ("image",)
"""The one label of images that are known by comparisons."""


@dataclass(frozen=True)
class Packed:
    """What a pack knows of its rows: byte ranges, content hashes [N, 32] and sizes in pixels."""

    offset: NDArray[np.int64]
    length: NDArray[np.int64]
    sha256: NDArray[np.uint8]
    width: NDArray[np.int32]
    height: NDArray[np.int32]


@dataclass
class Rows:
    """Columns of one source, one row per file that it names."""

    path: list[str] = field(default_factory=list)
    """Relative to the source, / between parts."""
    file: list[str] = field(default_factory=list)
    """Local and absolute."""
    label: list[int] = field(default_factory=list)
    split: list[int] = field(default_factory=list)
    """Position in SPLITS; -1: none given."""
    group: list[str] = field(default_factory=list)
    source: list[str] = field(default_factory=list)
    video: list[str] = field(default_factory=list)
    """Which frames are of one video; empty: those of one group."""
    stats: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 2), dtype=np.int64))
    """What stat_files says of the files, [N, 2]."""
    packed: Packed | None = None
    warnings: list[str] = field(default_factory=list)
    has_test_list: bool = False
    """The data's own list names the whole test split: no other row is divided into it."""
    labels: tuple[str, ...] = LABELS
    """Names of the label codes."""
    image_id: list[str] = field(default_factory=list)
    """A ranker's names for images; empty: the paths."""
    score: list[float] = field(default_factory=list)
    """A ranker's numeric column, NaN where a cell is empty; empty without such a column."""
    place: list[str] = field(default_factory=list)
    """Where a ranker's CSV names each row, `table:line`; empty if nowhere."""
    comparisons: list[tuple[int, int, int]] = field(default_factory=list)
    """Positions of left and right, and 1 (left is better), -1 (right) or 0 (tie)."""
    crop_settings: Record | None = None
    """How the files were cut out of others, as their preprocess.json says; None: nobody says that they were."""

    def add(self, path: str, file: str, label: int, split: int, group: str, source: str) -> None:
        """Append one row."""
        self.path.append(path)
        self.file.append(file)
        self.label.append(label)
        self.split.append(split)
        self.group.append(group)
        self.source.append(source)

    def drop(self, positions: set[int]) -> None:
        """Leave out rows of a folder, which have no columns but those of `add` and `video`."""
        columns: tuple[list[Any], ...] = (self.path, self.file, self.label, self.split, self.group, self.source)
        for column in (*columns, self.video):
            column[:] = [value for i, value in enumerate(column) if i not in positions]

    def forget(self) -> None:
        """Let go of the columns; what is said of the source as a whole stays."""
        self.path, self.file, self.group, self.source, self.video = [], [], [], [], []
        self.image_id, self.place, self.label, self.split, self.score = [], [], [], [], []
        self.stats, self.packed, self.comparisons = np.zeros((0, 2), dtype=np.int64), None, []


def source_name(name: str, part: str) -> str:
    """Name a part of a source, such as one manipulation: `name/part`; the source itself if there is no part."""
    return name if part in ("", name) else f"{name}/{part}"


def without_root(sources: list[str]) -> list[str]:
    """Leave out the name that a config gave the one source of all rows: the next config gives its own."""
    roots = {source.partition("/")[0] for source in sources}
    return [source.partition("/")[2] for source in sources] if len(roots) == 1 else sources


def raise_faults(faults: list[str], hint: str = "") -> NoReturn:
    """Raise one DataError with every fault on its own line; a long list is also written out in full.

    Args:
        faults: one line each.
        hint: a last line that says how to mend them.
    """
    lines = listed(faults).split("\n")
    if len(lines) < len(faults):
        text = without_secrets("\n".join(faults)) + "\n"
        file = cache_folder() / "problems" / f"{hashlib.sha256(text.encode('utf-8', 'replace')).hexdigest()[:12]}.txt"
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            temporary = file.with_name(f"{file.name}.{os.getpid()}.part")
            temporary.write_text(text, encoding="utf-8", errors="replace")
            os.replace(temporary, file)
            lines[-1] += f"; all {len(faults)} are listed in {file}"
        except OSError as error:
            lines[-1] += f" (the full list could not be written to {file}: {error.strerror})"
    raise DataError("\n".join(lines + ([hint] if hint else [])))
