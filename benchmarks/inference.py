"""How long a checkpoint takes for an image and for a pair, what memory it needs, which of the usual targets it meets.

`hai benchmark inference --checkpoint REF`. The targets are those that users of pairwise rankers ask for: below 100 ms
for a pair and below 12 GB, both meant for a GPU, and a pair accuracy of 0.60 on the run's own test evaluation. A target
that was not measured, such as the accuracy of a run without an evaluation, has no value and counts as missed.
"""

from __future__ import annotations

import json
import resource
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hai.data.augment import normalise
from hai.tasks import build_task
from hai.trained import Trained, best_device, load_trained
from hai.types import Record

_LATENCY_MS, _MEMORY_GB, _ACCURACY = 100.0, 12.0, 0.60


def run(quick: bool = False, checkpoint: str = "") -> list[Record]:
    trained = load_trained(checkpoint, best_device())
    size, repeats = trained.layout.size, 5 if quick else 30
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.integers(0, 256, (32, 3, size, size), dtype=np.uint8)).to(trained.device)
    task = build_task(trained.config)

    def predict(count: int) -> float:
        batch = {"image": normalise(pixels[:count]), "index": torch.arange(count), "label": torch.zeros(count).long()}
        batch = {name: values.to(trained.device) for name, values in batch.items()}
        _wait(trained.device)
        began = time.perf_counter()
        with torch.inference_mode():
            task.predict(trained.model, batch)
        _wait(trained.device)
        return 1e3 * (time.perf_counter() - began)

    counts = (1, 2, 8 if quick else 32)
    for count in counts:
        predict(count)  # builds what is built lazily, picks kernels
    times: dict[int, list[float]] = {count: [] for count in counts}
    for _ in range(repeats):
        for count in counts:
            times[count].append(predict(count))
    many = counts[-1]
    memory = _memory_gb(trained.device)
    pair = _timed("pair, ms", times[2])
    accuracy = _test_accuracy(trained)
    return [
        _timed("image, ms", times[1]),
        pair,
        _timed(f"image in a batch of {many}, ms", [value / many for value in times[many]]),
        _plain("memory, GB", memory),
        _plain("test pair_accuracy", accuracy),
        _target("meets_latency_target", statistics.median(times[2]) < _LATENCY_MS),
        _target("meets_memory_target", memory < _MEMORY_GB),
        _target("meets_accuracy_target", accuracy is not None and accuracy >= _ACCURACY),
    ]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _memory_gb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def _test_accuracy(trained: Trained) -> float | None:
    """Read the pair accuracy of the run's own evaluation on its test split."""
    file = Path(trained.run) / "evaluation" / "test" / "evaluation.json"
    if not file.is_file():
        return None
    metric: Record = json.loads(file.read_text(encoding="utf-8"))["metrics"].get("pair_accuracy", {})
    value = metric.get("value")
    return None if value is None else float(value)


def _timed(name: str, values: list[float]) -> Record:
    low, high = (float(np.quantile(values, share)) for share in (0.25, 0.75))
    return {"name": name, "value": statistics.median(values), "low": low, "high": high, "floor": None, "holds": True}


def _plain(name: str, value: Any) -> Record:
    return {"name": name, "value": value, "low": None, "high": None, "floor": None, "holds": True}


def _target(name: str, meets: bool) -> Record:
    """A flag; it informs and never fails the suite, since the targets are meant for a GPU and a test set."""
    return {"name": name, "value": meets, "low": None, "high": None, "floor": None, "holds": True}
