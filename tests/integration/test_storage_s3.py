"""A run on an S3 bucket, against a server on this machine."""

import shutil

import pytest
import torch

from benchmarks.faults.uploads import hurried, save_and_check
from benchmarks.faults.wire import FaultyWire
from hai.checkpoint.find import load_reference
from hai.checkpoint.owner import Owner, is_owner
from hai.checkpoint.remote import check_storage, locate
from hai.checkpoint.runs import list_runs, read_run_file, restart_run
from hai.checkpoint.store import RunFolder
from hai.errors import StorageError

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning:botocore")]
URL = "s3://bucket/some runs"


def tensors(step: int) -> dict[str, torch.Tensor]:
    return {"weight": torch.full((400_000,), float(step)), "count": torch.tensor(step)}


def keys(client) -> list[str]:
    return sorted(item["Key"] for item in client.list_objects_v2(Bucket="bucket").get("Contents", []))


def test_a_run_survives_the_loss_of_its_machine(s3):
    lines: list[str] = []
    check_storage(URL)
    assert keys(s3) == []
    owner = Owner(locate(URL, "run"), lines.append)
    run = RunFolder(URL, "run", attempt=owner.acquire(), report=lines.append)
    assert run.newest_valid() == (None, [])
    (run.path / "run.yaml").write_text("task: detector\n", encoding="utf-8")
    for step in (1, 2, 3, 4):
        run.append({"step": step})
        best = {"metric": "val/f1_macro", "value": 0.5, "step": min(step, 2)}
        assert run.save(tensors(step), {"moment": torch.ones(9) * step}, {"best": best}, step=step, wait=True)
    run.save_summary({"status": "running", "step": 4, "best": best})
    delivery = run.close(wait=True)
    assert delivery.missing == ()
    owner.release()
    told = [line for line in lines if not line.startswith("storage: sending ")]  # that it takes a while
    assert told == [f"storage: confirmed on {URL}/run: 3 checkpoints (newest step 4), 4 files"]
    root = "some runs/run"
    names = ["MANIFEST.json", "model.safetensors", "state.json", "state.safetensors"]
    assert keys(s3) == sorted(
        [
            *(f"{root}/checkpoints/step_0000000{step}/{name}" for step in (2, 3, 4) for name in names),
            *(f"{root}/{n}" for n in ("best.json", "metrics.jsonl", "owner.json", "run.yaml", "summary.json")),
        ]
    )
    (row,) = list_runs(URL)
    assert (row.name, row.task, row.status, row.step) == ("run", "detector", "interrupted", 4)

    shutil.rmtree(run.path)
    s3.put_object(Bucket="bucket", Key=f"{root}/checkpoints/step_00000004/state.safetensors", Body=b"rot")
    again = RunFolder(URL, "run", report=lines.append)
    found, refusals = again.newest_valid()
    assert (found.step, [refusal.name for refusal in refusals]) == (3, ["step_00000004"])
    assert torch.equal(found.model["weight"], tensors(3)["weight"])
    assert torch.equal(found.state["moment"], torch.ones(9) * 3)
    assert again.load_best()[0].step == 2
    assert again.save(tensors(4), {}, {"best": best}, step=4, wait=True)
    assert again.close(wait=True).missing == ()

    checkpoint, config, _ = load_reference(f"{URL}/run", report=lines.append)
    assert (checkpoint.step, config.read_text(encoding="utf-8")) == (2, "task: detector\n")
    assert load_reference(f"{URL}/run/checkpoints/step_00000004", report=lines.append)[0].step == 4

    assert read_run_file(f"{URL}/run", "run.yaml") == b"task: detector\n"
    restart_run(URL, "run", lines.append)
    fresh = locate(URL, "run")
    assert fresh.remote.url == f"{URL}/run/attempt-2"
    assert read_run_file(f"{URL}/run", "run.yaml") == b""
    config.write_text("task: ranker\n", encoding="utf-8")
    fresh.remote.put(config, "run.yaml")
    assert read_run_file(f"{URL}/run", "run.yaml") == b"task: ranker\n"
    second = Owner(fresh, lines.append)
    assert is_owner(fresh, second.acquire())
    second.release()
    assert RunFolder(URL, "run").load_best() == (None, [])


def test_a_wire_that_drops_stalls_and_cuts(s3, tmp_path, monkeypatch):
    """30 % of the requests go wrong on their way to a real server: no stop, and nothing is called saved that is not."""
    port = int(s3.meta.endpoint_url.rpartition(":")[2])
    with FaultyWire(port, rate=0.0, seed=3, stall_s=0.5) as wire, hurried(tmp_path, limit_s=8.0):
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{wire.port}")
        lines: list[str] = []
        run = RunFolder(URL, "run", report=lines.append)
        run.newest_valid()
        wire.rate = 0.3
        found = save_and_check(run, 5, calm=wire.calm, pause_s=0.3, size=400_000)
    assert wire.faults.total() >= 8
    assert (
        found["confirmed"] >= 4
    )  # two files and, where a slow machine lets newer ones overtake, two checkpoints of three
    assert [found[name] for name in ("listed", "missing", "stops", "unusable")] == [0, 0, 0, 0]
    assert any(line.startswith(f"storage: confirmed on {URL}/run: ") and "(newest step 5)" in line for line in lines)


def test_wrong_buckets_and_keys_are_named(s3, monkeypatch):
    with pytest.raises(StorageError, match=r"^storage: s3://nobody: no such bucket or folder"):
        check_storage("s3://nobody")
    assert [b["Name"] for b in s3.list_buckets()["Buckets"]] == ["bucket"]
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match=r"^storage: s3://bucket: .*127\.0\.0\.1:9"):
        check_storage("s3://bucket")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(StorageError, match=r"no credentials .*aws configure"):
        check_storage("s3://bucket")
