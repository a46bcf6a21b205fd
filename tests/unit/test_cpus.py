"""The CPUs of a container, not those of the machine around it."""

import os
from pathlib import Path

import pytest

from hai.cpus import num_cpus

HERE = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, HERE),
        ({"cpu.max": "max 100000\n"}, HERE),
        ({"cpu.max": "100000 100000\n"}, 1),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": f"{HERE * 100000 - 1} 100000\n"}, HERE),
        ({"cpu.max": "6400000 100000\n"}, min(HERE, 64)),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, HERE),
        ({"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "100000\n"}, HERE),
        ({"cpu.max": "rubbish"}, HERE),
        ({"cpu.max": "1 0"}, HERE),
    ],
)
def test_the_limit_of_a_container_counts(files: dict[str, str], expected: int, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="ascii")
    assert num_cpus(tmp_path) == expected
