"""A run's checkpoints over its life: saved in the background, pruned, found again, and kept on the storage."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

from torch import Tensor

from hai.checkpoint import records
from hai.checkpoint.buffers import Buffers
from hai.checkpoint.files import TEMPORARY
from hai.checkpoint.find import local_names, search, search_best
from hai.checkpoint.format import (
    REFUSED,
    Checkpoint,
    checkpoint_name,
    load_manifest,
    step_of,
    verify_checkpoint,
    write_checkpoint,
)
from hai.checkpoint.owner import is_owner, load_owner
from hai.checkpoint.remote import Location, Remote, load_run_id, locate, run_id_in, settle
from hai.checkpoint.small_files import SmallFiles
from hai.checkpoint.transfer import (
    CHECKPOINTS,
    Refusal,
    load_remote_manifest,
    persist,
)
from hai.checkpoint.upload import Delivery, Uploader
from hai.errors import CheckpointError, StorageError
from hai.types import Record

__all__ = ["RunFolder"]

_NO_SPACE: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_log = logging.getLogger("hai")


class RunFolder:
    """The folder of one run, as its writer (rank 0) or a reader sees it.

    Writing begins with the first call of `newest_valid`, `save` or `append`; until then nothing is changed. Trouble
    with disks and storages is reported in one line and kept in `problems`; it never reaches the training loop.

    Args:
        storage: a folder or fsspec URL that holds runs.
        name: the run's name.
        attempt: the writer's attempt, from `Owner.acquire`; a writer that is no longer the owner stops writing.
        keep: newest checkpoints to keep; the best one and permanent ones stay besides.
        report: takes one line for the user.
    """

    def __init__(
        self,
        storage: str,
        name: str,
        *,
        attempt: str | None = None,
        keep: int = 2,
        report: Callable[[str], None] = _log.warning,
    ) -> None:
        self.location: Location = locate(storage, name)
        self.path: Path = self.location.path
        self.checkpoints: Path = self.path / CHECKPOINTS
        self.problems: list[str] = []
        self.lost: str | None = None
        """Why this attempt may no longer write; None while it may."""
        self._attempt, self._keep, self._report = attempt, keep, report
        self._files = SmallFiles(self.path)
        self._model_copy, self._state_copy = Buffers(), Buffers()
        self._writer: threading.Thread | None = None
        self._committed = False
        self._bug: BaseException | None = None
        self._begun = False
        self._saved = False
        self._permanent: set[str] = set()
        self._best: str | None = None
        self._last_saved: str | None = None
        self._spoken_of: set[str] = set()
        self._uploader: Uploader | None = None

    # Saving

    def save(
        self,
        model: Mapping[str, Tensor],
        state: Mapping[str, Tensor],
        meta: Record,
        *,
        step: int,
        permanent: bool = False,
        wait: bool = False,
    ) -> bool:
        """Copy the tensors, and write the checkpoint in the background; waits only for the write before this one.

        best.json is made to agree with `meta["best"]`, `{metric, value, step}`, if the checkpoint of that step is here.
        A step that has a valid checkpoint is not written again: evaluate first, then save once.

        Args:
            model: the weights to serve, on any device.
            state: all other tensors, on any device.
            meta: JSON object; `step` is added.
            step: optimizer steps done.
            permanent: keep this checkpoint for good.
            wait: return once it is on the local disk.

        Returns:
            False when the checkpoint could not be saved and this is already known; `problems` says why.
        """
        self._begin()
        self.wait()
        if self.lost is not None:
            return False
        meta = {**meta, "step": step}
        records.to_json(meta)  # what is not JSON fails here, in the caller's thread
        copies = self._model_copy.copy(model), self._state_copy.copy(state)
        self._committed = False
        self._writer = threading.Thread(target=self._write, args=(*copies, meta, permanent), name="hai-checkpoint")
        self._writer.start()
        return self.wait() if wait else True

    def wait(self) -> bool:
        """Wait for the checkpoint that is being written.

        Returns:
            Whether the last checkpoint is whole on the local disk.
        """
        if self._writer is not None:
            self._writer.join()
            self._writer = None
        if self._bug is not None:
            bug, self._bug = self._bug, None
            raise bug
        return self._committed

    def append(self, record: Record) -> None:
        """Append a record to metrics.jsonl."""
        self._begin()
        if self._is_mine():
            with self._spoken("metrics.jsonl"), self._files.lock:
                records.append_record(self.path / records.METRICS, record)

    def start_at(self, step: int, known: Iterable[Record]) -> None:
        """Drop the records beyond the step that training goes on from, and put back known ones that are lost."""
        with contextlib.suppress(OSError):  # a full disk: appending will say so
            self._files.start_at(step, known)

    def log(self, line: str) -> None:
        """Keep a line in log.txt, if the run has a folder; a full disk costs the line only."""
        if self.path.is_dir():
            path = self.path / records.LOG
            with contextlib.suppress(OSError), self._files.lock, open(path, "a", encoding="utf-8") as log:
                log.write(f"{line}\n")

    def save_config(self, text: str) -> None:
        """Write run.yaml; raises OSError."""
        with self._files.lock:
            records.save_text(self.path / records.CONFIG, text)

    def save_summary(self, summary: Record) -> None:
        """Write summary.json; `last_saved`, the time of the newest checkpoint, is added."""
        self._begin()
        if self._is_mine():
            with self._spoken("summary.json"), self._files.lock:
                records.save_json(self.path / records.SUMMARY, {**summary, "last_saved": self._last_saved})

    def close(self, wait: bool = False, limit_s: float | None = None) -> Delivery:
        """Finish the write in progress, then upload what is left.

        A storage that works gets 10 minutes, one in trouble 10 s.

        Args:
            wait: as long as uploads make progress, and 10 minutes of trouble.
            limit_s: a limit in all, where less time is left.

        Returns:
            What is confirmed on the storage and what is not.
        """
        self.wait()
        if self.location.remote is None:
            return Delivery(confirmed=tuple(self.names()), missing=())
        if self._uploader is None:
            return Delivery(confirmed=(), missing=())
        delivery = self._uploader.close(wait, limit_s)
        self._uploader = None
        if self.lost is None:
            with self._spoken("old checkpoints"):
                self._prune()
        self._begun = False
        return delivery

    def _write(self, model: dict[str, Tensor], state: dict[str, Tensor], meta: Record, permanent: bool) -> None:
        try:
            self._commit(model, state, meta, permanent)
            self._committed = True
            with self._spoken("old checkpoints"):
                self._prune()
        except OSError as error:
            needed = sum(tensor.nbytes for tensor in (*model.values(), *state.values()))
            self._problem(f"checkpoint of step {meta['step']} not saved: {self._explain(error, needed)}")
        except CheckpointError as error:
            self._problem(f"checkpoint of step {meta['step']} not saved: {error}")
        except BaseException as error:
            self._bug = error
        if self._uploader is not None:
            self._uploader.nudge()

    def _commit(self, model: dict[str, Tensor], state: dict[str, Tensor], meta: Record, permanent: bool) -> None:
        folder = self.checkpoints / checkpoint_name(meta["step"])
        for free_more in (self._drop_refused, self._drop_superseded, None):
            try:
                write_checkpoint(folder, model, state, meta, permanent=permanent, confirm=self._confirm_owner)
                break
            except OSError as error:
                if error.errno not in _NO_SPACE or free_more is None:
                    raise
                free_more()
        self._saved = True
        self._last_saved = datetime.now(UTC).isoformat(timespec="seconds")
        if permanent:
            self._permanent.add(folder.name)
        self._point_at_best(meta.get("best"))

    def _point_at_best(self, best: object, remote: Remote | None = None) -> None:
        """Make best.json agree with what the state remembers, if that checkpoint is here, or on the storage given."""
        step = best.get("step") if isinstance(best, dict) else None
        if not isinstance(best, dict) or not isinstance(step, int):
            return
        name, path = checkpoint_name(step), self.path / records.BEST
        self._best, found = name, records.load_json(path) or {}
        with contextlib.suppress(CheckpointError), self._spoken("best.json"):
            if (self.checkpoints / name).exists():
                sha256 = load_manifest(self.checkpoints / name).sha256
            elif remote is not None and found.get("step") != step:
                sha256 = persist(remote, partial(load_remote_manifest, remote, name))[0].sha256
            else:
                return
            fields = {key: best.get(key) for key in ("metric", "value", "step")}
            record = {**fields, "checkpoint": f"{CHECKPOINTS}/{name}", "sha256": sha256}
            if found != record:
                with self._files.lock:
                    records.save_json(path, record)

    def _confirm_owner(self) -> None:
        if not self._may_write():
            raise CheckpointError(str(self.lost))

    def _is_mine(self) -> bool:
        """Ask who owns the run where that is quick; on a storage, the writer and the uploader ask."""
        return self._may_write() if self.location.remote is None else self.lost is None

    def _may_write(self) -> bool:
        if self.lost is None and self._attempt is not None and not is_owner(self.location, self._attempt):
            self.lost = f"{self.path.name}: another process has taken this run over; this one stops writing"
        return self.lost is None

    # Pruning

    def names(self) -> list[str]:
        """List the local checkpoints, the newest first."""
        return local_names(self.checkpoints)

    def kept(self, names: Iterable[str]) -> list[str]:
        """Choose which of some checkpoints pruning leaves: the newest first, then the best, then permanent ones."""
        ordered = sorted(names, key=lambda name: step_of(name) or 0, reverse=True)
        number = self._keep if self._saved else len(ordered)  # who has saved nothing has nothing to prune
        newest, older = ordered[:number], ordered[number:]
        best = self._best_names()
        return [*newest, *(n for n in older if n in best), *(n for n in older if n in self._permanent - best)]

    def _best_names(self) -> set[str]:
        """Name what best.json points at, and what it will when it can be written again."""
        best = records.load_json(self.path / records.BEST) or {}
        return {str(best.get("checkpoint")).rpartition("/")[2], str(self._best)}

    def _prune(self) -> None:
        in_flight = self._uploader.in_flight if self._uploader is not None else None
        names = self.names()
        for name in set(names) - set(self.kept(names)) - {in_flight}:
            self._remove(self.checkpoints / name)

    def _drop_refused(self) -> None:
        self._remove(self.checkpoints / REFUSED)
        self._sweep()

    def _drop_superseded(self) -> None:
        """Make room: of the checkpoints that may go, leave only the newest valid one."""
        spared = self._best_names() | self._permanent
        whole = False
        for name in self.names():
            if whole and name not in spared:
                self._remove(self.checkpoints / name)
            elif not whole:
                with contextlib.suppress(CheckpointError):
                    verify_checkpoint(self.checkpoints / name)
                    whole = True

    def _remove(self, folder: Path) -> None:
        """Delete a folder so that a crash on the way leaves no half of it under its name."""
        aside = self.checkpoints / f"{TEMPORARY}{folder.name}-{uuid.uuid4().hex[:12]}"
        with contextlib.suppress(FileNotFoundError):
            os.rename(folder, aside)
            shutil.rmtree(aside)

    def _sweep(self) -> None:
        """Delete what writers that were killed have left."""
        for parent in (self.path, self.checkpoints):
            for name in os.listdir(parent):
                if name.startswith(TEMPORARY):
                    path = parent / name
                    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)

    # Finding

    def newest_valid(self, *, before: int | None = None) -> tuple[Checkpoint | None, list[Refusal]]:
        """Load the newest checkpoint that is whole, of those here and those on the storage.

        Damaged ones that are newer are moved to `refused/` (deleted on buckets) and named. best.json is made to agree
        with the checkpoint that was found.

        Args:
            before: consider earlier steps only, to fall back further.

        Raises:
            StorageError: the storage does not answer, and nothing is here to go on from.
        """
        self._begin()
        checkpoint, refusals = search(
            self.checkpoints, self.location.remote, before=before, discard=True, report=self._report
        )
        if checkpoint is not None or before is None:
            self._repair_best(checkpoint)
        return checkpoint, refusals

    def load_best(self) -> tuple[Checkpoint | None, list[Refusal]]:
        """Load the best checkpoint, without optimizer state; when it is lost, the newest valid one."""
        best = records.load_json(self.path / records.BEST)
        return search_best(self.checkpoints, self.location.remote, best, report=self._report)

    def _repair_best(self, checkpoint: Checkpoint | None) -> None:
        """Point best.json at what the resumed state remembers: it may be lost, or of a step that never was."""
        best = checkpoint.meta.get("best") if checkpoint is not None else None
        if isinstance(best, dict):
            self._point_at_best(best, self.location.remote)
        else:
            self._best = None
            (self.path / records.BEST).unlink(missing_ok=True)

    # Beginning

    def _begin(self) -> None:
        """Become a writer: make the folders, clean up after killed writers, fetch small files, start the uploader."""
        if self._begun:
            return
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self._sweep()
        except OSError as error:
            raise StorageError(f"run folder: {self.path}: {error.strerror or error}; choose another folder") from error
        for name in self.names():
            with contextlib.suppress(CheckpointError):
                if load_manifest(self.checkpoints / name).permanent:
                    self._permanent.add(name)
        remote = self.location.remote
        if remote is not None:
            self._settle()
            self._files.begin()
            try:
                for name in records.SMALL_FILES:
                    self._files.take(name, persist(remote, partial(remote.read, name)))
            except Exception as error:
                self._problem(f"storage: {remote.url}: {type(error).__name__}: {error}; will try again")
            self._uploader = Uploader(
                remote, self.path, names=self.names, kept=self.kept, may_write=self._may_write, report=self._report,
                files=self._files, permanent=self._permanent,
            )  # fmt: skip
        self._last_saved = (records.load_json(self.path / records.SUMMARY) or {}).get("last_saved")
        self._begun = True

    def _settle(self) -> None:
        """Note which run this is, on a machine that has not claimed it itself."""
        if self._attempt is not None and load_run_id(self.path) is None:
            with contextlib.suppress(StorageError):
                owner = load_owner(self.location) or {}
                if owner.get("attempt") == self._attempt and (run := run_id_in(owner)):
                    settle(self.location, run, self._report)

    # Problems

    def _problem(self, line: str) -> None:
        self.problems.append(line)
        self._report(line)

    @contextlib.contextmanager
    def _spoken(self, what: str) -> Iterator[None]:
        """Turn a disk error into a line, once until it is over."""
        try:
            yield
            self._spoken_of.discard(what)
        except OSError as error:
            if what not in self._spoken_of:
                self._spoken_of.add(what)
                self._problem(f"{what}: {error.strerror or error}")

    def _explain(self, error: OSError, needed: int) -> str:
        if error.errno not in _NO_SPACE:
            return f"{self.path}: {error.strerror or error}"
        try:
            free = f"{shutil.disk_usage(self.path).free:,}"
        except OSError:
            free = "?"
        return f"{self.path}: the disk is full: needs {needed:,} bytes, {free} are free; the last good one is kept"
