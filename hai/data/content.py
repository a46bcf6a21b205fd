"""What is inside files: hash, size in pixels and whether they decode, remembered between runs.

The memory is one sqlite file in the cache folder. An entry counts as long as its file has the same absolute path, size
and modification time; entries carry a checksum, so a damaged one is measured again instead of believed.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sqlite3
import struct
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from hai.cpus import num_cpus
from hai.data.images import decode_image
from hai.errors import DataError
from hai.paths import cache_folder

__all__ = ["Content", "Progress", "check_images", "hash_files", "in_threads", "note_hash", "num_threads", "stat_files"]

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with (done, total) now and then while something takes long."""

_FORMAT: Final = 1
"""Raise it when the decoder's verdict on some file changes: older entries are then measured again."""
_RECORD: Final = struct.Struct("<qqiid32s")  # size, mtime_ns, width, height, max_megapixels, sha256
_FIELDS: Final = np.dtype(
    [("size", "<i8"), ("mtime", "<i8"), ("width", "<i4"), ("height", "<i4"), ("limit", "<f8"), ("sha256", "V32")]
)
_EMPTY: Final = _RECORD.pack(-1, 0, 0, 0, 0.0, bytes(32))
_CHUNK: Final = 16
_noted: dict[str, tuple[int, int, bytes]] = {}
"""Size, mtime_ns and sha256 of files that this process wrote."""
_FLUSH_SECONDS: Final = 5.0
_SETTLED_NS: Final = 20_000_000
"""Younger files are not remembered: a second change within a tick of the clock would not show in their time."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Content:
    """What check_images found, one row per file: sha256 uint8 [N, 32], width and height int32 [N], error or ""."""

    sha256: NDArray[np.uint8]
    width: NDArray[np.int32]
    height: NDArray[np.int32]
    error: list[str]


def num_threads() -> int:
    """Return how many threads hide the waiting for files: more than the CPUs, since hashing and decoding need few."""
    return min(32, num_cpus() + 4)


def in_threads(
    function: Callable[[Item], Result], items: Sequence[Item], each: Callable[[Sequence[int], list[Result]], None]
) -> None:
    """Apply a function to all items in threads, and hand over results as they come, in the calling thread.

    Args:
        function: must release the GIL to gain anything.
        items: the inputs; taken in small chunks, few ahead of the results.
        each: called with positions and their results, in any order. What it or the function raises ends the work.
    """
    threads = num_threads()
    chunks = iter([range(start, min(start + _CHUNK, len(items))) for start in range(0, len(items), _CHUNK)])
    with ThreadPoolExecutor(threads, thread_name_prefix="content") as pool:
        waiting: dict[Future[list[Result]], range] = {}
        try:
            while True:
                for chunk in islice(chunks, 4 * threads - len(waiting)):
                    waiting[pool.submit(lambda part: [function(items[i]) for i in part], chunk)] = chunk
                if not waiting:
                    return
                finished, _ = wait(waiting, return_when=FIRST_COMPLETED)
                for future in finished:
                    each(waiting.pop(future), future.result())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def stat_files(files: Sequence[str]) -> NDArray[np.int64]:
    """Return (size, mtime_ns) of regular files, [N, 2]; (-1, -1) for everything else."""
    result = np.full((len(files), 2), -1, dtype=np.int64)

    def stat(file: str) -> tuple[int, int]:
        try:
            found = os.stat(file)
        except (OSError, ValueError):
            return (-1, -1)
        return (found.st_size, found.st_mtime_ns) if (found.st_mode & 0o170000) == 0o100000 else (-1, -1)

    started = time.perf_counter()
    for i, file in enumerate(files):
        result[i] = stat(file)
        if i == 200 and time.perf_counter() - started > 0.2:  # a slow mount: wait for many files at once
            break
    else:
        return result

    def keep(positions: Sequence[int], values: list[tuple[int, int]]) -> None:
        result[list(positions)] = values

    in_threads(stat, files, keep)
    return result


def check_images(
    files: Sequence[str],
    stats: NDArray[np.int64],
    max_megapixels: float,
    progress: Progress | None = None,
) -> Content:
    """Hash and decode every image once; what is known from earlier runs is not read again.

    Args:
        files: absolute paths.
        stats: what stat_files says of them, [N, 2].
        max_megapixels: as in decode_image.
        progress: called with (done, total).

    Returns:
        One row per file; a file that cannot be read or decoded has an `error` and no size.
    """

    def measure(file: str, size: int) -> tuple[bytes, int, int, str]:
        if size > max_megapixels * 16e6 + 64e6:
            return bytes(32), 0, 0, f"{size} bytes; too large for an image of {max_megapixels:g} megapixels"
        try:
            with open(file, "rb") as stream:
                data = stream.read()
        except OSError as error:
            return bytes(32), 0, 0, f"cannot be read: {error.strerror or error}"
        if len(data) != size:
            return bytes(32), 0, 0, f"changed while it was read: {len(data)} bytes, expected {size}"
        digest = hashlib.sha256(data).digest()
        try:
            height, width = decode_image(data, max_megapixels).shape[:2]
        except DataError as error:
            return digest, 0, 0, str(error)
        return digest, width, height, ""

    def is_valid(known: NDArray[Any], failed: NDArray[np.bool_]) -> NDArray[np.bool_]:
        pixels = known["width"].astype(np.int64) * known["height"]
        fits: NDArray[np.bool_] = np.where(failed, known["limit"] == max_megapixels, pixels <= max_megapixels * 1e6)
        return fits

    return _remembered(files, stats, max_megapixels, measure, is_valid, progress)


def note_hash(file: str, sha256: bytes) -> None:
    """Tell `hash_files` of this process what a file holds that was hashed while it was written."""
    found = os.stat(file)
    _noted[file] = found.st_size, found.st_mtime_ns, sha256


def hash_files(files: Sequence[str], stats: NDArray[np.int64], progress: Progress | None = None) -> Content:
    """Hash files of any kind and size, with the same memory as check_images; width and height are 0."""

    def measure(file: str, size: int) -> tuple[bytes, int, int, str]:
        try:
            if file in _noted and (size, os.stat(file).st_mtime_ns) == _noted[file][:2]:
                return _noted[file][2], 0, 0, ""
            with open(file, "rb") as stream:
                return hashlib.file_digest(stream, "sha256").digest(), 0, 0, ""
        except OSError as error:
            return bytes(32), 0, 0, f"cannot be read: {error.strerror or error}"

    def is_valid(known: NDArray[Any], failed: NDArray[np.bool_]) -> NDArray[np.bool_]:
        return ~failed

    return _remembered(files, stats, 0.0, measure, is_valid, progress)


def _remembered(
    files: Sequence[str],
    stats: NDArray[np.int64],
    limit: float,
    measure: Callable[[str, int], tuple[bytes, int, int, str]],
    is_valid: Callable[[NDArray[Any], NDArray[np.bool_]], NDArray[np.bool_]],
    progress: Progress | None,
) -> Content:
    with closing(_Memory()) as memory:
        blobs, errors = memory.load(files)
        known = np.frombuffer(b"".join(blobs), dtype=_FIELDS).copy()
        del blobs
        failed = np.array([bool(error) for error in errors], dtype=np.bool_)
        valid = (known["size"] == stats[:, 0]) & (known["mtime"] == stats[:, 1]) & (stats[:, 0] >= 0)
        valid &= is_valid(known, failed)
        todo = np.flatnonzero(~valid)
        fresh: list[tuple[str, bytes, str]] = []
        done = len(files) - len(todo)
        flushed = time.monotonic()
        if progress and files:
            progress(done, len(files))

        def keep(positions: Sequence[int], results: list[tuple[bytes, int, int, str]]) -> None:
            nonlocal done, flushed
            for position, (digest, width, height, error) in zip(positions, results, strict=True):
                i = int(todo[position])
                size, mtime = int(stats[i, 0]), int(stats[i, 1])
                blob = _RECORD.pack(size, mtime, width, height, limit, digest)
                known[i] = np.frombuffer(blob, dtype=_FIELDS)[0]
                errors[i] = error
                settled = abs(time.time_ns() - mtime) > _SETTLED_NS
                if digest != bytes(32) and settled:  # what could not even be read may be readable in a moment
                    fresh.append((files[i], blob, error))
            done += len(results)
            if progress:
                progress(done, len(files))
            if time.monotonic() - flushed > _FLUSH_SECONDS:
                memory.save(fresh)
                fresh.clear()
                flushed = time.monotonic()

        try:
            in_threads(lambda i: measure(files[i], int(stats[i, 0])), todo.tolist(), keep)
        finally:
            memory.save(fresh)
    digests = np.frombuffer(known["sha256"].tobytes(), dtype=np.uint8).reshape(-1, 32)
    return Content(digests, known["width"].copy(), known["height"].copy(), errors)


class _Memory:
    """The sqlite file; trouble with it costs time, never the run: it is rebuilt, or done without, with a line."""

    def __init__(self) -> None:
        self._file: Path | None = cache_folder() / "content.sqlite"
        self._connection = self._opened()

    def _opened(self) -> sqlite3.Connection:
        for _ in range(2):
            if self._file is None:
                break
            try:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                return self._prepared(str(self._file))
            except (OSError, sqlite3.OperationalError) as error:
                logger.warning("%s: cannot be opened (%s); files are read again this time", self._file, error)
                self._file = None
            except sqlite3.DatabaseError as error:
                self._set_aside(error)
        self._file = None
        return self._prepared(":memory:")

    @staticmethod
    def _prepared(name: str) -> sqlite3.Connection:
        connection = sqlite3.connect(name, timeout=60.0, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute(
                f"CREATE TABLE IF NOT EXISTS content_{_FORMAT} "
                "(path TEXT PRIMARY KEY, facts BLOB, error TEXT, checksum INTEGER) WITHOUT ROWID"
            )
        except BaseException:
            connection.close()
            raise
        return connection

    def _set_aside(self, error: Exception) -> None:
        assert self._file is not None
        logger.warning("%s: damaged (%s); rebuilt, so files are read again", self._file, error)
        try:
            for name in (self._file, Path(f"{self._file}-journal")):
                name.unlink(missing_ok=True)
        except OSError:
            self._file = None

    def load(self, files: Sequence[str]) -> tuple[list[bytes], list[str]]:
        """Return the record and the error text of each file; records of unknown files are empty."""
        known: dict[str, bytes] = {}
        failed: dict[str, str] = {}
        wanted = set(files)
        try:
            for path, facts, error, checksum in self._rows(files):
                if path in wanted and checksum == _checksum(path, facts, error):
                    known[path] = facts
                    if error:
                        failed[path] = error
        except sqlite3.OperationalError as error:
            logger.warning("%s: cannot be read (%s); files are read again this time", self._file, error)
        except (sqlite3.DatabaseError, TypeError, AttributeError) as error:  # values of another type are damage too
            known, failed = {}, {}
            self.close()
            self._set_aside(error)
            self._connection = self._opened()
        return [known.get(file, _EMPTY) for file in files], [failed.get(file, "") for file in files]

    def _rows(self, files: Sequence[str]) -> Iterable[tuple[str, bytes, str, int]]:
        columns = f"SELECT path, facts, error, checksum FROM content_{_FORMAT} WHERE path "
        if len(files) <= 500:
            marks = ",".join("?" * len(files))
            yield from self._connection.execute(f"{columns} IN ({marks})", list(files))
            return
        for low, high in _ranges(files):
            yield from self._connection.execute(f"{columns} BETWEEN ? AND ?", (low, high))

    def save(self, rows: list[tuple[str, bytes, str]]) -> None:
        """Remember the records of some files, in one transaction."""
        if not rows:
            return
        command = f"INSERT OR REPLACE INTO content_{_FORMAT} VALUES (?, ?, ?, ?)"
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                self._connection.executemany(command, [(*row, _checksum(*row)) for row in rows])
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
        except sqlite3.DatabaseError as error:
            logger.warning("%s: cannot be written (%s); these files are read again next time", self._file, error)

    def close(self) -> None:
        """Close the file."""
        self._connection.close()


def _checksum(path: str, facts: bytes, error: str) -> int:
    return zlib.crc32(error.encode(), zlib.crc32(facts, zlib.crc32(path.encode("utf-8", "surrogateescape"))))


def _ranges(files: Sequence[str]) -> list[tuple[str, str]]:
    """Cover the files by few ranges of names, so that the rest of a large memory is not read."""
    folders = {file.rpartition("/")[0] for file in files}
    tops = {"/".join(folder.split("/", 5)[:5]) for folder in folders}
    kept = [top for top in sorted(tops) if not any(parent in tops for parent in _parents(top))]
    return [(f"{top}/", f"{top}0") for top in kept]  # 0 is the character after /


def _parents(folder: str) -> list[str]:
    parts = folder.split("/")
    return ["/".join(parts[:k]) for k in range(1, len(parts))]
