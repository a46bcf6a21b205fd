"""Saves to a storage that goes wrong: training must not notice, and at the end nothing is called saved that is not."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks.faults.storage import FaultyFileSystem
from hai.checkpoint import owner, transfer, upload
from hai.checkpoint.format import verify_checkpoint
from hai.checkpoint.records import BEST, METRICS
from hai.checkpoint.store import RunFolder
from hai.checkpoint.transfer import verify_remote
from hai.errors import CheckpointError

__all__ = ["break_uploads", "hurried", "save_and_check"]

_RUN = "run"


def break_uploads(saves: int, seed: int, folder: Path) -> dict[str, int]:
    """Save to a bucket in memory, 30 % of whose calls fail, hang, half-write or write wrong bytes.

    Args:
        saves: checkpoints.
        seed: of the faults.
        folder: an empty folder to work in.

    Returns:
        What `save_and_check` does, and `faults`, the calls that went wrong.
    """
    storage = FaultyFileSystem
    hang_s, storage.hang_s = storage.hang_s, 0.3
    try:
        with hurried(folder, limit_s=0.15):  # less, and a busy machine gives up calls whose wrong bytes come later
            storage.reset()
            run = RunFolder("faulty://bucket/runs", _RUN, report=lambda line: None)
            run.newest_valid()
            storage.reset(rate=0.3, seed=seed)
            return save_and_check(run, saves, calm=_calm, pause_s=0.02) | {"faults": len(storage.faults)}
    finally:
        storage.hang_s = hang_s


def _calm() -> None:
    FaultyFileSystem.rate = 0.0


@contextlib.contextmanager
def hurried(folder: Path, *, limit_s: float) -> Iterator[None]:
    """For the length of the block work in a cache of its own, with an uploader that waits far less than real ones.

    Args:
        folder: where the cache goes.
        limit_s: time after which a call to the storage counts as hung.
    """
    waits = {
        (transfer, "_FIRST_PAUSE_S"): 0.001, (transfer, "_LONGEST_PAUSE_S"): 0.01, (transfer, "_BASE_LIMIT_S"): limit_s,
        (owner, "_CALL_LIMIT_S"): 4 * limit_s,
        (upload, "_FIRST_PAUSE_S"): 0.01, (upload, "_LONGEST_PAUSE_S"): 0.05, (upload, "_POLL_S"): 0.05,
    }  # fmt: skip
    before = {place: getattr(*place) for place in waits}
    cache = os.environ.get("HAI_CACHE")
    os.environ["HAI_CACHE"] = str(folder / "cache")
    for (module, name), value in waits.items():
        setattr(module, name, value)
    try:
        yield
    finally:
        for (module, name), value in before.items():
            setattr(module, name, value)
        os.environ.pop("HAI_CACHE")
        if cache is not None:
            os.environ["HAI_CACHE"] = cache


def save_and_check(
    run: RunFolder, saves: int, *, calm: Callable[[], None], pause_s: float, size: int = 500
) -> dict[str, int]:
    """Save as training does, close, and look on the storage, once it is calm, for what was confirmed.

    Args:
        run: a run on the storage.
        saves: checkpoints.
        calm: ends the faults.
        pause_s: time between two checkpoints.
        size: numbers in a checkpoint.

    Returns:
        `confirmed` and `listed` things at the end; and what must be 0: `stops`, saves that training would have felt;
        `missing`, things that are on this machine, not whole on the storage, and not listed as missing there either;
        `unusable`, 1 when a wiped machine does not resume from the newest checkpoint that was confirmed.
    """
    stops = 0
    for step in range(1, saves + 1):
        best = {"metric": "val/f1", "value": 0.5, "step": max(1, step // 5 * 5)}
        model = {"weight": torch.full((size,), float(step))}
        stops += not run.save(model, {"moment": torch.ones(9) * step}, {"best": best}, step=step, wait=True)
        run.append({"step": step, "train/loss": 1 / step})
        time.sleep(pause_s)
    stops += len(run.problems)
    delivery = run.close(wait=True)
    calm()
    here = [*run.names(), METRICS, BEST]
    whole = {name for name in here if _is_whole(run, name)}
    missing = {name for name in here if name not in whole and name not in delivery.missing}
    missing |= {name for name in delivery.confirmed if name in here and name not in whole}
    found = _resume(run)
    newest = max((name for name in delivery.confirmed if name.startswith("step_")), default="")
    return {
        "saves": saves,
        "stops": stops,
        "confirmed": len(delivery.confirmed),
        "listed": len(delivery.missing),
        "missing": len(missing),
        "unusable": int(found < newest),
    }


def _is_whole(run: RunFolder, name: str) -> bool:
    remote = run.location.remote
    assert remote is not None
    if not name.startswith("step_"):
        return remote.read(name) == (run.path / name).read_bytes()
    try:
        return verify_remote(remote, name) == verify_checkpoint(run.checkpoints / name)
    except CheckpointError:
        return False


def _resume(run: RunFolder) -> str:
    """Wipe this machine; return the checkpoint that the next one goes on from."""
    remote = run.location.remote
    assert remote is not None
    shutil.rmtree(run.path)
    again = RunFolder(remote.url.rpartition("/")[0], _RUN, report=lambda line: None)
    checkpoint, _ = again.newest_valid()
    again.close(limit_s=0.0)
    return "" if checkpoint is None else checkpoint.path.name
