"""What workers say to each other arrives whole, and gathered rows keep only the worker's own graph."""

from __future__ import annotations

import socket
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing

from hai.distributed import Workers


def _talk(rank: int, world_size: int, port: int) -> None:
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size)
    workers = Workers.join(rank, world_size, torch.device("cpu"))
    assert workers.agree(7 + rank) == 7
    assert workers.largest(7 + rank) == 7 + world_size - 1
    record = {"name": "Prüfung", "value": 0.1, "nested": [1, None]}
    assert workers.share(record if rank == 0 else None) == record
    assert workers.share(None) == {}

    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(3), "c": torch.ones(2, dtype=torch.bfloat16)}
    shared = workers.share_tensors(tensors if rank == 0 else None)
    assert [value.dtype for value in shared.values()] == [value.dtype for value in tensors.values()]
    assert all(torch.equal(shared[name], value) for name, value in tensors.items())

    counts = [1, 2, 4][:world_size]
    own = torch.full((counts[rank], 2), float(rank), requires_grad=True)
    rows = workers.gather_rows(own, counts)
    assert rows[:, 0].tolist() == [float(r) for r in range(world_size) for _ in range(counts[r])]
    (rows * torch.arange(1.0, len(rows) + 1)[:, None]).sum().backward()
    before = sum(counts[:rank])
    expected = torch.arange(before + 1.0, before + 1 + counts[rank])[:, None].expand(-1, 2)
    assert torch.equal(own.grad, expected)

    arrays = workers.gather_arrays({"x": np.arange(rank + 1), "y": np.full((rank + 1, 2), rank, dtype=np.float32)})
    assert arrays["x"].tolist() == [n for r in range(world_size) for n in range(r + 1)]
    assert arrays["y"].shape == (sum(range(1, world_size + 1)), 2)
    assert workers.total(torch.tensor([1.0, rank])).tolist() == [world_size, sum(range(world_size))]
    workers.wait()
    dist.destroy_process_group()


@pytest.mark.parametrize("world_size", [2, 3])
def test_workers_talk(tmp_path: Path, world_size: int) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.start_processes(_talk, (world_size, port), nprocs=world_size, start_method="fork")


def test_a_group_of_one_says_everything_to_itself() -> None:
    workers = Workers()
    rows = torch.ones(3, 2, requires_grad=True)
    assert workers.gather_rows(rows, [3]) is rows
    assert workers.share({"a": 1}) == {"a": 1}
    assert workers.agree(5) == workers.largest(5) == 5
