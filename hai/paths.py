"""Where things lie on this machine that belong to no run: the cache folder and the locks in it."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hai.errors import StorageError

__all__ = ["cache_folder", "locked"]


def cache_folder() -> Path:
    """Return HAI_CACHE, default `~/.cache/hai`, as an absolute path; the folder need not exist yet."""
    return Path(os.path.abspath(os.path.expanduser(os.environ.get("HAI_CACHE") or "~/.cache/hai")))


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
        reason = error.strerror or error
        raise StorageError(f"HAI_CACHE: {path} cannot be written ({reason}); name a writable folder") from None
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
