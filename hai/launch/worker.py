"""What every worker does, whoever started it: threads, device, task, loop, and the page at the end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from hai.config.schema import RunConfig
from hai.context import Context
from hai.cpus import num_cpus
from hai.distributed import Workers
from hai.launch.plan import Plan
from hai.loop import train
from hai.memory import freed_memory_kept
from hai.tasks import build_task
from hai.tasks.base import Datasets
from hai.types import Arrays, Record

__all__ = ["run_worker"]


def run_worker(
    plan: Plan,
    *,
    device: torch.device,
    rank: int = 0,
    world_size: int = 1,
    local_world_size: int = 1,
    micro_batch_limit: int | None = None,
    request: Callable[[], int],
    report: Callable[[Record], None],
    say: Callable[[str], None],
    show: Callable[[Record], None],
) -> Record:
    """Prepare and train one worker's part of a run and return the summary."""
    config = RunConfig.model_validate_json(plan.config)
    torch.set_num_threads(config.scale.cpus_per_worker or max(1, num_cpus() // local_world_size))
    context = Context(
        storage=plan.storage,
        name=plan.name,
        attempt=plan.attempt,
        device=device,
        rank=rank,
        world_size=world_size,
        local_world_size=local_world_size,
        resume=plan.resume,
        micro_batch_limit=micro_batch_limit,
        until_epoch=plan.until_epoch,
        wait_for_upload=plan.wait_for_upload,
        provenance=plan.provenance,
        request=request,
        report=report,
        say=say,
        show=show,
        publish=_publish if plan.until_epoch is None else _leave,
    )
    task = build_task(config)
    with freed_memory_kept(device):
        if not task.prepare(Workers.join(rank, world_size, device), say=say, asked=request):
            return {"status": "interrupted", "step": 0}
        if plan.only_prepare:
            return {"status": "finished", "step": 0}
        return train(config, task, context)


def _leave(folder: Path, predictions: Arrays | None, datasets: Datasets) -> None:
    """Write no page of a run that only pauses."""


def _publish(folder: Path, predictions: Arrays | None, datasets: Datasets) -> None:
    from hai.embeddings import EmbeddedDataset
    from hai.report import write_training_report

    training = datasets.splits["train"]
    features = training.features if isinstance(training, EmbeddedDataset) else None
    write_training_report(folder, predictions, datasets.details, features=features)
