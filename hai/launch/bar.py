"""What a person watches while training runs: a bar on a terminal or in a notebook, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Self

from hai.live import build_console
from hai.masking import without_secrets
from hai.types import Record

__all__ = ["SweepBar", "TrainingBar"]

_PLAIN_SECONDS = 30.0


class _Bar:
    """Lines for people above a bar on standard error; without a terminal or notebook the lines alone."""

    def __init__(self, *columns: Any) -> None:
        from rich.progress import Progress

        self._console = build_console()
        self._live = self._console.is_terminal
        self._bar: Any = Progress(*columns, console=self._console, transient=True)
        self._task: Any = None

    def __enter__(self) -> Self:
        """Start drawing."""
        if self._live:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the terminal clean."""
        if self._live:
            self._bar.stop()

    def say(self, line: str) -> None:
        """Print one line for people above the bar."""
        self._console.print(without_secrets(line), markup=False)


class TrainingBar(_Bar):
    """Show lines and progress on standard error; a bar with ETA, loss and examples/s on a terminal, in a notebook."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        super().__init__(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.completed:.0f}/{task.total:.0f} steps"),
            TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
        )
        self._told = 0.0

    def show(self, progress: Record) -> None:
        """Move the bar; where there is none, print a line now and then."""
        numbers = []
        if progress.get("loss") is not None:
            numbers.append(f"loss {progress['loss']:.4f}")
        if progress.get("examples_per_second") is not None:
            numbers.append(f"{progress['examples_per_second']:.0f} examples/s")
        if progress.get("best"):
            numbers.append(f"best {progress['best']['metric']} {progress['best']['value']:.3f}")
        if self._live:
            if self._task is None:
                self._task = self._bar.add_task("training", total=progress["total_steps"], numbers="")
            self._bar.update(
                self._task,
                completed=progress["step"],
                total=progress["total_steps"],
                description=f"epoch {progress['epoch']:.1f}",
                numbers=", ".join(numbers),
            )
        elif time.monotonic() - self._told >= _PLAIN_SECONDS:
            self._told = time.monotonic()
            self.say(f"step {progress['step']}/{progress['total_steps']}" + "".join(f", {text}" for text in numbers))
            sys.stderr.flush()


class SweepBar(_Bar):
    """Show a sweep's lines and how many trials are done, on standard error; a bar on a terminal, in a notebook."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn

        super().__init__(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(),
        )
        self._told = time.monotonic()

    def show(self, progress: Record) -> None:
        """Move the bar; where there is none, print a line now and then.

        Args:
            progress: `ended` and `total` trials, `running` ones, `best` {metric, value, trial} or None.
        """
        best, numbers = progress["best"], f"{progress['running']} running"
        if best:
            numbers += f", best {best['metric']} {best['value']:.4f} (trial {best['trial']})"
        trials = f"{progress['ended']}/{progress['total']} trials"
        if self._live:
            if self._task is None:
                self._task = self._bar.add_task(trials, total=progress["total"], numbers="")
            self._bar.update(
                self._task,
                completed=progress["ended"],
                total=progress["total"],
                description=trials,
                numbers=numbers,
            )
        elif time.monotonic() - self._told >= _PLAIN_SECONDS:
            self._told = time.monotonic()
            self.say(f"{trials}, {numbers}")
            sys.stderr.flush()
