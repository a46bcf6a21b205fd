import csv
import json
from pathlib import Path

import numpy as np
import pytest
from trained_run import save_image

from hai.config.schema import DataConfig, SourceConfig
from hai.data.manifest import Manifest, build_manifest
from hai.rank_results import RankScores, summarise_ranking
from hai.report import write_training_report
from hai.types import Arrays

AUDIT = ["filename", "tier", "suggested_tier", "strength", "score", "split", "group", "source"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    summary = {"name": "best art", "task": "ranker", "status": "finished", "step": 20, "epoch": 2.0}
    summary |= {
        "best": {"metric": "pair_accuracy", "value": 0.8, "step": 20, "checkpoint": "checkpoints/step_00000020"}
    }
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    records = [{"step": step, "train/loss": 1 / step, "val/pair_accuracy": 0.5} for step in (10, 20)]
    lines = "\n".join(json.dumps(record) for record in records)
    (tmp_path / "run" / "metrics.jsonl").write_text(lines + "\n", encoding="utf-8")
    return tmp_path / "run"


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """32 images of three tiers, 20 of them for training; image 5 is of the best tier but looks like the worst."""
    root = tmp_path_factory.mktemp("ranked")
    rows = []
    for i in range(32):
        save_image(root / f"{i:02d}.png", i)
        tier = "gold" if i == 5 else ("gold", "silver", "bronze")[i % 3]
        rows.append([f"id{i}", f"{i:02d}.png", tier, f"g{i // 2}", "train" if i < 20 else "val"])
    with open(root / "metadata.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["image_id", "filename", "tier", "group", "split"], *rows])
    source = SourceConfig(name="art", path=str(root / "metadata.csv"))
    return build_manifest(DataConfig(sources=[source], tiers=["gold", "silver", "bronze"]), seed=0, task="ranker")


def predictions_of(manifest: Manifest) -> Arrays:
    index = manifest.indices("val")
    looks = np.array([int(manifest.path[i][:2]) % 3 for i in index])
    score = 5.0 - 2.0 * looks + np.linspace(0, 0.5, len(index))
    score[np.flatnonzero(looks == 0)[0]] = 0.0
    return {"index": index, "score": score.astype(np.float32), "spread": np.zeros(len(index)), "label": looks}


def features_of(manifest: Manifest) -> np.ndarray:
    looks = np.array([int(manifest.path[i][:2]) % 3 for i in manifest.indices("train")])
    noise = np.random.default_rng(0).normal(size=(len(looks), 4))
    noise[:, 0] = looks + 0.05 * noise[:, 0]
    return noise.astype(np.float32)


def audit(run: Path) -> list[dict[str, str]]:
    with open(run / "label_audit.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_page_of_a_ranker(run: Path, manifest: Manifest) -> None:
    predictions = predictions_of(manifest)
    html = write_training_report(run, predictions, manifest).read_text(encoding="utf-8")
    summary = summarise_ranking(RankScores.of(predictions, manifest), 0)
    accuracy = summary["metrics"]["pair_accuracy"]["value"]
    assert 0.5 < accuracy < 1
    for text in (
        "Training of an image ranker", "<h1>best art</h1>", "Pair accuracy on validation images", f"{accuracy:.3f}",
        "train 8 gold, 7 silver, 5 bronze; val 4 gold, 4 silver, 4 bronze; test 0 gold, 0 silver, 0 bronze",
        "by validation Pair accuracy (0.800), is of step 20", "hai rank --checkpoint ", "these same validation images",
    ):  # fmt: skip
        assert text in html, text
    assert "training images" not in html, "no features, no audit of training images"
    rows = audit(run)
    assert list(rows[0]) == AUDIT
    assert {row["split"] for row in rows} == {"val"}
    assert ("gold", "bronze") in {(row["tier"], row["suggested_tier"]) for row in rows}


def test_training_images_are_audited_with_features(run: Path, manifest: Manifest) -> None:
    html = write_training_report(
        run, predictions_of(manifest), manifest, features=lambda: features_of(manifest)
    ).read_text(encoding="utf-8")
    assert "of 20 training images" in html
    found = {row["filename"]: row for row in audit(run) if row["split"] == "train"}
    assert found["05.png"]["tier"] == "gold"
    assert found["05.png"]["suggested_tier"] == "bronze"
    assert found["05.png"]["source"] == "art"
    assert float(found["05.png"]["strength"]) > 0.9
    strength = [float(row["strength"]) for row in audit(run)]
    assert strength == sorted(strength, reverse=True)


def test_page_without_predictions(run: Path, manifest: Manifest) -> None:
    html = write_training_report(run, None, manifest).read_text(encoding="utf-8")
    assert "Loss" in html
    assert "Scores and tiers" not in html
    assert not (run / "label_audit.csv").exists()
