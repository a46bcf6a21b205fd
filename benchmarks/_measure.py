"""What suites share: contestants by turns, the costs of a whole process tree, records.

Seconds on a clock mean little on a machine that does other things too. So contestants run by turns, a ratio is taken
within each turn, and beside wall time stands the time that processors spent on the process and everything it started.
"""

from __future__ import annotations

import bisect
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Self, TypeVar

__all__ = [
    "Cost",
    "Peak",
    "TreeClock",
    "cpu_seconds",
    "interleaved",
    "main",
    "memory",
    "missing",
    "output_of",
    "peak_memory",
    "ratios",
    "real_data",
    "record",
    "timed",
]

T = TypeVar("T")

_TICK = 1 / os.sysconf("SC_CLK_TCK")


class Cost(NamedTuple):
    """What a piece of work took."""

    wall: float
    """Seconds."""
    cpu: float
    """Processor seconds of this process and its descendants."""


class Peak(NamedTuple):
    """What a command took and wrote."""

    bytes: int
    """Largest proportional set size of its process tree."""
    output: str
    """What it wrote to its standard output."""


def real_data() -> Path:
    """Return the folder of real images and videos, which may be absent: HAI_TEST_DATA, or one beside the checkout."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    return Path(os.environ.get("HAI_TEST_DATA", beside)).absolute()


def cpu_seconds() -> float:
    """Return user and system seconds of this process and all its descendants, living or waited for.

    Differences of two calls are what counts. A living descendant is seen in ticks of 10 ms. Not counted: a descendant
    whose parent ended without waiting for it.
    """
    waited = os.times()
    total = time.process_time() + waited.children_user + waited.children_system
    for fields in _descendants(os.getpid()).values():
        total += sum(int(value) for value in fields[11:15]) * _TICK  # user, system; the same of its waited-for children
    return total


class TreeClock:
    """Processor seconds of all that this process has started, looked at again and again by a thread.

    Counts also what `cpu_seconds` cannot: processes whose parents leave without waiting for them, or never ask what
    they took, as Ray's do. What a process does after the last look at it is lost.

    Args:
        every: seconds between two looks.
    """

    def __init__(self, every: float = 0.5) -> None:
        self._every = every
        self._taken: dict[tuple[int, str], float] = {}
        self._when, self._sum = [time.time()], [0.0]
        self._gained: list[dict[tuple[int, str], float]] = [{}]
        self._look()
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join()

    def seconds(self, when: float | None = None) -> float:
        """Return what was taken since the start until now, or until `when` of `time.time()`, between two looks."""
        if when is None:
            return self._sum[-1]
        after = min(max(bisect.bisect_left(self._when, when), 1), len(self._when) - 1)
        (begin, end), (low, high) = self._when[after - 1 : after + 1], self._sum[after - 1 : after + 1]
        share = min(max((when - begin) / (end - begin), 0.0), 1.0) if end > begin else 1.0
        return low + share * (high - low)

    def shares(self, begin: float, end: float) -> list[float]:
        """Return what each process took between two times of `time.time()`, rounded to whole looks, most first."""
        taken: dict[tuple[int, str], float] = {}
        for when, gained in zip(self._when, self._gained, strict=True):
            if begin < when <= end:
                for process, seconds in gained.items():
                    taken[process] = taken.get(process, 0.0) + seconds
        return sorted(taken.values(), reverse=True)

    def _watch(self) -> None:
        while not self._ends.wait(self._every):
            self._note()
        self._note()

    def _note(self) -> None:
        self._gained.append(self._look())
        self._sum.append(self._sum[-1] + sum(self._gained[-1].values()))
        self._when.append(time.time())

    def _look(self) -> dict[tuple[int, str], float]:
        """Return what each process has taken since the last look."""
        gained = {}
        for pid, fields in _descendants(os.getpid()).items():
            process = (pid, fields[19])  # with its start time
            taken = sum(int(value) for value in fields[11:13]) * _TICK
            if taken > self._taken.get(process, 0.0):
                gained[process] = taken - self._taken.get(process, 0.0)
                self._taken[process] = taken
        return gained


def timed(work: Callable[[], object]) -> Cost:
    """Return what some work in this process, and all that it starts, takes."""
    wall, cpu = time.perf_counter(), cpu_seconds()
    work()
    return Cost(time.perf_counter() - wall, cpu_seconds() - cpu)


def interleaved(contestants: Mapping[str, Callable[[], T]], repeats: int) -> dict[str, list[T]]:
    """Run contestants by turns, every second time in reverse, so that a busy machine slows all alike.

    Args:
        contestants: each returns its own measurement: a number, or a tuple such as `timed` gives.
        repeats: turns.

    Returns:
        The measurements of each contestant, one per turn.
    """
    measured: dict[str, list[T]] = {name: [] for name in contestants}
    for turn in range(repeats):
        names = list(contestants)
        for name in names if turn % 2 == 0 else reversed(names):
            measured[name].append(contestants[name]())
    return measured


def ratios(above: Sequence[Any], below: Sequence[Any], field: int | None = None) -> list[float]:
    """Divide measurements turn by turn.

    Args:
        above: a contestant's, one per turn.
        below: another's.
        field: which entry of a tuple, 0 wall and 1 CPU seconds of a Cost; None: the measurement is a number.
    """
    if field is not None:
        above, below = [entry[field] for entry in above], [entry[field] for entry in below]
    return [float(a) / float(b) for a, b in zip(above, below, strict=True)]


def record(name: str, values: Sequence[float], floor: float | None = None, most: float | None = None) -> dict[str, Any]:
    """Sum up what was measured: the median and the extremes.

    Args:
        name: what it is, unit included.
        values: one per repeat, at least one.
        floor: the median must be at least this.
        most: or at most this, which then stands as the record's `floor`.
    """
    value = statistics.median(values)
    holds = (floor is None or value >= floor) and (most is None or value <= most)
    limit = floor if most is None else most
    return {"name": name, "value": value, "low": min(values), "high": max(values), "floor": limit, "holds": holds}


def missing(name: str, floor: float | None = None) -> dict[str, Any]:
    """Return the record of what could not be measured, which neither holds nor fails."""
    return {"name": name, "value": None, "low": None, "high": None, "floor": floor, "holds": None}


def main(run: Callable[[bool], list[dict[str, Any]]]) -> NoReturn:
    """Run a suite alone: print its records, exit with 1 where one does not hold."""
    results = run("--quick" in sys.argv)
    print(json.dumps(results, indent=1))
    sys.exit(1 if any(result["holds"] is False for result in results) else 0)


def output_of(command: Sequence[str], *, patience: float | None = None, **settings: Any) -> str:
    """Run a command to its end and return its standard output; what it says besides is shown only where it fails.

    Args:
        command: program and arguments.
        patience: seconds; after them it is killed with all that it has started, as at an interruption.
        settings: of `subprocess.Popen`, such as `env` and `cwd`.

    Raises:
        subprocess.CalledProcessError: it failed.
        subprocess.TimeoutExpired: it took too long.
    """
    from benchmarks.faults.ray_kills import kill_tree

    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **settings) as process:
        try:
            output, said = process.communicate(timeout=patience)
        except BaseException:
            kill_tree(process)
            raise
    if process.returncode:
        print(said[-4000:], file=sys.stderr)
        raise subprocess.CalledProcessError(process.returncode, command, output, said)
    return output


def memory(field: str = "VmHWM", *, anew: bool = False) -> int:
    """Return a figure of this process's memory in bytes.

    Args:
        field: VmHWM, the largest resident set so far, or VmRSS, the present one.
        anew: let the largest begin again from the present one afterwards.
    """
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    found = next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
    if anew:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return found


def peak_memory(command: Sequence[str], *, every: float = 0.02, **settings: Any) -> Peak:
    """Run a command and watch the memory of its process tree from outside.

    A page that several processes share counts for each by its share (proportional set size), so workers that were
    forked cost what they add. A peak shorter than `every` may be missed.

    Args:
        command: its standard output should fit a pipe, 64 KiB: it is read when it has ended.
        every: seconds between two looks.
        settings: of `subprocess.Popen`, such as `env` and `cwd`.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **settings) as process:
        peak = 0
        while process.poll() is None:
            peak = max(peak, sum(_proportional(pid) for pid in (process.pid, *_descendants(process.pid))))
            time.sleep(every)
        output = process.stdout.read() if process.stdout else ""
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, output)
    return Peak(peak, output)


def _descendants(root: int) -> dict[int, list[str]]:
    """Return pid and the fields of /proc/PID/stat, from the state on, of all living descendants."""
    fields: dict[int, list[str]] = {}
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                stat = Path("/proc", entry, "stat").read_text(encoding="utf-8", errors="replace")
            except OSError:  # it has just ended
                continue
            fields[int(entry)] = stat.rpartition(")")[2].split()
            children.setdefault(int(fields[int(entry)][1]), []).append(int(entry))
    found, ahead = {}, [root]
    while ahead:
        for pid in children.get(ahead.pop(), []):
            found[pid] = fields[pid]
            ahead.append(pid)
    return found


def _proportional(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)
