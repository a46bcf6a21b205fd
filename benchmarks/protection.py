"""What protection costs: training with a checkpoint a minute on an S3 server, against training without any.

The dual-branch detector trains on this machine's CPUs, with AdamW and averaged weights, in one run whose storage is an
S3 server in a process of its own. Stretches of steps without a checkpoint alternate with stretches in which one is
written, verified, sent, read back and compared, so that a busy machine slows both alike.

- `throughput_cpu_ratio`: CPU-seconds of this process that a minute of training takes without, over those with one
  checkpoint in it; the server's CPU is not ours and not in it. At least 0.97.
- `throughput_wall_ratio`: the same in wall time, in which the server takes its share of the cores.
- `blocked_share`: p95 over checkpoints of the time that a save holds the loop up, as a share of a step; at most 0.05.
  Three in ten requests to the server fail, stall or are cut meanwhile.
- `state_megabytes`, `step_seconds`, `blocked_seconds`, `cpu_seconds_a_checkpoint`: what these are made of.

Run alone with `python -m benchmarks.protection [--quick]`.
"""

from __future__ import annotations

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

MINUTE, THROUGHPUT, BLOCKED, FAULTS = 60.0, 0.97, 0.05, 0.3
SERVER = "import moto.server, sys; moto.server.main(['-H', '127.0.0.1', '-p', sys.argv[1]])"
CONFIG: dict[str, Any] = {
    "data": {"image_size": 224, "sampling": "balanced"},
    "model": {"name": "dual_branch", "pretrained": False},
    "train": {"max_epochs": None, "max_steps": 10**6, "global_batch_size": 4, "ema_decay": 0.999,
              "eval_every_epochs": 10**6},
    "checkpoint": {"every_minutes": None},
    "logging": {"tensorboard": False, "every_steps": 10**6},
}  # fmt: skip


@dataclass
class Stretches:
    """Answer the loop's question before every step so that stretches with and without a checkpoint alternate.

    Args:
        seconds: shortest length of a stretch.
        pairs: stretches of each kind.
    """

    seconds: float
    pairs: int
    confirmed: list[str] = field(default_factory=list)
    """Checkpoints that the uploader has sent and read back."""

    def __post_init__(self) -> None:
        self.marks: list[tuple[float, float, int]] = []  # wall, CPU and steps at the start of each stretch
        self.pauses: list[float] = []  # what the steps with a save took
        self.plain: list[float] = []  # what the others took
        self._step = -3  # the first steps warm up
        self._saving = False
        self._asked: tuple[float, int] | None = None

    def request(self) -> int:
        """Decide what comes before the next step."""
        from hai.types import SAVE, STOP

        now, used = time.monotonic(), time.process_time()
        if self._asked is not None:
            began, kind = self._asked
            (self.pauses if kind == SAVE else self.plain).append(now - began)
        self._step += 1
        asked = 0
        if self._step == 0:
            self.marks.append((now, used, 0))
        elif self._step > 0 and now - self.marks[-1][0] >= self.seconds and self._is_settled():
            self.marks.append((now, used, self._step))
            self._saving = not self._saving
            asked = SAVE if self._saving else 0
            if len(self.marks) > 2 * self.pairs:
                asked = STOP
        self._asked = (now, asked) if self._step > 0 else None
        return asked

    def _is_settled(self) -> bool:
        return not self._saving or len(self.confirmed) >= len(self.pauses)


def run(quick: bool) -> list[dict[str, Any]]:
    """Measure; each record that has a floor says whether it keeps it."""
    seconds, pairs, saves = (15.0, 2, 3) if quick else (60.0, 3, 10)
    with tempfile.TemporaryDirectory(prefix="hai-protection-") as name, _server() as port:
        folder = Path(name)
        os.environ["HAI_CACHE"] = str(folder / "cache")
        faces = draw_faces(folder / "faces")
        calm = Stretches(seconds, pairs)
        _train(faces, "calm", port, calm)
        with FaultyWire(port, rate=FAULTS, seed=1, stall_s=2.0) as wire:
            torn = Stretches(seconds / 4, saves)
            _train(faces, "torn", wire.port, torn)
        state = sum(path.stat().st_size for path in max(folder.rglob("step_*")).iterdir())
    return _records(calm, torn, state)


def _records(calm: Stretches, torn: Stretches, state: int) -> list[dict[str, Any]]:
    walls, cpus, extra = [], [], []
    bounds = list(zip(calm.marks, calm.marks[1:], strict=False))
    for (one, two), (_, three) in zip(bounds[::2], bounds[1::2], strict=True):
        steps, saved = two[2] - one[2], three[2] - two[2]
        wall, cpu = (two[0] - one[0]) / steps, (two[1] - one[1]) / steps
        more_wall, more_cpu = (three[0] - two[0]) - wall * saved, (three[1] - two[1]) - cpu * saved
        walls.append(MINUTE / (MINUTE + more_wall))
        cpus.append(MINUTE * cpu / wall / (MINUTE * cpu / wall + more_cpu))
        extra.append(more_cpu)
    step = statistics.median(torn.plain)
    blocked = sorted(max(0.0, pause - step) for pause in torn.pauses)
    worst = blocked[min(len(blocked) - 1, round(0.95 * len(blocked)))]
    return [
        _record("throughput_cpu_ratio", cpus, THROUGHPUT, most=False),
        _record("throughput_wall_ratio", walls),
        _record("blocked_share", [worst / step], BLOCKED),
        _record("blocked_seconds", blocked),
        _record("step_seconds", torn.plain),
        _record("cpu_seconds_a_checkpoint", extra),
        _record("state_megabytes", [state / 1e6]),
    ]


def _record(name: str, values: list[float], floor: float | None = None, *, most: bool = True) -> dict[str, Any]:
    value = statistics.median(values)
    holds = floor is None or (value <= floor if most else value >= floor)
    return {"name": name, "value": value, "low": min(values), "high": max(values), "floor": floor, "holds": holds}


def _train(faces: Path, name: str, port: int, stretches: Stretches) -> None:
    import torch

    from hai.checkpoint import upload
    from hai.config.schema import RunConfig
    from hai.context import Context
    from hai.loop import train
    from hai.tasks import build_task

    os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{port}"
    torch.set_num_threads(os.cpu_count() or 1)
    source = {"name": "faces", "path": str(faces)}
    config = RunConfig.model_validate({**CONFIG, "data": {**CONFIG["data"], "sources": [source]}})
    remove = _note_confirmations(upload.Uploader, stretches.confirmed)
    try:
        train(config, build_task(config), Context("s3://bucket/runs", name, request=stretches.request, say=_say))
    finally:
        remove()


def _note_confirmations(uploader: Any, confirmed: list[str]) -> Any:
    """Learn from outside when a checkpoint has been sent and read back; returns what undoes it."""
    original = uploader._upload

    def upload(self: Any, name: str) -> None:
        original(self, name)
        if name in self._confirmed and name not in confirmed:
            confirmed.append(name)

    uploader._upload = upload
    return lambda: setattr(uploader, "_upload", original)


@contextmanager
def _server() -> Iterator[int]:
    """An S3 server in a process of its own, with an empty bucket."""
    import boto3

    port = free_port()
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen([sys.executable, "-c", SERVER, str(port)], stdout=log, stderr=log)
        try:
            client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}")
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


def _say(line: str) -> None:
    print(line, file=sys.stderr)


if __name__ == "__main__":
    results = run(quick="--quick" in sys.argv)
    print(json.dumps(results, indent=1))
    sys.exit(0 if all(record["holds"] for record in results) else 1)
