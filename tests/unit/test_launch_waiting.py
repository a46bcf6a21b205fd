"""Stopping a launch whose workers or trials wait for a machine, which would never hear of it."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import RaySystemError

from hai.launch import mailbox, ray_train, tune
from hai.launch.mailbox import Mailbox
from hai.launch.plan import Plan
from hai.types import STOP

pytestmark = pytest.mark.timeout(60)


class Post:
    """The mailbox, called as Ray calls it: letters come as they are put."""

    def __init__(self, *letters: tuple[str, Any]) -> None:
        self.box = Mailbox()
        for letter in letters:
            self.box.put(*letter)

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=getattr(self.box, name))

    def get(self, value: Any) -> Any:
        return value


class Clock:
    """Time that passes while somebody sleeps, and only then, however busy the machine."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        time.sleep(0.001)  # lets other threads run
        self.now += seconds


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray._private.auto_init_hook.enable_auto_connect", True)  # and undone
    clock = Clock()
    for module in (ray_train, tune, mailbox):
        monkeypatch.setattr(module, "time", clock)


@pytest.fixture
def release() -> Any:
    """What waits for a machine until the test is over."""
    event = threading.Event()
    yield event
    event.set()


def test_workers_that_have_not_started_are_not_waited_for(release: threading.Event) -> None:
    post, told = Post(), []
    trainer = SimpleNamespace(fit=release.wait)
    assert ray_train._attend(post, trainer, post, lambda: STOP, say=told.append, show=lambda _: None) is None
    assert post.box.asked() == (STOP, 0)
    assert told == ["no worker had started yet; nothing was changed"]


def test_workers_that_have_lost_a_machine_are_not_waited_for(release: threading.Event) -> None:
    post, told = Post(("say", "resuming from step_00000007")), []
    post.box.asked()
    trainer = SimpleNamespace(fit=release.wait)
    assert ray_train._attend(post, trainer, post, lambda: STOP, say=told.append, show=lambda _: None) is None
    assert told[1:] == ["no worker was running any more"]


def test_what_is_left_is_told_by_the_newest_checkpoint(tmp_path: Path) -> None:
    plan = Plan(config="", storage=str(tmp_path), name="run", attempt="")
    assert ray_train._newest_step(plan) == 0
    for step in (20, 7):
        (tmp_path / "run" / "checkpoints" / f"step_{step:08}").mkdir(parents=True)
    assert ray_train._newest_step(plan) == 20


def test_workers_that_still_ask_save_first(release: threading.Event) -> None:
    post = Post()
    summary = {"status": "interrupted", "step": 9}
    calls = itertools.count()

    def request() -> int:
        post.box.asked()  # as rank 0 does
        if next(calls) == 100:  # long after the grace that those get who do not ask
            post.box.put("summary", summary)
            release.set()
        return STOP

    trainer = SimpleNamespace(fit=release.wait)
    outcome = ray_train._attend(post, trainer, post, request, say=lambda _: None, show=lambda _: None)
    assert outcome is not None
    assert outcome.summary == summary


def attend(post: Post, fit: Callable[[], object], show: Callable[[Any], None], *, is_over: bool = False) -> str:
    """Attend a trial that is handed out, after a signal; return what is said."""
    stopped: list[bool] = []
    board: Any = SimpleNamespace(
        running={3}, stop=lambda: stopped.append(True), progress=dict, is_over=lambda: is_over
    )  # fmt: skip
    told: list[str] = []
    tune._attend(
        SimpleNamespace(fit=fit), tune._Post(post, board, told.append), board,
        SimpleNamespace(request=STOP), lambda: float("inf"), say=told.append, show=show,  # type: ignore[arg-type]
    )  # fmt: skip
    assert (stopped, post.box.asked()[0]) == ([True], STOP)
    return "\n".join(told)


def test_trials_that_have_not_started_are_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, release: threading.Event
) -> None:
    post = Post()
    monkeypatch.setattr(tune, "ray", post)
    monkeypatch.setattr(tune, "_PATIENCE_SECONDS", 0.0)
    assert "still waiting for the first trial to start" in attend(post, release.wait, lambda _: None)
    assert not release.is_set()
    with pytest.raises(
        RaySystemError, match="has not been started"
    ):  # what Tune's thread asks next starts no other Ray
        ray.wait([])


def test_trials_that_have_lost_their_machine_are_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, release: threading.Event
) -> None:
    post = Post(("started", 3))
    post.box.asked()
    monkeypatch.setattr(tune, "ray", post)
    assert attend(post, release.wait, lambda _: None) == ""
    assert not release.is_set()


def test_trials_that_still_ask_save_first(monkeypatch: pytest.MonkeyPatch, release: threading.Event) -> None:
    post = Post(("started", 3), ("say", "trial 3: refused checkpoint step_00000004"))
    monkeypatch.setattr(tune, "ray", post)
    turns = itertools.count()

    def show(_: Any) -> None:
        post.box.asked()  # as the trial does
        if next(turns) == 100:  # long after the grace that those get who do not ask
            release.set()

    assert attend(post, release.wait, show) == "trial 3: refused checkpoint step_00000004"
    assert release.is_set()


def test_what_tune_makes_of_its_records_at_the_end_costs_no_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    def fit() -> None:
        raise FileNotFoundError("the folder that the job started in")

    for is_over in (True, False):
        post = Post(("started", 3))
        monkeypatch.setattr(tune, "ray", post)
        with contextlib.nullcontext() if is_over else pytest.raises(FileNotFoundError):
            attend(post, fit, lambda _: None, is_over=is_over)
