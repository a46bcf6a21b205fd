"""What protection costs: training with a checkpoint a minute, against training without any.

The dual-branch detector trains on this machine's CPUs with AdamW and averaged weights. Stretches of steps without a
checkpoint alternate with stretches in which one is written and compared with what was meant, and, on a bucket, sent,
read back and compared, so that a busy machine slows both alike. The bucket is on an S3 server in a process of its own,
spoken to over TLS as real ones are. Training leaves one core to that server, whose CPU time is not ours.

- `disk_throughput_ratio`, `s3_throughput_ratio`: steps a second with a checkpoint a minute, over the same without any;
  at least 0.97. What the loop waits for counts, and what it loses by what goes on beside it.
- `disk_cpu_seconds`, `s3_cpu_seconds`: CPU-seconds of this process that a checkpoint takes, in all its threads.
- `disk_cpu_ratio`, `s3_cpu_ratio`: what the throughput ratio would be if training kept every core busy, so that each of
  these seconds were taken from it; at least 0.97.
- `blocked_share`: p95 over checkpoints of the time that a save holds the loop up, as a share of a step; at most 0.05.
  Three in ten requests to the server fail, stall or are cut meanwhile. `blocked_seconds`, `step_seconds`: the two.
- `part_*`: the CPU-seconds of the parts, each done alone: the copy in memory, writing with its hash and comparing on
  the disk, sending, reading back and comparing. `state_megabytes`: size of a checkpoint.

Run alone with `python -m benchmarks.protection [--quick]`.
"""

from __future__ import annotations

import datetime
import ipaddress
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.faults.pictures import draw_faces
from benchmarks.faults.ray_kills import free_port
from benchmarks.faults.wire import FaultyWire

MINUTE, FLOOR, BLOCKED, FAULTS = 60.0, 0.97, 0.05, 0.3
SERVER = "import moto.server, sys; moto.server.main(['-H', '127.0.0.1', *sys.argv[1:]])"
CORES = os.cpu_count() or 1
CONFIG: dict[str, Any] = {
    "data": {"image_size": 224, "sampling": "balanced"},
    "model": {"name": "dual_branch", "pretrained": False},
    "train": {"max_epochs": None, "max_steps": 10**6, "micro_batch_size": 4, "ema_decay": 0.999,
              "eval_every_epochs": 10**6},
    "checkpoint": {"every_minutes": None},
    "logging": {"tensorboard": False, "every_steps": 10**6},
}  # fmt: skip


@dataclass
class Stretches:
    """Decide before every step, so that stretches with and without a checkpoint alternate.

    Args:
        seconds: shortest length of a stretch.
        pairs: stretches of each kind.
        whole: a stretch with a checkpoint ends once that is where it is to be.
    """

    seconds: float
    pairs: int
    whole: bool = True
    marks: list[tuple[float, float, int]] = field(default_factory=list)
    """Seconds, CPU-seconds of this process and steps at the start of each stretch."""
    blocked: list[float] = field(default_factory=list)
    """Seconds that each save held the loop up."""
    steps: list[float] = field(default_factory=list)
    """Seconds of the steps without a save."""
    settled: int = 0
    """Checkpoints that are where they are to be, compared."""

    def __post_init__(self) -> None:
        self._step = -2  # the first ones warm up
        self.is_due = False  # a save, before this step
        self._saving = False
        self._stretch_began = self._began = time.monotonic()

    def request(self) -> int:
        """Decide what comes before the next step."""
        from hai.types import STOP

        now = time.monotonic()
        self.is_due = False
        if self._step > 0 and not self._saving:
            self.steps.append(now - self._began)
        self._began, self._step = now, self._step + 1
        if self._step < 0 or (self._step > 0 and not self._is_over(now)):
            return 0
        self.marks.append((now, time.process_time(), self._step))
        self._stretch_began = now
        self._saving = len(self.marks) % 2 == 0
        is_over = len(self.marks) > 2 * self.pairs
        self.is_due = self._saving and not is_over
        return STOP if is_over else 0

    def _is_over(self, now: float) -> bool:
        done = not (self.whole and self._saving) or self.settled >= len(self.blocked)
        return done and now - self._stretch_began >= self.seconds


