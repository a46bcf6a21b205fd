"""`ray_jobs/train.py` on Ray where processes are told to go, machines are taken away, and Ray's own notes are lost."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Cluster
from metadata_server import metadata_server
from ray_runs import (
    SMOOTH,
    joined_node,
    kill_survivors,
    kill_tree,
    newest_step,
    output,
    ray_command,
    records,
    start,
    steps,
    submit,
    summary,
    tensors,
    train_workers,
    wait_until,
)

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

QUIET = ["checkpoint.every_minutes=60", "logging.every_steps=1"]  # saves only where it evaluates or is asked


@pytest.fixture(autouse=True)
def no_survivors() -> Iterator[None]:
    yield
    kill_survivors()


@pytest.fixture
def smooth(small_faces: Path, tmp_path: Path) -> Path:
    """A run of a model whose losses do not depend on the number of workers, too long to end."""
    path = tmp_path / "smooth.yaml"
    path.write_text(SMOOTH.format(faces=small_faces), encoding="utf-8")
    return path


def _recorded(run: Path) -> int:
    return steps(run)[-1] if (run / "metrics.jsonl").exists() and steps(run) else 0


def _resumed(storage: Path) -> list[int]:
    return [int(line.split("step_")[1][:8]) for line in output(storage).splitlines() if "resuming from step_" in line]


def _stop(process: subprocess.Popen[str], storage: Path) -> None:
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 3, output(storage)


def test_a_worker_told_to_go_saves_first(
    tiny_detector: Path, unbroken: Path, ray_cluster: Cluster, tmp_path: Path
) -> None:
    run = tmp_path / "tiny"
    process = start(tiny_detector, tmp_path, *QUIET, "checkpoint.keep=100", address=ray_cluster.address)
    wait_until(lambda: _recorded(run) >= 3, process, tmp_path)
    (worker,) = train_workers()
    worker.send_signal(signal.SIGTERM)
    assert process.wait(timeout=300) == 0, output(tmp_path)
    text = output(tmp_path)
    assert "SIGTERM to worker 0: saving a checkpoint, then it ends" in text
    (resumed,) = _resumed(tmp_path)
    saved = {int(path.name.removeprefix("step_")) for path in (run / "checkpoints").glob("step_*")}
    assert saved == {resumed, 20, 40, 60}, "one checkpoint for one signal, and none lost"
    assert resumed >= 3
    assert not worker.is_running()
    assert tensors(run) == tensors(unbroken)
    assert steps(run) == list(range(1, 61))


def test_a_stopped_job_goes_on_when_submitted_again(
    tiny_detector: Path, unbroken: Path, ray_cluster: Cluster, tmp_path: Path
) -> None:
    run = tmp_path / "tiny"
    at = ["--address", ray_cluster.dashboard]
    started = submit(ray_cluster, tiny_detector, tmp_path, "--no-wait", "--submission-id", tmp_path.name)
    assert started.returncode == 0, started.stdout + started.stderr
    deadline = time.monotonic() + 240
    while newest_step(run) < 4:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    stop = ray_command("job", "stop", *at, tmp_path.name)
    stopped = subprocess.run(stop, capture_output=True, text=True, check=False, timeout=120)
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert summary(run)["status"] == "interrupted"
    assert summary(run)["step"] == newest_step(run) < 60
    done = submit(ray_cluster, tiny_detector, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert tensors(run) == tensors(unbroken)
    assert steps(run) == steps(unbroken)


def test_a_group_that_loses_a_machine_goes_on_and_takes_another(
    smooth: Path, ray_cluster: Cluster, tmp_path: Path
) -> None:
    run = tmp_path / "smooth"
    elastic = ["--workers", "1:2", "scale.cpus_per_worker=2"]
    with joined_node(ray_cluster.address, tmp_path) as node:
        process = start(smooth, tmp_path, *elastic, address=ray_cluster.address)
        wait_until(lambda: " on 2 workers\n" in output(tmp_path) and _recorded(run) > 20, process, tmp_path)
        assert train_workers(node)
        kill_tree(node)
        wait_until(lambda: " on 1 worker\n" in output(tmp_path), process, tmp_path)
        alone = _recorded(run)
        wait_until(lambda: _recorded(run) > alone + 5, process, tmp_path)
    done = [0]

    def has_grown() -> bool:
        if output(tmp_path).count(" on 2 workers\n") >= 2:
            return True
        done.append(_recorded(run))
        return False

    with joined_node(ray_cluster.address, tmp_path):
        wait_until(has_grown, process, tmp_path)
        assert _resumed(tmp_path)[-1] >= max(done), "a group that grows does no step again"
        again = _recorded(run)
        wait_until(lambda: _recorded(run) > again + 5, process, tmp_path)
        _stop(process, tmp_path)
    last = summary(run)["step"]
    assert steps(run) == list(range(1, last + 1))
    assert output(tmp_path).count("resuming from step_") >= 2
    _same_losses(smooth, run, tmp_path / "unbroken", last)


def _same_losses(config: Path, run: Path, storage: Path, last: int) -> None:
    """Each step of a run saw the examples of that step, as one process without Ray sees them.

    Two workers add in another order than one, and hundreds of steps carry the last digit on, to a thousandth; other
    examples would move the first.
    """
    storage.mkdir()
    process = start(config, storage, "scale.launcher=in_process", "scale.cpus_per_worker=1")
    wait_until(lambda: _recorded(storage / config.stem) >= last, process, storage)
    _stop(process, storage)
    expected = {record["step"]: record["train/loss"] for record in records(storage / config.stem)}
    found = {record["step"]: record["train/loss"] for record in records(run)}
    assert found == pytest.approx({step: expected[step] for step in found}, rel=1e-2)


def test_a_notice_of_the_cloud_moves_the_run_to_the_other_machine(
    smooth: Path, ray_cluster: Cluster, tmp_path: Path
) -> None:
    run = tmp_path / "smooth"
    quiet = [*QUIET, "--workers", "1:2", "scale.cpus_per_worker=2", "scale.max_failures=0"]
    with metadata_server("google") as server, joined_node(ray_cluster.address, tmp_path, **server.environment) as node:
        process = start(smooth, tmp_path, *quiet, address=ray_cluster.address)
        wait_until(lambda: " on 2 workers\n" in output(tmp_path) and _recorded(run) > 5, process, tmp_path)
        server.notice = 60
        wait_until(lambda: " on 1 worker\n" in output(tmp_path), process, tmp_path)
        assert "Google Cloud: this machine will be taken away in 30 s: saving a checkpoint" in output(tmp_path)
        assert "resuming from step_" in output(tmp_path)
        assert not train_workers(node)
        before = _recorded(run)
        wait_until(lambda: _recorded(run) > before, process, tmp_path)
    kill_tree(node)
    _stop(process, tmp_path)
    assert steps(run) == list(range(1, summary(run)["step"] + 1))


def test_what_ray_remembers_of_a_run_does_not_matter(
    tiny_detector: Path, unbroken: Path, ray_cluster: Cluster, tmp_path: Path
) -> None:
    run, scratch = tmp_path / "tiny", tmp_path / "tmp"
    scratch.mkdir()
    process = start(tiny_detector, tmp_path, address=ray_cluster.address, TMPDIR=str(scratch))
    wait_until(lambda: newest_step(run) >= 15, process, tmp_path)
    notes = [path for path in scratch.glob("hai-ray-*/**/*") if path.is_file()]
    assert notes, "Ray keeps its notes elsewhere"
    for at, path in enumerate(notes):
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2] if at % 2 else b"")
    train_workers()[0].kill()
    wait_until(lambda: "resuming from step_" in output(tmp_path), process, tmp_path)
    wait_until(lambda: newest_step(run) >= 35, process, tmp_path)
    shutil.rmtree(next(scratch.glob("hai-ray-*")))
    train_workers()[0].kill()
    assert process.wait(timeout=300) == 0, output(tmp_path)
    assert output(tmp_path).count("resuming from step_") == 2
    assert tensors(run) == tensors(unbroken)
    assert steps(run) == steps(unbroken)


def test_checkpoints_deleted_between_attempts_cost_only_their_steps(
    tiny_detector: Path, unbroken: Path, ray_cluster: Cluster, tmp_path: Path
) -> None:
    run = tmp_path / "tiny"
    process = start(tiny_detector, tmp_path, address=ray_cluster.address)
    wait_until(lambda: newest_step(run) >= 25, process, tmp_path)
    process.kill()
    process.wait()
    folders = sorted((run / "checkpoints").glob("step_*"))
    assert len(folders) >= 3
    for folder in folders[-2:]:
        shutil.rmtree(folder)
    left = folders[-3].name
    process = start(tiny_detector, tmp_path, address=ray_cluster.address)
    assert process.wait(timeout=300) == 0, output(tmp_path)
    assert f"resuming from {left} " in output(tmp_path)
    assert tensors(run) == tensors(unbroken)
    assert steps(run) == steps(unbroken)
