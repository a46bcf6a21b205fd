"""Runs of `ray_jobs/train.py` that tests start, watch and break."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from benchmarks.faults.ray_kills import kill_tree

DETECTOR = """
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

SMOOTH = """
task: detector
data: {{sources: [{{name: faces, path: "{faces}"}}], image_size: 160, sampling: balanced, cache_decoded: "off"}}
augment: {{flip: 0.5, jpeg_probability: 0.3, noise_probability: 0.3}}
model: {{name: "timm:test_vit", pretrained: false}}  # neither BatchNorm nor dropout
optim: {{name: sgd, learning_rate: 5e-4, warmup_epochs: 1}}  # AdamW or larger steps make much of a last bit
train: {{max_epochs: null, max_steps: 5000, global_batch_size: 16, ema_decay: 0.9, eval_every_epochs: 50}}
checkpoint: {{every_minutes: 0.05, keep: 3}}
logging: {{every_steps: 1}}
scale: {{use_gpu: false}}
"""

FROZEN = """
task: ranker
data: {{sources: [{{name: art, path: "{art}"}}], image_size: 48, embedding_cache: "{cache}"}}
model: {{name: "timm:resnet18", pretrained: false}}
train: {{max_epochs: 3, global_batch_size: 16}}
scale: {{cpus_per_worker: 1, use_gpu: false}}
"""


class Cluster(NamedTuple):
    """A Ray cluster on this machine: where drivers join it, and where jobs are submitted."""

    address: str
    dashboard: str


started: list[subprocess.Popen[str]] = []


def kill_survivors() -> None:
    """SIGKILL the runs that a test that failed has left."""
    while started:
        kill_tree(started.pop())


def start(
    config: Path,
    storage: Path,
    *settings: str,
    address: str | None = None,
    through: Sequence[str] = (),
    **environment: str,
) -> subprocess.Popen[str]:
    command = [
        *through,
        sys.executable,
        "ray_jobs/train.py",
        "--config",
        str(config),
        "--storage",
        str(storage),
        *settings,
    ]
    environment = {**os.environ, **({"RAY_ADDRESS": address} if address else {}), **environment}
    with open(storage / "output.txt", "a", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, text=True, env=environment)
    started.append(process)
    return process


def ray_command(*arguments: str) -> list[str]:
    return [str(Path(sys.executable).parent / "ray"), *arguments]


def submit(
    cluster: Cluster, config: Path, storage: Path, *options: str, more: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """Submit the run as a job that carries this code, with options of `ray job submit` and more settings."""
    job = ["python", "ray_jobs/train.py", "--config", str(config), "--storage", str(storage), *more]
    command = ray_command("job", "submit", "--address", cluster.dashboard, "--working-dir", ".", *options, "--", *job)
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)


@contextlib.contextmanager
def joined_node(
    address: str, storage: Path, *, ip: str = "127.0.0.2", **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    """A further machine of two CPUs, for Ray by an address of its own; `kill_tree` ends it as if it were gone."""
    command = ray_command("start", f"--address={address}", "--num-cpus=2", "--block")
    command += [f"--node-ip-address={ip}", "--dashboard-agent-listen-port=0"]
    log = storage / f"node-{ip}.txt"
    for _ in range(3):  # Ray gives its own processes 30 s, which a busy machine can exceed
        with open(log, "ab") as file:
            began = file.tell()
            node = subprocess.Popen(command, stdout=file, stderr=file, env={**os.environ, **environment})
        while node.poll() is None and b"Ray runtime started" not in log.read_bytes()[began:]:
            time.sleep(0.1)
        if node.poll() is None:
            break
    try:
        assert node.poll() is None, log.read_text(encoding="utf-8")
        yield node
    finally:
        kill_tree(node)


def train_workers(inside: subprocess.Popen[Any] | None = None) -> list[psutil.Process]:
    """The processes of Ray Train's workers, on this machine or on one node of it."""
    found = psutil.process_iter() if inside is None else psutil.Process(inside.pid).children(recursive=True)
    return [process for process in found if "RayTrainWorker" in process.name()]


def http_status(url: str, token: str | None, body: bytes | None = None) -> int:
    """What a server answers to JSON with this token; 0 where there is none."""
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data=body, headers=headers), timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code
    except OSError:
        return 0


def output(storage: Path) -> str:
    return (storage / "output.txt").read_text(encoding="utf-8")


def newest_step(run: Path) -> int:
    steps = [int(path.name.removeprefix("step_")) for path in (run / "checkpoints").glob("step_*")]
    return max(steps, default=0)


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str], storage: Path) -> None:
    deadline = time.monotonic() + 480
    while not condition():
        assert process.poll() is None, f"ended early:\n{output(storage)}"
        assert time.monotonic() < deadline, f"nothing happened:\n{output(storage)}"
        time.sleep(0.05)


def tensors(run: Path) -> list[bytes]:
    folder = run / "checkpoints" / "step_00000060"
    return [(folder / name).read_bytes() for name in ("model.safetensors", "state.safetensors")]


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def steps(run: Path) -> list[int]:
    return [record["step"] for record in records(run)]


def summary(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "summary.json").read_text(encoding="utf-8")))
