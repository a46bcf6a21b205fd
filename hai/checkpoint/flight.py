"""The step in flight, kept on this machine's disk, so that the next start knows in which step the last one died."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from hai.checkpoint.files import save_bytes

__all__ = ["FLIGHT", "Flight"]

FLIGHT: Final = "in_flight.json"
"""Name of the file in a run's work folder; it stays on the machine."""

_WIDTH: Final = 20
_NONE: Final = -1
_MOST: Final = 20


class Flight:
    """Where a launch set out from and which step it is in; a launch that ends in good order leaves neither.

    The file is one JSON array, [[start, step], ...], the last pair padded to a fixed width so that each step is one
    write of a few bytes in place. A torn file is no file. Disk errors are passed over: this is a diary, not a promise.

    Args:
        folder: the run's work folder.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / FLIGHT
        self._file: int | None = None
        self._offset = 0
        self.deaths: list[tuple[int, int]] = self._load()
        """(start, step in flight) of launches that ended without a word, the oldest first."""

    def _load(self) -> list[tuple[int, int]]:
        try:
            found = json.loads(self._path.read_bytes())
            return [(int(start), int(step)) for start, step in found if int(step) != _NONE][-_MOST:]
        except (OSError, ValueError, TypeError):
            return []

    def begin(self, start: int) -> None:
        """Set out from a checkpoint."""
        before = "".join(f"[{origin}, {step}], " for origin, step in self.deaths)
        head = f"[{before}[{start:>{_WIDTH}}, "
        self._offset = len(head)
        self.land()
        with suppress(OSError):
            save_bytes(self._path, f"{head}{_NONE:>{_WIDTH}}]]\n".encode())
            self._file = os.open(self._path, os.O_WRONLY)

    def at(self, step: int) -> None:
        """Note that a step has begun."""
        if self._file is not None:
            with suppress(OSError):
                os.pwrite(self._file, f"{step:>{_WIDTH}}".encode(), self._offset)

    def land(self) -> None:
        """Note that this launch has ended in good order."""
        if self._file is not None:
            self.at(_NONE)
            os.close(self._file)
            self._file = None

    def forget(self) -> None:
        """Forget all deaths."""
        self.deaths = []
        with suppress(OSError):
            self._path.unlink(missing_ok=True)
