"""The small files of a run, here and on the storage: what is there is taken over before it is written over."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable
from pathlib import Path

from hai.checkpoint import records
from hai.checkpoint.files import save_bytes
from hai.types import Record

__all__ = ["SmallFiles"]


class SmallFiles:
    """The small files of a run's work folder, and which of them may be newer on the storage.

    Args:
        path: the work folder.
    """

    def __init__(self, path: Path) -> None:
        self.lock = threading.RLock()
        """Held by whoever writes one of them, as a copy on the storage may be read at any time."""
        self.unread: list[str] = []
        """Those of which the copy on the storage has not been read yet."""
        self._path = path
        self._before: dict[str, bytes | None] = {}
        self._last = -1
        self._is_behind = False
        self._start = math.inf

    def begin(self) -> None:
        """Note what is here before anything is written."""
        self._before = {name: _read(self._path / name) for name in records.SMALL_FILES}
        self._last = _last_step(self._before[records.METRICS])
        self.unread = list(records.SMALL_FILES)

    def start_at(self, step: int, known: Iterable[Record]) -> None:
        """Drop the records beyond the step that training goes on from, and put back known ones that are lost."""
        with self.lock:
            self._start = step
            records.truncate_after(self._path / records.METRICS, step, known=known)

    def take(self, name: str, theirs: bytes | None) -> None:
        """Take over the storage's copy of a file, None when it has none; metrics.jsonl says whose are newer, so first.

        Records and log lines are merged; of the other files the newer one stays, which is always one written here
        since `begin`.
        """
        with self.lock:
            ours = _read(self._path / name)
            if name == records.METRICS:
                self._is_behind = _last_step(theirs) > self._last
            if theirs is not None:
                merged = self._merge(name, theirs, ours)
                if merged != ours:
                    save_bytes(self._path / name, merged)
            self.unread.remove(name)

    def _merge(self, name: str, theirs: bytes, ours: bytes | None) -> bytes:
        if name == records.METRICS:
            return records.merge_records(theirs, ours or b"", until=self._start, prefer_ours=not self._is_behind)
        if ours is None:
            return theirs
        if name == records.LOG:
            lines = theirs.splitlines()
            known = set(lines)
            lines += [line for line in ours.splitlines() if line not in known]
            return b"".join(line + b"\n" for line in lines)
        if name == records.BEST and self._start < math.inf:  # it agrees with the state that training goes on from
            return ours
        return theirs if self._is_behind and ours == self._before[name] else ours


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _last_step(content: bytes | None) -> int:
    found = records.parse_records(content or b"")
    return max((step for record in found if isinstance(step := record.get("step"), int)), default=-1)
