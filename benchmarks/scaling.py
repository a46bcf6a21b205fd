"""What grows with the number of workers and of examples, and what does not.

Order, sampling and bookkeeping are simulated: each number is what one worker of a group of up to 1,000 holds and does
for 10 million examples (1 million with --quick), proportionally sampled, or balanced over two classes and twenty
sources. Bytes are counted by tracemalloc. Two workers are real: processes with gloo on this machine's cores.

- `start_seconds`, `balanced_start_seconds`: from the manifest's columns in memory to the first batch's positions: the
  split cut out, strata, order; at most 5. What reading a manifest takes, the suite `million` tells.
- `held_bytes_per_example`, `peak_bytes_per_example`: what the order of an epoch holds besides the manifest, and its
  peak while it is drawn, over the number of examples, the larger of the two samplings; at most 16 and 64.
- `held_bytes_of_1000_workers`, `peak_...`: the same for one of 1,000 workers over that of a lone one; at most 1.01.
- `step_microseconds_of_1000_workers`: choosing a worker's part of a batch, over that of a lone one; at most 1.5.
- `examples_repeated_or_missing`: over all 1,000 workers' parts of some batches and of an evaluation, at most 0.
- `checkpoint_bytes_of_two_workers`: the checkpoints of a group's run over those of a lone worker's: rank 0 alone
  writes, and nothing in them belongs to one worker; at most 1.01. Left out with --quick, like the next.
- `two_workers_ratio`: examples per second of two workers, each with its share of the cores, over one worker with all.

Run alone with `python -m benchmarks.scaling [--quick]`.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._measure import interleaved, main, output_of, ratios, record
from hai.config.schema import RunConfig
from hai.data.dataset import ImageDataset
from hai.data.manifest import Manifest
from hai.order import Order, slice_bounds
from hai.types import Record

WORKERS, BATCH, STEPS = 1000, 4000, 20
START_SECONDS, HELD, PEAK, GROWTH, STEP_GROWTH = 5.0, 16.0, 64.0, 1.01, 1.5
_ROOT = Path(__file__).resolve().parent.parent
CONFIG = """
data: {{sources: [{{name: faces, path: "{faces}"}}], image_size: 96, cache_decoded: "off"}}
model: {{name: compact, pretrained: false}}
train: {{max_epochs: null, max_steps: {steps}, global_batch_size: 64, eval_every_epochs: 100000}}
checkpoint: {{every_minutes: null}}
scale: {{launcher: in_process, use_gpu: false}}
"""


def run(quick: bool) -> list[dict[str, Any]]:
    """Measure; each record says whether it keeps its floor."""
    if quick:
        return simulated(1_000_000, 1)
    with tempfile.TemporaryDirectory(prefix="hai-benchmark-") as scratch:
        return simulated(10_000_000, 3) + two_workers(Path(scratch), steps=200, repeats=2)


# -- simulated ---------------------------------------------------------------------------------------------------------


def simulated(size: int, repeats: int) -> list[dict[str, Any]]:
    """Measure what one of up to 1,000 workers has to do for `size` examples."""
    manifest = _manifest(size)
    records, costs = [], {}
    for sampling in ("proportional", "balanced"):
        config = RunConfig.model_validate(
            {"data": {"sampling": sampling, "sources": _sources(), "cache_decoded": "off"}}
        )
        starts = [_start_seconds(manifest, config) for _ in range(repeats)]
        name = "start_seconds" if sampling == "proportional" else "balanced_start_seconds"
        records.append(record(f"{name}: {size:,} examples", starts, most=START_SECONDS))
        dataset = ImageDataset(manifest, config, "train")
        costs[sampling] = {workers: _cost(dataset.strata(), workers) for workers in (1, 10, 100, WORKERS)}
    for kind, most in (("held", HELD), ("peak", PEAK)):
        largest = max(cost[workers][kind] for cost in costs.values() for workers in cost)
        records.append(record(f"{kind}_bytes_per_example", [largest / size], most=most))
        growth = [cost[WORKERS][kind] / cost[1][kind] for cost in costs.values()]
        records.append(record(f"{kind}_bytes_of_{WORKERS}_workers", growth, most=GROWTH))
    slower = [cost[WORKERS]["step"] / cost[1]["step"] for cost in costs.values()]
    records.append(record(f"step_microseconds_of_{WORKERS}_workers", slower, most=STEP_GROWTH))
    wrong = _wrong_parts(manifest.label.astype(np.int64))
    records.append(record("examples_repeated_or_missing", [wrong], most=0))
    return records


def _sources() -> list[Record]:
    return [{"name": f"source-{number}", "path": "nowhere"} for number in range(20)]


def _manifest(size: int) -> Manifest:
    """Return the columns of a manifest; those that no order looks at take no memory."""
    numbers = np.arange(size)
    names = [entry["name"] for entry in _sources()]
    same: Callable[..., Any] = np.broadcast_to
    return Manifest(
        path=["image.jpg"] * size,
        file=["image.jpg"] * size,
        offset=same(np.int64(0), size),
        length=same(np.int64(1), size),
        sha256=same(np.uint8(0), (size, 32)),
        label=(numbers % 7 == 0).astype(np.int8),
        split=(numbers % 10 == 0).astype(np.int8),
        source=[names[number] for number in (numbers // 11 % len(names)).tolist()],
        group=[""] * size,
        width=same(np.int32(64), size),
        height=same(np.int32(64), size),
    )


def _start_seconds(manifest: Manifest, config: RunConfig) -> float:
    began = time.perf_counter()
    dataset = ImageDataset(manifest, config, "train")
    order = Order(*dataset.strata(), batch_size=BATCH, seed=1)
    assert len(order.batch_at(0).positions) == BATCH
    return time.perf_counter() - began


def _cost(strata: tuple[Any, Any], workers: int) -> dict[str, float]:
    """Return what one worker's order of an epoch holds and takes at its peak, bytes, and seconds of a step."""
    tracemalloc.start()
    order = Order(*strata, batch_size=BATCH, seed=1)
    requests = order.requests(0, 10**9, rank=workers // 2, world_size=workers)
    positions = next(requests).positions
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(positions) == BATCH // workers
    began = time.perf_counter()
    for _ in islice(requests, STEPS * 10):
        pass
    return {"held": held, "peak": peak, "step": (time.perf_counter() - began) / (STEPS * 10)}


def _wrong_parts(strata: Any) -> int:
    """Count examples of global batches, and of an evaluation, that the workers' parts repeat or leave out."""
    shares = np.array([0.5, 0.5])
    orders = [Order(strata, shares, batch_size=BATCH + 7, seed=1) for _ in range(2)]
    parts: list[list[Any]] = [[] for _ in range(STEPS)]
    for rank in range(WORKERS):
        for step, request in enumerate(orders[0].requests(0, STEPS, rank=rank, world_size=WORKERS)):
            parts[step].append(request.positions)
    wrong = 0
    for step in range(STEPS):
        wrong += int((np.concatenate(parts[step]) != orders[1].batch_at(step).positions).sum())
    total = len(strata) + 13
    bounds = [slice_bounds(total, rank, WORKERS) for rank in range(WORKERS)]
    ends = [0, *(high for _, high in bounds)]
    return wrong + sum(low != end for (low, _), end in zip(bounds, ends, strict=False)) + (ends[-1] != total)


# -- real --------------------------------------------------------------------------------------------------------------


def two_workers(scratch: Path, *, steps: int, repeats: int) -> list[dict[str, Any]]:
    """Measure runs of one and of two workers by turns."""
    from benchmarks.faults.pictures import draw_faces

    config = scratch / "faces.yaml"
    faces = draw_faces(scratch / "faces", 300)
    config.write_text(CONFIG.format(faces=faces, steps=steps), encoding="utf-8")
    turn = 0

    def train(workers: int) -> tuple[float, int]:
        nonlocal turn
        turn += 1
        storage = scratch / f"storage-{turn}"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={workers}"]
        command += ["ray_jobs/train.py", "--config", str(config), "--storage", str(storage)]
        environment = {**os.environ, "HAI_CACHE": str(scratch / "cache")}
        output_of(command, cwd=_ROOT, env=environment, patience=300.0)
        written = (storage / "faces" / "checkpoints").rglob("*")
        return _examples_per_second(storage / "faces"), sum(file.stat().st_size for file in written if file.is_file())

    found = interleaved({"one": lambda: train(1), "two": lambda: train(2)}, repeats)
    one, two = ([turn[0] for turn in found[name]] for name in ("one", "two"))
    return [
        record("checkpoint_bytes_of_two_workers", ratios(found["two"], found["one"], 1), most=GROWTH),
        record("two_workers_ratio", ratios(two, one)),
        record("one_worker_examples_per_second", one),
        record("two_workers_examples_per_second", two),
    ]


def _examples_per_second(run: Path) -> float:
    """Return the rate between the first and the last record of training that is no evaluation's."""
    from hai.checkpoint.records import METRICS, load_records

    found = [entry for entry in load_records(run / METRICS) if "train/loss" in entry and "val/accuracy" not in entry]
    first, last = found[0], found[-1]
    return float(64 * (last["step"] - first["step"]) / (last["time"] - first["time"]))


if __name__ == "__main__":
    main(run)
