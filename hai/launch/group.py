"""How Ray Train's workers become one group: torch's process group, on one machine without a port, and their SIGTERM."""

from __future__ import annotations

import datetime
import os
import socket
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch.distributed as dist
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend
from torch.distributed import FileStore  # type: ignore[attr-defined]

from hai.launch.leaving import take_sigterm

__all__ = ["GroupConfig"]


class _GroupBackend(_TorchBackend):
    """Ray's, but on one machine the workers find each other through a file instead of a port of all interfaces."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """Join the workers of a group that has just started."""
        worker_group.execute(take_sigterm)
        if backend_config.folder is None:
            super().on_start(worker_group, backend_config)
            return
        folder = Path(backend_config.folder)
        folder.mkdir(parents=True, exist_ok=True)
        meeting = str(folder / uuid.uuid4().hex)
        size = len(worker_group)
        joined = [
            worker_group.execute_single_async(
                rank, _join, backend_config.backend, meeting, rank, size, backend_config.timeout_s
            )
            for rank in range(size)
        ]
        ray.get(joined)


@dataclass
class GroupConfig(TorchConfig):
    """How the workers find each other.

    Args:
        backend: nccl or gloo.
        folder: a folder that all workers see, where they live on one machine; None: through a port of rank 0's.
    """

    folder: str | None = None

    @property
    def backend_cls(self) -> type[_GroupBackend]:
        """Return what carries it out."""
        return _GroupBackend


def _join(backend: str, meeting: str, rank: int, size: int, timeout_s: float) -> None:
    loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    os.environ |= {"GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": loopback}
    dist.init_process_group(
        backend,
        store=FileStore(meeting, size),
        rank=rank,
        world_size=size,
        timeout=datetime.timedelta(seconds=timeout_s),
    )
