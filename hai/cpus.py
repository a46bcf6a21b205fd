"""How many CPUs this process may use: those of the machine, or of the container where those are fewer."""

from __future__ import annotations

import math
import os
from pathlib import Path

__all__ = ["num_cpus"]


def num_cpus(groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Count the CPUs that this process may use, at least 1.

    The system counts all CPUs of the machine, whatever `docker run --cpus` or a limit of Kubernetes leaves of them;
    threads beyond that limit only stop each other.

    Args:
        groups: where the limits of the container stand.
    """
    counts = [len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1]
    for files in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            quota, period = (int(word) for file in files for word in (groups / file).read_text("ascii").split())
        except (OSError, ValueError):  # there is no such file, or it says "max"
            continue
        if quota > 0 and period > 0:
            counts.append(math.ceil(quota / period))
    return max(1, min(counts))
