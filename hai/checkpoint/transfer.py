"""Checkpoints between the local disk and the storage: sent, read back, fetched, verified, removed."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
import uuid
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from hai.checkpoint.files import TEMPORARY, holds_blocks, sync_folder
from hai.checkpoint.format import (
    FILES,
    MANIFEST,
    Manifest,
    parse_manifest,
    refuse,
    step_of,
    verify_checkpoint,
)
from hai.checkpoint.reach import within
from hai.checkpoint.remote import Mount, Remote
from hai.errors import CheckpointError, HaiError, StorageError

__all__ = [
    "CHECKPOINTS",
    "SLOWEST",
    "Refusal",
    "download_checkpoint",
    "is_same",
    "load_remote_manifest",
    "persist",
    "push_bytes",
    "push_file",
    "refuse_remote",
    "remote_names",
    "remove_remote",
    "time_limit",
    "verify_remote",
]

Result = TypeVar("Result")

CHECKPOINTS: Final = "checkpoints"
"""Folder of a run that holds the step folders, here and on the storage."""

_BASE_LIMIT_S: Final = 60.0
SLOWEST: Final = 500_000.0
"""Bytes per second; a slower transfer counts as hung."""
_ATTEMPTS: Final = 4
_FIRST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 10.0
_never = threading.Event()


@dataclass(frozen=True)
class Refusal:
    """A checkpoint that was passed over, and why."""

    name: str
    reason: str


def time_limit(size: int) -> float:
    """Seconds that a transfer of so many bytes may take before it counts as hung."""
    return _BASE_LIMIT_S + size / SLOWEST


def persist(
    remote: Remote,
    function: Callable[[], Result],
    *,
    limit_s: float | None = None,
    stop: threading.Event = _never,
    on_error: Callable[[Exception], None] = lambda error: None,
) -> Result:
    """Call a storage until it succeeds: each call within a time limit, pauses that grow.

    Args:
        remote: its connection is renewed after a call that hung.
        function: the call; what it raises, other than a HaiError, is tried again.
        limit_s: time limit of one call; default: that of a small transfer.
        stop: cuts a pause short.
        on_error: told of every call that failed, also when a later one succeeds.
    """

    def call() -> Result:
        try:
            return within(time_limit(0) if limit_s is None else limit_s, function)
        except Exception as error:
            if isinstance(error, TimeoutError):
                remote.renew()
            on_error(error)
            raise

    from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential
    from tenacity.nap import sleep_using_event

    retrying = Retrying(
        stop=stop_after_attempt(_ATTEMPTS),
        wait=wait_random_exponential(multiplier=_FIRST_PAUSE_S, max=_LONGEST_PAUSE_S),
        sleep=sleep_using_event(stop),
        retry=retry_if_exception(lambda error: isinstance(error, Exception) and not isinstance(error, HaiError)),
        reraise=True,
    )
    return retrying(call)


def push_file(remote: Remote, source: Path, name: str, crc32: int | None, sha256: str) -> None:
    """Send a file, read it back, and compare it with the local file, and that with what it was when it was written.

    Args:
        remote: the storage.
        source: the local file.
        name: its name on the storage.
        crc32: of the local file as it was written; None where it is not known.
        sha256: the same, compared where there is no crc32, as it costs ten times as much.

    Raises:
        OSError: what was read back differs.
    """
    remote.put(source, name)
    if not (is_same(remote, name, source, crc32) if crc32 is not None else _sha256_of(remote, name) == sha256):
        raise OSError(f"{remote.url}/{name}: what was read back differs from what was sent")


def is_same(remote: Remote, name: str, source: Path, crc32: int) -> bool:
    """Read a file back; tell whether it is what the local file is and what that was when it was written."""
    found = 0

    def blocks() -> Iterator[bytes]:
        nonlocal found
        for block in remote.blocks(name):
            found = zlib.crc32(block, found)
            yield block

    return holds_blocks(source, blocks()) and found == crc32


def _sha256_of(remote: Remote, name: str) -> str:
    digest = hashlib.sha256()
    for block in remote.blocks(name):
        digest.update(block)
    return digest.hexdigest()


def push_bytes(remote: Remote, content: bytes, name: str) -> None:
    """Send a small file and read it back."""
    remote.write(name, content)
    if remote.read(name) != content:
        raise OSError(f"{remote.url}/{name}: what was read back differs from what was sent")


def remote_names(remote: Remote) -> list[str]:
    """List the checkpoints on the storage, whole or not, the newest first."""
    names = [name for name in remote.names(CHECKPOINTS) if step_of(name) is not None]
    return sorted(names, key=lambda name: step_of(name) or 0, reverse=True)


def load_remote_manifest(remote: Remote, name: str, inside: str = CHECKPOINTS) -> tuple[Manifest, bytes]:
    """Read and check the manifest of a checkpoint on the storage.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    path = f"{inside}/{name}/{MANIFEST}".lstrip("/")
    content = remote.read(path)
    if content is None:
        raise CheckpointError(f"{remote.url}/{path}: missing")
    return parse_manifest(content, f"{remote.url}/{path}"), content


