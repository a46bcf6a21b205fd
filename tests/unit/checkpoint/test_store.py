import errno
import json
import os
import resource
import shutil
import threading
from pathlib import Path

import pytest
import torch

from benchmarks.faults.corruption import corrupt_checkpoints
from hai.checkpoint import format as checkpoint_format
from hai.checkpoint.find import load_reference
from hai.checkpoint.format import MODEL, STATE, load_checkpoint
from hai.checkpoint.records import load_json, load_records
from hai.checkpoint.store import RunFolder
from hai.errors import CheckpointError


def tensors(step: int, size: int = 8) -> dict[str, torch.Tensor]:
    return {"weight": torch.full((size,), float(step)), "count": torch.tensor(step)}


def save(folder: RunFolder, step: int, *, best: int | None = None, wait: bool = True, size: int = 8, **options) -> bool:
    remembered = {"metric": "val/f1", "value": 0.5, "step": best} if best is not None else None
    return folder.save(
        tensors(step, size),
        {"moment": torch.full((3,), step / 7)},
        {"best": remembered},
        step=step,
        wait=wait,
        **options,
    )


class Lines(list[str]):
    def __call__(self, line: str) -> None:
        self.append(line)


@pytest.fixture
def lines() -> Lines:
    return Lines()


@pytest.fixture
def folder(tmp_path: Path, lines: Lines) -> RunFolder:
    return RunFolder(str(tmp_path), "run", report=lines)


def steps(folder: RunFolder) -> list[int]:
    return [int(name.removeprefix("step_")) for name in folder.names()]


def test_a_local_run_works_in_place_and_changes_nothing_until_it_writes(tmp_path, folder):
    assert folder.path == tmp_path / "run"
    assert folder.location.remote is None
    assert folder.load_best() == (None, [])
    assert os.listdir(tmp_path) == []


def test_save_and_find(folder, lines):
    assert folder.newest_valid() == (None, [])
    assert save(folder, 5)
    assert save(folder, 10, wait=False)
    assert folder.wait()
    found, refusals = folder.newest_valid()
    assert (found.step, refusals, lines) == (10, [], [])
    assert torch.equal(found.model["weight"], torch.full((8,), 10.0))
    assert torch.equal(found.state["moment"], torch.full((3,), 10 / 7))
    assert found.meta == {"step": 10, "best": None}
    assert folder.newest_valid(before=10)[0].step == 5
    assert folder.close().confirmed == ("step_00000010", "step_00000005")


def test_training_may_change_its_tensors_while_they_are_written(folder, monkeypatch):
    started, go_on = threading.Event(), threading.Event()
    real = checkpoint_format.write_file

    def slow(*args):
        started.set()
        assert go_on.wait(10)
        return real(*args)

    monkeypatch.setattr(checkpoint_format, "write_file", slow)
    model = tensors(1)
    folder.save(model, {}, {}, step=1)
    assert started.wait(10)
    model["weight"].fill_(-1.0)
    go_on.set()
    assert folder.wait()
    assert torch.equal(load_checkpoint(folder.checkpoints / "step_00000001").model["weight"], torch.ones(8))


def test_prune_keeps_the_newest_the_best_and_the_permanent(folder):
    for step in range(1, 9):
        save(folder, step, best=min(step, 3), permanent=step == 5)
    assert steps(folder) == [8, 7, 5, 3]
    again = RunFolder(str(folder.path.parent), "run", keep=1)
    again.newest_valid()
    save(again, 9, best=3)
    assert steps(again) == [9, 5, 3]


def test_who_only_looks_prunes_nothing(folder):
    again = RunFolder(str(folder.path.parent), "run", keep=5)
    for step in (1, 2, 3, 4):
        save(again, step)
    folder.newest_valid()
    folder.close()
    assert steps(folder) == [4, 3, 2, 1]


def test_best(folder):
    save(folder, 1, best=1)
    save(folder, 2, best=2)
    save(folder, 3, best=2)
    best = load_json(folder.path / "best.json")
    found, refusals = folder.load_best()
    assert (found.step, found.state, refusals) == (2, {}, [])
    assert best == {
        "metric": "val/f1",
        "value": 0.5,
        "step": 2,
        "checkpoint": "checkpoints/step_00000002",
        "sha256": found.sha256,
    }