def run(quick: bool) -> list[dict[str, Any]]:
    """Measure; each record that has a floor says whether it keeps it."""
    seconds, pairs, saves, batch = (20.0, 2, 3, 8) if quick else (MINUTE, 3, 6, 32)
    with tempfile.TemporaryDirectory(prefix="hai-protection-") as name:
        folder = Path(name)
        os.environ["HAI_CACHE"] = str(folder / "cache")
        faces = draw_faces(folder / "faces")
        disk = Stretches(seconds, pairs)
        _train(faces, str(folder / "runs"), batch, disk)
        with _server(folder, tls=True):
            bucket = Stretches(seconds, pairs)
            _train(faces, "s3://bucket/runs", batch, bucket)
            parts = _parts(max((folder / "runs").rglob("step_*")), folder / "again")
        with _server(folder, tls=False) as port, FaultyWire(port, rate=FAULTS, seed=1, stall_s=2.0) as wire:
            os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{wire.port}"
            torn = Stretches(seconds / 2, saves, whole=False)
            _train(faces, "s3://bucket/torn", batch, torn)
        state = sum(path.stat().st_size for path in max(folder.rglob("step_*")).iterdir())
    return [
        *_cost("disk", disk),
        *_cost("s3", bucket),
        *_blocked(torn),
        *parts,
        _record("state_megabytes", [state / 1e6]),
    ]


def _cost(name: str, stretches: Stretches) -> list[dict[str, Any]]:
    """Compare each stretch with a checkpoint with the one before it; what it took more is what a minute pays."""
    bounds = list(zip(stretches.marks, stretches.marks[1:], strict=False))
    walls, cpus = [], []
    for (one, two), (_, three) in zip(bounds[::2], bounds[1::2], strict=True):
        plain, saved = two[2] - one[2], three[2] - two[2]
        walls.append((three[0] - two[0]) - (two[0] - one[0]) / plain * saved)
        cpus.append((three[1] - two[1]) - (two[1] - one[1]) / plain * saved)
    return [
        _record(f"{name}_throughput_ratio", [MINUTE / (MINUTE + seconds) for seconds in walls], FLOOR, most=False),
        _record(f"{name}_cpu_ratio", [1 - seconds / (CORES * MINUTE) for seconds in cpus], FLOOR, most=False),
        _record(f"{name}_cpu_seconds", cpus),
    ]


def _parts(checkpoint: Path, folder: Path) -> list[dict[str, Any]]:
    """Do what a save does, one part after the other."""
    from hai.checkpoint.buffers import Buffers
    from hai.checkpoint.format import FILES, load_checkpoint, load_manifest, write_checkpoint
    from hai.checkpoint.remote import Bucket
    from hai.checkpoint.transfer import is_same

    loaded, manifest, bucket = load_checkpoint(checkpoint), load_manifest(checkpoint), Bucket("s3://bucket/parts")
    buffers = Buffers(), Buffers()

    def copy() -> None:
        buffers[0].copy(loaded.model)
        buffers[1].copy(loaded.state)

    def read_back() -> None:
        assert all(is_same(bucket, name, checkpoint / name, manifest.crc32[name]) for name in FILES)

    copy()  # allocates
    parts = {
        "copy": copy,
        "write": lambda: write_checkpoint(folder / checkpoint.name, loaded.model, loaded.state, loaded.meta),
        "send": lambda: [bucket.put(checkpoint / name, name) for name in FILES],
        "read_back": read_back,
    }
    records = []
    for name, part in parts.items():
        began = time.process_time()
        part()
        records.append(_record(f"part_{name}_cpu_seconds", [time.process_time() - began]))
    return records


def _blocked(torn: Stretches) -> list[dict[str, Any]]:
    step, blocked = statistics.median(torn.steps), sorted(torn.blocked)
    worst = blocked[min(len(blocked) - 1, round(0.95 * len(blocked)))]
    return [
        _record("blocked_share", [worst / step], BLOCKED),
        _record("blocked_seconds", blocked),
        _record("step_seconds", torn.steps),
    ]


