"""`ray_jobs/train.py` as people run it: on Ray, killed and run again, with one worker and with two."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Cluster
from ray_runs import (
    FROZEN,
    RANKER,
    newest_step,
    output,
    start,
    steps,
    submit,
    summary,
    tensors,
    train_workers,
    wait_until,
)

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]  # a launch takes a minute on two cores


@pytest.mark.parametrize(("kills", "stop"), [([8], None), pytest.param([14], 35, marks=pytest.mark.slow)])
def test_killed_and_stopped_it_ends_as_if_nothing_had_happened(
    tiny_detector: Path, unbroken: Path, ray_cluster: Cluster, tmp_path: Path, kills: list[int], stop: int | None
) -> None:
    _kill_stop_and_finish(tiny_detector, unbroken, ray_cluster, tmp_path, kills, stop)
    again = start(tiny_detector, tmp_path, address=ray_cluster.address)
    assert again.wait(timeout=120) == 0
    assert "is finished" in output(tmp_path)


@pytest.mark.slow
def test_a_ranker_killed_and_stopped_ends_as_if_nothing_had_happened(
    small_art: Path, ray_cluster: Cluster, tmp_path: Path
) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text(RANKER.format(art=small_art), encoding="utf-8")
    storage = tmp_path / "unbroken"
    storage.mkdir()
    process = start(config, storage, "scale.launcher=in_process")
    assert process.wait(timeout=300) == 0, output(storage)
    _kill_stop_and_finish(config, storage / "tiny", ray_cluster, tmp_path, [6], 35)


@pytest.mark.slow
def test_two_workers_embed_once_and_training_reads_what_they_kept(
    small_art: Path, ray_cluster: Cluster, tmp_path: Path
) -> None:
    config, kept = tmp_path / "frozen.yaml", tmp_path / "kept"
    config.write_text(FROZEN.format(art=small_art, cache=kept), encoding="utf-8")
    command = [sys.executable, "ray_jobs/embed.py", "--config", str(config), "--workers", "2"]
    environment = {**os.environ, "RAY_ADDRESS": ray_cluster.address}
    embedded = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert embedded.returncode == 0, embedded.stderr
    shards = {path.name for path in kept.rglob("*.safetensors")}
    assert shards
    process = start(config, tmp_path, address=ray_cluster.address)
    assert process.wait(timeout=300) == 0, output(tmp_path)
    assert {path.name for path in kept.rglob("*.safetensors")} == shards
    assert (tmp_path / "frozen" / "report.html").stat().st_size > 10_000


def _kill_stop_and_finish(
    config: Path, unbroken: Path, cluster: Cluster, storage: Path, kills: list[int], stop: int | None
) -> None:
    run = storage / "tiny"
    for target in kills:  # the driver is killed; its workers die with it
        process = start(config, storage, address=cluster.address)
        wait_until(lambda target=target: newest_step(run) >= target, process, storage)
        process.kill()
        process.wait()
    if stop is not None:
        process = start(config, storage, address=cluster.address)
        wait_until(lambda: newest_step(run) >= stop, process, storage)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 3, output(storage)
        assert summary(run)["status"] == "interrupted"

    process = start(config, storage, address=cluster.address)
    assert process.wait(timeout=480) == 0, output(storage)
    assert tensors(run) == tensors(unbroken)
    assert steps(run) == steps(unbroken)
    assert output(storage).count("resuming from step_") == len(kills) + (stop is not None)
    assert (run / "report.html").stat().st_size > 10_000


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_two_workers_agree_with_one(
    tiny_detector: Path, unbroken: Path, ray_cluster: Cluster, tmp_path: Path
) -> None:
    run = tmp_path / "tiny"
    process = start(tiny_detector, tmp_path, "--workers", "2", address=ray_cluster.address)
    wait_until(lambda: newest_step(run) >= 10, process, tmp_path)
    train_workers()[0].kill()
    assert process.wait(timeout=300) == 0, output(tmp_path)
    assert steps(run) == steps(unbroken)
    assert "resuming from step_" in output(tmp_path)
    assert output(tmp_path).count("epoch 15, step 60/60") == 1


def test_a_second_writer_is_refused_by_name(tiny_detector: Path, tmp_path: Path) -> None:
    process = start(tiny_detector, tmp_path, "scale.launcher=in_process")
    wait_until(lambda: (tmp_path / "tiny" / "owner.json").exists(), process, tmp_path)
    second = subprocess.run(
        [sys.executable, "ray_jobs/train.py", "--config", str(tiny_detector), "--storage", str(tmp_path)],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    process.kill()
    process.wait()
    assert second.returncode == 2
    assert f"process {process.pid}" in second.stderr


def test_what_the_user_can_mend_is_one_line_and_status_2(
    tiny_detector: Path, ray_cluster: Cluster, tmp_path: Path
) -> None:
    process = start(tiny_detector, tmp_path, "scale.num_workers=64", address=ray_cluster.address)
    assert process.wait(timeout=120) == 2
    assert "scale.num_workers = 64" in output(tmp_path)
    assert "Traceback" not in output(tmp_path)


@pytest.mark.slow
def test_a_submitted_job_trains_with_the_code_that_travelled(
    tiny_detector: Path, unbroken: Path, ray_cluster: Cluster, tmp_path: Path
) -> None:
    done = submit(ray_cluster, tiny_detector, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout
    assert tensors(tmp_path / "tiny") == tensors(unbroken)
