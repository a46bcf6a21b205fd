"""Training without Ray: in this process, or as one of the processes that torchrun started."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
import torch.distributed as dist

from hai.launch.plan import Outcome, Plan
from hai.launch.preemption import saving
from hai.launch.signals import StopSignals
from hai.launch.worker import run_worker
from hai.types import Record

__all__ = ["train_in_process"]


def train_in_process(
    plan: Plan, *, use_gpu: bool | None, say: Callable[[str], None], show: Callable[[Record], None]
) -> Outcome:
    """Train here; under torchrun (RANK and WORLD_SIZE are set) together with the other processes."""
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local_rank, local_world_size = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    on_gpu = torch.cuda.is_available() if use_gpu is None else use_gpu
    device = torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    if world_size > 1:
        dist.init_process_group("nccl" if on_gpu else "gloo")
    is_first = rank == 0
    heard = say if is_first else lambda _: None
    try:
        with StopSignals(heard) as signals, saving(lambda: signals.request, heard, is_first=is_first) as request:
            summary = run_worker(
                plan,
                device=device,
                rank=rank,
                world_size=world_size,
                local_world_size=local_world_size,
                request=request,
                report=lambda _: None,
                say=heard,
                show=show if is_first else lambda _: None,
            )
    finally:
        if world_size > 1:
            dist.destroy_process_group()
    return Outcome(str(summary["status"]), summary)
