"""A run folder with a checkpoint of a small network whose scores follow the mean brightness, for tests of serving."""

import io
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from hai.checkpoint.store import RunFolder
from hai.config import show_config
from hai.config.load import config_from_yaml_text
from hai.faces.settings import CropSettings, as_record
from hai.models import architecture_of, build_model

CONFIG = """
task: detector
data: {image_size: 32, sources: [{path: nowhere}]}
model: {name: compact, pretrained: true}
train: {global_batch_size: 8}
"""


def save_run(
    storage: Path,
    name: str = "bright",
    *,
    seed: int = 1,
    overrides: tuple[str, ...] = (),
    crop_settings: CropSettings | None = None,
    **fitted: float,
) -> Path:
    """Save a run with random weights; the threshold lies where half of the images of `save_image` are fake."""
    config = config_from_yaml_text(CONFIG, "run.yaml", [f"seed={seed}", *overrides])
    model = build_model(config.model, config.data.image_size, config.seed)
    run = RunFolder(str(storage), name)
    best = {"metric": "f1_macro", "value": 0.75, "step": 3, "checkpoint": "checkpoints/step_00000003"}
    meta = {"best": best, "fitted": fitted, "step": 3, "architecture": architecture_of(model)}
    if crop_settings is not None:
        meta["crop_settings"] = as_record(crop_settings)
    run.save(model.state_dict(), {}, meta, step=3, wait=True)
    run.append({"step": 1, "train/loss": 0.7, "train/learning_rate": 1e-3})
    run.append({"step": 3, "train/loss": 0.5, "val/f1_macro": 0.75})
    run.close()
    (run.path / "run.yaml").write_text(show_config(config), encoding="utf-8")
    return run.path


def save_network(folder: Path) -> Path:
    """Describe a tiny network with a normalisation of its own, as a folder that `model.name=hf:FOLDER` takes."""
    folder.mkdir(parents=True)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    network = {"model_type": "vit", "image_size": 32, "patch_size": 8, **sizes}
    (folder / "config.json").write_text(json.dumps(network), encoding="utf-8")
    given = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "image_processor_type": "ViTImageProcessor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(given), encoding="utf-8")
    return folder


def image_bytes(key: int, *, size: tuple[int, int] = (48, 40), kind: str = "PNG") -> bytes:
    """Draw a noisy picture, the same for the same key."""
    pixels = np.random.default_rng(key).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def save_image(path: Path, key: int, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(image_bytes(key, **options))  # type: ignore[arg-type]
    return path


torch.set_num_threads(1)
