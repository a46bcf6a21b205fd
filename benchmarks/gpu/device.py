"""The device of a measurement, its clock and its memory."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from benchmarks._measure import interleaved, memory, record
from hai.errors import OutOfMemoryError
from hai.memory import free_memory, is_out_of_memory


class Turn(NamedTuple):
    """What a contestant did in one turn."""

    rate: float
    """Units of work per second."""
    gigabytes: float
    """Peak of its memory, on a GPU of what it allocated there."""
    at_once: int = 0
    """Images that it forwarded at once in the end, if it says so: fewer than asked for where memory ran out."""


@dataclass(frozen=True)
class Setting:
    """Where and how long to measure.

    Args:
        device: cuda:0 or cpu.
        seconds: of one contestant's turn.
        turns: how often each contestant's turn comes.
        is_tiny: sizes are only large enough to show that the code runs.
    """

    device: torch.device
    seconds: float
    turns: int
    is_tiny: bool

    @classmethod
    def of(cls, device: str, *, quick: bool) -> Setting:
        """Read the command line's wish; raises SystemExit where there is no such device."""
        if device == "cpu":
            return cls(torch.device("cpu"), 0.05, 2, True)
        if not torch.cuda.is_available():
            raise SystemExit("no GPU to measure on; --device cpu runs the same code at a tiny size")
        torch.cuda.set_device(0)
        return cls(torch.device("cuda", 0), 2.0 if quick else 6.0, 2 if quick else 4, False)

    def wait(self) -> None:
        """Wait until the device has done everything that it was asked for."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds_of(self, work: Callable[[], object]) -> float:
        """Return how long a piece of work takes, the device's part of it included."""
        self.wait()
        began = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - began

    def begin_peak(self) -> None:
        """Let the peak of the memory begin anew."""
        gc.collect()
        free_memory(self.device)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            memory(anew=True)

    def peak(self) -> float:
        """Return the peak since then, GB."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 1e9
        return memory() / 1e9

    def turn(self, build: Callable[[], Callable[[], int]], warm_up: int = 3) -> Turn | None:
        """Build a contestant, warm it up, and let it work; None where its memory runs out.

        Args:
            build: returns a function that does a step of work, without waiting for the device, and returns how many
                units that were; what it holds on to is released after the turn.
            warm_up: steps before the clock starts.
        """
        self.begin_peak()
        try:
            return self._worked(build(), warm_up)
        except OutOfMemoryError:  # of a step of this project: one example or the optimizer's state does not fit
            pass
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        return None

    def _worked(self, step: Callable[[], int], warm_up: int) -> Turn:
        for _ in range(warm_up):
            step()
        once = max(self.seconds_of(step), 1e-9)
        count = max(3, min(1000, round(self.seconds / once)))
        units: list[int] = []
        seconds = self.seconds_of(lambda: units.extend(step() for _ in range(count)))
        return Turn(sum(units) / seconds, self.peak(), getattr(step, "micro_batch_size", 0))


def turns_of(
    setting: Setting, contestants: Mapping[str, Callable[[], Callable[[], int]]], warm_up: int = 3
) -> dict[str, list[Turn]]:
    """Measure contestants by turns; those whose memory runs out have no turns."""
    out: set[str] = set()

    def one(name: str) -> Turn | None:
        found = None if name in out else setting.turn(contestants[name], warm_up)
        if found is None:
            out.add(name)
        return found

    measured = interleaved({name: lambda name=name: one(name) for name in contestants}, setting.turns)  # type: ignore[misc]
    return {name: [] if name in out else [turn for turn in found if turn] for name, found in measured.items()}


def record_of(
    name: str,
    values: list[float],
    floor: float | None = None,
    most: float | None = None,
    *,
    without: bool | None = None,
) -> dict[str, Any]:
    """Sum up what was measured; without a value where nothing fits into the device's memory.

    Args:
        name: what it is, unit included.
        values: one per repeat; none where memory ran out.
        floor: the median must be at least this.
        most: or at most this.
        without: whether it holds where memory ran out; None: not judged, False: to fit in is part of what is asked.
    """
    if values:
        return record(name, values, floor, most)
    limit = floor if most is None else most
    return {
        "name": f"{name}: out of memory",
        "value": None,
        "low": None,
        "high": None,
        "floor": limit,
        "holds": without,
    }
