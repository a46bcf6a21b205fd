"""`ray_jobs/train.py` on Ray where processes are told to go, machines are taken away, and Ray's own notes are lost."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from metadata_server import metadata_server
from ray_runs import (
    SMOOTH,
    Cluster,
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


def _stop(process: subprocess.Popen[str], storage: Path) -> None:
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 3, output(storage)


def test_a_job_whose_worker_is_told_to_go_and_that_is_stopped_goes_on(
    tiny_detector: Path, unbroken: Path, ray_cluster: Cluster, tmp_path: Path
) -> None:
    run, settings = tmp_path / "tiny", ["logging.every_steps=1", "checkpoint.keep=100"]
    started = submit(ray_cluster, tiny_detector, tmp_path, "--no-wait", "--submission-id", tmp_path.name, more=settings)
    assert started.returncode == 0, started.stdout + started.stderr
    _wait(lambda: _recorded(run) >= 3, run)
    (worker,) = train_workers()
    done = _recorded(run)
    worker.send_signal(signal.SIGTERM)
    _wait(lambda: "resuming from step_" in _log(run), run)
    assert not worker.is_running()
    (resumed,) = re.findall(r"resuming from step_(\d+)", _log(run))
    assert int(resumed) >= done, "none lost"
    (worker,) = train_workers()
    worker.suspend()  # it would be done before the first command has begun
    _ask(ray_cluster, "stop", "--no-wait", tmp_path.name)
    worker.resume()
    _ask(ray_cluster, "stop", tmp_path.name)
    assert "SIGTERM to worker 0: saving a checkpoint, then it ends" in _ask(ray_cluster, "logs", tmp_path.name)
    assert summary(run)["status"] == "interrupted"
    assert int(resumed) <= summary(run)["step"] == newest_step(run) < 60
    finished = submit(ray_cluster, tiny_detector, tmp_path, more=settings)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert tensors(run) == tensors(unbroken)
    assert steps(run) == list(range(1, 61))


def _ask(cluster: Cluster, verb: str, *words: str) -> str:
    """Call `ray job`; return what it prints."""
    command = ray_command("job", verb, "--address", cluster.dashboard, *words)
    answered = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert answered.returncode == 0, answered.stdout + answered.stderr
    return answered.stdout


def _log(run: Path) -> str:
    return (run / "log.txt").read_text(encoding="utf-8")


def _wait(condition: Callable[[], bool], run: Path) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline, _log(run)
        time.sleep(0.05)


def test_a_group_follows_its_machines(smooth: Path, ray_cluster: Cluster, tmp_path: Path) -> None:
    """One is taken away with a notice, another comes, and goes without one."""
    run = tmp_path / "smooth"
    elastic = ["--workers", "1:2", "scale.cpus_per_worker=2", "checkpoint.every_minutes=60"]  # saves when it is asked

    def trains_on(count: int, since: int) -> Callable[[], bool]:
        """Say whether a group of this size, formed since the output was that long, has made some steps."""
        group = f" on {count} worker{'s' if count > 1 else ''}\n"
        before: list[int] = []

        def goes() -> bool:
            if group not in output(tmp_path)[since:]:
                return False
            before[:] = before or [_recorded(run)]
            return _recorded(run) > before[0] + 5

        return goes

    with metadata_server("google") as server, joined_node(ray_cluster.address, tmp_path, **server.environment) as node:
        process = start(smooth, tmp_path, *elastic, address=ray_cluster.address)
        wait_until(trains_on(2, 0), process, tmp_path)
        assert train_workers(node)
        began = output(tmp_path)  # on both at once, or on one until Ray sees the other
        server.notice = 60
        wait_until(trains_on(1, len(began)), process, tmp_path)
        assert "Google Cloud: this machine will be taken away in 30 s: saving a checkpoint" in output(tmp_path)
        assert not train_workers(node)
    done, alone = [0], len(output(tmp_path))

    def has_grown() -> bool:
        if " on 2 workers\n" in output(tmp_path)[alone:]:
            return True
        done.append(_recorded(run))
        return False

    with joined_node(ray_cluster.address, tmp_path) as node:
        wait_until(has_grown, process, tmp_path)
        resumed = [int(step) for step in re.findall(r"resuming from step_(\d+)", output(tmp_path))]
        assert resumed[-1] > max(done) - 20, "a group that grows saves first"
        wait_until(trains_on(2, alone), process, tmp_path)
        together = len(output(tmp_path))
        kill_tree(node)
        wait_until(trains_on(1, together), process, tmp_path)
        _stop(process, tmp_path)
    last = summary(run)["step"]
    assert steps(run) == list(range(1, last + 1))
    assert output(tmp_path).count("resuming from step_") == began.count("resuming from step_") + 3
    _same_losses(smooth, run, tmp_path / "unbroken", last)


def _same_losses(config: Path, run: Path, storage: Path, last: int) -> None:
    """Each step of a run saw the examples of that step, as one process without Ray sees them.

    Two workers add in another order than one, and hundreds of steps carry the last digit on; other examples would part
    the first steps already, and nearly all of them by far more.
    """
    storage.mkdir()
    process = start(config, storage, "scale.launcher=in_process", "scale.cpus_per_worker=1")
    wait_until(lambda: _recorded(storage / config.stem) >= last, process, storage)
    _stop(process, storage)
    expected = {record["step"]: record["train/loss"] for record in records(storage / config.stem)}
    assert max(abs(record["train/loss"] / expected[record["step"]] - 1) for record in records(run)) < 1e-3


def test_neither_rays_notes_nor_the_newest_checkpoints_are_needed(
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
    workers = train_workers()
    process.kill()
    process.wait()
    assert not psutil.wait_procs(workers, timeout=60)[1], "its workers die with it"
    folders = sorted((run / "checkpoints").glob("step_*"))
    assert len(folders) >= 3
    for folder in folders[-2:]:
        shutil.rmtree(folder)
    left = folders[-3].name
    process = start(tiny_detector, tmp_path, address=ray_cluster.address)
    assert process.wait(timeout=300) == 0, output(tmp_path)
    assert output(tmp_path).count("resuming from step_") == 2
    assert f"resuming from {left} " in output(tmp_path)
    assert tensors(run) == tensors(unbroken)
    assert steps(run) == steps(unbroken)
