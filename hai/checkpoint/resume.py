"""Starting a run from a checkpoint that another run, elsewhere, has left."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from hai.checkpoint.find import search, split_reference
from hai.checkpoint.format import Checkpoint, load_checkpoint, step_of
from hai.checkpoint.remote import Bucket, is_bucket, locate
from hai.checkpoint.transfer import CHECKPOINTS, Refusal, download_checkpoint
from hai.errors import CheckpointError
from hai.paths import cache_folder

__all__ = ["load_resumable", "run_of"]


def load_resumable(reference: str, *, report: Callable[[str], None]) -> tuple[Checkpoint, list[Refusal]]:
    """Load a run's newest whole checkpoint, or the checkpoint that is named, with its optimizer state.

    Args:
        reference: a run folder or a checkpoint folder, local or a URL; nothing there is changed.
        report: takes one line for the user.

    Raises:
        CheckpointError: there is none that is whole.
        StorageError: the storage does not answer.
    """
    parent, name = split_reference(reference)
    if step_of(name) is not None:
        if not is_bucket(reference):
            return load_checkpoint(Path(parent) / name), []
        store = cache_folder() / "downloads" / hashlib.sha256(parent.encode()).hexdigest()[:16]
        return load_checkpoint(download_checkpoint(Bucket(parent), name, store, inside="")), []
    location = locate(parent, name)
    checkpoint, refusals = search(location.path / CHECKPOINTS, location.remote, report=report)
    if checkpoint is None:
        reasons = "".join(f"; {refusal.reason}" for refusal in refusals)
        raise CheckpointError(f"--resume = {reference}: no checkpoint that is whole{reasons}")
    return checkpoint, refusals


def run_of(reference: str) -> tuple[str, str]:
    """Return the storage and the name of the run that a run folder or one of its checkpoints belongs to."""
    parent, name = split_reference(reference)
    if step_of(name) is None:
        return parent, name
    return split_reference(parent.removesuffix(f"/{CHECKPOINTS}"))
