import json
import os
import shutil
import threading
import time
from pathlib import Path

import pytest
import torch

from benchmarks.faults.storage import FaultyFileSystem as Storage
from benchmarks.faults.uploads import break_uploads, save_and_check
from hai.checkpoint import format as checkpoint_format
from hai.checkpoint import owner, remote, transfer, upload
from hai.checkpoint.find import load_reference
from hai.checkpoint.format import FILES, MANIFEST
from hai.checkpoint.records import load_json, load_records, save_json
from hai.checkpoint.remote import Bucket, Mount
from hai.checkpoint.runs import send_run
from hai.checkpoint.store import RunFolder
from hai.checkpoint.transfer import verify_remote
from hai.errors import CheckpointError, StorageError

URL = "faulty://bucket/runs"


class Lines(list[str]):
    def __call__(self, line: str) -> None:
        self.append(line)


@pytest.fixture(autouse=True)
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Give each test an empty bucket, an empty cache, and a uploader in a hurry."""
    monkeypatch.setenv("HAI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(transfer, "_FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(transfer, "_LONGEST_PAUSE_S", 0.01)
    monkeypatch.setattr(transfer, "_BASE_LIMIT_S", 0.25)
    monkeypatch.setattr(owner, "_CALL_LIMIT_S", 0.25)
    monkeypatch.setattr(upload, "_FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(upload, "_LONGEST_PAUSE_S", 0.05)
    monkeypatch.setattr(upload, "_POLL_S", 0.05)
    Storage.reset()
    yield
    while built:
        built.pop().close(limit_s=0.0)
    for thread in threading.enumerate():  # one that is late would send to the next test's bucket
        if thread.name in ("hai-uploader", "hai-storage"):
            thread.join(30)
            assert not thread.is_alive()
    Storage.reset()


built: list[RunFolder] = []


@pytest.fixture
def lines() -> Lines:
    return Lines()


def build_run(lines: Lines, storage: str = URL, **options) -> RunFolder:
    built.append(RunFolder(storage, "run", report=lines, **options))
    return built[-1]


def save(run: RunFolder, step: int, best: int | None = None, **options) -> bool:
    meta = {"best": {"metric": "val/f1", "value": 0.5, "step": best} if best else None}
    return run.save(
        {"weight": torch.full((500,), float(step))}, {"m": torch.ones(9)}, meta, step=step, wait=True, **options
    )


def stored(run: str = "bucket/runs/run") -> set[str]:
    return {name.split("/")[-2] for name in Storage.objects if name.startswith(run) and name.endswith(MANIFEST)}


def load_sent(name: str) -> list[dict[str, int]]:
    return [json.loads(line) for line in Storage.objects[f"bucket/runs/run/{name}"].splitlines()]


def wait_for(condition) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)


def test_a_run_on_a_bucket_is_worked_on_in_the_cache_and_arrives_whole(lines, tmp_path):
    run = build_run(lines)
    assert run.path.is_relative_to(tmp_path / "cache")
    assert run.newest_valid() == (None, [])
    for step in (1, 2, 3):
        run.append({"step": step})
        save(run, step, best=1)
    delivery = run.close()
    assert delivery.missing == ()
    assert set(delivery.confirmed) == {"step_00000003", "step_00000002", "step_00000001", "metrics.jsonl", "best.json"}
    assert stored() == {"step_00000001", "step_00000002", "step_00000003"}
    for name in stored():
        for file in [*FILES, MANIFEST]:
            assert (
                Storage.objects[f"bucket/runs/run/checkpoints/{name}/{file}"]
                == (run.checkpoints / name / file).read_bytes()
            )
        last = [path for path in Storage.writes if f"/{name}/" in path][-1]
        assert last.endswith(MANIFEST)
    assert lines == [f"storage: confirmed on {URL}/run: 3 checkpoints (newest step 3), 2 files"]


def test_what_a_run_that_has_ended_could_not_send_is_sent_later(lines, monkeypatch):
    monkeypatch.setattr(owner, "_SETTLE_S", 0.0)
    run = build_run(lines)
    assert run.newest_valid() == (None, [])
    save(run, 1, best=1)
    run.close()
    lines.clear()
    send_run(URL, "run", lines)
    assert lines == [], "everything is there"
    for path in [path for path in Storage.objects if "/step_00000001/" in path]:
        del Storage.objects[path]
    assert stored() == set()
    send_run(URL, "run", lines)
    assert stored() == {"step_00000001"}
    assert lines[-1].startswith(f"storage: confirmed on {URL}/run: 1 checkpoint (newest step 1)")
    send_run(URL, "another", lines)  # of which nothing is here
    for path in [path for path in Storage.objects if "/step_00000001/" in path]:
        Storage.objects[path.replace("_00000001", "_00000002")] = Storage.objects.pop(path)
    send_run(URL, "run", lines)
    assert stored() == {"step_00000002"}, "it went on elsewhere"


def test_a_wiped_machine_resumes_from_the_bucket(lines):
    run = build_run(lines)
    for step in (1, 2, 3, 4):
        run.append({"step": step})
        save(run, step, best=1, permanent=step == 2)
    run.close()
    shutil.rmtree(run.path)
    again = build_run(lines)
    found, refusals = again.newest_valid()
    assert (found.step, refusals) == (4, [])
    assert torch.equal(found.model["weight"], torch.full((500,), 4.0))
    assert [record["step"] for record in load_records(again.path / "metrics.jsonl")] == [1, 2, 3, 4]
    assert again.load_best()[0].step == 1
    shutil.rmtree(again.checkpoints / "step_00000001")
    save(again, 5, best=1)
    assert again.close().missing == ()
    assert stored() == {"step_00000005", "step_00000004", "step_00000002", "step_00000001"}  # best, permanent too
    shutil.rmtree(again.path)
    assert build_run(lines).newest_valid()[0].step == 5


def test_trouble_at_the_start_elsewhere_costs_neither_permanent_checkpoints_nor_history(lines):
    first = build_run(lines)
    for step in (1, 2, 3, 4):
        first.append({"step": step})
        save(first, step, permanent=step < 3)
    first.append({"step": 5})
    first.log("trained here")
    save_json(first.path / "summary.json", {"by": "first"})
    (first.path / "report.html").write_text("a page", encoding="utf-8")
    first.close()
    shutil.rmtree(first.path)
    lines.clear()
    again = build_run(lines)
    Storage.down = True
    again._begin()
    Storage.down = False
    assert [line.endswith("the network is down; will try again") for line in lines] == [True]
    found, _ = again.newest_valid()
    again.start_at(found.step, known=[{"step": 4}])
    again.log("trained there")
    again.save_summary({"by": "again"})
    for step in (5, 6, 7):
        again.append({"step": step, "again": True})
        save(again, step)
    delivery = again.close()
    assert delivery.missing == ()
    assert stored() == {f"step_0000000{step}" for step in (1, 2, 6, 7)}
    assert [(record["step"], "again" in record) for record in load_sent("metrics.jsonl")] == [
        (1, False), (2, False), (3, False), (4, False), (5, True), (6, True), (7, True)
    ]  # fmt: skip
    assert load_records(again.path / "metrics.jsonl") == load_sent("metrics.jsonl")
    assert Storage.objects["bucket/runs/run/log.txt"] == b"trained here\ntrained there\n"
    assert json.loads(Storage.objects["bucket/runs/run/summary.json"])["by"] == "again"
    assert Storage.objects["bucket/runs/run/report.html"] == b"a page"


def test_an_old_file_is_not_sent_over_a_newer_one_that_could_not_be_read_at_the_start(lines):
    for name in ("first", "second"):
        run = build_run(lines)
        run.append({"step": 1 if name == "first" else 2})
        run.save_summary({"by": name})
        save(run, 1 if name == "first" else 2)
        run.close()
        if name == "first":
            kept = run.path.with_name("kept")
            shutil.copytree(run.path, kept)
    shutil.rmtree(run.path)
    shutil.move(kept, run.path)
    assert load_json(run.path / "summary.json")["by"] == "first"
    again = build_run(lines)
    Storage.down = True
    again._begin()
    Storage.down = False
    assert again.newest_valid()[0].step == 2
    assert again.close().missing == ()
    assert json.loads(Storage.objects["bucket/runs/run/summary.json"])["by"] == "second"
    assert load_json(again.path / "summary.json")["by"] == "second"
    assert [record["step"] for record in load_sent("metrics.jsonl")] == [1, 2]


def test_a_checkpoint_whose_manifest_cannot_be_understood_is_not_pruned(lines):
    run = build_run(lines)
    for step in (1, 2):
        save(run, step)
    run.close()
    shutil.rmtree(run.path)
    Storage.objects[f"bucket/runs/run/checkpoints/step_00000001/{MANIFEST}"] += b" "
    again = build_run(lines, keep=1)
    for step in (3, 4):
        save(again, step)
    assert again.close().missing == ()
    assert stored() == {"step_00000001", "step_00000004"}


def test_a_machine_lost_in_the_middle_leaves_the_records_up_to_its_newest_checkpoint(lines):
    run = build_run(lines)
    for step in (1, 2, 3, 4):
        run.append({"step": step})
        save(run, step)
        wait_for(lambda step=step: f"step_{step:08d}" in stored())
        sent = load_sent("metrics.jsonl")
        assert [record["step"] for record in sent] == list(range(1, step + 1))
    shutil.rmtree(run.path)
    again = build_run(lines)
    assert again.newest_valid()[0].step == 4
    assert [record["step"] for record in load_records(again.path / "metrics.jsonl")] == [1, 2, 3, 4]


def test_pruned_checkpoints_leave_the_storage_manifest_first(lines):
    run = build_run(lines, keep=1)
    for step in (1, 2):
        save(run, step)
        wait_for(lambda step=step: stored() == {f"step_0000000{step}"})
    run.close()
    assert Storage.deletes[0] == f"bucket/runs/run/checkpoints/step_00000001/{MANIFEST}"
    assert not [name for name in Storage.objects if "step_00000001" in name]


def test_who_only_looks_prunes_nothing(lines):
    run = build_run(lines, keep=3)
    for step in (1, 2, 3):
        save(run, step)
    run.close()
    other = build_run(lines, keep=1)
    other.newest_valid()
    assert other.close().missing == ()
    assert len(stored()) == len(other.names()) == 3


def test_the_newest_wins_while_the_storage_is_down(lines):
    run = build_run(lines, keep=1)
    run.newest_valid()
    Storage.down = True
    for step in range(1, 8):
        assert save(run, step)
    wait_for(lambda: lines)
    Storage.down = False
    wait_for(lambda: stored() == {"step_00000007"})
    run.close()
    assert {path.split("/")[-2] for path in Storage.writes if "checkpoints" in path} <= {
        "step_00000006",
        "step_00000007",
    }
    assert len(lines) == 3
    assert "the network is down; training goes on" in lines[0]
    assert lines[1].endswith("works again")
    assert lines[2] == f"storage: confirmed on {URL}/run: 1 checkpoint (newest step 7), 0 files"
    assert run.problems == []


def test_what_is_not_on_the_storage_at_close_is_listed(lines, monkeypatch):
    monkeypatch.setattr(upload, "_TROUBLED_S", 0.2)
    run = build_run(lines)
    run.newest_valid()
    save(run, 1)
    wait_for(lambda: stored())
    Storage.down = True
    save(run, 2)
    run.append({"step": 2})
    delivery = run.close()
    assert delivery.confirmed == ("step_00000001",)
    assert set(delivery.missing) == {"step_00000002", "metrics.jsonl"}
    assert lines[-2] == f"storage: confirmed on {URL}/run: 1 checkpoint (newest step 1), 0 files"
    assert "not on faulty://bucket/runs/run: step_00000002, metrics.jsonl; kept in" in lines[-1]
    Storage.down = False
    again = build_run(lines)
    assert again.newest_valid()[0].step == 2
    assert again.close().missing == ()
    assert stored() == {"step_00000001", "step_00000002"}


def test_a_hanging_storage_does_not_hold_the_process(lines, monkeypatch):
    run = build_run(lines)
    run.newest_valid()
    release = threading.Event()
    monkeypatch.setattr(Storage, "put_file", lambda self, source, target: release.wait(30))
    monkeypatch.setattr(upload, "_TROUBLED_S", 0.2)
    save(run, 1)
    start = time.monotonic()
    assert run.close().missing == ("step_00000001",)
    assert time.monotonic() - start < 20
    release.set()


@pytest.mark.parametrize(
    ("saves", "seed"), [(10, 0), (10, 1), *(pytest.param(60, seed, marks=pytest.mark.slow) for seed in (2, 3))]
)
def test_thirty_percent_of_the_calls_go_wrong(saves, seed, tmp_path):
    """Fail, hang, half-write, write wrong bytes: training never notices, and what is confirmed is whole."""
    found = break_uploads(saves, seed, tmp_path)
    assert found["faults"] >= saves  # a busy machine sends fewer checkpoints: newer ones overtake
    assert len({*Storage.faults} & {"half", "half then fail", "wrong"}) >= (3 if saves > 10 else 1)
    assert found["confirmed"] >= 4
    assert (found["listed"], found["missing"], found["stops"], found["unusable"]) == (0, 0, 0, 0)


def test_what_is_looked_for_can_be_found(lines):
    """A storage that takes everything and keeps something else is told from one that works."""
    run = RunFolder(URL, "run", report=lines)
    real = run.close

    def close(**options):
        delivery = real(**options)
        name = "bucket/runs/run/checkpoints/step_00000003/model.safetensors"
        Storage.objects[name] = Storage.objects[name][::-1]
        return delivery

    run.close = close
    found = save_and_check(run, 3, calm=lambda: None, pause_s=0.0)
    assert (found["missing"], found["unusable"]) == (1, 1)


def test_damage_on_the_storage_is_refused_deleted_and_named(lines):
    run = build_run(lines)
    for step in (1, 2):
        save(run, step)
    run.close()
    shutil.rmtree(run.path)
    path = "bucket/runs/run/checkpoints/step_00000002/model.safetensors"
    Storage.objects[path] = Storage.objects[path][:-1] + b"x"
    again = build_run(lines)
    found, refusals = again.newest_valid()
    assert found.step == 1
    assert [refusal.name for refusal in refusals] == ["step_00000002"]
    assert "faulty://bucket/runs/run/checkpoints/step_00000002/model.safetensors: sha256" in refusals[0].reason
    assert stored() == {"step_00000001"}
    again.close()


def test_a_damaged_copy_on_the_storage_is_replaced_by_the_local_one(lines):
    run = build_run(lines)
    save(run, 1)
    run.close()
    Storage.objects[f"bucket/runs/run/checkpoints/step_00000001/{MANIFEST}"] += b" "
    again = build_run(lines)
    again.newest_valid()
    assert again.close().missing == ()
    verify_remote(Bucket(f"{URL}/run"), "step_00000001")


def test_another_valid_checkpoint_of_the_same_step_is_left_alone(lines):
    run = build_run(lines)
    save(run, 1)
    run.close()
    before = dict(Storage.objects)
    shutil.rmtree(run.path)
    other = build_run(lines)
    other._begin()
    other.save({"weight": torch.zeros(3)}, {}, {}, step=1, wait=True)
    delivery = other.close()
    assert "step_00000001" in delivery.missing
    assert any("holds another checkpoint of this step" in line for line in lines)
    assert {k: v for k, v in Storage.objects.items() if "checkpoints" in k} == {
        k: v for k, v in before.items() if "checkpoints" in k
    }


def test_a_local_copy_that_rots_before_it_is_sent_is_not_called_saved(lines, monkeypatch):
    run = build_run(lines)
    run.newest_valid()
    Storage.down = True
    save(run, 1)
    path = run.checkpoints / "step_00000001" / "state.safetensors"
    path.write_bytes(b"x" * path.stat().st_size)
    Storage.down = False
    delivery = run.close()
    assert "step_00000001" in delivery.missing
    assert any("step_00000001 is not uploaded" in line and "state.safetensors" in line for line in lines)
    assert stored() == set()


def test_an_unreachable_storage_with_nothing_here_does_not_start_from_scratch(lines):
    run = build_run(lines)
    Storage.down = True
    with pytest.raises(StorageError, match="whether the run has a checkpoint is not known"):
        run.newest_valid()
    with pytest.raises(StorageError, match="network is down"):
        build_run(lines)


def test_an_attempt_that_was_replaced_stops_uploading(lines):
    run = build_run(lines, attempt="mine")
    Bucket(f"{URL}/run").write("owner.json", b'{"attempt": "mine"}')
    save(run, 1)
    wait_for(lambda: stored())
    Bucket(f"{URL}/run").write("owner.json", b'{"attempt": "other"}')
    assert not save(run, 2)
    before = dict(Storage.objects)
    run.append({"step": 2})
    run.close()
    assert Storage.objects == before
    assert stored() == {"step_00000001"}
    assert "taken this run over" in run.lost


def test_references_by_url(lines, tmp_path):
    run = build_run(lines)
    run._begin()
    (run.path / "run.yaml").write_text("task: detector\n", encoding="utf-8")
    for step in (1, 2, 3):
        save(run, step, best=2)
    run.close()
    shutil.rmtree(tmp_path / "cache")
    for reference, step in ((f"{URL}/run", 2), (f"{URL}/run/checkpoints/step_00000003/", 3)):
        checkpoint, config, refusals = load_reference(reference, report=lines)
        assert (checkpoint.step, refusals) == (step, [])
        assert config.read_text(encoding="utf-8") == "task: detector\n"
    for name in list(Storage.objects):
        if "step_00000003/model" in name:
            Storage.objects[name] = b"x"
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(CheckpointError, match=r"step_00000003/model\.safetensors"):
        load_reference(f"{URL}/run/checkpoints/step_00000003", report=lines)
    with pytest.raises(CheckpointError, match="no such folder"):
        load_reference(f"{URL}/nothing", report=lines)
    assert any("step_00000003/model" in name for name in Storage.objects)  # reading deletes nothing


@pytest.fixture
def drive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a folder count as a mounted drive."""
    drive = tmp_path / "My Drive"
    monkeypatch.setattr(remote, "is_mount", lambda folder: folder.is_relative_to(drive))
    return drive


