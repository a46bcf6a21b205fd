"""What the driver and rank 0 tell each other; its actor is a process of its own, so this module imports little."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

__all__ = ["POLL_SECONDS", "Asked", "Mailbox"]

POLL_SECONDS = 0.25


class Mailbox:
    """What the driver and rank 0 leave for each other; lives as an actor on the driver's node."""

    def __init__(self) -> None:
        self._letters: list[tuple[str, Any]] = []
        self._request = 0
        self._micro_batch_limit: int | None = None

    def put(self, kind: str, content: Any) -> None:
        """Leave a letter for the driver."""
        self._letters.append((kind, content))

    def take(self) -> list[tuple[str, Any]]:
        """Return the letters that have come since the last call."""
        letters, self._letters = self._letters, []
        return letters

    def ask(self, request: int) -> None:
        """Leave a request for rank 0: SAVE or STOP."""
        self._request = request

    def asked(self) -> int:
        """Return the last request, 0 for none."""
        return self._request

    def halve(self, size: int) -> None:
        """Note that a worker's memory does not hold a micro-batch of this size; the next group tries half of it."""
        half = max(1, size // 2)
        self._micro_batch_limit = min(half, self._micro_batch_limit or half)

    def micro_batch_limit(self) -> int | None:
        """Return the largest micro-batch that is worth a try, None where memory has not run out."""
        return self._micro_batch_limit


class Asked(threading.Thread):
    """Keep rank 0's view of the driver's request fresh, so that the loop reads a variable and never waits."""

    def __init__(self, mailbox: Any) -> None:
        super().__init__(name="hai-asked", daemon=True)
        self.request = 0
        self._mailbox, self._ended = mailbox, threading.Event()

    def run(self) -> None:
        """Ask until the end; a driver that does not answer has no new request."""
        import ray

        while not self._ended.wait(2 * POLL_SECONDS):
            with contextlib.suppress(ray.exceptions.RayError):
                self.request = ray.get(self._mailbox.asked.remote(), timeout=10)

    def end(self) -> None:
        """Stop asking."""
        self._ended.set()
