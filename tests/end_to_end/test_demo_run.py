"""What `make demo` promises: a detector of local manipulations, trained in minutes, measured on unseen photographs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


def _hai(*arguments: str) -> str:
    command = [str(Path(sys.executable).parent / "hai"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_demo_learns_what_it_promises(tmp_path: Path) -> None:
    data, storage = str(tmp_path / "data"), str(tmp_path / "runs")
    _hai("data", "demo", "--task", "detector", "--output", data)
    train = ["train", "--config", "configs/detector/demo.yaml", "--name", "demo", "--storage", storage]
    settings = [f"data.sources.0.path={data}", "scale.launcher=in_process", "scale.cpus_per_worker=2"]
    _hai(*train, *settings)
    _hai("evaluate", "--checkpoint", f"{storage}/demo", "--data", data)
    evaluation = json.loads((tmp_path / "runs/demo/evaluation/test/evaluation.json").read_text(encoding="utf-8"))
    assert evaluation["n"] == 380
    assert evaluation["metrics"]["f1_macro"]["value"] >= 0.90
    assert (tmp_path / "runs/demo/evaluation/test/report.html").stat().st_size > 50_000
    assert "is finished" in _hai(*train, *settings)
