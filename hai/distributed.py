"""The few things workers say to each other: JSON records, integers, and rows gathered with the worker's own graph."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from hai.types import Arrays, Record

__all__ = ["Workers"]


@dataclass(frozen=True)
class Workers:
    """One worker's view of its group; every method is a no-op for a group of one.

    Args:
        rank: position of this worker.
        world_size: number of workers.
        device: device of this worker, which gathered tensors live on.
        control: gloo group on CPUs for decisions and records; the tensors use the default group.
    """

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    control: Any = None

    @classmethod
    def join(cls, rank: int, world_size: int, device: torch.device) -> Workers:
        """Use the process group that the launcher has made."""
        if world_size == 1:
            return cls(device=device)
        control = dist.group.WORLD if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")
        return cls(rank, world_size, device, control)

    @property
    def is_first(self) -> bool:
        """Say whether this worker decides, saves and reports."""
        return self.rank == 0

    def agree(self, value: int) -> int:
        """Return rank 0's integer on all workers."""
        if self.world_size == 1:
            return value
        holder = torch.tensor([value], dtype=torch.int64)
        dist.broadcast(holder, 0, group=self.control)
        return int(holder[0])

    def largest(self, value: int) -> int:
        """Return the largest of all workers' integers on all workers."""
        if self.world_size == 1:
            return value
        holder = torch.tensor([value], dtype=torch.int64)
        dist.all_reduce(holder, dist.ReduceOp.MAX, group=self.control)
        return int(holder[0])

    def share(self, record: Record | None) -> Record:
        """Return rank 0's record on all workers; it travels as JSON."""
        if self.world_size == 1:
            return record or {}
        data = np.frombuffer(json.dumps(record or {}).encode(), dtype=np.uint8) if self.is_first else None
        size = self.agree(0 if data is None else len(data))
        holder = torch.empty(size, dtype=torch.uint8) if data is None else torch.from_numpy(data.copy())
        dist.broadcast(holder, 0, group=self.control)
        return dict(json.loads(holder.numpy().tobytes().decode()))

    def share_tensors(self, tensors: dict[str, torch.Tensor] | None) -> dict[str, torch.Tensor]:
        """Return rank 0's tensors on all workers, on CPUs."""
        if self.world_size == 1:
            return tensors or {}
        tensors = tensors or {}
        layout = self.share({name: [str(value.dtype), list(value.shape)] for name, value in tensors.items()})
        shared = {}
        for name, (dtype, shape) in layout.items():
            own = tensors[name].contiguous() if self.is_first else torch.empty(shape, dtype=_dtype(dtype))
            if own.numel():
                dist.broadcast(own.view(-1).view(torch.uint8), 0, group=self.control)
            shared[name] = own
        return shared

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """Sum a tensor over all workers, in place."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def gather_rows(self, rows: torch.Tensor, counts: list[int]) -> torch.Tensor:
        """Put all workers' rows into rank order; this worker's own rows keep their graph, the others are constants.

        Args:
            rows: [counts[rank], ...].
            counts: rows of each worker.

        Returns:
            [sum(counts), ...] on this worker's device.
        """
        if self.world_size == 1:
            return rows
        most = max(counts)
        own = rows.detach()
        if len(own) < most:
            own = torch.cat([own, own.new_zeros((most - len(own), *own.shape[1:]))])
        received = [torch.empty_like(own) for _ in counts]
        dist.all_gather(received, own.contiguous())
        parts = [part[:count] for part, count in zip(received, counts, strict=True)]
        parts[self.rank] = rows
        return torch.cat(parts)

    def gather_arrays(self, arrays: Arrays) -> Arrays:
        """Put all workers' arrays into rank order, on all workers; the number of rows may differ."""
        if self.world_size == 1:
            return arrays
        own = len(next(iter(arrays.values())))
        counts = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world_size)]
        dist.all_gather(counts, torch.tensor([own]), group=self.control)
        sizes = [int(count) for count in counts]
        gathered: Arrays = {}
        for name, values in arrays.items():
            padded = np.zeros((max(sizes), *values.shape[1:]), dtype=values.dtype)
            padded[:own] = values
            received = [torch.empty(padded.shape, dtype=torch.from_numpy(padded).dtype) for _ in sizes]
            dist.all_gather(received, torch.from_numpy(padded), group=self.control)
            gathered[name] = np.concatenate([part.numpy()[:size] for part, size in zip(received, sizes, strict=True)])
        return gathered

    def copy_first(self, tensors: Iterable[torch.Tensor]) -> None:
        """Overwrite tensors on this worker's device with those of rank 0."""
        if self.world_size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def wait(self) -> None:
        """Wait until every worker has come here."""
        if self.world_size > 1:
            dist.barrier(group=self.control)


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name.removeprefix("torch."))
    assert isinstance(dtype, torch.dtype)
    return dtype
