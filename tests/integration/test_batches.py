"""The augmented tensors that a step learns from: the same for every number of loader threads and after any resume."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hai.config.schema import RunConfig
from hai.context import Context
from hai.data.dataset import ImageDataset
from hai.loop import train
from hai.tasks import build_task
from hai.types import STOP, Batch

STEPS = 8


@pytest.fixture
def digests(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collect a hash of every batch that a model is given in training."""
    found: list[str] = []
    original = ImageDataset.prepare

    def prepare(self: ImageDataset, batch: Batch, *, epoch: int, training: bool) -> Batch:
        prepared = original(self, batch, epoch=epoch, training=training)
        if training:
            image, index = prepared["image"].contiguous(), prepared["index"]
            found.append(hashlib.sha256(image.numpy().tobytes() + index.numpy().tobytes()).hexdigest())
        return prepared

    monkeypatch.setattr(ImageDataset, "prepare", prepare)
    return found


def _learn(folder: Path, storage: Path, num_threads: int, digests: list[str], stop: int = STEPS) -> list[str]:
    config = RunConfig.model_validate(
        {
            "data": {
                "sources": [{"name": "faces", "path": str(folder)}],
                "image_size": 48,
                "geometry": "crop",
                "sampling": "balanced",
                "num_threads": num_threads,
                "cache_decoded": "off",
            },
            "augment": {"flip": 0.5, "jpeg_probability": 0.5, "noise_probability": 0.5, "blur_probability": 0.5},
            "model": {"name": "compact", "pretrained": False},
            "train": {"max_epochs": None, "max_steps": STEPS, "global_batch_size": 16},
            "logging": {"tensorboard": False},
        }
    )
    torch.set_num_threads(1)
    calls = iter(range(10**9))
    request: Callable[[], int] = lambda: STOP if next(calls) >= stop else 0  # noqa: E731
    digests.clear()
    train(config, build_task(config), Context(str(storage), "run", request=request))
    return list(digests)


def test_threads_and_resumes_do_not_change_a_single_bit(small_faces: Path, tmp_path: Path, digests: list[str]) -> None:
    whole = _learn(small_faces, tmp_path / "whole", 1, digests)
    assert len(set(whole)) == STEPS
    for num_threads in (2, 3, 4):
        assert _learn(small_faces, tmp_path / f"threads-{num_threads}", num_threads, digests) == whole
    seen: list[str] = []
    for turn in range(STEPS):  # stopped after every step, each time with another number of threads
        seen += _learn(small_faces, tmp_path / "stopped", 1 + turn % 4, digests, stop=1)
    assert seen == whole
