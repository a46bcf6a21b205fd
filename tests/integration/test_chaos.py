"""Killed at random points of training and of saves, with rot in between: bit-identical, nothing lost or repeated."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.faults.kills import NAME, KillCounts, compare_runs, config_of, survive_kills, train_unbroken
from benchmarks.faults.ray_kills import survive_ray_kills

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAI_CACHE", str(tmp_path / "cache"))
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)


@pytest.mark.parametrize("kills", [4, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize("task", ["detector", "ranker"])
def test_kills_and_rot_leave_no_trace(tmp_path: Path, task: str, kills: int) -> None:
    counts = survive_kills(task, kills=kills, seed=7 + kills, folder=tmp_path)
    assert counts.is_whole, counts
    assert counts.kills["forked"] == kills
    assert counts.inside_save >= 0.2 * kills
    assert counts.rotten >= 0.2 * kills


def test_what_is_compared_differs_between_runs_that_differ(tmp_path: Path) -> None:
    """The comparison can fail: another seed gives other weights and other losses."""
    config = config_of("detector", tmp_path, train={"max_steps": 5})
    one = train_unbroken(config, tmp_path / "one")
    two = train_unbroken({**config, "seed": 43}, tmp_path / "two")
    counts = KillCounts("detector", Counter())
    compare_runs(one / NAME, two / NAME, counts)
    assert counts.differing == 2 + 2 * 5
    assert not counts.is_whole


@pytest.mark.slow
@pytest.mark.ray
def test_kills_through_ray_leave_no_trace(tmp_path: Path) -> None:
    counts = survive_ray_kills("ranker", drivers=0, workers=1, heads=1, seed=2, folder=tmp_path)
    assert counts.is_whole, counts
    assert counts.kills == Counter(worker=1, head=1)
