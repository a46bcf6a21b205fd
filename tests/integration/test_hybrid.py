"""Several sources in one run: what an epoch draws from each, where none is trained on, and numbers for each of them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from trained_run import save_image

from hai.config.schema import RunConfig
from hai.context import Context
from hai.data.dataset import ImageDataset
from hai.data.manifest import Manifest, build_manifest
from hai.evaluation import evaluate_checkpoint
from hai.loop import train
from hai.rank_metrics import point_metrics
from hai.tasks import build_task
from hai.types import Batch, Record

FILES = {
    "swaps": {"real": 24, "fake/Deepfakes": 16, "fake/FaceSwap": 8},
    "made": {"real": 6, "fake": 6},
    "unseen": {"real": 10, "fake": 10},
}
CELLS = [("swaps", 0), ("made", 0), ("swaps/Deepfakes", 1), ("swaps/FaceSwap", 1), ("made", 1)]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three data sets of small noisy pictures, one a video."""
    root = tmp_path_factory.mktemp("sources")
    key = 0
    for name, folders in FILES.items():
        for folder, count in folders.items():
            for i in range(count):
                key += 1
                save_image(root / name / folder / f"clip{i:02d}-{folder[-1]}" / "1.png", key)
    return root


def config_of(sources: Path, sampling: str) -> RunConfig:
    entries: list[Record] = [
        {"name": "swaps", "path": str(sources / "swaps"), "splits": ["train", "val"], "weight": 3},
        {"name": "made", "path": str(sources / "made"), "splits": ["train"]},
        {"name": "unseen", "path": str(sources / "unseen"), "splits": ["val"]},
    ]
    data = {"sources": entries, "image_size": 32, "sampling": sampling, "num_threads": 1, "cache_decoded": "off"}
    return RunConfig.model_validate(
        {
            "data": data | {"split_ratios": [0.5, 0.5, 0.0]},
            "model": {"name": "compact", "pretrained": False},
            "train": {"max_epochs": 2, "global_batch_size": 9},
            "logging": {"tensorboard": False, "every_steps": 1},
        }
    )


def run(config: RunConfig, storage: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Manifest, Counter[tuple[str, int]]]:
    """Train; return the manifest and how often each source and label was trained on."""
    manifest = build_manifest(config.data, config.seed)
    drawn: Counter[tuple[str, int]] = Counter()
    original = ImageDataset.prepare

    def prepare(self: ImageDataset, batch: Batch, *, epoch: int, training: bool) -> Batch:
        if training:
            assert {manifest.split[row] for row in batch["index"].tolist()} == {0}
            drawn.update((manifest.source[row], int(manifest.label[row])) for row in batch["index"].tolist())
        return original(self, batch, epoch=epoch, training=training)

    monkeypatch.setattr(ImageDataset, "prepare", prepare)
    torch.set_num_threads(1)
    train(config, build_task(config), Context(str(storage), "run"))
    return manifest, drawn


def test_proportional_draws_every_training_image_as_often_as_there_are_epochs(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, drawn = run(config_of(sources, "proportional"), tmp_path, monkeypatch)
    assert {source for source, _ in drawn} == {"swaps", "swaps/Deepfakes", "swaps/FaceSwap", "made"}
    rows = manifest.indices("train").tolist()
    once = Counter((manifest.source[row], int(manifest.label[row])) for row in rows)
    assert once == {
        ("swaps", 0): 12,
        ("swaps/Deepfakes", 1): 8,
        ("swaps/FaceSwap", 1): 4,
        ("made", 0): 6,
        ("made", 1): 6,
    }
    assert drawn == {cell: 2 * count for cell, count in once.items()}


@pytest.mark.parametrize(
    ("sampling", "expected"), [("balanced", (18, 18, 9, 9, 18)), ("weighted", (27, 9, 13.5, 13.5, 9))]
)
def test_shares_of_an_epoch_are_those_asked_for(
    sampling: str, expected: tuple[float, ...], sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, drawn = run(config_of(sources, sampling), tmp_path, monkeypatch)
    assert drawn.keys() == set(CELLS)
    assert drawn.total() == 72
    for cell, share in zip(CELLS, expected, strict=True):
        assert abs(drawn[cell] - share) <= 2, "whole numbers in each of two epochs"


def test_every_source_has_its_numbers_in_training_and_in_evaluation(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(sources, "balanced")
    manifest, _ = run(config, tmp_path, monkeypatch)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    evaluations = [record for record in map(json.loads, lines) if "val/f1_macro" in record]
    assert len(evaluations) == 2
    tracked = {name for name in evaluations[-1] if name.startswith("val/") and name.count("/") > 1}
    assert tracked == {
        f"val/{metric}/{source}"
        for metric in ("accuracy", "f1_macro", "roc_auc")
        for source in ("swaps", "swaps/Deepfakes", "swaps/FaceSwap", "unseen")
    }
    assert all(np.isfinite(evaluations[-1][name]) for name in tracked)
    counts = Counter(manifest.source[row] for row in manifest.indices("val").tolist())
    whole = sum(evaluations[-1][f"val/accuracy/{name}"] * n for name, n in {"swaps": 24, "unseen": 20}.items()) / 44
    assert counts == {"swaps": 12, "swaps/Deepfakes": 8, "swaps/FaceSwap": 4, "unseen": 20}
    assert evaluations[-1]["val/accuracy"] == pytest.approx(whole)

    summary = json.loads((tmp_path / "run" / "summary.json").read_text(encoding="utf-8"))
    best = next(record for record in evaluations if record["step"] == summary["best"]["step"])
    measured = evaluate_checkpoint(str(tmp_path / "run"), str(sources / "unseen"), split="val")
    assert measured["metrics"]["roc_auc"]["value"] == pytest.approx(best["val/roc_auc/unseen"])
    swaps = evaluate_checkpoint(str(tmp_path / "run"), str(sources / "swaps"), split="val")
    parts = {part["source"]: part for part in swaps["per_source"]}
    assert parts["swaps/FaceSwap"]["num_others"] == parts["swaps"]["n"]
    page = (tmp_path / "run" / "evaluation" / "val" / "report.html").read_text(encoding="utf-8")
    assert "A source of one class is ranked against the other class of its data set" in page


def test_a_ranker_follows_each_of_its_sources(small_art: Path) -> None:
    entries = [{"name": name, "path": str(small_art)} for name in ("one", "two")]
    config = RunConfig.model_validate(
        {"task": "ranker", "data": {"sources": entries, "image_size": 32}, "model": {"name": "compact"}}
    )
    task = build_task(config)
    manifest = task.build_datasets().details
    rows = manifest.indices("val")
    score = np.random.default_rng(0).random(len(rows))
    found = task.metrics({"index": rows, "label": manifest.label[rows].astype(np.int64), "score": score})
    for name in ("one", "two"):
        own = np.array([manifest.source[row] == name for row in rows])
        expected = point_metrics(score[own], manifest.label[rows][own])
        assert found[f"pair_accuracy/{name}"] == expected["pair_accuracy"]
        assert found[f"srcc/{name}"] == expected["srcc"]
    assert found["pair_accuracy"] == point_metrics(score, manifest.label[rows])["pair_accuracy"]