def test_rot_in_an_old_manifest_s_checkpoint_is_found_by_its_sha256(lines, monkeypatch):
    """Manifests of older versions list no CRC-32."""
    real = checkpoint_format._manifest_bytes

    def old(step, permanent, written):
        record = json.loads(real(step, permanent, written))
        record.pop("checksum")
        for file in record["files"].values():
            file.pop("crc32")
        return checkpoint_format._seal(record)

    monkeypatch.setattr(checkpoint_format, "_manifest_bytes", old)
    run = build_run(lines)
    save(run, 1)
    assert run.close().missing == ()
    run.newest_valid()
    Storage.down = True
    save(run, 2)
    path = run.checkpoints / "step_00000002" / "state.safetensors"
    path.write_bytes(b"x" * path.stat().st_size)
    Storage.down = False
    assert "step_00000002" in run.close().missing
    assert stored() == {"step_00000001"}


def stored_on(drive: Path) -> list[str]:
    return sorted(path.parent.name for path in (drive / "run" / "checkpoints").glob(f"*/{MANIFEST}"))


def test_a_run_on_a_mounted_drive(lines, drive):
    run = build_run(lines, str(drive))
    assert isinstance(run.location.remote, Mount)
    for step in (1, 2, 3):
        save(run, step, best=3)
        run.append({"step": step})
        wait_for(lambda step=step: f"step_{step:08d}" in stored_on(drive))
    assert run.close().missing == ()
    assert stored_on(drive) == ["step_00000001", "step_00000002", "step_00000003"]  # the first may be all Drive has yet
    assert "confirmed on" in lines[-2]
    assert "drive.flush_and_unmount()" in lines[-1]
    assert sorted(os.listdir(drive / "run")) == ["best.json", "checkpoints", "metrics.jsonl"]
    assert load_reference(str(drive / "run"), report=lines)[0].step == 3


def test_a_drive_that_lost_its_last_writes(lines, drive):
    run = build_run(lines, str(drive))
    for step in (1, 2):
        save(run, step)
    run.close()
    shutil.rmtree(run.path)
    (drive / "run" / "checkpoints" / "step_00000002" / "state.safetensors").unlink()
    again = build_run(lines, str(drive))
    found, refusals = again.newest_valid()
    assert (found.step, [refusal.name for refusal in refusals]) == (1, ["step_00000002"])
    assert os.listdir(drive / "run" / "checkpoints" / "refused") == ["step_00000002"]
    again.close()


def test_small_files_of_the_machine_that_went_further_win(lines):
    first = build_run(lines)
    first.append({"step": 1})
    save_json(first.path / "summary.json", {"by": "first"})
    first.close()
    kept = first.path.with_name("kept")
    shutil.move(first.path, kept)
    second = build_run(lines)
    second.append({"step": 2})
    save_json(second.path / "summary.json", {"by": "second"})
    second.close()
    shutil.rmtree(second.path)
    shutil.move(kept, first.path)
    third = build_run(lines)
    third.append({"step": 3})
    assert [record["step"] for record in load_records(third.path / "metrics.jsonl")] == [1, 2, 3]
    third.close()
