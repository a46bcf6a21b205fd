"""What a launcher tells the loop about where it runs, and how the loop talks back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from hai.tasks.base import Datasets
from hai.types import Arrays, Record

__all__ = ["Context"]


def _nothing(*_: object) -> None:
    return None


@dataclass(frozen=True)
class Context:
    """One worker's surroundings.

    Args:
        storage: folder or URL that holds the runs.
        name: name of the run.
        attempt: id of the attempt that owns the run; a writer that no longer owns it stops writing.
        device: where this worker computes.
        rank: position of this worker; 0 decides, saves and reports.
        world_size: number of workers; above 1 the launcher has made a process group.
        local_world_size: workers on this machine, which share its CPUs.
        resume: run folder or checkpoint, local or a URL, to start from when the run has no checkpoint of its own.
        micro_batch_limit: largest micro-batch that the launcher has seen fit, after memory had run out; None: no news.
        until_epoch: stop, everything saved, at the first evaluation at or after this epoch; None: train to the end.
        wait_for_upload: wait at the end until everything is confirmed on the storage.
        request: asked between two steps on rank 0; 0, SAVE or STOP.
        report: takes the metrics of an evaluation, on all workers.
        say: takes a line for people, on rank 0.
        show: takes progress for a bar, on rank 0: step, total_steps, epoch, loss, examples_per_second.
        publish: writes pages into the run folder at the end, from the best evaluation's predictions, on rank 0.
        provenance: versions, commit, hardware and command, for the summary.
    """

    storage: str
    name: str
    attempt: str | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    rank: int = 0
    world_size: int = 1
    local_world_size: int = 1
    resume: str | None = None
    micro_batch_limit: int | None = None
    until_epoch: float | None = None
    wait_for_upload: bool = False
    provenance: Record = field(default_factory=dict)
    request: Callable[[], int] = lambda: 0
    report: Callable[[Record], None] = _nothing
    say: Callable[[str], None] = _nothing
    show: Callable[[Record], None] = _nothing
    publish: Callable[[Path, Arrays | None, Datasets], None] = _nothing
