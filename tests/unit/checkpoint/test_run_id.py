"""Work folders of runs that the storage no longer holds: left alone, and never taken for the run of that name."""

import json
import shutil
import threading
from pathlib import Path

import pytest
import torch

from benchmarks.faults.storage import FaultyFileSystem as Storage
from hai.checkpoint import owner, remote, transfer, upload
from hai.checkpoint.find import load_reference
from hai.checkpoint.owner import Owner, load_owner
from hai.checkpoint.remote import Mount, load_run_id, locate
from hai.checkpoint.runs import restart_run
from hai.checkpoint.store import RunFolder

URL = "faulty://bucket/runs"


class Machine:
    """One machine of several: a cache of its own, and what it was told."""

    def __init__(self, cache: Path, storage: str, patch: pytest.MonkeyPatch) -> None:
        self.lines: list[str] = []
        self._cache, self._storage, self._patch = cache, storage, patch

    def __enter__(self) -> "Machine":
        self._patch.setenv("HAI_CACHE", str(self._cache))
        self.lines.clear()
        return self

    def __exit__(self, *_: object) -> None:
        return

    def train(self, *steps: int, reach: bool = True) -> int:
        """Own the run, go on, save; return the step that it went on from."""
        claim = Owner(locate(self._storage, "run"), self.lines.append)
        run = RunFolder(self._storage, "run", attempt=claim.acquire(), report=self.lines.append)
        found, _ = run.newest_valid()
        Storage.down = not reach
        for step in steps:
            assert run.save({"weight": torch.full((9,), float(step))}, {}, {}, step=step, wait=True)
        assert (run.close(limit_s=None if reach else 0.0).missing == ()) is reach
        for thread in threading.enumerate():
            if thread.name == "hai-uploader":
                thread.join(30)
        Storage.down = False
        claim.release()
        return found.step if found is not None else 0

    def told(self) -> list[str]:
        """The lines on another run's folder, which stays."""
        return [line for line in self.lines if "holds another run" in line]

    def checkpoints(self) -> set[str]:
        """All in this machine's work folders."""
        return {path.name for path in self._cache.glob("runs/*/checkpoints/step_*")}


