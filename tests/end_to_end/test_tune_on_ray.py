"""`hai tune` on Ray Tune: trials side by side, killed and resumed, with several workers, on a bucket."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from ray_runs import Cluster

from hai.sweep.records import TrialRecord, parse_trials

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

HEADS = """
task: ranker
data: {{sources: [{{name: art, path: "{art}"}}], image_size: 48, embedding_cache: "{cache}"}}
model: {{name: "timm:test_vit", pretrained: false}}
train: {{max_epochs: 9, global_batch_size: 16}}
logging: {{tensorboard: false}}
scale: {{cpus_per_worker: 1, use_gpu: false}}
space: {{optim.learning_rate: {{loguniform: [1e-4, 1e-1]}}}}
sweep: {{num_trials: 5, evaluate_test: false}}
"""


@pytest.fixture(scope="module")
def heads(small_art: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("heads")
    path = folder / "heads.yaml"
    path.write_text(HEADS.format(art=small_art, cache=folder / "features"), encoding="utf-8")
    return path


def start(config: Path, log: Path, address: str, *settings: str) -> subprocess.Popen[str]:
    command = [sys.executable, "ray_jobs/tune.py", "--config", str(config), *settings]
    with open(log, "a", encoding="utf-8") as output:
        return subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, text=True, env={**os.environ, "RAY_ADDRESS": address}
        )


def trials_of(sweep: Path) -> list[TrialRecord]:
    path = sweep / "trials.csv"
    return parse_trials(path.read_text(encoding="utf-8")) if path.exists() else []


def wait_until(condition, process: subprocess.Popen[str], log: Path) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, log.read_text(encoding="utf-8")
        assert time.monotonic() < deadline, log.read_text(encoding="utf-8")
        time.sleep(0.05)


@pytest.mark.slow
def test_a_sweep_whose_driver_and_processes_are_killed_ends_with_all_trials(
    heads: Path, ray_cluster: Cluster, tmp_path: Path
) -> None:
    log, sweep = tmp_path / "log.txt", tmp_path / "heads"
    process = start(heads, log, ray_cluster.address, "--storage", str(tmp_path))
    wait_until(lambda: sum(trial.status == "stopped" for trial in trials_of(sweep)) >= 2, process, log)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {trial.id: trial for trial in trials_of(sweep)}
    process = start(heads, log, ray_cluster.address, "--storage", str(tmp_path))
    for known in range(len(before), 6):  # a process between two trials has just been given one, or is still starting
        wait_until(lambda known=known: len(trials_of(sweep)) > known or process.poll() == 0, process, log)
        for actor in psutil.process_iter():
            if "ImplicitFunc" in actor.name():
                actor.kill()
                break
    assert process.wait(timeout=600) == 0, log.read_text(encoding="utf-8")
    trials = trials_of(sweep)
    assert [trial.number for trial in trials] == list(range(6))
    assert {trial.status for trial in trials} == {"finished", "stopped"}
    for trial in trials:
        if trial.id in before:
            assert trial.history[: len(before[trial.id].history)] == before[trial.id].history
        records = (sweep / trial.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        steps = [json.loads(line)["step"] for line in records]
        assert steps == sorted(set(steps))
    assert (sweep / "report.html").stat().st_size > 5_000
    text = log.read_text(encoding="utf-8")
    assert "room for 2 trials at once, 1 CPU each" in text
    assert "Traceback" not in text


@pytest.mark.slow
def test_trials_of_two_workers_train_through_ray_train_and_pause_for_each_other(
    heads: Path, ray_cluster: Cluster, tmp_path: Path
) -> None:
    log = tmp_path / "log.txt"
    settings = ["--storage", str(tmp_path), "sweep.workers_per_trial=2", "sweep.num_trials=2", "train.max_epochs=2",
                "sweep.include_base=false"]  # fmt: skip
    process = start(heads, log, ray_cluster.address, *settings)
    assert process.wait(timeout=800) == 0, log.read_text(encoding="utf-8")
    trials = trials_of(tmp_path / "heads")
    assert sorted(trial.status for trial in trials) == ["finished", "stopped"]
    summary = json.loads((tmp_path / "heads" / trials[0].folder / "summary.json").read_text(encoding="utf-8"))
    assert summary["status"] in ("finished", "interrupted")


@pytest.mark.slow
def test_a_sweep_on_a_bucket_goes_on_from_another_machine(
    heads: Path, ray_cluster: Cluster, gcs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log.txt"
    monkeypatch.setenv("FSSPEC_GCS_TOKEN", "anon")
    settings = ["--storage", "gs://bucket/sweeps", "sweep.num_trials=2", "sweep.scheduler=none", "train.max_epochs=2",
                "scale.launcher=in_process"]  # fmt: skip
    assert start(heads, log, ray_cluster.address, *settings).wait(timeout=400) == 0, log.read_text(encoding="utf-8")
    monkeypatch.setenv("HAI_CACHE", str(tmp_path / "another"))
    settings[2] = "sweep.num_trials=3"
    assert start(heads, log, ray_cluster.address, *settings).wait(timeout=400) == 0, log.read_text(encoding="utf-8")
    text = log.read_text(encoding="utf-8")
    assert "going on with sweep heads: 3 trials are known, 3 of them need nothing now" in text
    assert len([line for line in text.splitlines() if line.startswith("trial 1:")]) == 1  # it was not trained again


def test_a_trial_that_can_never_fit_is_one_line_and_status_2(heads: Path, ray_cluster: Cluster, tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    process = start(heads, log, ray_cluster.address, "--storage", str(tmp_path), "sweep.workers_per_trial=64")
    assert process.wait(timeout=300) == 2
    text = log.read_text(encoding="utf-8")
    assert "sweep.workers_per_trial = 64 with 1 CPU each: the cluster has 0 GPUs and 2 CPUs on 1 machine" in text
    assert "Traceback" not in text
