"""Files to logits: read ahead, batched across files, scored on every device, put together for each file."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import closing
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from hai.cpus import num_cpus
from hai.predict.aggregate import aggregate
from hai.predict.ahead import read_ahead
from hai.predict.files import Row, is_video
from hai.predict.lanes import Lanes, Scored, all_devices
from hai.predict.pictures import Job, Pictures, View
from hai.predict.plan import Plan

if TYPE_CHECKING:
    import torch

    from hai.trained import Trained

__all__ = ["score_rows"]

_FEW: Final = 4
"""Images with faces that are read without starting processes for them."""
_AHEAD: Final = 2
"""Batches waiting for each device."""
_CPU_LANES: Final = 4
"""Batches that a CPU scores at once, at most: each takes memory."""

Floats = NDArray[np.float64]


def score_rows(
    rows: Sequence[Row],
    models: Sequence[Trained],
    view: View,
    *,
    frames: int,
    how: str = "mean",
    flip: bool = False,
    seconds: float = math.inf,
    devices: Sequence[torch.device] | None = None,
    in_processes: bool | None = None,
    show: Callable[[int, int], None] = lambda done, total: None,
) -> Plan:
    """Give each row a logit of each model, its pictures and its error.

    A row without all its logits and without an error was not reached in time.

    Args:
        rows: files; those with an error are passed over.
        models: all with the same input.
        view: how files become pictures.
        frames: of each video, at most.
        how: one of AGGREGATES.
        flip: average with the mirrored picture.
        seconds: time there is.
        devices: where to compute; None: on every GPU there is.
        in_processes: read files in processes; None: where a video might crash its decoder, or it is worth their start.
        show: takes (done, total) files.

    Returns:
        What was measured.

    Raises:
        ConfigError: a face detector cannot be loaded.
    """
    deadline = time.monotonic() + seconds
    todo = [key for key, row in enumerate(rows) if row.source is not None and not row.error]
    videos = [key for key in todo if is_video(rows[key].source)]
    heavy = todo if view.cut is not None else videos
    if in_processes is None:
        in_processes = bool(videos) or len(heavy) > _FEW or (bool(heavy) and math.isfinite(seconds))
    devices, num_threads = list(devices or all_devices()), None
    if in_processes and all(device.type == "cpu" for device in devices):
        # Threads that compute one batch together wait for each other actively: time that the readers need.
        devices = devices * min(num_cpus(), _CPU_LANES)
        num_threads = max(1, num_cpus() // len(devices))
    lanes = Lanes(models, devices, flip=flip, num_threads=num_threads)
    plan = Plan(
        frames,
        num_images=len(todo) - len(videos),
        num_videos=len(videos),
        num_readers=num_cpus(),
        num_lanes=lanes.num_lanes,
        batch_size=lanes.batch_size,
        deadline=deadline,
    )
    if math.isfinite(seconds):
        todo = _both_kinds_first(todo, set(videos), 2 * num_cpus())

    def jobs() -> Iterator[Job]:
        said = False
        for key in todo:
            row = rows[key]
            wanted = plan.frames_now() if is_video(row.source) else 1
            if plan.fewest < frames and not said:
                said = True
                _say_fewer(plan, frames)
            assert row.source is not None, "rows without a file have an error"
            yield Job(key, row.source, wanted, row.is_ready)

    is_eager = in_processes and math.isfinite(seconds)
    batches = _Batches(lanes, plan, lambda key, logits: _settle(rows[key], logits, how), deadline, is_eager=is_eager)
    found: Generator[tuple[Job, Pictures], None, None] = read_ahead(
        jobs(), view, in_processes=in_processes, num_workers=num_cpus(), stop=batches.is_over
    )
    with lanes, closing(found):
        for done, (job, pictures) in enumerate(found, 1):
            if done == 1 and math.isfinite(seconds):  # the readers go on meanwhile
                batches.rehearse(np.zeros((lanes.batch_size, view.size, view.size, 3), np.uint8))
            row = rows[job.key]
            plan.has_read(
                video=is_video(job.source),
                reading=pictures.reading,
                looking=pictures.looking,
                frames=max(pictures.num_read, 1),
            )
            row.error = pictures.error
            row.num_frames, row.num_faces = len(pictures.pixels), pictures.num_faces
            if not row.error:
                batches.add(job.key, pictures.pixels)
            show(done, len(todo))
        batches.finish()
    return plan


def _both_kinds_first(keys: list[int], videos: set[int], count: int) -> list[int]:
    """Put the first few files of each kind to the front, so that both are measured early."""
    first = [key for key in keys if key in videos][:count] + [key for key in keys if key not in videos][:count]
    chosen = set(first)
    return first + [key for key in keys if key not in chosen]


def _say_fewer(plan: Plan, frames: int) -> None:
    total = plan.seconds_left(frames)
    print(
        f"time limit: with {frames} frames of each video the files left would take {total:.0f} s; "
        f"looking at {plan.fewest}, and at more again if there is time",
        file=sys.stderr,
    )


def _settle(row: Row, logits: Floats, how: str) -> None:
    row.logits += [aggregate(own, how) for own in logits]


class _Batches:
    """Pictures of many files on their way through the lanes, in full batches as long as there is time for them.

    Args:
        lanes: what scores them.
        plan: is told what waits and how long it took.
        settle: takes a key and the logits [M, N] of its pictures when all are there.
        deadline: nothing is waited for any longer.
        is_eager: no picture waits for others while no lane is busy: reading takes long, and the time may be up before
            a batch is full. It would cost readers in threads of this process more than it brings.
    """

    def __init__(
        self, lanes: Lanes, plan: Plan, settle: Callable[[int, Floats], None], deadline: float, *, is_eager: bool
    ) -> None:
        self._lanes, self._plan, self._settle, self._deadline = lanes, plan, settle, deadline
        self._is_eager = is_eager
        self._pieces: list[tuple[int, int, NDArray[np.uint8]]] = []
        self._waiting: dict[Future[Scored], list[tuple[int, int, int]]] = {}
        self._logits: dict[int, Floats] = {}
        self._left: dict[int, int] = {}

    def rehearse(self, pixels: NDArray[np.uint8]) -> None:
        """Have every device score pictures that belong to nobody: how long it takes is known before any is begun.

        Args:
            pixels: a full batch, which is scored only where one picture says that there is time for it.
        """
        for count in (1, 1, len(pixels)):  # the first wakes the device
            if self._plan.room() >= count:
                for _ in range(self._lanes.num_lanes):
                    self._submit(pixels[:count], [])
                self._collect(0)

    def is_over(self) -> bool:
        """Say whether no more need be read; is asked often, and keeps the lanes busy meanwhile."""
        self._collect(len(self._waiting))
        if self._is_eager and not self._waiting:
            self._submit_all(1)
        return self._plan.is_over(self._num_pending)

    def add(self, key: int, pixels: NDArray[np.uint8]) -> None:
        """Take the pictures [N, S, S, 3] of a file; returns when there is room for more, or no time."""
        self._left[key] = len(pixels)
        self._pieces.append((key, 0, pixels))
        self._submit_all(self._lanes.batch_size)
        self._collect(len(self._waiting))

    def finish(self) -> None:
        """Score what is left, as far as the time goes."""
        self._submit_all(1)
        self._collect(0)
        if self._waiting:
            self._lanes.abandon()

    @property
    def _num_pending(self) -> int:
        """Pictures that are in no batch yet."""
        return sum(len(piece) for _, _, piece in self._pieces)

    def _submit_all(self, least: int) -> None:
        """Submit batches while so many pictures are there, and time for as many."""
        while self._num_pending >= least:
            room = int(min(self._plan.room(), self._lanes.batch_size))
            if room < least:
                return
            self._submit(*self._next_batch(room))
            self._collect(_AHEAD * self._lanes.num_lanes - 1)

    def _next_batch(self, room: int) -> tuple[NDArray[np.uint8], list[tuple[int, int, int]]]:
        """Take so many pictures, if there are; returns them and their places: key, start and number."""
        batch, places = [], []
        while self._pieces and room:
            key, start, pixels = self._pieces.pop(0)
            taken = pixels[:room]
            batch.append(taken)
            places.append((key, start, len(taken)))
            room -= len(taken)
            if len(taken) < len(pixels):
                self._pieces.insert(0, (key, start + len(taken), pixels[len(taken) :]))
        return np.concatenate(batch), places

    def _submit(self, pixels: NDArray[np.uint8], places: list[tuple[int, int, int]]) -> None:
        self._waiting[self._lanes.submit(pixels)] = places
        self._plan.has_queued(len(pixels))

    def _collect(self, most: int) -> None:
        """Take what is scored; wait until at most so many batches are not."""
        while self._waiting:
            patience = 0.0 if len(self._waiting) <= most else min(self._deadline - time.monotonic(), 3600.0)
            done = wait(self._waiting, timeout=max(patience, 0.0), return_when=FIRST_COMPLETED).done
            for future in done:
                self._take(self._waiting.pop(future), future.result())
            if not done and (len(self._waiting) <= most or time.monotonic() >= self._deadline):
                return

    def _take(self, places: list[tuple[int, int, int]], scored: Scored) -> None:
        note = self._plan.has_scored if places else self._plan.has_rehearsed
        note(scored.logits.shape[1], scored.seconds)
        at = 0
        for key, start, count in places:
            if key not in self._logits:
                self._logits[key] = np.zeros((len(scored.logits), self._left[key]))
            self._logits[key][:, start : start + count] = scored.logits[:, at : at + count]
            at += count
            self._left[key] -= count
            if not self._left[key]:
                self._settle(key, self._logits.pop(key))
                del self._left[key]
