"""How many workers fit on which machines, and what a cluster that grows says of itself."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hai.errors import ConfigError
from hai.launch.room import GROWS_TO, Machine, machines_of, num_workers_in, shared_cpus

HEAD = {"Alive": True, "Resources": {"memory": 1e9, "node:__internal_head__": 1.0}}  # started with --num-cpus=0
L4 = {"Alive": True, "Resources": {"CPU": 8.0, "GPU": 1.0, "accelerator_type:L4": 1.0}}


def test_machines_that_are_gone_do_not_count() -> None:
    assert machines_of([HEAD, L4, {**L4, "Alive": False}], {}) == [Machine(0, 0), Machine(8, 1)]


@pytest.mark.parametrize("running", [0, 1, 4])
def test_a_cluster_that_grows_has_what_it_can_start(running: int) -> None:
    machines = machines_of([HEAD, *[L4] * running], {GROWS_TO: "4 CPU=8 GPU=1; 2 CPU=16"})
    assert sorted(machines) == [Machine(0, 0), *[Machine(8, 1)] * 4, *[Machine(16, 0)] * 2]


def test_more_machines_than_announced_all_count() -> None:
    assert machines_of([L4] * 3, {GROWS_TO: "2 CPU=8 GPU=1"}) == [Machine(8, 1)] * 3


@pytest.mark.parametrize("text", ["4", "4 GPU=1", "CPU=8", "4 x CPU=8", "4 CPU=8, 2 CPU=16", "4 CPU=8 GPU=one"])
def test_what_cannot_be_read_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match=r"HAI_GROWS_TO: .*4 CPU=8 GPU=1"):
        machines_of([], {GROWS_TO: text})


def test_a_worker_gets_its_machines_share() -> None:
    head_and_two = [Machine(0, 0), Machine(8, 1), Machine(8, 1)]
    assert shared_cpus(head_and_two, 2, 2, gpus=1) == 8
    assert shared_cpus(head_and_two, 1, 4, gpus=1) == 8  # the other two have no GPU to run on
    assert shared_cpus([Machine(32, 0), Machine(8, 1)], 1, 1, gpus=1) == 8  # not a share of 40
    assert shared_cpus([Machine(2, 0)] * 3, 2, 2, gpus=0) == 2  # 6 // 2 = 3 fits on none
    assert shared_cpus([Machine(2, 0)] * 3, 4, 4, gpus=0) == 1


MACHINES = st.lists(st.builds(Machine, st.integers(0, 12), st.integers(0, 4)), max_size=5)


@given(MACHINES, st.integers(1, 6), st.integers(0, 6), st.booleans())
def test_no_larger_share_would_do(machines: list[Machine], least: int, more: int, use_gpu: bool) -> None:
    most = least + more
    share = shared_cpus(machines, least, most, gpus=use_gpu)
    fit = num_workers_in(machines, share, gpus=use_gpu)
    possible = min(most, num_workers_in(machines, 1, gpus=use_gpu))
    if possible < least:
        assert share == 1
        return
    assert fit >= possible
    assert num_workers_in(machines, share + 1, gpus=use_gpu) < possible
