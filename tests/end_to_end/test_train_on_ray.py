"""`ray_jobs/train.py` as people run it: on Ray, killed and run again, with one worker and with two."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from conftest import Cluster

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]  # a launch takes a minute on two cores

CONFIG = """
task: detector
data: {{sources: [{{name: faces, path: "{faces}"}}], image_size: 64, sampling: balanced, cache_decoded: "off"}}
augment: {{flip: 0.5, jpeg_probability: 0.3, noise_probability: 0.3}}
model: {{name: compact, pretrained: false}}
loss: {{cross_entropy: 0.6, soft_f1: 0.4}}
optim: {{learning_rate: 2e-3, warmup_epochs: 1}}
train: {{max_epochs: null, max_steps: 60, global_batch_size: 16, ema_decay: 0.9, eval_every_epochs: 5}}
checkpoint: {{every_minutes: 0.002, keep: 3}}
scale: {{num_workers: 1, cpus_per_worker: 1, use_gpu: false}}
"""

RANKER = """
task: ranker
data: {{sources: [{{name: art, path: "{art}"}}], image_size: 160, geometry: crop, cache_decoded: "off"}}
augment: {{flip: 0.5, jpeg_probability: 0.3}}
model: {{name: compact, pretrained: false, freeze_backbone: false, head: linear, num_heads: 2}}
pairs: {{ties: true, gap_shares: [0.5, 0.3, 0.2], max_per_image: 8}}
optim: {{learning_rate: 2e-3, warmup_epochs: 1}}
train: {{max_epochs: null, max_steps: 60, global_batch_size: 16, ema_decay: 0.9, eval_every_epochs: 5}}
checkpoint: {{every_minutes: 0.002, keep: 3}}
scale: {{num_workers: 1, cpus_per_worker: 1, use_gpu: false}}
"""

FROZEN = """
task: ranker
data: {{sources: [{{name: art, path: "{art}"}}], image_size: 48, embedding_cache: "{cache}"}}
model: {{name: "timm:resnet18", pretrained: false}}
train: {{max_epochs: 3, global_batch_size: 16}}
scale: {{cpus_per_worker: 1, use_gpu: false}}
"""


@pytest.fixture(scope="module")
def config(small_faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(CONFIG.format(faces=small_faces), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def unbroken(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, never interrupted, without Ray."""
    storage = tmp_path_factory.mktemp("unbroken")
    process = _start(config, storage, "scale.launcher=in_process")
    assert process.wait(timeout=300) == 0, _output(storage)
    return storage / "tiny"


def _start(config: Path, storage: Path, *settings: str, address: str | None = None) -> subprocess.Popen[str]:
    command = [sys.executable, "ray_jobs/train.py", "--config", str(config), "--storage", str(storage), *settings]
    environment = {**os.environ, **({"RAY_ADDRESS": address} if address else {})}
    with open(storage / "output.txt", "a", encoding="utf-8") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, text=True, env=environment)


def _output(storage: Path) -> str:
    return (storage / "output.txt").read_text(encoding="utf-8")


def _step(run: Path) -> int:
    steps = [int(path.name.removeprefix("step_")) for path in (run / "checkpoints").glob("step_*")]
    return max(steps, default=0)


def _wait(condition: Callable[[], bool], process: subprocess.Popen[str], storage: Path) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert process.poll() is None, f"ended early:\n{_output(storage)}"
        assert time.monotonic() < deadline, f"nothing happened:\n{_output(storage)}"
        time.sleep(0.05)


def _tensors(run: Path) -> list[bytes]:
    folder = run / "checkpoints" / "step_00000060"
    return [(folder / name).read_bytes() for name in ("model.safetensors", "state.safetensors")]