def verify_remote(remote: Remote, name: str, call: Callable[[Callable[[], Any], int], Any] | None = None) -> str:
    """Read a checkpoint on the storage and compare every file with its manifest.

    Args:
        remote: the storage.
        name: the checkpoint's folder.
        call: carries out one call that moves so many bytes; default: `persist`.

    Returns:
        sha256 of its MANIFEST.json.

    Raises:
        CheckpointError: naming the file and the reason.
    """
    if call is None:
        call = partial(_persist_size, remote)
    manifest, _ = call(lambda: load_remote_manifest(remote, name), 0)
    for file, (sha256, size) in manifest.files.items():
        path = f"{CHECKPOINTS}/{name}/{file}"
        found = call(partial(remote.size, path), 0)
        if found is None:
            raise CheckpointError(f"{remote.url}/{path}: missing")
        if found != size or call(partial(_sha256_of, remote, path), size) != sha256:
            raise CheckpointError(f"{remote.url}/{path}: does not match the manifest: damaged")
    return str(manifest.sha256)


def _persist_size(remote: Remote, function: Callable[[], Result], size: int) -> Result:
    return persist(remote, function, limit_s=time_limit(size))


def download_checkpoint(remote: Remote, name: str, folder: Path, inside: str = CHECKPOINTS) -> Path:
    """Fetch a checkpoint under a temporary name, verify it, and move it to `folder / name`.

    What arrives damaged is fetched again before the checkpoint is blamed.

    Args:
        remote: the storage.
        name: the checkpoint's folder.
        folder: where it goes; what is there already and whole stays.
        inside: the folder on the storage that holds it.

    Raises:
        CheckpointError: it is damaged on the storage.
        StorageError: the storage does not answer.
    """
    last_error: CheckpointError | None = None
    for _ in range(3):
        try:
            return _download_once(remote, name, folder, inside)
        except CheckpointError as error:
            last_error = error
        except Exception as error:
            raise StorageError(
                f"{remote.url}/{CHECKPOINTS}/{name}: {type(error).__name__}: {error}; "
                "run again when the storage answers"
            ) from error
    assert last_error is not None
    raise last_error


def _download_once(remote: Remote, name: str, folder: Path, inside: str) -> Path:
    part = folder / f"{TEMPORARY}{name}-{uuid.uuid4().hex[:12]}"
    source = f"{inside}/{name}".lstrip("/")
    try:
        manifest, content = persist(remote, lambda: load_remote_manifest(remote, name, inside))
        limit_s = time_limit(sum(size for _, size in manifest.files.values()))
        persist(remote, lambda: _fetch(remote, source, part), limit_s=limit_s)
        (part / MANIFEST).write_bytes(content)
        try:
            verify_checkpoint(part)
        except CheckpointError as error:
            raise CheckpointError(str(error).replace(str(part), f"{remote.url}/{source}")) from error
        return _settle(part, folder / name, manifest.sha256)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _fetch(remote: Remote, source: str, part: Path) -> None:
    part.mkdir(parents=True, exist_ok=True)
    for file in FILES:
        try:
            remote.fetch(f"{source}/{file}", part / file)
        except FileNotFoundError as error:
            raise CheckpointError(f"{remote.url}/{source}/{file}: missing") from error


def _settle(part: Path, target: Path, sha256: str) -> Path:
    try:
        os.rename(part, target)
    except OSError:  # another worker of this machine was faster, or a damaged one is in the way
        try:
            if verify_checkpoint(target) == sha256:
                return target
        except CheckpointError:
            refuse(target)
        os.rename(part, target)
    sync_folder(target.parent)
    return target


def remove_remote(remote: Remote, name: str) -> None:
    """Delete a checkpoint on the storage, its MANIFEST.json first, so that no part of it counts as whole."""
    folder = f"{CHECKPOINTS}/{name}"
    remote.delete(f"{folder}/{MANIFEST}")
    for file in remote.names(folder):
        remote.delete(f"{folder}/{file}")
    remote.delete_folder(folder)


def refuse_remote(remote: Remote, name: str) -> None:
    """Move a damaged checkpoint on a mount to `refused/`; delete it on a bucket."""
    if isinstance(remote, Mount):
        refuse(remote.folder / CHECKPOINTS / name)
    else:
        remove_remote(remote, name)
