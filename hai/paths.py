"""What of this machine's file systems belongs to no run: the cache folder, locks, mounts that are no local disk."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from hai.console import shown_bytes
from hai.errors import StorageError
from hai.masking import without_secrets

__all__ = ["cache_folder", "cache_room", "check_room", "is_mount", "locked"]

logger = logging.getLogger(__name__)

_REMOTE_TYPES: Final = re.compile(
    r"fuse(\..+)?|nfs\d?|9p|cifs|smb3|smbfs|drvfs|vboxsf|prl_fs|ceph|glusterfs|lustre|beegfs|gpfs|afs|davfs"
)
_SPARE_BYTES: Final = 64 << 20
_LOCAL_TYPES: Final = re.compile(r"fuse\.(fuse-overlayfs|ntfs.*|exfat.*|unionfs.*)")


def cache_folder() -> Path:
    """Return HAI_CACHE, default `~/.cache/hai`, as an absolute path; the folder need not exist yet."""
    return Path(os.path.abspath(os.path.expanduser(os.environ.get("HAI_CACHE") or "~/.cache/hai")))


def cache_room(kind: str) -> tempfile.TemporaryDirectory[str]:
    """Make a folder below the cache folder, which is removed at the end of its context.

    Args:
        kind: its name begins with it.

    Raises:
        StorageError: the cache folder cannot be written.
    """
    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(prefix=f"{kind}-", dir=cache_folder(), ignore_cleanup_errors=True)
    except OSError as error:
        raise _unwritable(cache_folder(), error) from None


def check_room(folder: Path, needed: int, what: str) -> None:
    """Refuse to write more than the disk of a folder holds.

    Raises:
        StorageError: it has too little room.
    """
    free = shutil.disk_usage(folder).free
    if needed + _SPARE_BYTES > free:
        raise StorageError(
            f"{what}: needs {shown_bytes(needed)}, {shown_bytes(free)} are free at {folder}; make room or choose a "
            "larger disk"
        )


def is_mount(folder: Path, table: Path = Path("/proc/mounts")) -> bool:
    """Tell whether a folder lies on a network or user-space mount, where only what was read back is safe."""
    try:
        lines = table.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return False
    target, best, kind = folder.resolve(), -1, ""
    for line in lines:
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        point = Path(re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[1]))
        if target.is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), fields[2]
    return bool(_REMOTE_TYPES.fullmatch(kind)) and not _LOCAL_TYPES.fullmatch(kind)


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold a lock that the processes of this machine share, so that one of them does a job and the others find it done.

    The lock ends with its process, however that dies. Where the cache lies on a file system without locks, the job is
    done without one: everything done under a lock is written aside and renamed, so only work is lost, never data.

    Raises:
        StorageError: the cache folder cannot be written.
    """
    path = cache_folder() / "locks" / hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:24]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise _unwritable(path, error) from None
    try:
        with suppress(OSError):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                logger.warning("waiting for another process: %s", without_secrets(name))
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _unwritable(path: Path, error: OSError) -> StorageError:
    return StorageError(f"HAI_CACHE: {path} cannot be written ({error.strerror or error}); name a writable folder")