@pytest.mark.parametrize("damage", ["absent", "torn", "of a step that never was"])
def test_best_json_is_rebuilt_from_the_checkpoints(folder, damage):
    for step in (1, 2, 3, 4):
        save(folder, step, best=2 if step >= 2 else 1)
    path = folder.path / "best.json"
    whole = path.read_bytes()
    if damage == "absent":
        path.unlink()
    elif damage == "torn":
        path.write_bytes(whole[:20])
    else:
        path.write_text(json.dumps({"step": 9, "checkpoint": "checkpoints/step_00000009"}), encoding="utf-8")
    assert folder.load_best()[0].step == 2
    folder.newest_valid()
    assert path.read_bytes() == whole


def test_a_best_json_that_could_not_be_written_is_written_with_a_later_save(folder, lines, monkeypatch):
    save(folder, 1, best=1)
    with monkeypatch.context() as patch:
        patch.setattr("hai.checkpoint.records.save_json", _raise(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
        for step in (2, 3, 4, 5):
            assert save(folder, step, best=2), "the checkpoint is whole"
    assert lines == ["best.json: No space left on device"]
    assert steps(folder) == [5, 4, 2, 1]
    assert save(folder, 6, best=2)
    assert load_json(folder.path / "best.json")["checkpoint"] == "checkpoints/step_00000002"
    assert folder.load_best()[0].step == 2
    assert steps(folder) == [6, 5, 2]


def test_looking_for_an_earlier_checkpoint_in_vain_leaves_the_best(folder):
    save(folder, 3, best=3)
    assert folder.newest_valid(before=3) == (None, [])
    assert load_json(folder.path / "best.json")["step"] == 3


def test_a_lost_best_falls_back_to_the_newest(folder):
    for step in (1, 2, 3):
        save(folder, step, best=1)
    os.truncate(folder.checkpoints / "step_00000001" / MODEL, 5)
    found, refusals = folder.load_best()
    assert found.step == 3
    assert [refusal.name for refusal in refusals] == ["step_00000001"]


@pytest.mark.parametrize("count", [150, pytest.param(1000, marks=pytest.mark.slow)])
def test_corruptions(count, tmp_path):
    """Never a silent load, always the newest whole one, the damaged ones named."""
    found = corrupt_checkpoints(count, seed=count, folder=tmp_path)
    assert found["tried"] == count
    assert found["refused"] >= count // 2
    assert (found["silent"], found["older"], found["unnamed"]) == (0, 0, 0)


def test_a_loader_that_compares_no_hashes_would_be_found_out(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_format, "_compare", lambda path, actual, expected: None)
    assert corrupt_checkpoints(40, seed=1, folder=tmp_path)["silent"] > 0


def test_a_renamed_folder_is_refused(folder):
    save(folder, 1)
    os.rename(folder.checkpoints / "step_00000001", folder.checkpoints / "step_00000009")
    found, refusals = folder.newest_valid()
    assert found is None
    assert "holds step 1" in refusals[0].reason


def test_leftovers_of_killed_writers_are_swept(folder):
    save(folder, 1)
    (folder.checkpoints / ".tmp-step_00000002-abc").mkdir()
    (folder.checkpoints / ".tmp-step_00000002-abc" / MODEL).write_bytes(b"half")
    (folder.path / ".tmp-best.json-abc").write_bytes(b"{")
    again = RunFolder(str(folder.path.parent), "run")
    assert again.newest_valid()[0].step == 1
    assert not [path for path in folder.path.rglob(".tmp-*")]


def test_what_is_not_json_fails_in_the_callers_thread(folder):
    with pytest.raises(TypeError, match="not JSON serializable"):
        folder.save({}, {}, {"value": {1, 2}}, step=1)


def test_a_bug_in_the_writer_is_raised_not_hidden(folder):
    folder.save({"weight": torch.ones(2, dtype=torch.complex64)}, {}, {}, step=1)
    with pytest.raises(KeyError):
        folder.wait()
    assert save(folder, 2)


@pytest.mark.parametrize("code", [errno.EIO, errno.EROFS, errno.EACCES])
def test_disk_errors_are_reported_and_training_goes_on(folder, lines, monkeypatch, code):
    save(folder, 1)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_format, "write_file", _raise(OSError(code, os.strerror(code))))
        assert not save(folder, 2)
    assert len(lines) == 1
    assert "step 2 not saved" in lines[0]
    assert os.strerror(code) in lines[0]
    assert folder.problems == lines
    assert save(folder, 3)
    assert steps(folder) == [3, 1]


def _raise(error: Exception):
    def call(*args, **kwargs):
        raise error

    return call


def test_a_full_disk_takes_the_superseded_and_never_the_last_good_one(folder, lines, monkeypatch):
    for step in (1, 2, 3):
        save(folder, step, best=1)
    (folder.checkpoints / "refused" / "step_00000000").mkdir(parents=True)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_format, "write_file", _raise(full))
        assert not save(folder, 4)
    assert steps(folder) == [3, 1]
    assert not (folder.checkpoints / "refused").exists()
    needed = sum(t.nbytes for t in tensors(4).values()) + 12
    assert f"needs {needed} bytes" in lines[0]
    assert folder.newest_valid()[0].step == 3


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_real_limit_on_file_size(folder):
    """In a process whose files may not grow beyond 100 kB, small checkpoints are saved and a large one is not."""
    pid = os.fork()
    if pid == 0:
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
            good = save(folder, 1) and not save(folder, 2, size=1_000_000) and save(folder, 3)
            os._exit(0 if good and "disk is full" in folder.problems[0] else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    again = RunFolder(str(folder.path.parent), "run")
    assert again.newest_valid()[0].step == 3
    assert steps(again) == [3, 1]


def test_a_writer_that_was_replaced_stops_writing(tmp_path, lines):
    folder = RunFolder(str(tmp_path), "run", attempt="mine", report=lines)
    (tmp_path / "run").mkdir()
    owner = tmp_path / "run" / "owner.json"
    owner.write_text('{"attempt": "mine"}', encoding="utf-8")
    assert save(folder, 1)
    owner.write_text('{"attempt": "other"}', encoding="utf-8")
    assert not save(folder, 2)
    assert "taken this run over" in folder.lost
    assert not save(folder, 3)
    folder.append({"step": 3})
    folder.save_summary({"status": "failed"})
    assert os.listdir(folder.checkpoints) == ["step_00000001"]
    assert sorted(os.listdir(folder.path)) == ["checkpoints", "owner.json"]


def test_a_replaced_writer_does_not_touch_the_new_owners_metrics(tmp_path, lines):
    folder = RunFolder(str(tmp_path), "run", attempt="mine", report=lines)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "owner.json").write_text('{"attempt": "other"}', encoding="utf-8")
    folder.append({"step": 3})
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_lasting_trouble_is_said_once(folder, lines, monkeypatch):
    full = _raise(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    with monkeypatch.context() as patch:
        patch.setattr("hai.checkpoint.records.append_record", full)
        for step in (1, 2, 3):
            folder.append({"step": step})
    assert lines == ["metrics.jsonl: No space left on device"]
    folder.append({"step": 4})
    with monkeypatch.context() as patch:
        patch.setattr("hai.checkpoint.records.append_record", full)
        folder.append({"step": 5})
    assert len(lines) == 2


def test_metrics_are_appended(folder):
    folder.append({"step": 1, "train/loss": 0.5})
    folder.append({"step": 2, "train/loss": float("nan")})
    assert load_records(folder.path / "metrics.jsonl") == [
        {"step": 1, "train/loss": 0.5},
        {"step": 2, "train/loss": None},
    ]


def test_references(tmp_path, folder, lines):
    for step in (1, 2, 3):
        save(folder, step, best=1)
    (folder.path / "run.yaml").write_text("task: detector\n", encoding="utf-8")
    for reference, step in ((folder.path, 1), (folder.checkpoints / "step_00000003", 3)):
        checkpoint, config, refusals = load_reference(str(reference), report=lines)
        assert (checkpoint.step, config, refusals) == (step, folder.path / "run.yaml", [])
        assert checkpoint.state == {}
    shutil.copytree(folder.checkpoints / "step_00000002", tmp_path / "alone" / "my model")
    checkpoint, config, _ = load_reference(str(tmp_path / "alone" / "my model"), report=lines)
    assert (checkpoint.step, config) == (2, None)
    os.truncate(tmp_path / "alone" / "my model" / STATE, 1)
    assert load_reference(f"file://{tmp_path}/alone/my model/", report=lines)[0].step == 2
    os.truncate(tmp_path / "alone" / "my model" / MODEL, 1)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: bytes = 1"):
        load_reference(str(tmp_path / "alone" / "my model"), report=lines)
    (tmp_path / "empty").mkdir()
    for missing in ("empty", "nowhere"):
        with pytest.raises(CheckpointError, match="no such folder"):
            load_reference(str(tmp_path / missing), report=lines)
    assert lines == []