@pytest.fixture(params=["mount", "bucket"])
def storage(request, tmp_path, monkeypatch):
    monkeypatch.setattr(owner, "_SETTLE_S", 0.0)
    monkeypatch.setattr(transfer, "_FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(transfer, "_LONGEST_PAUSE_S", 0.01)
    monkeypatch.setattr(upload, "_SETTLED_S", 0.0)
    monkeypatch.setattr(remote, "is_mount", lambda folder: folder.is_relative_to(tmp_path / "drive"))
    Storage.reset()
    yield str(tmp_path / "drive") if request.param == "mount" else URL
    Storage.reset()


@pytest.fixture
def machines(tmp_path, storage, monkeypatch):
    return [Machine(tmp_path / name, storage, monkeypatch) for name in ("a", "b")]


def delete_run(storage: str) -> None:
    Storage.objects.clear()
    shutil.rmtree(Path(storage) / "run", ignore_errors=True)


@pytest.mark.parametrize("storage", ["mount"], indirect=True)
def test_a_run_that_was_set_aside_elsewhere_does_not_come_back(storage, machines):
    first, second = machines
    with first:
        assert first.train(50) == 0
    with second:
        assert second.train(60) == 50
        restart_run(storage, "run", second.lines.append)
        assert second.train(2) == 0
    with first:
        assert load_reference(f"{storage}/run", report=print)[0].step == 2
        assert first.train(3) == 2
        assert len(first.told()) == 1
        assert first.told()[0].endswith(f"stays in {locate(storage, 'run').other}")
    with first:
        assert first.train(4) == 3
        assert first.told() == []
    assert first.checkpoints() >= {"step_00000050", "step_00000003", "step_00000004"}
    assert {path.name for path in Path(storage, "run", "checkpoints").iterdir()} == {"step_00000003", "step_00000004"}
    with second:
        assert second.train() == 4
        assert second.told() == [], "it has started this run"


def test_a_worker_on_another_machine_than_its_driver_learns_which_run_it_is(storage, machines):
    first, second = machines
    with second:
        second.train(50)
    delete_run(storage)
    with first:
        claim = Owner(locate(storage, "run"), first.lines.append)
        attempt = claim.acquire()
    with second:
        for _ in range(2):
            run = RunFolder(storage, "run", attempt=attempt, report=second.lines.append)
            assert run.newest_valid() == (None, [])
            run.close()
        assert len(second.told()) == 1
        assert load_run_id(run.path) == load_owner(run.location)["run"]
    claim.release()


def test_a_run_that_was_deleted_does_not_come_back(storage, machines):
    first, second = machines
    with first:
        assert first.train(50) == 0
    delete_run(storage)
    with first:
        assert first.train(1) == 0
        assert len(first.told()) == 1
    delete_run(storage)
    with second:
        assert second.train(2) == 0
    with first:
        assert first.train() == 2
        assert len(first.told()) == 1
    assert first.checkpoints() == {"step_00000050", "step_00000001", "step_00000002"}


def test_a_run_that_never_reached_the_storage_goes_on_and_is_sent(storage, machines):
    first, _ = machines
    with first:
        run = RunFolder(storage, "run", report=first.lines.append)
        run.newest_valid()
        assert run.save({"weight": torch.ones(9)}, {}, {}, step=7, wait=True)
        run.close(limit_s=0.0)
    delete_run(storage)
    with first:
        assert load_run_id(locate(storage, "run").path) is None
        assert first.train() == 7
        assert first.told() == []
        assert locate(storage, "run").remote.names("checkpoints") == ["step_00000007"]


@pytest.mark.parametrize("storage", ["bucket"], indirect=True)
def test_a_run_of_which_only_the_claim_reached_the_storage_goes_on_and_is_sent(storage, machines):
    first, _ = machines
    with first:
        assert first.train(7, reach=False) == 0
        assert locate(storage, "run").remote.names("") == ["owner.json"]
        assert first.train() == 7
        assert first.told() == []
        assert locate(storage, "run").remote.names("checkpoints") == ["step_00000007"]


@pytest.mark.parametrize("damage", ["older version", "torn"])
def test_a_run_without_an_id_is_the_one_that_is_known(storage, machines, damage):
    first, second = machines
    with first:
        assert first.train(5) == 0
        location = locate(storage, "run")
        run = load_owner(location)["run"]
        older = {key: value for key, value in load_owner(location).items() if key != "run"}
        location.remote.write("owner.json", json.dumps(older).encode() if damage == "older version" else b'{"ru')
        assert first.train(6) == 5
        assert load_owner(location)["run"] == run
    with second:
        assert second.train(7) == 6
        (locate(storage, "run").path / "run_id").unlink()  # as an older version leaves its folder
        assert second.train() == 7
        assert load_run_id(locate(storage, "run").path) == run
    assert first.told() + second.told() == []


@pytest.mark.parametrize("storage", ["bucket"], indirect=True)
def test_a_number_of_a_restart_that_is_used_again_is_another_run(storage, machines):
    first, _ = machines
    with first:
        first.train(1)
        for last in (50, 3):
            restart_run(storage, "run", first.lines.append)
            assert locate(storage, "run").remote.url.endswith("/attempt-2")
            assert first.train(last) == 0
            for path in [path for path in Storage.objects if "attempt-2" in path]:
                del Storage.objects[path]


@pytest.mark.parametrize("storage", ["mount"], indirect=True)
def test_a_mount_that_does_not_answer_leaves_the_folder_that_was_used_last(storage, machines, monkeypatch):
    first, _ = machines
    with first:
        first.train(50)
        delete_run(storage)
        first.train(1)
        path = locate(storage, "run").path

        def fail(self, name):
            raise OSError("stale file handle")

        monkeypatch.setattr(Mount, "read", fail)
        assert locate(storage, "run").path == path


def test_an_id_that_is_none_is_not_believed(storage, machines):
    with machines[0]:
        machines[0].train(1)
        location = locate(storage, "run")
        location.remote.write("owner.json", b'{"run": "../../elsewhere"}')
        assert locate(storage, "run").path == location.path
