"""The training loop against a bare PyTorch loop, inside a real Ray Train worker on this machine's CPUs.

The loop asks its launcher between any two steps whether to go on; here each question is answered after one step of the
bare loop on a model, an optimizer and batches of the same kind. So the two alternate step by step, and a busy machine
slows both alike. Both read batches from memory, clip, and step a fused AdamW; what the loop adds is the schedule, keyed
dropout, finite checks, training metrics and their records, TensorBoard events and the progress line.

- `step_ratio`: seconds of a step of the loop over seconds of a bare one; at most 1.2. The median over blocks of steps,
  `low` and `high` are the smallest and the largest block.
- `evaluation_share`: what one evaluation adds to 1,000 steps of 32, as a share of them: predicting 2,000 validation
  examples (its cost grows with their number), metrics, threshold, checkpoint and `ray.train.report`; at most
  0.05. The median over evaluations, `low` and `high` their extremes.
- `loop_milliseconds`, `bare_milliseconds`, `evaluation_seconds`: what these are made of.

Run alone with `python -m benchmarks.loop [--quick]`; quick: in this process, without Ray.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks._measure import main, record
from hai.config.schema import RunConfig

SIZE, BATCH, EPOCH_STEPS, VALIDATION = 64, 32, 1000, 2000
STEP_RATIO, EVALUATION_SHARE = 1.2, 0.05
CONFIG: dict[str, Any] = {
    "data": {"image_size": SIZE},
    "model": {"name": "compact", "pretrained": False},
    "optim": {"learning_rate": 1e-3},
    "train": {"global_batch_size": BATCH, "max_epochs": None, "eval_batch_size": 2 * BATCH, "ema_decay": None},
}


def run(quick: bool) -> list[dict[str, Any]]:
    """Measure; each record says whether it keeps its floor."""
    interval, evaluations = (60, 2) if quick else (200, 5)
    with tempfile.TemporaryDirectory(prefix="hai-benchmark-") as scratch:
        if quick:
            _measure(Path(scratch), interval, evaluations, report=lambda record: None)
        else:
            with mock.patch.dict(os.environ, RAY_ADDRESS="local"):  # never on a cluster that others use
                _train_on_ray({"scratch": scratch, "interval": interval, "evaluations": evaluations})
        measured = json.loads((Path(scratch) / "measured.json").read_text(encoding="utf-8"))
    blocks = [sum(own) / sum(bare) for own, bare in zip(measured["own"], measured["bare"], strict=True)]
    step = statistics.median([second for block in measured["own"] for second in block])
    bare = [second for block in measured["bare"] for second in block]
    pauses = [pause - step for pause in measured["pauses"]]
    shares = [pause / (EPOCH_STEPS * step) for pause in pauses]
    return [
        record("step_ratio", blocks, most=STEP_RATIO),
        record("evaluation_share", shares, most=EVALUATION_SHARE),
        record("loop_milliseconds", [1000 * second for block in measured["own"] for second in block]),
        record("bare_milliseconds", [1000 * second for second in bare]),
        record("evaluation_seconds", pauses),
    ]


def _train_on_ray(spec: dict[str, Any]) -> None:
    from hai.launch.cluster import connected

    with connected(lambda line: print(line, file=sys.stderr)) as ray:
        import ray.cloudpickle
        import ray.train
        from ray.train.torch import TorchTrainer

        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers do not find it under this name
        cpus = max(1, int(ray.cluster_resources().get("CPU", 1)))
        TorchTrainer(
            _on_worker,
            train_loop_config=spec | {"cpus": cpus},
            scaling_config=ray.train.ScalingConfig(num_workers=1, resources_per_worker={"CPU": cpus}),
            run_config=ray.train.RunConfig(
                name="loop", storage_path=spec["scratch"], logging_config=ray.train.LoggingConfig(log_level="ERROR")
            ),
        ).fit()


def _on_worker(spec: dict[str, Any]) -> None:
    import ray.train
    import torch

    torch.set_num_threads(spec["cpus"])
    _measure(
        Path(spec["scratch"]), spec["interval"], spec["evaluations"], report=lambda record: ray.train.report(record)
    )


def _measure(scratch: Path, interval: int, evaluations: int, *, report: Callable[[dict[str, Any]], object]) -> None:
    """Train with both loops by turns.

    Writes `measured.json`: seconds of the steps of both loops, in blocks between evaluations; and seconds of the step
    before each evaluation together with it.
    """
    from hai.context import Context
    from hai.loop import train

    steps = interval * evaluations + 1
    sections = dict(CONFIG)
    sections["train"] = CONFIG["train"] | {"max_steps": steps, "eval_every_epochs": interval / EPOCH_STEPS}
    config = RunConfig.model_validate(sections)
    task = in_memory_task(config)
    bare_step = _bare_loop(config, task)
    entered: list[float] = []
    left: list[float] = []

    def request() -> int:
        entered.append(time.perf_counter())
        bare_step()
        left.append(time.perf_counter())
        return 0

    train(config, task, Context(str(scratch), "run", request=request, report=report))
    own = [after - before for before, after in zip(left, entered[1:], strict=False)]
    bare = [after - before for before, after in zip(entered, left, strict=True)]
    blocks = [range(interval * i + 10, interval * (i + 1) - 1) for i in range(evaluations)]  # 10 steps to warm up
    measured = {
        "own": [[own[k] for k in block] for block in blocks],
        "bare": [[bare[k] for k in block] for block in blocks],
        "pauses": [own[interval * (i + 1) - 1] for i in range(evaluations)],
    }
    (scratch / "measured.json").write_text(json.dumps(measured), encoding="utf-8")


def _bare_loop(config: RunConfig, task: Any) -> Callable[[], None]:
    """Return a function that carries out one step of the usual loop."""
    import torch
    from torch.nn.functional import cross_entropy

    torch.manual_seed(config.seed)
    model = task.build_model().to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01, fused=True)
    batches = _cycle(task.build_datasets().splits["train"])

    def step() -> None:
        batch = next(batches)
        loss = cross_entropy(model(batch["image"]), batch["label"])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _cycle(dataset: Any) -> Iterator[Any]:
    import numpy as np
    import torch

    while True:
        requests = ((0, np.arange(BATCH)) for _ in range(EPOCH_STEPS))
        yield from dataset.batches(requests, device=torch.device("cpu"), training=True)


def in_memory_task(config: RunConfig, build_model: Callable[[], Any] | None = None) -> Any:
    """Build the detector's task on batches in memory, so that no loader is part of what is measured.

    Args:
        config: its image size and batch size count.
        build_model: builds another model than the config names.
    """
    import numpy as np
    import torch

    from hai.losses import DetectorLoss
    from hai.tasks.base import Datasets
    from hai.tasks.detector import DetectorTask

    size, batch_size = config.data.image_size, config.train.global_batch_size

    class InMemory:
        """A split of any length whose examples repeat one ready batch."""

        def __init__(self, length: int) -> None:
            generator = torch.Generator().manual_seed(length)
            images = torch.randn(2 * batch_size, 3, size, size, generator=generator)
            self._images = images.contiguous(memory_format=torch.channels_last)
            self._labels = torch.arange(2 * batch_size) % 2
            self._length = length

        def __len__(self) -> int:
            return self._length

        def strata(self) -> tuple[Any, Any]:
            return np.zeros(self._length, dtype=np.int64), np.ones(1)

        def batches(self, requests: Iterable[Any], *, device: torch.device, training: bool) -> Iterator[Any]:
            for _, positions in requests:
                count = len(positions)
                index = torch.from_numpy(positions)
                yield {"image": self._images[:count], "label": self._labels[:count], "index": index}

        def prepare(self, batch: Any, *, epoch: int, training: bool) -> Any:
            return batch

    class Task(DetectorTask):
        def build_model(self) -> torch.nn.Module:
            return super().build_model() if build_model is None else build_model()

        def backbone(self, model: torch.nn.Module) -> set[str]:
            return super().backbone(model) if build_model is None else set()

        def build_datasets(self, *, progress: Any = None) -> Datasets:
            self._loss = DetectorLoss(self._config.loss, [1, 1])
            return Datasets(
                {"train": InMemory(EPOCH_STEPS * batch_size), "val": InMemory(VALIDATION)}, identity="memory", table=[]
            )

    return Task(config)


if __name__ == "__main__":
    main(run)
