"""Checks of the storage: that a file can be written there, read back and deleted, and that checkpoints have room."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from hai.checkpoint.remote import check_storage, is_bucket, local_folder
from hai.console import shown_bytes
from hai.doctor.findings import Finding, fine, from_error, problem, tilde, warning
from hai.errors import StorageError
from hai.paths import is_mount

__all__ = ["check_place", "check_room_for_checkpoints"]


def check_place(storage: str, check: str = "storage") -> Iterator[Finding]:
    """Write a tiny file, read it back and delete it; nothing is left behind, not even a folder.

    Args:
        storage: folder or URL of runs.
        check: name of the finding.
    """
    started = time.monotonic()
    try:
        with _left_as_it_was(storage):
            check_storage(storage)
    except StorageError as error:
        for finding in from_error(check, error):
            yield problem(check, finding.text.removeprefix("storage: "), finding.mend)
        return
    took = f"written, read back and deleted in {time.monotonic() - started:.2f} s"
    if is_bucket(storage):
        yield fine(check, f"{storage}: {took}")
        return
    folder = local_folder(storage)
    free = shutil.disk_usage(_existing(folder)).free
    kind = ", a network or user-space mount: what is saved there is read back" if is_mount(folder) else ""
    yield fine(check, f"{tilde(folder)}: {took}, {shown_bytes(free)} free{kind}")


def check_room_for_checkpoints(storage: str, checkpoint: float, keep: int) -> Iterator[Finding]:
    """Check that the checkpoints a run keeps fit on a local disk: `keep`, the best one, and the one being written.

    Args:
        storage: folder or URL of runs.
        checkpoint: size of one, bytes.
        keep: `checkpoint.keep`.
    """
    if is_bucket(storage):
        return
    needed, free = (keep + 2) * checkpoint, shutil.disk_usage(_existing(local_folder(storage))).free
    text = (
        f"{keep + 2} checkpoints of {shown_bytes(checkpoint)} take {shown_bytes(needed)}, {shown_bytes(free)} are free"
    )
    if needed > free:
        yield warning("storage", text, "make room, choose a larger disk with --storage, or lower checkpoint.keep")


def _existing(folder: Path) -> Path:
    return next(one for one in (folder, *folder.parents) if one.exists())


@contextlib.contextmanager
def _left_as_it_was(storage: str) -> Iterator[None]:
    """Take the folders away again that the block makes for a storage on disk."""
    if is_bucket(storage):
        yield
        return
    folder = local_folder(storage)
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    try:
        yield
    finally:
        for one in missing:  # the innermost first
            with contextlib.suppress(OSError):
                one.rmdir()
