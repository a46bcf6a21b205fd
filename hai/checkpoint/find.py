"""Finding checkpoints: the newest valid one of a run, its best one, and the one that a reference means."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

from hai.checkpoint import records
from hai.checkpoint.files import save_bytes
from hai.checkpoint.format import (
    MANIFEST,
    META,
    MODEL,
    Checkpoint,
    checkpoint_name,
    load_checkpoint,
    refuse,
    step_of,
)
from hai.checkpoint.reach import reach
from hai.checkpoint.remote import Bucket, Mount, Remote, is_bucket, local_folder, locate
from hai.checkpoint.transfer import (
    CHECKPOINTS,
    Refusal,
    download_checkpoint,
    persist,
    refuse_remote,
    remote_names,
)
from hai.errors import CheckpointError, StorageError
from hai.paths import cache_folder
from hai.types import Record

__all__ = ["load_reference", "local_names", "search", "search_best", "split_reference"]


def local_names(folder: Path) -> list[str]:
    """List the checkpoints in a folder, whole or not, the newest first."""
    try:
        names = [path.name for path in folder.iterdir() if step_of(path.name) is not None]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(names, key=lambda name: step_of(name) or 0, reverse=True)


def search(
    folder: Path,
    remote: Remote | None,
    *,
    before: int | None = None,
    state: bool = True,
    discard: bool = False,
    report: Callable[[str], None],
) -> tuple[Checkpoint | None, list[Refusal]]:
    """Load the newest checkpoint that is whole, here or on the storage; the local one where both have the step.

    Args:
        folder: the local step folders; what comes from the storage is put there.
        remote: the run's folder on the storage.
        before: consider earlier steps only.
        state: also load optimizer state.
        discard: move damaged ones out of the way (delete them on buckets); only a run's owner may.
        report: takes one line for the user.

    Raises:
        StorageError: the storage does not answer, and nothing is here to go on from.
    """
    refusals: list[Refusal] = []
    here = set(local_names(folder))
    there: set[str] = set()
    trouble: Exception | None = None
    if remote is not None:
        try:
            there = set(persist(remote, lambda: remote_names(remote)))
        except Exception as error:
            trouble = error
            report(f"storage: {remote.url}: {type(error).__name__}: {error}; looking on this machine only")
    for name in sorted(here | there, key=lambda name: step_of(name) or 0, reverse=True):
        if before is not None and (step_of(name) or 0) >= before:
            continue
        if name in here:
            try:
                return _load(folder / name, state), refusals
            except CheckpointError as error:
                place = f"; moved to {refuse(folder / name)}" if discard else ""
                refusals.append(Refusal(name, f"{error}{place}"))
        if name in there and remote is not None:
            try:
                return _load(download_checkpoint(remote, name, folder), state), refusals
            except CheckpointError as error:
                refusals.append(Refusal(name, str(error)))
                if discard:
                    persist(remote, partial(refuse_remote, remote, name))
    if trouble is not None and remote is not None:
        raise StorageError(
            f"{remote.url}: {type(trouble).__name__}: {trouble}; whether the run has a checkpoint is not known; "
            "run again when the storage answers"
        )
    return None, refusals


def _load(folder: Path, state: bool) -> Checkpoint:
    checkpoint = load_checkpoint(folder, state=state)
    if checkpoint.step != step_of(folder.name):
        raise CheckpointError(f"{folder}: holds step {checkpoint.step}; its name says another")
    return checkpoint


def search_best(
    folder: Path, remote: Remote | None, best: Record | None, *, report: Callable[[str], None]
) -> tuple[Checkpoint | None, list[Refusal]]:
    """Load the best checkpoint, without optimizer state, changing nothing.

    best.json says which it is; when that is lost, or points at what is lost, the newest valid checkpoint does; when
    even so there is none, the newest valid one is returned.
    """
    refusals: list[Refusal] = []
    wanted = _step_in(best)
    if wanted is not None:
        found, reasons = _load_step(folder, remote, wanted)
        refusals += reasons
        if found is not None:
            if best is not None and best.get("sha256") not in (None, found.sha256):
                report(f"best.json: its sha256 differs from that of {found.path}, which is whole and is used")
            return found, refusals
    newest, reasons = search(folder, remote, state=False, report=report)
    refusals += [refusal for refusal in reasons if refusal not in refusals]
    remembered = _step_in(newest.meta.get("best")) if newest is not None else None
    if remembered is not None and remembered != wanted:
        found, reasons = _load_step(folder, remote, remembered)
        refusals += [refusal for refusal in reasons if refusal not in refusals]
        if found is not None:
            return found, refusals
    return newest, refusals


def _load_step(folder: Path, remote: Remote | None, step: int) -> tuple[Checkpoint | None, list[Refusal]]:
    name = checkpoint_name(step)
    refusals: list[Refusal] = []
    if (folder / name).exists():
        try:
            return _load(folder / name, False), refusals
        except CheckpointError as error:
            refusals.append(Refusal(name, str(error)))
    if remote is not None:
        try:
            return _load(download_checkpoint(remote, name, folder), False), refusals
        except CheckpointError as error:
            refusals.append(Refusal(name, str(error)))
    elif not refusals:
        refusals.append(Refusal(name, f"{folder / name}: missing"))
    return None, refusals


def _step_in(best: object) -> int | None:
    step = best.get("step") if isinstance(best, dict) else None
    return step if isinstance(step, int) else None


def load_reference(reference: str, *, report: Callable[[str], None]) -> tuple[Checkpoint, Path | None, list[Refusal]]:
    """Load what a reference means: a run folder's best checkpoint, a checkpoint folder, or a URL of either.

    Nothing on the storage is changed: damaged checkpoints stay where they are. Optimizer state is not loaded.

    Returns:
        The checkpoint, the local path of its run's run.yaml (None when it has none), and what was passed over.

    Raises:
        CheckpointError: there is no such checkpoint, or none that is whole.
        StorageError: the storage does not answer.
    """
    parent, name = split_reference(reference)
    remote: Remote = Bucket(parent) if is_bucket(reference) else Mount(Path(parent))
    names = reach(reference, lambda: remote.names(name))
    if not names:
        raise CheckpointError(f"checkpoint: {reference}: no such folder; give a run folder or a checkpoint folder")
    if {MANIFEST, MODEL, META} & set(names):
        return (*_load_folder(remote, name), [])
    location = locate(parent, name)
    folder, storage = location.path / CHECKPOINTS, location.remote
    content = persist(storage, lambda: storage.read(records.BEST)) if storage is not None else None
    best = records.parse_json(content) or records.load_json(location.path / records.BEST)
    found, refusals = search_best(folder, storage, best, report=report)
    if found is None:
        reasons = "".join(f"; {refusal.reason}" for refusal in refusals)
        raise CheckpointError(f"checkpoint: {reference}: no checkpoint that is whole{reasons}")
    config = location.path / records.CONFIG
    if storage is not None:
        config = _fetch_config(storage, records.CONFIG, location.path) or config
    return found, config if config.exists() else None, refusals


def split_reference(reference: str) -> tuple[str, str]:
    """Divide a path or URL into its folder and its name."""
    if not is_bucket(reference):
        folder = local_folder(reference).resolve()
        return str(folder.parent), folder.name
    parent, _, name = reference.rstrip("/").rpartition("/")
    return parent, name


def _load_folder(remote: Remote, name: str) -> tuple[Checkpoint, Path | None]:
    """Load one checkpoint folder, and find run.yaml in it, beside it, or where a run keeps it."""
    root = remote.url.rpartition("/")[0] if remote.url.endswith(f"/{CHECKPOINTS}") else remote.url
    if isinstance(remote, Mount):
        checkpoint = load_checkpoint(remote.folder / name, state=False)
        places = (remote.folder / name / records.CONFIG, Path(root) / records.CONFIG)
        return checkpoint, next((path for path in places if path.exists()), None)
    store = cache_folder() / "downloads" / hashlib.sha256(remote.url.encode()).hexdigest()[:16]
    checkpoint = load_checkpoint(download_checkpoint(remote, name, store, inside=""), state=False)
    config = _fetch_config(remote, f"{name}/{records.CONFIG}", checkpoint.path) or _fetch_config(
        Bucket(root), records.CONFIG, store
    )
    return checkpoint, config


def _fetch_config(remote: Remote, name: str, folder: Path) -> Path | None:
    content = persist(remote, lambda: remote.read(name))
    if content is None:
        return None
    path = folder / records.CONFIG
    if not path.exists() or path.read_bytes() != content:
        save_bytes(path, content)
    return path
