"""What is loaded from a checkpoint: its precision, and the run that it belongs to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from trained_run import save_run

from hai.trained import best_device, load_trained

CPU = torch.device("cpu")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return save_run(tmp_path / "runs")


@pytest.fixture
def tf32() -> Iterator[None]:
    parts = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    before = [part.fp32_precision for part in parts]
    for part in parts:
        part.fp32_precision = "tf32"
    yield
    for part, precision in zip(parts, before, strict=True):
        part.fp32_precision = precision


def precisions() -> tuple[str, str]:
    return torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision


@pytest.mark.usefixtures("tf32")
def test_a_model_on_any_gpu_is_computed_in_full_precision(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = load_trained(str(run), CPU)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert best_device() == torch.device("cuda")
    assert precisions() == ("tf32", "tf32"), "choosing a device changes nothing"
    replace(trained, device=torch.device("cuda", 1))
    assert precisions() == ("ieee", "ieee")
