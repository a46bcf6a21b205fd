"""Turning SIGTERM and Ctrl-C into a request that the loop answers with a checkpoint."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from hai.types import STOP

__all__ = ["StopSignals"]

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """While entered, the first signal asks for a checkpoint and the end; a third one ends at once.

    Args:
        say: takes a line for people.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say, self._count = say, 0
        self._before: dict[int, Any] = {}

    @property
    def request(self) -> int:
        """Return STOP once a signal has come, else 0."""
        return STOP if self._count else 0

    def __enter__(self) -> StopSignals:
        """Take the signals over; only a main thread can."""
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._before[number] = signal.signal(number, self._received)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _received(self, number: int, frame: FrameType | None) -> None:
        self._count += 1
        name = signal.Signals(number).name
        if self._count >= 3:
            self.__exit__(None, None, None)
            raise KeyboardInterrupt
        self._say(f"{name}: saving a checkpoint after the step in flight, then stopping; rerun the command to go on")
