"""What is loaded from a checkpoint: its precision, and the run that it belongs to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest
import torch
from trained_run import save_run

from hai.export import run_export
from hai.submit.package import build_package
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


def run_of(reference: object) -> str:
    return load_trained(str(reference), CPU).run


def test_a_run_is_what_a_checkpoint_without_a_config_lies_in(run: Path, tmp_path: Path) -> None:
    checkpoint = run / "checkpoints" / "step_00000003"
    assert run_of(run) == run_of(checkpoint) == run_of(f"file://{checkpoint}/") == str(run)
    (tmp_path / "copy").mkdir()
    for path in (run / "run.yaml", checkpoint):
        path.rename(tmp_path / "copy" / path.name)
    assert run_of(tmp_path / "copy" / checkpoint.name) == str(tmp_path / "copy")


def test_a_checkpoint_with_a_config_is_its_own_run(run: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert run_export(str(run), "safetensors", str(tmp_path / "exports" / name)) == 0
        assert run_of(tmp_path / "exports" / name) == str(tmp_path / "exports" / name)
    (tmp_path / "package").mkdir()
    build_package(str(run), tmp_path / "package", "aifactory", frames=4, faces="never", aggregate="mean")
    assert run_of(tmp_path / "package" / "model") == str(tmp_path / "package" / "model")


def test_urls_are_runs_as_folders_are(run: Path, tmp_path: Path) -> None:
    run_export(str(run), "safetensors", str(tmp_path / "export"))
    bucket = fsspec.filesystem("memory")
    bucket.put(str(run), "/trained/run", recursive=True)
    bucket.put(str(tmp_path / "export"), "/trained/export", recursive=True)
    assert run_of("memory://trained/run/") == "memory://trained/run"
    assert run_of("memory://trained/run/checkpoints/step_00000003") == "memory://trained/run"
    assert run_of("memory://trained/export") == "memory://trained/export"
