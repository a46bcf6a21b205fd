"""How Ray Train's workers become one group: torch's process group, on one machine without a port, and their SIGTERM.

What Ray's own `TorchConfig` does, but for torch in the process that only steers: this module is read there too, where
an import of torch costs seconds at every start and hundreds of MB.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError
from ray.train.backend import Backend, BackendConfig

from hai.launch.leaving import take_sigterm

__all__ = ["GroupConfig"]

_PATIENCE_SECONDS = 1800.0  # of a worker for the others, as Ray has it
_PARTING_SECONDS = 30.0


class _GroupBackend(Backend):
    share_cuda_visible_devices = True  # NCCL wants to see the machine's other GPUs

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """Join the workers of a group that has just started."""
        worker_group.execute(take_sigterm)
        size, is_local = len(worker_group), backend_config.folder is not None
        if size == 1:
            return
        if is_local:
            folder = Path(backend_config.folder)
            folder.mkdir(parents=True, exist_ok=True)
            meeting = f"file://{folder / uuid.uuid4().hex}"
        else:
            meeting = worker_group.execute_single(0, _free_place)
        ray.get(
            [
                worker_group.execute_single_async(rank, _join, backend_config.backend, meeting, is_local, rank, size)
                for rank in range(size)
            ]
        )

    def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
        """Part the workers of a group that ends or starts again."""
        with contextlib.suppress(GetTimeoutError):  # one hangs; its process ends soon
            ray.get(worker_group.execute_async(_part), timeout=_PARTING_SECONDS)


@dataclass
class GroupConfig(BackendConfig):
    """How the workers find each other.

    Args:
        backend: nccl or gloo.
        folder: a folder that all workers see, where they live on one machine; None: through a port of rank 0's.
    """

    backend: str
    folder: str | None = None

    @property
    def backend_cls(self) -> type[_GroupBackend]:
        """Return what carries it out."""
        return _GroupBackend


def _free_place() -> str:
    """Return where the others find this worker, as an address of torch's."""
    address = str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    return f"tcp://[{address}]:{port}" if ":" in address else f"tcp://{address}:{port}"


def _join(backend: str, meeting: str, is_local: bool, rank: int, size: int) -> None:
    import torch.distributed as dist

    if is_local:
        loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
        os.environ |= {"GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": loopback}
    timeout = datetime.timedelta(seconds=_PATIENCE_SECONDS)
    dist.init_process_group(backend, init_method=meeting, rank=rank, world_size=size, timeout=timeout)


def _part() -> None:
    import torch
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
