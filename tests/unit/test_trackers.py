"""Weights & Biases out of reach costs nothing: its records wait in the run folder."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from hai.config.schema import RunConfig
from hai.trackers import Trackers


@pytest.mark.slow  # the service's client waits half a minute
def test_records_are_kept_where_the_service_cannot_be_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # no login of the user's
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setattr("hai.trackers._CLOSE_SECONDS", 120.0)
    config = RunConfig.model_validate({"logging": {"tensorboard": False, "wandb": {"enabled": True}}})
    lines: list[str] = []
    trackers = Trackers(config, tmp_path, "storage/run", 0, say=lines.append)
    for step in (1, 2, 3):
        trackers.record({"step": step, "train/loss": 1 / step})
    deadline = time.monotonic() + 60
    while not lines:
        assert time.monotonic() < deadline, "nothing was said"
        time.sleep(0.05)
    trackers.close()
    assert len(lines) == 1, lines
    assert f"its records are kept in {tmp_path}, `wandb sync` sends them" in lines[0]
    (kept,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    assert b"train/loss" in kept.read_bytes()
