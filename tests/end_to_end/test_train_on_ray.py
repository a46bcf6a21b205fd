"""`ray_jobs/train.py` as people run it: on Ray, killed and run again, with one worker and with two."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from ray_runs import (
    FROZEN,
    Cluster,
    newest_step,
    output,
    start,
    steps,
    summary,
    tensors,
    train_workers,
    wait_until,
)

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]  # a launch takes a minute on two cores


def test_killed_and_stopped_it_ends_as_if_nothing_had_happened(
    tiny_detector: Path, unbroken: Path, ray_cluster: Cluster, tmp_path: Path
) -> None:
    run = tmp_path / "tiny"
    process = start(tiny_detector, tmp_path, address=ray_cluster.address)
    wait_until(lambda: newest_step(run) >= 8, process, tmp_path)
    process.kill()  # its workers die with it
    process.wait()
    process = start(tiny_detector, tmp_path, address=ray_cluster.address)
    wait_until(lambda: newest_step(run) >= 35, process, tmp_path)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 3, output(tmp_path)
    assert summary(run)["status"] == "interrupted"

    process = start(tiny_detector, tmp_path, address=ray_cluster.address)
    assert process.wait(timeout=480) == 0, output(tmp_path)
    assert tensors(run) == tensors(unbroken)
    assert steps(run) == steps(unbroken)
    assert output(tmp_path).count("resuming from step_") == 2
    assert (run / "report.html").stat().st_size > 10_000
    again = start(tiny_detector, tmp_path, address=ray_cluster.address)
    assert again.wait(timeout=120) == 0
    assert "is finished" in output(tmp_path)


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
