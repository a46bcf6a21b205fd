"""Runs as a whole: the table of those on a storage, their files, and setting one aside to start over."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hai.checkpoint import records
from hai.checkpoint.owner import STALE_S, Owner, new_run_id
from hai.checkpoint.reach import reach
from hai.checkpoint.remote import (
    Bucket,
    Mount,
    Remote,
    is_bucket,
    last_attempt,
    local_folder,
    locate,
    newest_attempt,
    open_remote,
)
from hai.config.text import parse_yaml
from hai.errors import CheckpointError
from hai.types import Record

__all__ = ["RunRow", "list_runs", "read_run_file", "restart_run", "send_run"]


@dataclass(frozen=True)
class RunRow:
    """One run in the table of `hai runs`."""

    name: str
    task: str
    status: str
    """running, finished, failed or interrupted; a run whose owner has fallen silent counts as interrupted."""
    step: int | None
    best: Record | None
    last_saved: str | None
    """When its newest checkpoint was saved, ISO 8601, UTC."""


def read_run_file(run: str, name: str) -> bytes:
    """Read a small file of a run, a folder or a URL, of its newest attempt; empty when it is absent.

    Raises:
        StorageError: the storage does not answer.
    """
    remote = open_remote(run)
    if remote is not None:
        return reach(run, lambda: (newest_attempt(remote) if isinstance(remote, Bucket) else remote).read(name)) or b""
    path = local_folder(run) / name
    return path.read_bytes() if path.is_file() else b""


def list_runs(storage: str) -> list[RunRow]:
    """List the runs on a storage from their small files; no checkpoint is opened.

    Raises:
        StorageError: the storage does not answer.
    """
    remote: Remote = Bucket(storage) if is_bucket(storage) else Mount(local_folder(storage))
    return reach(storage, lambda: [row for name in remote.names("") if (row := _row(remote, name)) is not None])


def _row(remote: Remote, name: str) -> RunRow | None:
    names = remote.names(name)
    attempt = last_attempt(names)
    folder = f"{name}/{attempt}" if attempt else name
    if attempt:
        names = remote.names(folder)
    if not {records.SUMMARY, records.CONFIG} & set(names):
        return None
    summary = records.parse_json(remote.read(f"{folder}/{records.SUMMARY}")) or {}
    config = _parse_yaml(remote.read(f"{folder}/{records.CONFIG}"))
    status = str(summary.get("status", "interrupted"))
    if status == "running" and not _is_heard(records.parse_json(remote.read(f"{folder}/{records.OWNER}"))):
        status = "interrupted"
    step, best, saved = summary.get("step"), summary.get("best"), summary.get("last_saved")
    return RunRow(
        name=name,
        task=str(config.get("task") or summary.get("task", "?")),
        status=status,
        step=step if isinstance(step, int) else None,
        best=best if isinstance(best, dict) else None,
        last_saved=saved if isinstance(saved, str) else None,
    )


def _is_heard(owner: Record | None) -> bool:
    if owner is None or owner.get("released"):
        return False
    heartbeat = owner.get("heartbeat")
    return isinstance(heartbeat, int | float) and time.time() - heartbeat < STALE_S


def _parse_yaml(content: bytes | None) -> dict[str, Any]:
    found, _ = parse_yaml((content or b"").decode("utf-8", "replace"), records.CONFIG)
    return found if isinstance(found, dict) else {}


def send_run(storage: str, name: str, report: Callable[[str], None]) -> None:
    """Send the checkpoints of a run that has ended here and that lie on this machine only, if there are such.

    Raises:
        CheckpointError: a live process on this machine has the run.
        StorageError: the storage does not answer.
    """
    from hai.checkpoint.find import local_names  # these import torch, which the table of runs does without
    from hai.checkpoint.store import RunFolder
    from hai.checkpoint.transfer import CHECKPOINTS, remote_names

    location = locate(storage, name)
    remote, here = location.remote, local_names(location.path / CHECKPOINTS)  # the newest first, as those there
    if remote is None or not here:
        return
    there = reach(remote.url, lambda: remote_names(remote))
    if there and there[0] > here[0]:  # it went on elsewhere, where these are superseded
        return
    if reach(remote.url, lambda: all(_is_there(remote, one) for one in here)):
        return
    owner = Owner(location, report)
    attempt = owner.acquire()
    try:
        run = RunFolder(storage, name, attempt=attempt, keep=len(here), report=report)
        run.newest_valid()
        run.close()
    finally:
        owner.release()


def _is_there(remote: Remote, checkpoint: str) -> bool:
    from hai.checkpoint.transfer import load_remote_manifest

    try:
        load_remote_manifest(remote, checkpoint)
    except CheckpointError:
        return False
    return True


def restart_run(storage: str, name: str, report: Callable[[str], None]) -> None:
    """Set a run aside, so that the same name starts over: renamed on a disk, left as it is on a bucket.

    On a disk or mount `NAME` becomes `NAME.old-1` (or the next free number); on a bucket the new run gets
    `NAME/attempt-N/`.

    Raises:
        CheckpointError: a live process on this machine has the run.
        StorageError: the storage does not answer.
    """
    location = locate(storage, name)
    remote = location.remote
    where = remote.url if remote is not None else str(location.path)
    exists = bool(reach(where, lambda: remote.names(""))) if remote is not None else location.path.exists()
    if not exists:
        return
    owner = Owner(location, report)
    owner.acquire()
    owner.release()
    if is_bucket(storage):
        number = int(found[1]) + 1 if (found := re.search(r"/attempt-(\d+)$", where)) else 2
        fresh = Bucket(f"{storage.rstrip('/')}/{name}/attempt-{number}")
        marker = records.to_json({"released": True, "run": new_run_id()})
        reach(fresh.url, lambda: fresh.write(records.OWNER, marker))
        report(f"run {name}: starts over at {fresh.url}; the old one stays at {where}")
        return
    folder = local_folder(storage) / name
    number = 1
    while os.path.lexists(aside := folder.with_name(f"{name}.old-{number}")):
        number += 1
    os.rename(folder, aside)
    if remote is not None and owner.location.path.exists():
        os.rename(owner.location.path, locate(storage, aside.name).path)
    report(f"run {name}: starts over; the old one is now {aside}")