def _record(name: str, values: list[float], floor: float | None = None, *, most: bool = True) -> dict[str, Any]:
    value = statistics.median(values)
    holds = floor is None or (value <= floor if most else value >= floor)
    return {"name": name, "value": value, "low": min(values), "high": max(values), "floor": floor, "holds": holds}


def _train(faces: Path, storage: str, batch: int, stretches: Stretches) -> None:
    import torch

    from hai.config.schema import RunConfig
    from hai.context import Context
    from hai.loop import train
    from hai.tasks import build_task

    torch.set_num_threads(max(1, CORES - 1))
    sources = [{"name": "faces", "path": str(faces)}]
    parts = {"data": {**CONFIG["data"], "sources": sources}, "train": {**CONFIG["train"], "global_batch_size": batch}}
    config = RunConfig.model_validate({**CONFIG, **parts})
    with _watched(stretches, bucket="://" in storage):
        train(config, build_task(config), Context(storage, "run", request=stretches.request, say=_say))


@contextmanager
def _watched(stretches: Stretches, *, bucket: bool) -> Iterator[None]:
    """Set the cadence; learn how long a save holds the loop up, and when its checkpoint is where it is to be."""
    from hai.checkpoint import store, upload
    from hai.journal import Journal

    is_due, save, write, send = (
        Journal._is_save_due, store.RunFolder.save, store.RunFolder._write, upload.Uploader._upload,
    )  # fmt: skip
    confirmed: set[str] = set()

    def timed_save(self: Any, *args: Any, **options: Any) -> bool:
        began = time.monotonic()
        saved = save(self, *args, **options)
        if stretches.is_due:
            stretches.blocked.append(time.monotonic() - began)
        return saved

    def noted_write(self: Any, *args: Any) -> None:
        write(self, *args)
        stretches.settled += not bucket

    def noted_send(self: Any, name: str) -> None:
        send(self, name)
        if name in self._confirmed and name not in confirmed:
            confirmed.add(name)
            stretches.settled += 1

    Journal._is_save_due = lambda self: stretches.is_due  # type: ignore[method-assign]
    store.RunFolder.save, store.RunFolder._write = timed_save, noted_write  # type: ignore[method-assign]
    upload.Uploader._upload = noted_send  # type: ignore[method-assign]
    try:
        yield
    finally:
        Journal._is_save_due = is_due  # type: ignore[method-assign]
        store.RunFolder.save, store.RunFolder._write = save, write  # type: ignore[method-assign]
        upload.Uploader._upload = send  # type: ignore[method-assign]


@contextmanager
def _server(folder: Path, *, tls: bool) -> Iterator[int]:
    """An S3 server in a process of its own, with an empty bucket, and its port."""
    import boto3

    port, arguments = free_port(), []
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http{'s' if tls else ''}://127.0.0.1:{port}",
    }
    if tls:
        certificate, key = _make_certificate(folder)
        os.environ["AWS_CA_BUNDLE"] = str(certificate)
        arguments = ["-c", str(certificate), "-k", str(key)]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen([sys.executable, "-c", SERVER, "-p", str(port), *arguments], stdout=log, stderr=log)
        try:
            client = boto3.client("s3")
            for _ in range(300):
                try:
                    client.create_bucket(Bucket="bucket")
                    break
                except Exception:
                    time.sleep(0.2)
            yield port
        finally:
            process.terminate()
            process.wait()
            os.environ.pop("AWS_CA_BUNDLE", None)


def _make_certificate(folder: Path) -> tuple[Path, Path]:
    """Write a certificate of this machine's own for its loopback address, and the key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "loopback")])
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(address, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = folder / "certificate.pem", folder / "key.pem"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )  # fmt: skip
    return paths


def _say(line: str) -> None:
    print(line, file=sys.stderr)


if __name__ == "__main__":
    results = run(quick="--quick" in sys.argv)
    print(json.dumps(results, indent=1))
    sys.exit(0 if all(record["holds"] for record in results) else 1)
