"""One attempt owns a run: owner.json says which, and every writer asks before it commits."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Final

from hai.checkpoint import records
from hai.checkpoint.reach import reach, within
from hai.checkpoint.remote import Location, load_run_id, run_id_in, settle
from hai.errors import CheckpointError, StorageError
from hai.paths import locked
from hai.types import Record

__all__ = [
    "HEARTBEAT_S",
    "STALE_S",
    "Clock",
    "Owner",
    "is_alive",
    "is_owner",
    "load_owner",
    "machine_id",
    "new_run_id",
    "process_started",
]

HEARTBEAT_S: Final = 15.0
STALE_S: Final = 60.0
"""Age of a heartbeat on another machine that counts as death, seconds."""

_CALL_LIMIT_S: Final = 5.0
_SETTLE_S: Final = 0.5
_held: set[str] = set()
"""Attempts of this process, for a notebook that runs the same run again."""


class Clock:
    """Time as an owner sees it; tests bring their own."""

    def now(self) -> float:
        """Return seconds since 1970."""
        return time.time()

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)


class Owner:
    """The claim of one process on one run, kept alive by a heartbeat every 15 s.

    Args:
        location: the run's folders.
        report: takes one line for the user.
        clock: time.
    """

    def __init__(self, location: Location, report: Callable[[str], None], clock: Clock | None = None) -> None:
        self.location = location
        """The run's folders; once acquired, those of the very run that the storage holds."""
        self.attempt = ""
        """This claim, once acquired; what `RunFolder(attempt=...)` takes."""
        self._report, self._clock = report, clock or Clock()
        self._where = _name_of(location)
        self._run = ""
        self._stop = threading.Event()
        self._heartbeat: threading.Thread | None = None

    def acquire(self) -> str:
        """Claim the run: at once when it is free or its process on this machine is dead, else after its heartbeat.

        Returns:
            The attempt.

        Raises:
            CheckpointError: a live process on this machine has the run.
            StorageError: owner.json cannot be read or written.
        """
        attempt = f"{int(self._clock.now())}-{uuid.uuid4().hex[:12]}"
        while True:
            before = self._wait_until_free()
            self._run = run_id_in(before) or load_run_id(self.location.path) or new_run_id()
            with locked(self._where):
                if load_owner(self.location) != before:
                    continue
                self._save(attempt)
            self._clock.sleep(_SETTLE_S)  # other machines share no lock with us: the last of two claims stands
            owner = load_owner(self.location)
            if owner is not None and owner.get("attempt") == attempt:
                break
        self.location = settle(self.location, self._run, self._report)
        self.attempt = attempt
        _held.add(attempt)
        self._stop.clear()
        self._heartbeat = threading.Thread(target=self._beat, name="hai-heartbeat", daemon=True)
        self._heartbeat.start()
        return attempt

    def release(self) -> None:
        """Give the run up, so that the next claim need not wait."""
        self._stop.set()
        _held.discard(self.attempt)
        if self._heartbeat is not None:
            self._heartbeat.join(_CALL_LIMIT_S)
            self._heartbeat = None
        with contextlib.suppress(Exception), locked(self._where):
            if is_owner(self.location, self.attempt):
                within(_CALL_LIMIT_S, lambda: self._write({**self._record(self.attempt), "released": True}))

    def _wait_until_free(self) -> Record | None:
        """Wait until the run may be taken.

        Returns:
            The owner.json that says so.
        """
        seen: Record | None = None
        since = self._clock.now()
        while True:
            owner = load_owner(self.location)
            if owner is None or self._is_free(owner):
                return owner
            if owner != seen:
                if seen is None or owner.get("attempt") != seen.get("attempt"):
                    self._report(
                        f"run {self.location.path.name}: owned by {owner.get('host')} process {owner.get('pid')}; "
                        f"waiting until its heartbeat is {STALE_S:.0f} s old"
                    )
                seen, since = owner, self._clock.now()
            elif self._clock.now() - since >= STALE_S:  # their clock is ahead of ours: that nothing changes counts too
                return owner
            self._clock.sleep(1.0)

    def _is_free(self, owner: Record) -> bool:
        """Tell whether the run may be taken; raises when its process is alive on this machine."""
        if owner.get("released") or "attempt" not in owner:
            return True
        if owner.get("machine") == machine_id():
            pid = int(owner.get("pid") or 0)
            mine = pid == os.getpid() and owner["attempt"] not in _held
            if mine or not is_alive(pid, owner.get("started")):
                return True
            raise CheckpointError(
                f"run {self.location.path.name}: process {pid} on {owner.get('host')} is training it; stop that "
                "process, or choose another --name"
            )
        heartbeat = owner.get("heartbeat")
        return not isinstance(heartbeat, int | float) or self._clock.now() - heartbeat >= STALE_S

    def _record(self, attempt: str) -> Record:
        return {
            "host": socket.gethostname(),
            "machine": machine_id(),
            "pid": os.getpid(),
            "started": process_started(os.getpid()),
            "attempt": attempt,
            "heartbeat": self._clock.now(),
            "released": False,
            "run": self._run,
        }

    def _save(self, attempt: str) -> None:
        reach(self._where, lambda: self._write(self._record(attempt)))

    def _write(self, record: Record) -> None:
        if self.location.remote is not None:
            self.location.remote.write(records.OWNER, records.to_json(record))
        else:
            records.save_json(self.location.path / records.OWNER, record)

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_S):
            with contextlib.suppress(Exception), locked(self._where):
                if not is_owner(self.location, self.attempt):
                    return
                within(_CALL_LIMIT_S, lambda: self._write(self._record(self.attempt)))


def is_owner(location: Location, attempt: str) -> bool:
    """Tell whether nobody else has taken the run; a storage that does not answer has no news."""
    try:
        owner = reach(_name_of(location), lambda: _read(location), _CALL_LIMIT_S)
    except StorageError:
        return True
    return owner is None or owner.get("attempt") in (None, attempt)


def load_owner(location: Location) -> Record | None:
    """Read owner.json; None when the run has no owner, or a torn file.

    Raises:
        StorageError: the storage does not answer.
    """
    return reach(_name_of(location), lambda: _read(location))


def _name_of(location: Location) -> str:
    return location.remote.url if location.remote is not None else str(location.path)


def _read(location: Location) -> Record | None:
    if location.remote is None:
        return records.load_json(location.path / records.OWNER)
    return records.parse_json(location.remote.read(records.OWNER))


def is_alive(pid: int, started: object) -> bool:
    """Tell whether the process that had this id at this start time still runs; a reused id is another process."""
    now = process_started(pid)
    return now is not None and now == started


def process_started(pid: int) -> str | None:
    """Return when a process started, as text to compare; None when it is dead, a zombie, or not to be seen."""
    if os.path.exists("/proc/self/stat"):
        try:
            with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stream:
                fields = stream.read().rpartition(")")[2].split()  # the name before it may hold anything
        except OSError:
            return None
        return None if fields[0] in ("Z", "X") else fields[19]
    found = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    state, _, started = found.stdout.strip().partition(" ")
    return None if not state or state.startswith("Z") else started.strip()


def new_run_id() -> str:
    """Draw what tells a run from others that have its name in its place, before or after it."""
    return uuid.uuid4().hex[:12]


def machine_id() -> str:
    """Identify the running system that process ids belong to: host name, boot, container."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip())
    with contextlib.suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)
