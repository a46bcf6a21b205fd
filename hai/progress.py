"""Progress of a long job: a bar on a terminal or in a notebook, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from hai.console import shown_bytes
from hai.live import build_console, in_notebook

__all__ = ["progress_bar"]

_PLAIN_SECONDS = 10.0


@contextmanager
def progress_bar(what: str, unit: str = "images") -> Iterator[Callable[[int, int], None]]:
    """Show progress, speed and remaining time on standard error while the block runs.

    Args:
        what: what is being done, such as "scoring".
        unit: what is counted; "bytes" are written as MB and GB.

    Yields:
        A function of (done, total), to be called as often as convenient; total is 0 where nobody knows it. What is done
        at its first call was done before and does not count for the speed.
    """
    if not (sys.stderr.isatty() or in_notebook()):
        yield _plain_lines(what, unit)
        return
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns: tuple[Any, ...] = (MofNCompleteColumn(), TextColumn(f"{unit}, ETA"), TimeRemainingColumn())
    if unit == "bytes":
        columns = (DownloadColumn(), TransferSpeedColumn(), TextColumn("ETA"), TimeRemainingColumn())
    with Progress(TextColumn(what), BarColumn(), *columns, console=build_console(), transient=True) as bar:
        task = bar.add_task(what, total=None)
        started = False

        def show(done: int, total: int) -> None:
            nonlocal started
            if not started:
                bar.reset(task, completed=done, total=total or None)
                started = True
            bar.update(task, completed=done, total=total or None)

        yield show


def _plain_lines(what: str, unit: str) -> Callable[[int, int], None]:
    said: tuple[float, int] | None = None

    def amount(count: float) -> str:
        if unit == "bytes":
            return shown_bytes(count)
        return f"{count:.0f}" if count >= 10 else f"{count:.2g}"

    def show(done: int, total: int) -> None:
        nonlocal said
        now = time.monotonic()
        if said is None or done < said[1]:
            said = now, done
        if now - said[0] < _PLAIN_SECONDS:
            return
        speed = (done - said[1]) / (now - said[0])
        said = now, done
        of = f"/{amount(total)}" if total else ""
        left = f", ETA {_clock((total - done) / speed)}" if total and speed > 0 else ""
        print(
            f"{what}: {amount(done)}{of}{'' if unit == 'bytes' else ' ' + unit}, {amount(speed)}/s{left}",
            file=sys.stderr,
            flush=True,
        )

    return show


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
