"""A run on a GCS bucket, against a server on this machine."""

import pytest

from benchmarks.faults.uploads import hurried, save_and_check
from benchmarks.faults.wire import FaultyWire
from hai.checkpoint.remote import check_storage
from hai.checkpoint.runs import list_runs, restart_run
from hai.checkpoint.store import RunFolder
from hai.errors import StorageError

URL = "gs://bucket/some runs"


@pytest.mark.parametrize("rate", [0.0, pytest.param(0.3, marks=pytest.mark.slow)])
def test_a_run_survives_the_loss_of_its_machine(gcs, tmp_path, monkeypatch, rate):
    """With `rate`, requests are dropped, stalled and cut on their way: no stop, and nothing is falsely called saved."""
    with FaultyWire(gcs, rate=0.0, seed=5, stall_s=0.5) as wire, hurried(tmp_path, limit_s=8.0):
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{wire.port}")
        check_storage(URL)
        lines: list[str] = []
        run = RunFolder(URL, "run", report=lines.append)
        assert run.newest_valid() == (None, [])
        (run.path / "run.yaml").write_text("task: detector\n", encoding="utf-8")
        wire.rate = rate
        found = save_and_check(run, 4, calm=wire.calm, pause_s=0.2, size=100_000)
        assert (wire.faults.total() >= 5) == (rate > 0)
        assert (found["listed"], found["missing"], found["stops"], found["unusable"]) == (0, 0, 0, 0)
        assert any(line.startswith(f"storage: confirmed on {URL}/run: 3 checkpoints") for line in lines)
        (row,) = list_runs(URL)
        assert (row.name, row.task) == ("run", "detector")
        restart_run(URL, "run", lines.append)
        assert RunFolder(URL, "run").load_best() == (None, [])


def test_a_wrong_bucket_is_named(gcs):
    with pytest.raises(StorageError, match=r"^storage: gs://nobody: no such bucket or folder"):
        check_storage("gs://nobody")
