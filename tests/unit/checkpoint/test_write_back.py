"""A mount that answers from a cache and sends later: what is left when its machine dies is always enough to go on."""

import os
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hai.checkpoint import remote, transfer, upload
from hai.checkpoint.files import TEMPORARY
from hai.checkpoint.format import MANIFEST
from hai.checkpoint.store import RunFolder

KEEP = 2


@dataclass
class Operation:
    """One change of the mount: a file's content, or a change of names; when it was made; what it leaves of names."""

    kind: str
    paths: tuple[str, ...]
    content: bytes
    when: float

    def replay(self, root: Path, lost: bool = False) -> None:
        first = root / self.paths[0]
        if self.kind == "write":
            if not lost:
                first.write_bytes(self.content)
        elif self.kind == "mkdir":
            first.mkdir()
        elif self.kind == "replace":
            if first.exists():
                os.replace(first, root / self.paths[1])
        elif self.kind == "unlink":
            first.unlink(missing_ok=True)
        else:
            shutil.rmtree(first)


class Recorder:
    """Notes every change that goes to a folder, in order, by whatever function of the standard library."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch, clock: Callable[[], float]) -> None:
        self.operations: list[Operation] = []
        self._root, self._clock, self._lock = root, clock, threading.Lock()
        for name in ("mkdir", "unlink", "rmdir"):
            patch.setattr(os, name, self._noted(name, getattr(os, name)))
        for name in ("replace", "rename"):
            patch.setattr(os, name, self._noted("replace", getattr(os, name)))
        copyfile, write_bytes = shutil.copyfile, Path.write_bytes
        patch.setattr(shutil, "copyfile", lambda a, b: self._write(b, Path(a).read_bytes, lambda: copyfile(a, b)))
        patch.setattr(Path, "write_bytes", lambda a, b: self._write(a, lambda: b, lambda: write_bytes(a, b)))

    def _noted(self, kind: str, real: Callable[..., None]) -> Callable[..., None]:
        def call(*paths: Path, **options: object) -> None:
            real(*paths, **options)
            names = [path for path in paths if isinstance(path, str | Path)]
            if names and Path(names[-1]).is_relative_to(self._root):
                self._note(kind, *names)

        return call

    def _write(self, path: Path, content: Callable[[], bytes], real: Callable[[], None]) -> None:
        real()
        if Path(path).is_relative_to(self._root):
            assert Path(path).name.startswith(TEMPORARY), "nothing on a mount is overwritten in place"
            self._note("write", path, content=content())

    def _note(self, kind: str, *paths: str | Path, content: bytes = b"") -> None:
        names = tuple(str(Path(path).relative_to(self._root)) for path in paths)
        with self._lock:
            self.operations.append(Operation(kind, names, content, self._clock()))


@pytest.fixture
def drive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that counts as a mount, as do the folders beside it."""
    monkeypatch.setenv("HAI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "is_mount", lambda folder: folder.is_relative_to(tmp_path / "mounts"))
    monkeypatch.setattr(transfer, "_FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(upload, "_POLL_S", 0.01)
    monkeypatch.setattr(upload, "_SMALL_EVERY_S", 0.0)
    (tmp_path / "mounts" / "drive").mkdir(parents=True)
    return tmp_path / "mounts" / "drive"


def record_run(drive: Path, saves: int, monkeypatch: pytest.MonkeyPatch, every_s: float) -> list[Operation]:
    """Save to the mount, a checkpoint every so many seconds of a clock that this function moves."""
    now = [0.0]
    monkeypatch.setattr(upload, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with pytest.MonkeyPatch.context() as patch:
        recorder = Recorder(drive, patch, lambda: now[0])
        run = RunFolder(str(drive), "run", keep=KEEP, report=lambda line: None)
        for step in range(1, saves + 1):
            best = {"metric": "val/f1", "value": 0.5, "step": step if step < 3 else 3}
            assert run.save(tensors(step), {"m": torch.ones(9) * step}, {"best": best}, step=step, wait=True)
            run.append({"step": step})
            _wait(lambda step=step: confirmed(recorder.operations, step))
            count = -1
            while count != len(recorder.operations):
                count = len(recorder.operations)
                time.sleep(0.05)
            now[0] += every_s
        assert run.close().missing == ()
    assert run.problems == []
    return recorder.operations


def tensors(step: int) -> dict[str, torch.Tensor]:
    return {"weight": torch.full((50,), float(step))}


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.005)


def confirmed(operations: list[Operation], step: int) -> bool:
    return any(f"{step:08d}/{MANIFEST}" in path for op in list(operations) for path in op.paths[1:])


def resumed_step(mount: Path, cache: Path) -> int:
    """Resume on a new machine; return the step after comparing the tensors, 0 when there is nothing."""
    shutil.rmtree(cache, ignore_errors=True)
    run = RunFolder(str(mount), "run", keep=KEEP, report=lambda line: None)
    found, _ = run.newest_valid()
    run.close(limit_s=0.0)
    if found is None:
        return 0
    assert torch.equal(found.model["weight"], tensors(found.step)["weight"])
    assert torch.equal(found.state["m"], torch.ones(9) * found.step)
    return found.step


@pytest.mark.parametrize("stride", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_a_mount_loses_its_last_operations(drive, tmp_path, monkeypatch, stride):
    """Whatever number of its last writes, renames and deletes is lost: the newest confirmed one that is left."""
    operations = record_run(drive, 8, monkeypatch, every_s=60.0)
    assert len(operations) > 80
    assert {operation.kind for operation in operations} == {"mkdir", "write", "replace", "unlink", "rmdir"}
    reached = set()
    for left in range(0, len(operations) + 1, stride):
        mount = tmp_path / "mounts" / str(left)
        mount.mkdir()
        for operation in operations[:left]:
            operation.replay(mount)
        newest = max((step for step in range(1, 9) if confirmed(operations[:left], step)), default=0)
        assert resumed_step(mount, tmp_path / "cache") == newest, left
        reached.add(newest)
        shutil.rmtree(mount)
    assert len(reached) >= 8


def test_a_mount_that_sends_deletes_at_once_and_content_minutes_later(drive, tmp_path, monkeypatch):
    """A machine that dies takes the last minutes' content with it, never the last checkpoint that got through."""
    operations = record_run(drive, 14, monkeypatch, every_s=60.0)
    lag = upload._SETTLED_S
    for left in range(0, len(operations) + 1, 7):
        dead_at = operations[left - 1].when if left else 0.0
        mount = tmp_path / "mounts" / str(left)
        mount.mkdir()
        for operation in operations[:left]:
            operation.replay(mount, lost=operation.when > dead_at - lag)
        sent = [op for op in operations[:left] if op.when <= dead_at - lag]
        newest = max((step for step in range(1, 15) if confirmed(sent, step)), default=0)
        found = resumed_step(mount, tmp_path / "cache")
        assert found > 0 or newest == 0, left
        assert newest - found <= lag / 60, (left, newest, found)
        shutil.rmtree(mount)
    held = {path.parent.name for path in (drive / "run" / "checkpoints").glob(f"*/{MANIFEST}")}
    assert len(held) <= KEEP + 1 + 2  # the newest, the best, and what is settling
