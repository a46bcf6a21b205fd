"""Frames for the time there is: played through with a clock of its own, nothing measured for real."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hai.faces import pool
from hai.predict import ahead, score
from hai.predict.files import Row
from hai.predict.lanes import Scored
from hai.predict.pictures import Job, Pictures, View
from hai.predict.plan import Plan


class World:
    """One reader and one device whose speeds are set, and the time that passes with them."""

    def __init__(self, *, reading: float, looking: float, scoring: float, image: float = 0.0) -> None:
        self.now = 0.0
        self.reading, self.looking, self.scoring, self.image = reading, looking, scoring, image

    def play(self, plan: Plan, kinds: str, *, start: float = 0.0) -> tuple[list[int], int]:
        """Read and score files one after another, v a video, i an image; returns frames of videos, files left."""
        self.now += start
        frames = []
        for position, kind in enumerate(kinds):
            if plan.is_over():
                return frames, len(kinds) - position
            wanted = plan.frames_now() if kind == "v" else 1
            if kind == "v":
                frames.append(wanted)
            reading = self.reading if kind == "v" else self.image
            self.now += reading + wanted * self.looking
            plan.has_read(video=kind == "v", reading=reading, looking=wanted * self.looking, frames=wanted)
            plan.has_queued(wanted)
            self.now += wanted * self.scoring
            plan.has_scored(wanted, wanted * self.scoring)
        return frames, 0


def plan_for(world: World, kinds: str, deadline: float, frames: int = 16) -> Plan:
    return Plan(
        frames,
        num_images=kinds.count("i"),
        num_videos=kinds.count("v"),
        num_readers=1,
        deadline=deadline,
        clock=lambda: world.now,
    )


def test_every_video_has_its_frames_where_nothing_presses() -> None:
    world = World(reading=1, looking=1, scoring=1)
    plan = plan_for(world, "v" * 20, math.inf)
    assert world.play(plan, "v" * 20) == ([16] * 20, 0)
    world = World(reading=0.1, looking=0.01, scoring=0.01)
    plan = plan_for(world, "v" * 20, 60)
    assert world.play(plan, "v" * 20) == ([16] * 20, 0)
    assert plan.fewest == 16


@pytest.mark.parametrize("kinds", ["v" * 100, "vi" * 100, "v" + "i" * 50 + "v" * 99])
def test_frames_are_saved_and_every_file_is_reached_in_time(kinds: str) -> None:
    world = World(reading=0.5, looking=0.1, scoring=0.1, image=0.2)
    whole = kinds.count("v") * (0.5 + 16 * 0.2) + kinds.count("i") * 0.4
    plan = plan_for(world, kinds, 0.5 * whole)
    frames, left = world.play(plan, kinds, start=3.0)
    assert left == 0
    assert world.now <= 0.5 * whole
    assert world.now > 0.35 * whole  # the time is used
    assert frames[0] == 16
    assert plan.fewest == min(frames) >= 2


def test_scoring_may_be_what_takes_long() -> None:
    world = World(reading=0.01, looking=0.001, scoring=0.5)
    plan = plan_for(world, "v" * 60, 200)
    frames, left = world.play(plan, "v" * 60)
    assert left == 0
    assert world.now <= 200
    assert sum(frames) > 250


def test_more_devices_are_more_frames() -> None:
    plans = [
        Plan(16, num_images=0, num_videos=40, num_readers=8, num_lanes=lanes, deadline=100, clock=lambda: 1.0)
        for lanes in (1, 4)
    ]
    for plan in plans:
        plan.has_read(video=True, reading=0.1, looking=0.1, frames=16)
        plan.has_queued(16)
        plan.has_scored(16, 16.0)
    few, many = (plan.frames_now() for plan in plans)
    assert few < many <= 16


def test_the_deadline_holds_where_even_one_frame_is_too_much() -> None:
    world = World(reading=5, looking=1, scoring=1)
    plan = plan_for(world, "v" * 100, 100)
    frames, left = world.play(plan, "v" * 100)
    assert left > 0
    assert min(frames) == 1
    assert world.now <= 100 + 16 * 2  # what was begun with nothing measured yet


def test_pictures_that_wait_are_counted() -> None:
    plan = Plan(4, num_images=9, num_videos=0, num_readers=1, batch_size=8, deadline=10, clock=lambda: 0.0)
    plan.has_queued(8)
    plan.has_scored(8, 3.0)
    assert plan.room() == pytest.approx(24)  # 3 batches of 3 s, and a reserve
    plan.has_queued(8)
    plan.has_queued(6)
    assert plan.room() == pytest.approx(10)
    assert not plan.is_over(pending=8)
    assert plan.is_over(pending=10)
    plan.has_queued(10)
    assert plan.is_over()


def test_a_rehearsal_tells_the_speed_until_something_was_scored() -> None:
    plan = Plan(16, num_images=0, num_videos=9, num_readers=1, deadline=100, clock=lambda: 0.0)
    for seconds in (30.0, 2.0):  # a device starts slowly
        plan.has_queued(1)
        plan.has_rehearsed(1, seconds)
    assert plan.frames_now() == 16  # what reading takes is not known
    plan.has_read(video=True, reading=0.0, looking=0.0, frames=16)
    assert plan.frames_now() == 3  # of 8 videos, 2 s each, in 0.9 of what the last batch leaves: 68 s
    plan.has_queued(16)
    plan.has_scored(16, 16.0)
    assert plan.frames_now() == 7


class AtOnce(Executor):
    """Does what it is given at once: the readers are as far ahead of the model as they may be, if they take no time."""

    def submit(self, work: Callable[..., Any], /, *given: Any, **_: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(work(*given))
        return future


class Device:
    """Scores one batch after another, each in its time by the clock of a world: `seconds` where it is full."""

    num_lanes = 1

    def __init__(self, world: World, seconds: Callable[[int], float], batch_size: int = 16) -> None:
        self._world, self._seconds, self.batch_size = world, seconds, batch_size
        self._free, self._is_abandoned = 0.0, False
        self._ends: dict[Future[Scored], tuple[float, Scored]] = {}

    @property
    def begun(self) -> list[int]:
        return [scored.logits.shape[1] for _, scored in self._ends.values()]

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._is_abandoned:
            self._world.now = max(self._world.now, self._free)

    def abandon(self) -> None:
        self._is_abandoned = True

    def submit(self, pixels: NDArray[np.uint8]) -> Future[Scored]:
        seconds = self._seconds(len(self._ends)) * len(pixels) / self.batch_size
        self._free = max(self._free, self._world.now) + seconds
        future: Future[Scored] = Future()
        self._ends[future] = self._free, Scored(np.ones((1, len(pixels))), seconds)
        return future

    def wait(self, futures: Iterable[Future[Scored]], timeout: float, return_when: str) -> SimpleNamespace:
        first = next(iter(futures))
        end, scored = self._ends[first]
        self._world.now = max(self._world.now, min(end, self._world.now + timeout))
        if end > self._world.now:
            return SimpleNamespace(done=set())
        first.set_result(scored)
        return SimpleNamespace(done={first})


def score_videos(
    world: World,
    device: Device,
    monkeypatch: pytest.MonkeyPatch,
    *,
    videos: int,
    frames: int,
    limit: float,
    readers: int,
) -> list[Row]:
    """Read and score videos by the clock of a world, which reading moves on too."""

    def read(view: View, job: Job) -> Pictures:
        looking = job.frames * world.looking
        world.now += world.reading + looking
        pixels = np.zeros((job.frames, 2, 2, 3), np.uint8)
        return Pictures(pixels, num_read=job.frames, reading=world.reading, looking=looking)

    monkeypatch.setattr(pool, "_started", lambda *_: AtOnce())
    monkeypatch.setattr(ahead, "load_pictures", read)
    monkeypatch.setattr(score, "num_cpus", lambda: readers)
    monkeypatch.setattr(score, "Lanes", lambda *_, **__: device)
    monkeypatch.setattr(score, "wait", device.wait)
    monkeypatch.setattr(score, "Plan", partial(Plan, clock=lambda: world.now))
    monkeypatch.setattr(score, "time", SimpleNamespace(monotonic=lambda: world.now))
    rows = [Row(f"{number}.mp4", Path(f"{number}.mp4")) for number in range(videos)]
    score.score_rows(
        rows,
        [],
        View(2, "resize", 1.0),
        frames=frames,
        seconds=limit,
        devices=[torch.device("cpu")],
        in_processes=True,
    )
    assert not any(row.error for row in rows)
    return rows


@pytest.mark.parametrize(
    ("videos", "frames", "slow_from", "scored", "end"),
    [
        (40, 16, 99, 8, 9.9375),  # the rehearsal is 18 pictures
        (40, 64, 99, 2, 9.9375),
        (1, 640, 99, 0, 9.9375),
        (1, 640, 6, 0, 10.0),
        (7, 16, 99, 7, 8.125),
        (7, 16, 0, 0, 7.5),
    ],
)
def test_what_was_read_waits_for_the_model_no_longer_than_the_limit(
    videos: int, frames: int, slow_from: int, scored: int, end: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(reading=0, looking=0, scoring=0)
    device = Device(world, lambda number: 1.0 if number < slow_from else 60.0)
    rows = score_videos(world, device, monkeypatch, videos=videos, frames=frames, limit=10.0, readers=16)
    assert world.now == pytest.approx(end)
    assert device.begun[:3] == ([1, 1, 16] if slow_from else [1, 1])  # a full batch only if there is time for it
    assert [len(row.logits) for row in rows].count(1) == scored


def test_few_heavy_videos_lose_frames_and_not_files(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(reading=0, looking=2.5, scoring=0)
    device = Device(world, lambda number: 1.0, batch_size=64)
    rows = score_videos(world, device, monkeypatch, videos=3, frames=16, limit=60.0, readers=1)
    assert [len(row.logits) for row in rows] == [1, 1, 1]
    assert rows[0].num_frames == 16
    assert min(row.num_frames for row in rows) >= 2
    assert world.now <= 60


def test_what_was_read_is_scored_although_reading_takes_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(reading=30, looking=0, scoring=0)
    device = Device(world, lambda number: 1.0, batch_size=64)
    rows = score_videos(world, device, monkeypatch, videos=3, frames=16, limit=50.0, readers=1)
    assert [len(row.logits) for row in rows] == [1, 0, 0]


def test_a_model_too_slow_for_a_batch_scores_smaller_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(reading=1, looking=0, scoring=0)
    device = Device(world, lambda number: 80.0)
    rows = score_videos(world, device, monkeypatch, videos=3, frames=4, limit=60.0, readers=1)
    assert [len(row.logits) for row in rows] == [1, 1, 1]
    assert world.now <= 60
