"""What became of each file, a line of JSON each in files.jsonl: what a resumed run need not do again."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

__all__ = ["JOURNAL", "CropRecord", "FileRecord", "append_record", "as_lines", "load_records", "save_text"]

JOURNAL: Final = "files.jsonl"


@dataclass(frozen=True)
class CropRecord:
    """A crop on disk."""

    path: str
    """Relative to the output."""
    frame: int
    face: int
    box: tuple[float, float, float, float]
    score: float
    detector: str
    num_bytes: int


@dataclass(frozen=True)
class FileRecord:
    """An input file and what was found in it."""

    path: str
    """Relative to the input."""
    size: int
    """Of the file, bytes."""
    kind: str
    label: int
    source: str
    group: str
    video: str
    """The video, or the one that an image is a frame of."""
    split: str
    num_frames: int
    num_found: int
    error: str
    crops: list[CropRecord] = field(default_factory=list)


def append_record(path: Path, record: FileRecord) -> None:
    """Append a line in one write, whole or not at all."""
    line = _line(record)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        before = os.fstat(descriptor).st_size
        if os.write(descriptor, line) < len(line):
            os.ftruncate(descriptor, before)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
        os.close(descriptor)


def load_records(path: Path, *, mend: bool = True) -> dict[str, FileRecord]:
    """Read the newest record of each file by its path.

    A line that a kill tore is cut off, from the file too if it is to be mended, which only its writer may do; one that
    is damaged is passed over, its file will be done again.
    """
    if not path.exists():
        return {}
    content = path.read_bytes()
    if content and not content.endswith(b"\n"):
        content = content[: content.rfind(b"\n") + 1]
        if mend:
            os.truncate(path, len(content))
    records: dict[str, FileRecord] = {}
    for line in content.split(b"\n"):  # splitlines() also cuts at what JSON leaves as it is
        with suppress(ValueError, LookupError, TypeError, AttributeError):
            record = _record(json.loads(line))
            records[record.path] = record
    return records


def save_text(path: Path, text: str) -> None:
    """Write a file whole or not at all; what is no Unicode in file names is escaped."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def as_lines(records: Iterable[FileRecord]) -> str:
    """Write records as the journal has them."""
    return b"".join(_line(record) for record in records).decode("utf-8")


def _line(record: FileRecord) -> bytes:
    return (json.dumps(asdict(record), ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def _record(values: dict[str, Any]) -> FileRecord:
    crops = [CropRecord(**{**crop, "box": tuple(crop["box"])}) for crop in values.pop("crops")]
    return FileRecord(**values, crops=crops)
