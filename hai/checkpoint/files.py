"""Files written so that a crash leaves the old content or the new one."""

from __future__ import annotations

import errno
import hashlib
import os
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Final

__all__ = ["TEMPORARY", "hash_file", "save_bytes", "sync_folder", "write_file"]

TEMPORARY: Final = ".tmp-"
"""Prefix of names that may be deleted whenever no writer is at work."""

_NO_FOLDER_SYNC: Final = (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES)


def write_file(path: Path, blocks: Iterable[bytes | memoryview]) -> tuple[str, int]:
    """Write a new file and sync it to the disk.

    Returns:
        sha256 and size of what was written.
    """
    digest, size = hashlib.sha256(), 0
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        for block in blocks:
            digest.update(block)
            size += len(block)
            rest = memoryview(block)
            while len(rest):
                rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return digest.hexdigest(), size


def hash_file(path: Path) -> str:
    """Return the sha256 of a file as it is on the disk, past the page cache where the system allows it."""
    with open(path, "rb") as stream:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return hashlib.file_digest(stream, "sha256").hexdigest()


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
