"""How many frames of each video there is time for: measured on the first files, predicted for the rest."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

__all__ = ["Plan"]

_USED: Final = 0.9
"""Share of the time left that may be planned for: measurements are not promises."""
_TRUST: Final = 0.1
"""Share of all the time for which the work is taken to go as its parts add up to, before any was seen to."""


@dataclass
class _Kind:
    """Files of one kind: how many are left to read, and what those that were read took."""

    left: int
    read: int = 0
    reading: float = 0.0
    looking: float = 0.0
    frames: int = 0

    def seconds(self, frames: int) -> float:
        """Predict the time that one reader needs for the files left."""
        if not self.read:
            return 0.0
        return self.left * (self.reading / self.read + frames * self.looking / max(self.frames, 1))


class Plan:
    """Decide before each file, so that all are done in time; without a limit every video has its frames.

    Args:
        frames: wanted of each video.
        num_images: to be read.
        num_videos: to be read.
        num_readers: files in work at once.
        num_lanes: devices that score.
        batch_size: pictures that one of them scores at once.
        deadline: when everything must be scored, by `clock`; infinity: never.
        clock: seconds.
    """

    def __init__(
        self,
        frames: int,
        *,
        num_images: int,
        num_videos: int,
        num_readers: int,
        num_lanes: int = 1,
        batch_size: int = 16,
        deadline: float = math.inf,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.frames, self.fewest = frames, frames
        self._images, self._videos = _Kind(num_images), _Kind(num_videos)
        self._num_readers, self._num_lanes, self._batch_size = num_readers, num_lanes, batch_size
        self._deadline, self._clock = deadline, clock
        self._trust = _TRUST * max(deadline - clock(), 0.0)
        self._scored, self._scoring, self._rehearsed, self._slowest = 0, 0.0, 0.0, 0.0
        self._queued = 0
        self._began: float | None = None
        self._before = 0.0

    @property
    def has_measured(self) -> bool:
        """Say whether enough was measured to predict what is left."""
        kinds = [kind for kind in (self._images, self._videos) if kind.left]
        return self._began is not None and all(kind.read for kind in kinds)

    def is_over(self, pending: int = 0) -> bool:
        """Say whether no more need be read, as so many pictures that are in no batch yet take the time left."""
        return self.room() < pending + 1

    def room(self) -> float:
        """Return how many pictures a batch that is begun now may have: behind those that wait it is done in time."""
        left = self._deadline - self._clock()
        if not self._slowest:
            return math.inf if left > 0 else 0.0
        waiting = max(self._queued / self._num_lanes, min(self._queued, self._batch_size))
        return _USED * left * self._batch_size / self._slowest - waiting

    def frames_now(self) -> int:
        """Return how many frames to look at in the next video."""
        if not math.isfinite(self._deadline) or not self.has_measured:
            return self.frames
        low, high = 1, self.frames
        left = _USED * (self._deadline - self._clock() - self._slowest)  # the last batch must fit in too
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.seconds_left(middle) <= left else (low, middle - 1)
        self.fewest = min(self.fewest, low)
        return low

    def seconds_left(self, frames: int) -> float:
        """Predict how long the files left will take with so many frames of each video."""
        return self._late() * self._cost(
            self._images.seconds(1) + self._videos.seconds(frames), self._images.left + frames * self._videos.left
        )

    def _cost(self, reading: float, pictures: float) -> float:
        scoring = pictures * (self._scoring / self._scored if self._scored else self._rehearsed)
        return max(reading / self._num_readers, scoring / self._num_lanes)

    def _late(self) -> float:
        """Return how many times longer the work has taken than its parts add up to."""
        if self._began is None or not self._trust:
            return 1.0
        done = self._cost(self._spent(), self._scored) - self._before
        return max(1.0, (self._clock() - self._began + self._trust) / (done + self._trust))

    def _spent(self) -> float:
        return sum(kind.reading + kind.looking for kind in (self._images, self._videos))

    # -- what has happened ---------------------------------------------------------------------------------------------

    def has_read(self, *, video: bool, reading: float, looking: float, frames: int) -> None:
        """Take note of a file that was read, whatever came of it."""
        kind = self._videos if video else self._images
        kind.left -= 1
        kind.read += 1
        kind.reading += reading
        kind.looking += looking
        kind.frames += frames
        if self._began is None:  # what came before was starting up
            self._began, self._before = self._clock(), self._cost(self._spent(), 0)

    def has_queued(self, pictures: int) -> None:
        """Take note of a batch that waits for the model."""
        self._queued += pictures

    def has_rehearsed(self, pictures: int, seconds: float) -> None:
        """Take note of a batch that was none of a file's; the last one counts, since devices start slowly."""
        self._queued -= pictures
        self._rehearsed = seconds / pictures
        self._slowest = self._rehearsed * self._batch_size

    def has_scored(self, pictures: int, seconds: float) -> None:
        """Take note of a batch that was scored."""
        self._queued -= pictures
        self._scored += pictures
        self._scoring += seconds
        self._slowest = max(self._slowest, seconds)
