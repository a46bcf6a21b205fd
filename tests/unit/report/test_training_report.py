import json
from pathlib import Path

import numpy as np
import pytest
from trained_run import save_image

from hai.config.schema import DataConfig, SourceConfig
from hai.data.manifest import Manifest, build_manifest
from hai.report import write_training_report
from hai.types import Arrays


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "quick"
    folder.mkdir(parents=True)
    summary = {
        "name": "quick", "task": "detector", "status": "interrupted", "step": 20, "total_steps": 1000, "epoch": 2.0,
        "best": {"metric": "f1_macro", "value": 0.8, "step": 20, "checkpoint": "checkpoints/step_00000020"},
        "versions": {"hai": "0.1.0"}, "commit": "abc123", "command": "hai train --config quick.yaml",
        "hardware": {"system": "Linux", "cpu": "A CPU", "num_cpus": 2, "memory_gb": 8.0, "gpus": []},
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    (folder / "run.yaml").write_text("seed: 42\nsource: gs://me:pw@bucket/x\n", encoding="utf-8")
    records = [{"step": step, "train/loss": 1 / step, "val/f1_macro": 0.5} for step in (10, 20)]
    lines = [json.dumps(record) for record in records]
    (folder / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 30, "tra']), encoding="utf-8")
    return folder


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    for i in range(12):
        save_image(tmp_path / "data" / "val" / ("fake" if i % 2 else "real") / f"{i}.png", i)
        save_image(tmp_path / "data" / "train" / ("fake" if i % 2 else "real") / f"{i}.png", 100 + i)
    data = DataConfig(sources=[SourceConfig(path=str(tmp_path / "data"))])
    return build_manifest(data, seed=0)


def predictions_of(manifest: Manifest) -> Arrays:
    index = manifest.indices("val")
    label = manifest.label[index].astype(np.int64)
    return {
        "index": index,
        "label": label,
        "logit": np.where(label == 1, 2.0, -1.0),
        "extra": np.zeros((len(index), 3)),
    }


def test_page_of_a_run_with_predictions(run: Path, manifest: Manifest) -> None:
    path = write_training_report(run, predictions_of(manifest), manifest)
    assert path == run / "report.html"
    html = path.read_text(encoding="utf-8")
    for text in (
        "quick", "interrupted", "train 6 real, 6 fake; val 6 real, 6 fake", "20 of 1,000 (epoch 2)", "abc123",
        "A CPU, 2 CPUs, 8 GB memory", "hai train --config quick.yaml", "12 images", "seed: 42", "Loss", "Decisions",
        "None: every image is on the right side of the threshold.",
        f"hai predict --checkpoint {run} ", "Macro-F1 on validation images",
    ):  # fmt: skip
        assert text in html, text
    assert "me:pw" not in html


def test_page_of_a_run_without_predictions(run: Path) -> None:
    html = write_training_report(run).read_text(encoding="utf-8")
    assert "Loss" in html
    assert "Decisions" not in html


def test_page_of_an_empty_folder(tmp_path: Path) -> None:
    html = write_training_report(tmp_path).read_text(encoding="utf-8")
    assert f"<h1>{tmp_path.name}</h1>" in html
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"], "no temporary file is left"


def test_warnings_of_the_data_are_shown(run: Path, tmp_path: Path) -> None:
    for i in range(12):
        save_image(tmp_path / "d" / "train" / ("fake" if i % 2 else "real") / f"{i}.png", i)
        save_image(tmp_path / "d" / "val" / ("fake" if i % 2 else "real") / f"{i}.png", i)
    (tmp_path / "d" / "val" / "real" / "broken.png").write_bytes(b"no image")
    data = DataConfig(sources=[SourceConfig(path=str(tmp_path / "d"))], max_bad_fraction=0.5)
    html = write_training_report(run, None, build_manifest(data, seed=0)).read_text(encoding="utf-8")
    assert "Before you trust these numbers" in html
    assert "12 images are in more than one split" in html
    assert "broken.png: not an image" in html
