"""A Ray Train worker whose memory runs out: the group starts again with half the micro-batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ray_runs import Cluster

HUNGRY = """
import sys

import hai.cli
import hai.launch.ray_train


def on_worker(spec):
    import ray.train
    import torch

    from hai.launch.ray_train import _on_worker
    from hai.tasks.detector import DetectorTask

    outputs, rank = DetectorTask.outputs, ray.train.get_context().get_world_rank()

    def hungry(self, model, batch):
        if rank == 1 and model.training and len(batch["index"]) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return outputs(self, model, batch)

    DetectorTask.outputs = hungry
    _on_worker(spec)


hai.launch.ray_train._on_worker = on_worker
hai.cli.main()
"""


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_a_worker_without_memory_restarts_the_group_with_half(
    tiny_detector: Path, ray_cluster: Cluster, tmp_path: Path
) -> None:
    script = tmp_path / "hungry.py"
    script.write_text(HUNGRY, encoding="utf-8")
    command = [sys.executable, str(script), "train", "--config", str(tiny_detector), "--storage", str(tmp_path)]
    command += ["--workers", "2", "scale.max_failures=0", "train.max_steps=20"]
    environment = {**os.environ, "RAY_ADDRESS": ray_cluster.address}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert "out of memory with 8 examples at once on worker 1" in done.stderr
    assert "each worker forwards at most 4 examples at once" in done.stderr
    newest = max((tmp_path / "tiny" / "checkpoints").glob("step_*"))
    state = json.loads((newest / "state.json").read_text(encoding="utf-8"))
    assert (state["step"], state["micro_batch_size"], state["memory"]["micro_batch_size"]) == (20, 4, 4)
