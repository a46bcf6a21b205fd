"""Frames for the time there is: played through with a clock of its own, nothing measured for real."""

from __future__ import annotations

import math

import pytest

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
            plan.has_queued()
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
        plan.has_queued()
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


def test_batches_that_wait_are_counted() -> None:
    plan = Plan(4, num_images=9, num_videos=0, num_readers=1, deadline=10, clock=lambda: 0.0)
    plan.has_queued()
    plan.has_scored(8, 3.0)
    assert not plan.is_over()
    plan.has_queued()
    plan.has_queued()
    assert not plan.is_over()  # 3 batches of 3 s
    plan.has_queued()
    assert plan.is_over()
