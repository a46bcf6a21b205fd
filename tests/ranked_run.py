"""A run folder with a checkpoint of a small ranker with random weights, for tests of serving."""

from pathlib import Path

import torch

from hai.checkpoint.store import RunFolder
from hai.config import show_config
from hai.config.load import config_from_yaml_text
from hai.models.scorer import build_scorer
from hai.score_scale import Scale

CONFIG = """
task: ranker
seed: 3
data: {image_size: 32, tiers: [gold, silver, bronze], score_column: votes, sources: [{path: nowhere}]}
model: {name: compact, pretrained: false, freeze_backbone: false, head: linear, num_heads: 3}
train: {global_batch_size: 8}
"""


def save_ranker(storage: Path, name: str, scale: Scale, *overrides: str) -> Path:
    """Save a run whose scores are read by the scale."""
    config = config_from_yaml_text(CONFIG, "run.yaml", overrides)
    model = build_scorer(config, config.data.image_size)
    run = RunFolder(str(storage), name)
    best = {"metric": "pair_accuracy", "value": 0.75, "step": 3, "checkpoint": "checkpoints/step_00000003"}
    meta = {"best": best, "fitted": scale.record(), "step": 3, "architecture": model.architecture}
    run.save(model.state_dict(), {}, meta, step=3, wait=True)
    run.append({"step": 3, "train/loss": 0.5, "val/pair_accuracy": 0.75})
    run.close()
    (run.path / "run.yaml").write_text(show_config(config), encoding="utf-8")
    return run.path


torch.set_num_threads(1)
