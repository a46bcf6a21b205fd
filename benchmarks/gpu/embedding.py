"""Embedding images with the ranker's backbone, a DINOv2-large of random weights."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.gpu.device import Setting, record_of, turns_of
from hai.config.schema import RunConfig
from hai.data.augment import normalise
from hai.embeddings.compute import encoding_batch_size
from hai.models.encoder import build_encoder, encode
from hai.precision import precision_on

__all__ = ["ranker_config", "run"]

_MINUTES = 30.0
_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "image_size": 518}
_TINY = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 56}


def ranker_config(setting: Setting, folder: Path) -> RunConfig:
    """Return the config of the published recipe, with a backbone that is described in a folder and not fetched."""
    described = {"model_type": "dinov2", "architectures": ["Dinov2Model"], "patch_size": 14}
    described |= _TINY if setting.is_tiny else _LARGE
    (folder / "config.json").write_text(json.dumps(described), encoding="utf-8")
    return RunConfig.model_validate(
        {
            "task": "ranker",
            "data": {"image_size": 56 if setting.is_tiny else 756},
            "model": {"name": f"hf:{folder}", "pretrained": False},
        }
    )


def run(setting: Setting) -> list[dict[str, Any]]:
    """Measure images per second with mixed and with full precision, and how far the features are apart."""
    with tempfile.TemporaryDirectory(prefix="hai-benchmark-") as scratch:
        config = ranker_config(setting, Path(scratch))
        encoder = build_encoder(config.model, config.data.image_size, config.seed).eval().requires_grad_(False)
    size, mixed = config.data.image_size, precision_on(setting.device, True)
    count = encoding_batch_size(size, setting.device.type)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)
    turns = turns_of(
        setting,
        {
            "mixed": lambda: _encoding(setting, encoder, pixels, mixed),
            "full": lambda: _encoding(setting, encoder, pixels, None),
        },
    )
    name = f"DINOv2-{'tiny' if setting.is_tiny else 'large'} {size} px, batch {count}"
    records = []
    for precision, found in turns.items():
        minutes = [10_000 / turn.rate / 60 for turn in found]
        records.append(
            record_of(f"{name}, {precision}_minutes_10000", minutes, most=_MINUTES if precision == "mixed" else None)
        )
        records.append(record_of(f"{name}, {precision}_images_per_second", [turn.rate for turn in found]))
        records.append(record_of(f"{name}, {precision}_gigabytes", [turn.gigabytes for turn in found]))
    cosines = _cosines(setting, encoder, pixels[:4], mixed)
    return [
        *records,
        record_of(f"{name}, cosine of {mixed or torch.float32} and float32 features", cosines, floor=0.999),
    ]


def _encoding(
    setting: Setting, encoder: nn.Module, pixels: torch.Tensor, precision: torch.dtype | None
) -> Callable[[], int]:
    """Return a function that encodes a batch as `hai embed` does, until the features lie in CPU memory."""
    device = setting.device
    encoder, pixels = copy.deepcopy(encoder).to(device), pixels.to(device)

    def step() -> int:
        with torch.autocast(device.type, precision, enabled=precision is not None):
            return len(encode(encoder, normalise(pixels)).float().cpu())

    return step


def _cosines(setting: Setting, encoder: nn.Module, pixels: torch.Tensor, precision: torch.dtype | None) -> list[float]:
    device = setting.device
    encoder, image = copy.deepcopy(encoder).to(device), normalise(pixels.to(device))
    full = encode(encoder, image)
    with torch.autocast(device.type, precision, enabled=precision is not None):
        other = encode(encoder, image)
    return [float(cosine) for cosine in torch.nn.functional.cosine_similarity(full.double(), other.double())]
