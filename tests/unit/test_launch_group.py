"""How the workers of several machines find each other, here as processes and without Ray."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.timeout(600), pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")]


class Group:
    """Two workers, asked as Ray Train's are."""

    def __init__(self) -> None:
        self.workers = [ProcessPoolExecutor(1, mp_context=get_context("spawn")) for _ in range(2)]
        self.is_aborted = False

    def __len__(self) -> int:
        return len(self.workers)

    def execute(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        return [one.result() for one in [worker.submit(function, *arguments) for worker in self.workers]]

    def execute_single(self, rank: int, function: Callable[..., Any], *arguments: Any) -> Any:
        return self.execute_single_async(rank, function, *arguments).result()

    def execute_single_async(self, rank: int, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        return self.workers[rank].submit(function, *arguments)

    def abort(self) -> None:
        self.is_aborted = True


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> Iterator[Group]:
    monkeypatch.setattr("hai.launch.group.ray.get", lambda futures: [future.result() for future in futures])
    group = Group()
    yield group
    for worker in group.workers:
        worker.shutdown()


def add() -> float:
    import torch

    total = torch.ones(1)
    torch.distributed.all_reduce(total)
    return float(total)


def part() -> str | None:
    from hai.launch.group import _part

    _part()
    return os.environ.get("GLOO_SOCKET_IFNAME")


def test_workers_meet_through_a_port_that_stays_open_or_a_file(group: Group, tmp_path: Path) -> None:
    from hai.launch.group import GroupConfig

    config = GroupConfig("gloo")
    config.backend_cls().on_start(group, config)
    assert group.execute(add) == [2.0, 2.0]
    assert group.execute(part) == [None, None]
    group.execute(_name_network)
    config = GroupConfig("gloo", str(tmp_path / "groups"))
    config.backend_cls().on_start(group, config)
    assert group.execute(add) == [2.0, 2.0]
    assert group.execute(part) == ["lo", "lo"]
    assert group.execute(os.getenv, "NCCL_SOCKET_IFNAME") == ["ens5"] * 2, "the user's own stays"


def _name_network() -> None:
    os.environ["NCCL_SOCKET_IFNAME"] = "ens5"


def test_workers_that_do_not_find_each_other_are_started_again_so_often() -> None:
    from ray.exceptions import RayTaskError
    from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError
    from ray.train.v2._internal.execution.failure_handling.default import RETRYABLE_CONTROLLER_ERRORS

    from hai.launch.group import GroupConfig

    class Lost(Group):
        def execute(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
            raise RayTaskError("_join", "the port is taken", RuntimeError("the port is taken"))

    config = GroupConfig("gloo", max_failures=2)
    backend = config.backend_cls()
    for _ in range(2):
        lost = Lost()
        with pytest.raises(WorkerGroupStartupFailedError, match="the port is taken"):
            backend.on_start(lost, config)
        assert lost.is_aborted, "else Ray keeps its machines"
    with pytest.raises(RayTaskError):
        backend.on_start(Lost(), config)
    assert WorkerGroupStartupFailedError in RETRYABLE_CONTROLLER_ERRORS
