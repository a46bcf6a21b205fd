"""Training on a storage of which three calls in ten go wrong: the same weights, no stop, and a resume elsewhere."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from test_loop import losses_of, tensors_of, toy_config, toy_run
from toy import ToyTask

from benchmarks.faults.storage import FaultyFileSystem
from benchmarks.faults.uploads import hurried
from hai.checkpoint.remote import locate
from hai.types import STOP

URL = "faulty://bucket/runs"


def test_weights_are_the_same_and_nothing_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = toy_config(checkpoint={"every_epochs": 0.2, "keep": 2}, train={"max_epochs": 8})
    toy_run(tmp_path / "calm", config, ToyTask(config, dropout=0.3, batch_norm=True))
    monkeypatch.setattr(FaultyFileSystem, "hang_s", 0.12)
    FaultyFileSystem.reset(seed=3)
    with hurried(tmp_path, limit_s=0.06):
        work = locate(URL, "run").path
        for stop in (19, 48):
            asked = iter(range(1000))

            def request(asked=asked, stop=stop) -> int:
                FaultyFileSystem.rate = 0.3  # not before: the start of a launch refuses a storage that fails
                return STOP if next(asked) == stop else 0

            said: list[str] = []
            task = ToyTask(config, dropout=0.3, batch_norm=True)
            summary = toy_run(URL, config, task, request=request, say=said.append, wait_for_upload=True)
            FaultyFileSystem.rate = 0.0
            assert summary["step"] == stop
            assert any(f"(newest step {stop})" in line for line in said if line.startswith("storage: confirmed on"))
            assert [line for line in said if line.startswith("storage: not on")] == [], said
            if stop == 19:
                shutil.rmtree(work)  # another machine goes on, which has the storage alone
        assert len(FaultyFileSystem.faults) > 20
        work.parent.joinpath("faulty").mkdir()
        work.rename(work.parent / "faulty" / "run")
        assert tensors_of(work.parent / "faulty") == tensors_of(tmp_path / "calm")
        assert losses_of(work.parent / "faulty") == losses_of(tmp_path / "calm")
    FaultyFileSystem.reset()
