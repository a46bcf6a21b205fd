"""`ray job submit -- python ray_jobs/train.py` on clusters as cluster.yaml makes them, on this machine.

The head has no CPUs, every machine a home folder of its own, all of Ray asks for a token, code travels with the job,
data and storage are in a bucket.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import yaml
from ray_runs import http_status, joined_node, kill_tree, ray_command, train_workers

from benchmarks.faults.ray_kills import Head, free_port, start_head

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

RUNS, STEPS = "gs://bucket/runs", 120
SETTINGS = [
    'data.sources=[{name: faces, path: "gs://bucket/faces.zip"}]',
    "data.image_size=64",
    f"train.max_steps={STEPS}",
    "train.max_epochs=null",
    "train.global_batch_size=16",
    "train.eval_every_epochs=5",
    "checkpoint.every_minutes=0.02",
    "logging.every_steps=1",
    "scale.use_gpu=false",
]


@pytest.fixture
def bucket(gcs: int, small_faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> fsspec.AbstractFileSystem:
    """The bucket, which holds the data; the environment for what looks into it."""
    monkeypatch.delenv("HAI_CACHE")  # each machine has its own, in its home
    monkeypatch.setenv("FSSPEC_GCS_TOKEN", "anon")
    archive = tmp_path / "faces.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(small_faces.rglob("*.jpg")):
            file.write(path, path.relative_to(small_faces))
    system = fsspec.filesystem("gcs", token="anon")
    system.put_file(str(archive), "bucket/faces.zip")
    return system


def home(folder: Path, name: str) -> dict[str, str]:
    """A home folder, as a machine of its own has one."""
    (folder / name).mkdir()
    return {"HOME": str(folder / name)}


@contextlib.contextmanager
def guarded_head(folder: Path, *options: str, port: int = 0, **environment: str) -> Iterator[Head]:
    """A head without CPUs that asks for a token."""
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_JOB_STOP_WAIT_TIME_S": "30"}
    environment |= home(folder, "head")
    with tempfile.TemporaryDirectory(prefix="hai-", ignore_cleanup_errors=True) as sessions:
        options = ("--num-cpus=0", f"--temp-dir={sessions}", *options)
        head = start_head(folder / "head.txt", *options, port=port, **environment)
        try:
            yield head
        finally:
            kill_tree(head.process)


def submit(head: Head, log: Path, *options: str) -> subprocess.Popen[bytes]:
    job = ["ray_jobs/train.py", "--config", "configs/detector/demo.yaml", "--name", "faces", "--storage", RUNS]
    return submit_job(head, log, [*job, *options, *SETTINGS])


def submit_job(head: Head, log: Path, words: list[str], *, carry: bool = True) -> subprocess.Popen[bytes]:
    """Submit a job that carries the code, or finds it where it is.

    Machines played on one share the folder of what jobs carry, and each that comes up unpacks it anew, under the
    driver's feet. Ray Tune, other than training, looks at where it stands.
    """
    submission = ray_command("job", "submit", "--address", head.dashboard)
    command = [*submission, *(["--working-dir", "."] if carry else []), "--", "python", *words]
    first = [*submission, "--no-wait", "--", "true"]
    deadline = time.monotonic() + 120
    with open(log, "ab") as file:
        while subprocess.run(first, stdout=file, stderr=file, env=head.environment, check=False).returncode:
            assert time.monotonic() < deadline, "Ray's agent, which starts jobs, is not up"
        return subprocess.Popen(command, stdout=file, stderr=file, env=head.environment)


def wait_until(condition: Callable[[], bool], job: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert job.poll() is None, log.read_text(encoding="utf-8")
        assert time.monotonic() < deadline, log.read_text(encoding="utf-8")
        time.sleep(0.1)


def newest_step(home: Path) -> int:
    """The newest step that rank 0 has recorded, if it runs on the machine with this home."""
    logs = [Path(folder, "metrics.jsonl") for folder, _, files in os.walk(home) if "metrics.jsonl" in files]
    lines = [line for log in logs for line in log.read_text(encoding="utf-8").splitlines()]
    return max((json.loads(line)["step"] for line in lines), default=0)


def check_finished(bucket: fsspec.AbstractFileSystem, head: Head) -> None:
    """Every step once, in the bucket and as `hai runs` tells it."""
    records = [json.loads(line) for line in bucket.cat("bucket/runs/faces/metrics.jsonl").splitlines()]
    assert [record["step"] for record in records] == list(range(1, STEPS + 1))
    summary: dict[str, Any] = json.loads(bucket.cat("bucket/runs/faces/summary.json"))
    assert (summary["status"], summary["step"]) == ("finished", STEPS)
    assert bucket.exists(f"bucket/runs/faces/checkpoints/step_{STEPS:08d}/MANIFEST.json")
    command = [str(Path(sys.executable).parent / "hai"), "runs", "--storage", RUNS]
    listed = subprocess.run(command, capture_output=True, text=True, env=head.environment, check=False)
    assert re.search(rf"faces\b.*finished\b.*\b{STEPS}\b", listed.stdout), listed


def test_a_job_outlives_the_machine_of_its_first_worker(bucket: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    log = tmp_path / "job.txt"
    with contextlib.ExitStack() as stack:
        head = stack.enter_context(guarded_head(tmp_path))
        url, order = f"{head.dashboard}/api/jobs/", json.dumps({"entrypoint": "true"}).encode()
        assert http_status(url, None, order) in (401, 403)
        assert http_status(url, "f" * 64, order) in (401, 403)
        guard = {key: head.environment[key] for key in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")}
        nodes = {
            name: stack.enter_context(joined_node(head.address, tmp_path, ip=ip, **guard, **home(tmp_path, name)))
            for name, ip in (("first", "127.0.0.2"), ("second", "127.0.0.3"))
        }
        job = submit(head, log, "--workers", "1:2")
        wait_until(lambda: max(newest_step(tmp_path / name) for name in nodes) >= STEPS // 6, job, log)
        assert all(train_workers(node) for node in nodes.values()), "one worker on each"
        (lost,) = [name for name in nodes if newest_step(tmp_path / name)]
        kill_tree(nodes[lost])
        assert job.wait(timeout=400) == 0, log.read_text(encoding="utf-8")
    said = log.read_text(encoding="utf-8")
    assert said.index(" on 2 workers\n") < said.index("resuming from step_") < said.index(" on 1 worker\n"), said
    assert "succeeded" in said
    check_finished(bucket, head)
    token = head.environment["RAY_AUTH_TOKEN"]
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and token.encode() in path.read_bytes()]


GROWING: dict[str, Any] = {
    "cluster_name": "growing",
    "max_workers": 2,
    "idle_timeout_minutes": 5,
    "provider": {
        "type": "external",  # by its own name Ray looks for a file that its wheels lack
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "launch_multiple": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
    },
    **{f"{kind}setup_commands": [] for kind in ("", "head_", "worker_")},  # as `ray up` fills them in
    "cluster_synced_files": [],
    "head_node_type": "ray.head.default",
    "available_node_types": {
        "ray.head.default": {"resources": {}, "node_config": {}, "max_workers": 0},
        "worker": {"resources": {"CPU": 2}, "node_config": {}, "min_workers": 0, "max_workers": 2},
    },
}


@contextlib.contextmanager
def growing_head(folder: Path) -> Iterator[Head]:
    """A head without CPUs that starts up to two machines of two CPUs for what waits."""
    from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

    config, port = folder / "growing.yaml", free_port()
    provider = {**GROWING["provider"], "gcs_address": f"127.0.0.1:{port}"}
    config.write_text(yaml.safe_dump({**GROWING, "provider": provider}), encoding="utf-8")
    fake = {
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "HAI_GROWS_TO": "2 CPU=2",
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_FAKE_CLUSTER": "1",
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        "RAY_enable_autoscaler_v2": "1",
    }
    with guarded_head(folder, f"--autoscaling-config={config}", port=port, **fake) as head:
        yield head


def test_a_job_makes_an_empty_cluster_grow(bucket: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    log = tmp_path / "job.txt"
    with growing_head(tmp_path) as head:
        assert not train_workers(head.process)
        job = submit(head, log, "--workers", "1:2")
        assert job.wait(timeout=600) == 0, log.read_text(encoding="utf-8")
    assert "training on 1:2 workers, CPU (2 threads) each" in log.read_text(encoding="utf-8")
    check_finished(bucket, head)


def test_a_sweep_makes_an_empty_cluster_grow(bucket: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    log, sweep = tmp_path / "job.txt", "configs/tune/detector_pbt.yaml"
    few = ["sweep.scheduler=none", "sweep.num_trials=1", "sweep.evaluate_test=false", "sweep.cpus_per_worker=2"]
    with growing_head(tmp_path) as head:
        words = ["ray_jobs/tune.py", "--config", sweep, "--name", "found", "--storage", RUNS]
        job = submit_job(head, log, [*words, *SETTINGS, *few, "train.max_steps=6"], carry=False)
        assert job.wait(timeout=600) == 0, log.read_text(encoding="utf-8")
    said = log.read_text(encoding="utf-8")
    assert "room for 2 trials at once, 2 CPU each" in said
    assert json.loads(bucket.cat("bucket/runs/found/summary.json"))["num_finished"] == 2
    assert re.search(r"best f1_macro [\d.]+ on val, trial \d: gs://bucket/runs/found/trials/\w+", said)
