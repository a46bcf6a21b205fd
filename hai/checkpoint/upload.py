"""The background uploader: makes the storage hold what the run folder keeps, and never disturbs training."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterable, Sequence, Sized
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from hai.checkpoint.format import FILES, MANIFEST, load_manifest, parse_manifest, step_of, verify_checkpoint
from hai.checkpoint.records import METRICS, SMALL_FILES, TENSORBOARD
from hai.checkpoint.remote import Mount, Remote
from hai.checkpoint.small_files import SmallFiles
from hai.checkpoint.transfer import (
    CHECKPOINTS,
    SLOWEST,
    load_remote_manifest,
    persist,
    push_bytes,
    push_file,
    remote_names,
    remove_remote,
    time_limit,
    verify_remote,
)
from hai.errors import CheckpointError

__all__ = ["Delivery", "Uploader"]

Result = TypeVar("Result")

_SMALL_EVERY_S: Final = 30.0
_POLL_S: Final = 5.0
_FIRST_PAUSE_S: Final = 2.0
_TELL_AFTER_S: Final = 3.0
_HEALTHY_S: Final = 600.0
"""How long closing takes at most while the storage works."""
_TROUBLED_S: Final = 10.0
"""How long closing goes on after the last thing that arrived, while the storage does not work."""
_WAITING_S: Final = 600.0
"""The same when the user asked to wait for the upload; then there is no limit in all."""
_LONGEST_PAUSE_S: Final = 60.0
_SETTLED_S: Final = 300.0
"""How long a mount, which answers from its cache, may take to send on what was read back from it."""


@dataclass(frozen=True)
class Delivery:
    """What of a run is on the storage, read back and compared, and what is not."""

    confirmed: tuple[str, ...]
    missing: tuple[str, ...]


class Uploader:
    """A thread that compares the run folder with the storage and sends what is missing, the newest checkpoint first.

    There is no queue: a checkpoint that pruning has removed meanwhile is no longer wanted, so a slow storage gets the
    newest ones and the best one. Files are read back and compared; MANIFEST.json is sent last, after the records of
    the steps before it, so that who goes on from the storage alone has both.

    Args:
        remote: the run's folder on the storage.
        path: the run's work folder.
        names: lists the local checkpoints.
        kept: chooses which of some checkpoints are wanted, in order of importance.
        may_write: asks whether this attempt still owns the run.
        report: takes one line for the user.
        small: files that are sent whole whenever they have changed, as TensorBoard's are.
        files: knows which of them have to be read on the storage before they are sent.
        permanent: checkpoints that pruning leaves, so far as they are known; those found on the storage are added.
    """

    def __init__(
        self,
        remote: Remote,
        path: Path,
        *,
        names: Callable[[], list[str]],
        kept: Callable[[Iterable[str]], list[str]],
        may_write: Callable[[], bool],
        report: Callable[[str], None],
        small: Sequence[str] = SMALL_FILES,
        files: SmallFiles | None = None,
        permanent: set[str] | None = None,
    ) -> None:
        self.in_flight: str | None = None
        """The checkpoint that is being sent; pruning leaves it alone, or a slow storage would never get one."""
        self._remote, self._path = remote, path
        self._names, self._kept, self._may_write, self._report = names, kept, may_write, report
        self._small, self._files = tuple(small), files
        self._permanent = set() if permanent is None else permanent
        self._confirmed: dict[str, float] = {}
        self._sent: set[tuple[str, str]] = set()
        self._unusable: dict[str, str] = {}
        self._pushed: dict[str, tuple[str, float]] = {}
        self._pruned_for: frozenset[str] = frozenset()
        self._trouble: str | None = None
        self._failing = False
        self._hung = False
        self._began = self._last_arrival = time.monotonic()
        self._wake, self._stop, self._closing, self._done = (threading.Event() for _ in range(4))
        self._thread = threading.Thread(target=self._run, name="hai-uploader", daemon=True)
        self._thread.start()

    def nudge(self) -> None:
        """Say that there is something new."""
        self._wake.set()

    def close(self, wait: bool, limit_s: float | None = None) -> Delivery:
        """Send what is left and end the thread, within time limits.

        Args:
            wait: be patient with a storage in trouble.
            limit_s: a limit in all, where less time than usual is left.
        """
        start = self._last_arrival = time.monotonic()
        self._closing.set()
        self._wake.set()
        told = False
        while not self._done.wait(0.05):
            now = time.monotonic()
            idle = now - self._last_arrival
            if not told and now - start > _TELL_AFTER_S:
                told = True
                self._report(f"storage: sending {', '.join(self._unsent())} to {self._remote.url}")
            if wait:
                over = idle > _WAITING_S + self._bytes_left() / SLOWEST
            else:
                over = now - start > _HEALTHY_S or (self._failing and idle > _TROUBLED_S)
            if over or (limit_s is not None and now - start > limit_s):
                break
        self._stop.set()
        self._wake.set()
        return self._delivery()

    # The thread

    def _run(self) -> None:
        pause = _FIRST_PAUSE_S
        while not self._stop.is_set():
            self._wake.clear()
            more = False
            try:
                more = self._round()
                pause = _FIRST_PAUSE_S
                if self._trouble is not None:
                    self._trouble = None
                    self._report(f"storage: {self._remote.url} works again")
            except Exception as error:
                more = self.in_flight is not None and self.in_flight not in self._names()  # pruned on the way
                if not more:
                    self._note(error)
            finally:
                self.in_flight = None
            if more:
                continue
            if self._trouble is not None:
                self._wake.wait(min(pause, _FIRST_PAUSE_S) if self._closing.is_set() else pause)
                pause = min(pause * 2, _LONGEST_PAUSE_S)
            elif self._closing.is_set():
                if not self._unsent():  # what was just said may have changed the log
                    break
            else:
                self._wake.wait(_POLL_S)
        self._done.set()

    def _note(self, error: Exception) -> None:
        if self._trouble is None:
            text = (str(error).strip().splitlines() or [""])[0]
            self._report(
                f"storage: {self._remote.url}: {type(error).__name__}: {text}; training goes on, will try again"
            )
        self._trouble = str(error)

    def _round(self) -> bool:
        """Send one thing of each kind; True when another round should follow at once."""
        if self._unsent() and not self._may_write():
            self._stop.set()
            return False
        if self._closing.is_set() and self._hung:
            self._forget()
        self._push_small()
        wanted = [name for name in self._kept(self._names()) if name not in self._unusable]
        for name in wanted:
            if name not in self._confirmed:
                self._upload(name)
                return True
        if wanted and self._pruned_for != frozenset(wanted):
            self._prune(wanted)
            self._pruned_for = frozenset(wanted)
        return bool(self._closing.is_set() and self._unsent())

    def _forget(self) -> None:
        """Compare everything again: a call that hung may have written after it was given up."""
        self._hung = False
        self._pushed.clear()
        for name in sorted(self._confirmed):
            try:
                verify_remote(self._remote, name, self._call)
            except CheckpointError:
                del self._confirmed[name]
        self._sent.clear()

    def _upload(self, name: str) -> None:
        self.in_flight = name
        folder = self._path / CHECKPOINTS / name
        try:
            content = (folder / MANIFEST).read_bytes()
            manifest = load_manifest(folder)
        except (OSError, CheckpointError) as error:
            self._give_up(name, str(error))
            return
        if self._is_there(name, content, manifest.sha256):
            return
        for file in FILES:
            sha256, size = manifest.files[file]
            if (name, file) not in self._sent:
                try:
                    self._send(
                        partial(
                            push_file, self._remote, folder / file, f"{CHECKPOINTS}/{name}/{file}",
                            manifest.crc32.get(file), sha256,
                        ),
                        size,
                    )  # fmt: skip
                except OSError:
                    self._check_local(name)
                    raise
                self._sent.add((name, file))
                self._arrived()
        if METRICS in self._small:
            self._push(METRICS)
        if self._may_write():
            self._send(partial(push_bytes, self._remote, content, f"{CHECKPOINTS}/{name}/{MANIFEST}"))
            self._confirmed[name] = time.monotonic()
            self._arrived()

    def _is_there(self, name: str, content: bytes, sha256: str) -> bool:
        """Settle what the storage already has under this name; True when nothing is to be sent."""
        remote = self._remote
        if MANIFEST not in self._call(lambda: remote.names(f"{CHECKPOINTS}/{name}")):
            return False
        try:
            manifest, found = self._call(lambda: load_remote_manifest(remote, name))
            if found == content:  # the marker was sent last, so only sizes are in doubt
                paths = {f"{CHECKPOINTS}/{name}/{file}": size for file, (_, size) in manifest.files.items()}
                if all(self._call(partial(remote.size, path)) == size for path, size in paths.items()):
                    self._confirmed[name] = time.monotonic()
                    self._arrived()
                    return True
            else:
                verify_remote(remote, name, self._call)
                self._give_up(name, f"{remote.url} holds another checkpoint of this step, {manifest.sha256[:12]}...")
                return True
        except CheckpointError:
            pass
        if self._may_write():
            self._call(lambda: remove_remote(remote, name))
        return False

    def _check_local(self, name: str) -> None:
        folder = self._path / CHECKPOINTS / name
        if folder.exists():
            try:
                verify_checkpoint(folder)
            except CheckpointError as error:
                self._give_up(name, str(error))

    def _give_up(self, name: str, reason: str) -> None:
        if (self._path / CHECKPOINTS / name).exists():
            self._unusable[name] = reason
            self._report(f"storage: {name} is not uploaded: {reason}")

    def _push_small(self) -> None:
        now = time.monotonic()
        for name in self._small_names():
            _, when = self._pushed.get(name, ("", -_SMALL_EVERY_S))
            if self._closing.is_set() or now - when >= _SMALL_EVERY_S:
                self._push(name)

    def _push(self, name: str) -> None:
        if self._content(name) is None:
            return
        for one in (METRICS, name):
            if self._files is not None and one in self._files.unread:
                self._files.take(one, self._call(partial(self._remote.read, one)))
        content = self._content(name) or b""
        sha256 = hashlib.sha256(content).hexdigest()
        if sha256 != self._pushed.get(name, ("", 0.0))[0]:
            self._send(partial(push_bytes, self._remote, content, name))
            self._pushed[name] = (sha256, time.monotonic())
            self._arrived()

    def _small_names(self) -> list[str]:
        events = sorted(path.name for path in (self._path / TENSORBOARD).glob("events.*"))
        return [*self._small, *(f"{TENSORBOARD}/{name}" for name in events)]

    def _content(self, name: str) -> bytes | None:
        try:
            return (self._path / name).read_bytes()
        except FileNotFoundError:
            return None

    def _prune(self, wanted: list[str]) -> None:
        """Delete what is superseded on the storage too, once the newest is confirmed there."""
        found = self._call(lambda: remote_names(self._remote))
        spared = {*self._kept({*found, *self._names()}), *self._settling(found)}
        for name in found:
            if name not in spared and name not in wanted and not self._must_stay(name) and self._may_write():
                self._confirmed.pop(name, None)
                self._call(partial(remove_remote, self._remote, name))

    def _must_stay(self, name: str) -> bool:
        """Tell whether a checkpoint on the storage is permanent, or may be, as its manifest cannot be understood."""
        path = f"{CHECKPOINTS}/{name}/{MANIFEST}"
        content = self._call(partial(self._remote.read, path))
        if content is None:  # it is not whole
            return False
        try:
            permanent = parse_manifest(content, path).permanent
        except CheckpointError:
            return True
        if permanent:
            self._permanent.add(name)
        return permanent

    def _settling(self, found: list[str]) -> list[str]:
        """Choose two more checkpoints that a mount keeps, so that one at least is certainly beyond this machine.

        They are the newest that the mount has had time to send on, and the oldest that it has not, which is to be the
        next such. What another process has sent counts from when this one began.
        """
        if not isinstance(self._remote, Mount):
            return []
        whole = [name for name in found if name in self._confirmed or self._is_whole(name)]
        settled = time.monotonic() - _SETTLED_S
        old = [name for name in whole if self._confirmed.get(name, self._began) <= settled]
        young = [name for name in whole if name not in old]
        return [*old[:1], *young[-1:]]

    def _is_whole(self, name: str) -> bool:
        try:
            self._call(partial(load_remote_manifest, self._remote, name))
        except CheckpointError:
            return False
        return True

    def _call(self, function: Callable[[], Result], size: int = 0) -> Result:
        return persist(self._remote, function, limit_s=time_limit(size), stop=self._stop, on_error=self._on_error)

    def _send(self, function: Callable[[], None], size: int = 0) -> None:
        """Call what writes: after a call that hung and was left behind, everything is compared again at the end."""

        def on_error(error: Exception) -> None:
            self._hung = self._hung or isinstance(error, TimeoutError)
            self._on_error(error)

        persist(self._remote, function, limit_s=time_limit(size), stop=self._stop, on_error=on_error)

    def _arrived(self) -> None:
        """Note that something is on the storage for sure; that it can be listed is no such sign."""
        self._failing = False
        self._last_arrival = time.monotonic()

    def _on_error(self, error: Exception) -> None:
        self._failing = True

    # What is left

    def _unsent(self) -> list[str]:
        checkpoints = [name for name in self._kept(self._names()) if name not in {*self._confirmed, *self._unusable}]
        small = []
        for name in self._small_names():
            content = self._content(name)
            if content is not None and hashlib.sha256(content).hexdigest() != self._pushed.get(name, ("", 0.0))[0]:
                small.append(name)
        return [*checkpoints, *small]

    def _bytes_left(self) -> int:
        folders = [self._path / CHECKPOINTS / name for name in self._unsent()]
        return sum(file.stat().st_size for folder in folders if folder.is_dir() for file in folder.iterdir())

    def _delivery(self) -> Delivery:
        unsent = [*self._unsent(), *(name for name in self._names() if name in self._unusable)]
        checkpoints = [name for name in self._names() if name in self._confirmed]
        small = [name for name in self._small_names() if name in self._pushed and name not in unsent]
        newest = f" (newest step {step_of(checkpoints[0])})" if checkpoints else ""
        self._report(
            f"storage: confirmed on {self._remote.url}: {len(checkpoints)} checkpoint{_s(checkpoints)}{newest}, "
            f"{len(small)} file{_s(small)}"
        )
        if unsent:
            self._report(
                f"storage: not on {self._remote.url}: {', '.join(unsent)}; kept in {self._path}, "
                "the next run of the same command on this machine sends them"
            )
        if isinstance(self._remote, Mount):
            self._report(
                f"storage: {self._remote.url} is a mount, which may still be sending what it has confirmed; in Colab, "
                "drive.flush_and_unmount() waits for that; do so before the machine goes"
            )
        return Delivery((*checkpoints, *small), tuple(unsent))


def _s(names: Sized) -> str:
    return "" if len(names) == 1 else "s"
