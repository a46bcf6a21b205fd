"""The end of the machine before every single call of a save and of an upload: the old checkpoint or the new one."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from test_format import die_in_call

from benchmarks.faults.storage import FAULTS
from benchmarks.faults.storage import FaultyFileSystem as Storage
from hai.checkpoint import remote, transfer, upload
from hai.checkpoint.files import TEMPORARY
from hai.checkpoint.format import MODEL
from hai.checkpoint.store import RunFolder

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
URL = "faulty://bucket/runs"
STRIDES = [pytest.param(1, marks=pytest.mark.slow), 7]


@pytest.fixture(autouse=True)
def own_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HAI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(transfer, "_FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(transfer, "_LONGEST_PAUSE_S", 0.002)
    monkeypatch.setattr(upload, "_TROUBLED_S", 0.05)
    Storage.reset()
    yield
    Storage.reset()


def build_run(storage: Path | str) -> RunFolder:
    return RunFolder(str(storage), "run", keep=1, report=lambda line: None)


def save(run: RunFolder, step: int, best: int) -> None:
    meta = {"best": {"metric": "val/f1", "value": 0.5, "step": best}}
    assert run.save({"weight": torch.full((50,), float(step))}, {"m": torch.ones(9) * step}, meta, step=step, wait=True)


def resumed(storage: Path | str) -> tuple[int, int]:
    """Return the steps of the newest and of the best checkpoint, after comparing what they hold."""
    run = build_run(storage)
    found, _ = run.newest_valid()
    best, _ = run.load_best()
    assert found is not None
    assert best is not None
    for checkpoint in (found, best):
        assert torch.equal(checkpoint.model["weight"], torch.full((50,), float(checkpoint.step)))
    assert torch.equal(found.state["m"], torch.ones(9) * found.step)
    assert found.meta["best"]["step"] == best.step
    run.close()  # no thread may be alive at the next fork
    return found.step, best.step


@pytest.mark.parametrize("stride", STRIDES)
def test_a_crash_in_any_call_of_a_run_folder(tmp_path, stride):
    """Of a start that sets a damaged checkpoint aside, a save, best.json, and the pruning of what is superseded."""
    first = build_run(tmp_path / "origin")
    for step in (1, 2):
        save(first, step, best=1)
    save(build_run(tmp_path / "origin"), 3, best=1)
    os.truncate(tmp_path / "origin" / "run" / "checkpoints" / "step_00000003" / MODEL, 9)
    shutil.copytree(
        tmp_path / "origin/run/checkpoints/step_00000001", tmp_path / "origin/run/checkpoints/step_00000009"
    )

    def action(folder: Path) -> None:
        run = build_run(folder)
        assert run.newest_valid()[0] is not None
        save(run, 4, best=4)

    outcomes, limit, status = set(), 1, 9
    while status == 9:
        folder = tmp_path / "trial"
        shutil.copytree(tmp_path / "origin", folder)
        status = die_in_call(limit, lambda folder=folder: action(folder))
        assert status in (0, 9)
        outcomes.add(resumed(folder))
        assert not [path for path in folder.rglob(f"{TEMPORARY}*")]
        shutil.rmtree(folder)
        limit += stride
    assert limit > 60
    assert outcomes == {(1, 1), (4, 4)}


@pytest.mark.parametrize("stride", STRIDES)
def test_a_crash_in_any_call_of_an_upload_to_a_mount(tmp_path, monkeypatch, stride):
    mounts = tmp_path / "mounts"
    monkeypatch.setattr(remote, "is_mount", lambda folder: folder.is_relative_to(mounts))
    monkeypatch.setattr(upload, "_SETTLED_S", 0.0)
    first = build_run(mounts / "origin")
    save(first, 1, best=1)
    assert first.close().missing == ()

    def action(mount: Path) -> None:
        run = build_run(mount)
        run.newest_valid()
        save(run, 2, best=2)
        assert run.close().missing == ()

    outcomes, limit, status = set(), 1, 9
    while status == 9:
        shutil.copytree(mounts / "origin", mounts / "trial")
        status = die_in_call(limit, lambda: action(mounts / "trial"))
        assert status in (0, 9)
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)  # killed in its first call, it has none yet
        outcomes.add(resumed(mounts / "trial"))
        shutil.rmtree(tmp_path / "cache")
        shutil.rmtree(mounts / "trial")
        limit += stride
    assert limit > 60
    assert outcomes == {(1, 1), (2, 2)}


@pytest.mark.parametrize("stride", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_the_machine_goes_before_any_call_to_a_bucket(tmp_path, monkeypatch, stride):
    first = build_run(URL)
    save(first, 1, best=1)
    assert first.close().missing == ()
    origin = dict(Storage.objects)
    real = Storage._fault
    left = 0

    def counted(kinds=("fail",)):
        nonlocal left
        left -= 1
        if left == 0:
            Storage.down = True
            if kinds is FAULTS:
                return "half then fail"
        return real(kinds)

    monkeypatch.setattr(Storage, "_fault", staticmethod(counted))
    outcomes, limit = set(), 1
    while True:
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        Storage.objects.clear()
        Storage.objects.update(origin)
        run = build_run(URL)
        run.newest_valid()
        left = limit
        save(run, 2, best=2)
        run.close(limit_s=2.0)
        finished, left, Storage.down = left > 0, 0, False
        shutil.rmtree(tmp_path / "cache")
        outcomes.add(resumed(URL))
        limit += stride
        if finished:
            break
    assert limit > 15
    assert outcomes == {(1, 1), (2, 2)}
