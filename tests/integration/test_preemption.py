"""A spot machine's notice reaches the loop, without Ray: one checkpoint at once, and training goes on."""

from __future__ import annotations

import re
from pathlib import Path

from metadata_server import metadata_server
from ray_runs import newest_step, output, start, steps, summary, tensors, wait_until


def test_a_notice_is_answered_with_a_checkpoint(tiny_detector: Path, unbroken: Path, tmp_path: Path) -> None:
    run = tmp_path / "tiny"
    settings = [
        "scale.launcher=in_process",
        "checkpoint.every_minutes=60",
        "checkpoint.keep=100",
        "logging.every_steps=1",
    ]
    with metadata_server("google") as server:
        process = start(tiny_detector, tmp_path, *settings, **server.environment)
        wait_until(lambda: (run / "metrics.jsonl").exists() and server.asked > 0, process, tmp_path)
        assert newest_step(run) in (0, 20, 40)
        server.notice = 30
        assert process.wait(timeout=240) == 0
    assert "Google Cloud: this machine will be taken away in 30 s: saving a checkpoint" in output(tmp_path)
    assert summary(run)["status"] == "finished"
    assert tensors(run) == tensors(unbroken)
    saved = {int(name) for name in re.findall(r"step_(\d+)", " ".join(p.name for p in (run / "checkpoints").iterdir()))}
    assert len(saved - {20, 40, 60}) == 1, saved  # once for a notice
    assert steps(run)[-1] == 60
