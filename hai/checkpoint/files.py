"""Files written so that a crash leaves the old content or the new one."""

from __future__ import annotations

import errno
import hashlib
import os
import uuid
import zlib
from collections.abc import Iterable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import Final, NamedTuple

__all__ = [
    "TEMPORARY",
    "Written",
    "hash_file",
    "holds_blocks",
    "read_blocks",
    "save_bytes",
    "sync_folder",
    "write_file",
]

TEMPORARY: Final = ".tmp-"
"""Prefix of names that may be deleted whenever no writer is at work."""

_BLOCK: Final = 4 << 20
_NO_FOLDER_SYNC: Final = (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES)


class Written(NamedTuple):
    """What a file was given."""

    sha256: str
    size: int
    crc32: int


def write_file(path: Path, blocks: Iterable[bytes | memoryview]) -> Written:
    """Write a new file and sync it to the disk."""
    digest, size, crc32 = hashlib.sha256(), 0, 0
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        for block in blocks:
            digest.update(block)
            crc32 = zlib.crc32(block, crc32)
            size += len(block)
            rest = memoryview(block)
            while len(rest):
                rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return Written(digest.hexdigest(), size, crc32)


def hash_file(path: Path) -> str:
    """Return the sha256 of a file as it is on the disk."""
    with _open_uncached(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_blocks(path: Path) -> Iterator[bytes]:
    """Read a file as it is on the disk, in blocks."""
    with _open_uncached(path) as stream:
        while block := stream.read(_BLOCK):
            yield block


def holds_blocks(path: Path, blocks: Iterable[bytes | memoryview]) -> bool:
    """Tell whether a file, as it is on the disk, holds these blocks and nothing else; far cheaper than a hash."""
    buffer = bytearray()
    with _open_uncached(path) as stream:
        for block in blocks:
            if len(buffer) < len(block):
                buffer = bytearray(len(block))
            with memoryview(buffer)[: len(block)] as part:
                found = stream.readinto(part)
            if found != len(block) or not buffer.startswith(block):  # memcmp; == is not for views
                return False
        return not stream.read(1)


def _open_uncached(path: Path) -> BufferedReader:
    """Open a file for reading, past the page cache where the system allows it."""
    stream = open(path, "rb")  # noqa: SIM115  (the caller closes it)
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return stream


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable; mounts that cannot sync a folder are left to their own means."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(descriptor)


def save_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    temporary = path.parent / f"{TEMPORARY}{path.name}-{uuid.uuid4().hex[:12]}"
    os.makedirs(path.parent, exist_ok=True)
    try:
        write_file(temporary, [content])
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