def _steps(run: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("kills", [[8], pytest.param([4, 14, 24], marks=pytest.mark.slow)])
def test_killed_and_stopped_it_ends_as_if_nothing_had_happened(
    config: Path, unbroken: Path, ray_cluster: Cluster, tmp_path: Path, kills: list[int]
) -> None:
    _kill_stop_and_finish(config, unbroken, ray_cluster, tmp_path, kills)
    again = _start(config, tmp_path, address=ray_cluster.address)
    assert again.wait(timeout=120) == 0
    assert "is finished" in _output(tmp_path)


@pytest.mark.slow
def test_a_ranker_killed_and_stopped_ends_as_if_nothing_had_happened(
    small_art: Path, ray_cluster: Cluster, tmp_path: Path
) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text(RANKER.format(art=small_art), encoding="utf-8")
    storage = tmp_path / "unbroken"
    storage.mkdir()
    process = _start(config, storage, "scale.launcher=in_process")
    assert process.wait(timeout=300) == 0, _output(storage)
    _kill_stop_and_finish(config, storage / "tiny", ray_cluster, tmp_path, [6, 20])


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
    process = _start(config, tmp_path, address=ray_cluster.address)
    assert process.wait(timeout=300) == 0, _output(tmp_path)
    assert {path.name for path in kept.rglob("*.safetensors")} == shards
    assert (tmp_path / "frozen" / "report.html").stat().st_size > 10_000


def _kill_stop_and_finish(config: Path, unbroken: Path, cluster: Cluster, storage: Path, kills: list[int]) -> None:
    run = storage / "tiny"
    for target in kills:  # the driver is killed; its workers die with it
        process = _start(config, storage, address=cluster.address)
        _wait(lambda target=target: _step(run) >= target, process, storage)
        process.kill()
        process.wait()
    process = _start(config, storage, address=cluster.address)
    _wait(lambda: _step(run) >= 35, process, storage)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 3, _output(storage)
    assert json.loads((run / "summary.json").read_text(encoding="utf-8"))["status"] == "interrupted"

    process = _start(config, storage, address=cluster.address)
    assert process.wait(timeout=240) == 0, _output(storage)
    assert _tensors(run) == _tensors(unbroken)
    assert _steps(run) == _steps(unbroken)
    assert _output(storage).count("resuming from step_") == len(kills) + 1
    assert (run / "report.html").stat().st_size > 10_000


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_two_workers_agree_with_one(
    config: Path, unbroken: Path, ray_cluster: Cluster, tmp_path: Path
) -> None:
    run = tmp_path / "tiny"
    process = _start(config, tmp_path, "--workers", "2", address=ray_cluster.address)
    _wait(lambda: _step(run) >= 10, process, tmp_path)
    workers = [p for p in psutil.process_iter(["cmdline"]) if "RayTrainWorker" in " ".join(p.info["cmdline"] or [])]
    assert workers
    workers[0].kill()
    assert process.wait(timeout=300) == 0, _output(tmp_path)
    assert _steps(run) == _steps(unbroken)
    assert "resuming from step_" in _output(tmp_path)
    assert _output(tmp_path).count("epoch 15, step 60/60") == 1


def test_a_second_writer_is_refused_by_name(config: Path, tmp_path: Path) -> None:
    process = _start(config, tmp_path, "scale.launcher=in_process")
    _wait(lambda: (tmp_path / "tiny" / "owner.json").exists(), process, tmp_path)
    second = subprocess.run(
        [sys.executable, "ray_jobs/train.py", "--config", str(config), "--storage", str(tmp_path)],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    process.kill()
    process.wait()
    assert second.returncode == 2
    assert f"process {process.pid}" in second.stderr


def test_what_the_user_can_mend_is_one_line_and_status_2(config: Path, ray_cluster: Cluster, tmp_path: Path) -> None:
    process = _start(config, tmp_path, "scale.num_workers=64", address=ray_cluster.address)
    assert process.wait(timeout=120) == 2
    assert "scale.num_workers = 64" in _output(tmp_path)
    assert "Traceback" not in _output(tmp_path)


@pytest.mark.slow
def test_an_elastic_group_starts_with_what_there_is_and_grows_with_the_cluster(
    config: Path, ray_cluster: Cluster, tmp_path: Path
) -> None:
    settings = ["train.max_steps=100000", "checkpoint.every_minutes=0.1", "scale.cpus_per_worker=2"]
    process = _start(config, tmp_path, "--workers", "1:2", *settings, address=ray_cluster.address)
    node: subprocess.Popen[bytes] | None = None
    try:
        _wait(lambda: "starting from step 0 on 1 worker\n" in _output(tmp_path), process, tmp_path)
        _wait(lambda: _step(tmp_path / "tiny") > 0, process, tmp_path)
        ray = str(Path(sys.executable).parent / "ray")
        join = [ray, "start", f"--address={ray_cluster.address}", "--num-cpus=2", "--node-ip-address=127.0.0.1"]
        with open(tmp_path / "node.txt", "w", encoding="utf-8") as log:
            node = subprocess.Popen([*join, "--block", "--dashboard-agent-listen-port=0"], stdout=log, stderr=log)
        _wait(lambda: " on 2 workers\n" in _output(tmp_path), process, tmp_path)
        assert "resuming from step_" in _output(tmp_path)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == 3, _output(tmp_path)
    finally:
        for started in (process, node):
            if started is not None:
                started.terminate()
                started.wait()


@pytest.mark.slow
def test_a_submitted_job_trains_with_the_code_that_travelled(
    config: Path, unbroken: Path, ray_cluster: Cluster, tmp_path: Path
) -> None:
    ray = str(Path(sys.executable).parent / "ray")
    submit = [ray, "job", "submit", "--address", ray_cluster.dashboard, "--working-dir", ".", "--"]
    job = ["python", "ray_jobs/train.py", "--config", str(config), "--storage", str(tmp_path)]
    done = subprocess.run([*submit, *job], capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout
    assert _tensors(tmp_path / "tiny") == _tensors(unbroken)
