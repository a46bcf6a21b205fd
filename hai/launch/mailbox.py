"""What driver and workers tell each other; the mailbox is a process of its own, so this module imports little."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any

from hai.types import SAVE

__all__ = ["POLL_SECONDS", "Asked", "Mailbox", "wait_for_checkpoint"]

POLL_SECONDS = 0.25


class Mailbox:
    """What driver and workers leave for each other; lives as an actor on the driver's node."""

    def __init__(self) -> None:
        self._letters: list[tuple[str, Any]] = []
        self._stop = 0
        self._saves = self._saved = 0
        self._micro_batch_limit: int | None = None
        self._asked_at = float("-inf")

    def put(self, kind: str, content: Any) -> None:
        """Leave a letter for the driver."""
        self._letters.append((kind, content))

    def take(self) -> list[tuple[str, Any]]:
        """Return the letters that have come since the last call."""
        letters, self._letters = self._letters, []
        return letters

    def ask(self, request: int) -> None:
        """Leave a request for rank 0: STOP."""
        self._stop = request

    def ask_save(self) -> int:
        """Ask rank 0 for a checkpoint; `saved` reaches the number that is returned when it is whole."""
        self._saves += 1
        return self._saves

    def asked(self) -> tuple[int, int]:
        """Return STOP or 0, and how many checkpoints have been asked for."""
        self._asked_at = time.monotonic()
        return self._stop, self._saves

    def silence(self) -> float:
        """Return for how many seconds nobody has asked, as those do who train; infinity: nobody ever has."""
        return time.monotonic() - self._asked_at

    def note_saved(self, number: int) -> None:
        """Remember that the checkpoints up to this number are whole."""
        self._saved = max(self._saved, number)

    def saved(self) -> int:
        """Return how many of the checkpoints that were asked for are whole."""
        return self._saved

    def halve(self, size: int) -> None:
        """Note that a worker's memory does not hold a micro-batch of this size; the next group tries half of it."""
        half = max(1, size // 2)
        self._micro_batch_limit = min(half, self._micro_batch_limit or half)

    def micro_batch_limit(self) -> int | None:
        """Return the largest micro-batch that is worth a try, None where memory has not run out."""
        return self._micro_batch_limit


class Asked(threading.Thread):
    """Keep rank 0's view of what is asked fresh, so that the loop reads a variable and never waits."""

    def __init__(self, mailbox: Any) -> None:
        super().__init__(name="hai-asked", daemon=True)
        self._mailbox, self._ended = mailbox, threading.Event()
        self._stop = self._saves = 0
        self._taken = self._noted = -1  # nothing is known yet

    def run(self) -> None:
        """Ask until the end; a driver that does not answer has no new request."""
        import ray

        while True:
            with contextlib.suppress(ray.exceptions.RayError):
                self._stop, self._saves = ray.get(self._mailbox.asked.remote(), timeout=10)
                if self._taken < 0:  # what has been asked so far was asked of a group that is gone
                    self._taken = self._noted = self._saves
            if self._ended.wait(2 * POLL_SECONDS):
                return

    def request(self) -> int:
        """Return STOP, or SAVE once for all who have asked since; by the next call that checkpoint is whole."""
        self._note()
        before, saves = self._taken, self._saves
        if before < 0:
            return self._stop
        self._taken = saves
        return self._stop or (SAVE if saves != before else 0)

    def end(self) -> None:
        """Stop asking; everything is saved."""
        self._ended.set()
        self._note()

    def _note(self) -> None:
        if self._noted != self._taken:
            self._noted = self._taken
            self._mailbox.note_saved.remote(self._taken)


def wait_for_checkpoint(mailbox: Any, seconds: float) -> bool:
    """Ask rank 0 for a checkpoint and say whether it is whole within so many seconds."""
    import ray

    deadline = time.monotonic() + seconds
    with contextlib.suppress(ray.exceptions.RayError):
        number = ray.get(mailbox.ask_save.remote(), timeout=seconds)
        while time.monotonic() < deadline:
            if ray.get(mailbox.saved.remote(), timeout=seconds) >= number:
                return True
            time.sleep(POLL_SECONDS)
    return False
