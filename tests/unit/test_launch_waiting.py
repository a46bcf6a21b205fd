"""Stopping a launch whose workers or trials wait for a machine, which would never hear of it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from hai.launch import ray_train, tune
from hai.types import STOP

pytestmark = pytest.mark.timeout(60)


class Post:
    """Plays Ray and the mailbox: letters come as they are put."""

    def __init__(self, *letters: tuple[str, Any]) -> None:
        self.letters = list(letters)
        self.asked: list[int] = []
        self.take = SimpleNamespace(remote=self._take)
        self.ask = SimpleNamespace(remote=self.asked.append)

    def _take(self) -> list[tuple[str, Any]]:
        letters, self.letters = self.letters, []
        return letters

    def get(self, value: Any) -> Any:
        return value


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (ray_train, tune):
        monkeypatch.setattr(module, "_GRACE_SECONDS", 0.05)
        monkeypatch.setattr(module, "POLL_SECONDS", 0.01)


@pytest.fixture
def release() -> Any:
    """What waits for a machine until the test is over."""
    event = threading.Event()
    yield event
    event.set()


def test_workers_that_have_not_started_are_not_waited_for(release: threading.Event) -> None:
    post, told = Post(), []
    trainer = SimpleNamespace(fit=release.wait)
    outcome = ray_train._attend(post, trainer, post, lambda: STOP, say=told.append, show=lambda _: None)
    assert (outcome.status, outcome.summary["step"]) == ("interrupted", 0)
    assert post.asked == [STOP]
    assert told == ["no worker had started yet; nothing was changed"]


def test_workers_that_have_started_save_first(release: threading.Event) -> None:
    post = Post(("say", "resuming from step_00000007"))
    summary = {"status": "interrupted", "step": 9}
    calls = iter(range(1000))

    def request() -> int:
        if next(calls) == 40:  # long after the grace that those get who have not started
            post.letters.append(("summary", summary))
            release.set()
        return STOP

    trainer = SimpleNamespace(fit=release.wait)
    outcome = ray_train._attend(post, trainer, post, request, say=lambda _: None, show=lambda _: None)
    assert outcome.summary == summary


def attend(post: Post, fit: Callable[[], object], show: Callable[[Any], None]) -> str:
    """Attend a trial that is handed out, after a signal; return what is said."""
    stopped: list[bool] = []
    board: Any = SimpleNamespace(running={3}, stop=lambda: stopped.append(True), progress=dict)
    told: list[str] = []
    tune._attend(
        SimpleNamespace(fit=fit), post, board, SimpleNamespace(request=STOP),  # type: ignore[arg-type]
        lambda: float("inf"), say=told.append, show=show,
    )  # fmt: skip
    assert (stopped, post.asked) == ([True], [STOP])
    return "\n".join(told)


def test_trials_that_have_not_started_are_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, release: threading.Event
) -> None:
    post = Post()
    monkeypatch.setattr(tune, "ray", post)
    monkeypatch.setattr(tune, "_PATIENCE_SECONDS", 0.0)
    assert "still waiting for the first trial to start" in attend(post, release.wait, lambda _: None)
    assert not release.is_set()


def test_trials_that_have_started_save_first(monkeypatch: pytest.MonkeyPatch, release: threading.Event) -> None:
    post = Post(("started", 3), ("say", "trial 3: refused checkpoint step_00000004"))
    monkeypatch.setattr(tune, "ray", post)
    turns = iter(range(1000))

    def show(_: Any) -> None:
        if next(turns) == 40:  # long after the grace that those get who have not started
            release.set()

    assert attend(post, release.wait, show) == "trial 3: refused checkpoint step_00000004"
    assert release.is_set()
