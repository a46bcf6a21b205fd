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
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError
from ray.train.backend import Backend, BackendConfig

from hai.launch.leaving import take_sigterm

__all__ = ["GroupConfig"]

_PATIENCE = datetime.timedelta(minutes=30)  # of a worker for the others, as Ray has it
_PARTING_SECONDS = 30.0
_stores: list[Any] = []  # rank 0's, from when it is opened until the group is joined


class _GroupBackend(Backend):
    share_cuda_visible_devices = True  # NCCL wants to see the machine's other GPUs
    _failures = 0

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """Join the workers of a group that has just started; where that fails, let Ray start another."""
        try:
            self._meet(worker_group, backend_config)
        except (RayActorError, RayTaskError) as error:
            self._failures += isinstance(error, RayTaskError)
            if 0 <= backend_config.max_failures < self._failures:
                raise
            _give_up(worker_group, error)

    def _meet(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(take_sigterm)
        size = len(worker_group)
        if size == 1:
            return
        place: str | tuple[str, int]
        if backend_config.folder is not None:
            folder = Path(backend_config.folder)
            folder.mkdir(parents=True, exist_ok=True)
            place = f"file://{folder / uuid.uuid4().hex}"
        else:
            worker_group.execute(_import_torch)  # takes seconds, so on all at once
            place = worker_group.execute_single(0, _open_place, size)
        ray.get(
            [
                worker_group.execute_single_async(rank, _join, backend_config.backend, place, rank, size)
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
        max_failures: how often they may fail to find each other; -1: always.
    """

    backend: str
    folder: str | None = None
    max_failures: int = 0

    @property
    def backend_cls(self) -> type[_GroupBackend]:
        """Return what carries it out."""
        return _GroupBackend


def _give_up(worker_group: Any, error: Exception) -> None:
    """Free what a group has that could not be joined, and raise what Ray answers with another one.

    Ray itself would keep the machines of a group that fails so late.
    """
    try:
        from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError
    except ImportError:  # a Ray that has moved its parts
        raise error from None
    worker_group.abort()
    raise WorkerGroupStartupFailedError(f"the workers did not find each other: {error}") from error


def _import_torch() -> None:
    import torch.distributed  # noqa: F401


def _open_place(size: int) -> tuple[str, int]:
    """Open a port on this worker, where the others find it, and return its host and number."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    host = str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]
    store = TCPStore(host, 0, size, is_master=True, wait_for_workers=False, timeout=_PATIENCE)
    _stores.append(store)
    return host, store.port


def _join(backend: str, place: str | tuple[str, int], rank: int, size: int) -> None:
    import torch.distributed as dist

    if isinstance(place, str):
        loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(name, loopback)
        dist.init_process_group(backend, init_method=place, rank=rank, world_size=size, timeout=_PATIENCE)
        return
    store = _stores.pop() if _stores else None
    if store is None:
        store = dist.TCPStore(*place, size, wait_for_workers=False, timeout=_PATIENCE)  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_PATIENCE)


def _part() -> None:
    import torch
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
