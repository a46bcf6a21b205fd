"""From raw videos through preprocessing and training to their own scores: faces are cut as they were."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hai.predict import run_prediction

ROOT = Path(__file__).resolve().parents[2]


def hai(verb: str, *arguments: object) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "ray_jobs" / f"{verb}.py"), *map(str, arguments)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "RAY_ADDRESS": "local"},
        capture_output=True,
        text=True,
        check=False,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_prediction_follows_the_preprocessing_of_its_training_data(raw, tmp_path):
    crops = tmp_path / "crops"
    hai("preprocess", "--input", raw, "--output", crops, "--frames", 3, "--image-size", 64, "--split-ratio", 0.5)
    config = tmp_path / "run.yaml"
    config.write_text(
        f"task: detector\ndata: {{image_size: 32, sources: [{{path: {crops}}}]}}\n"
        "model: {name: compact, pretrained: false}\n"
        "train: {max_steps: 2, global_batch_size: 4}\nscale: {launcher: in_process, use_gpu: false}\n",
        encoding="utf-8",
    )
    hai("train", "--config", config, "--name", "run", "--storage", tmp_path / "runs")
    kept = json.loads((tmp_path / "runs/run/checkpoints/step_00000002/state.json").read_text(encoding="utf-8"))
    assert kept["crop_settings"] == json.loads((crops / "preprocess.json").read_text(encoding="utf-8"))["settings"]

    checkpoint = str(tmp_path / "runs/run")
    assert run_prediction([checkpoint], [str(raw)], str(tmp_path / "raw.csv"), frames=3) == 0
    assert run_prediction([checkpoint], [str(crops)], str(tmp_path / "crops.csv")) == 0
    with open(tmp_path / "raw.csv", encoding="utf-8", newline="") as file:
        rows = {row["filename"]: row for row in csv.DictReader(file)}
    with open(tmp_path / "crops.csv", encoding="utf-8", newline="") as file:
        ready = list(csv.DictReader(file))
    assert sum(int(row["num_faces"]) for row in rows.values()) == len(ready) > 20
    assert {row["num_faces"] for row in ready} == {"0"}
    assert sum(bool(row["error"]) for row in rows.values()) == 2
