"""The loop on a GPU, without Ray: mixed precision resumes bit for bit, memory halves, bad steps are left out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from toy import ToyTask

from hai.config.schema import RunConfig
from hai.context import Context
from hai.loop import train
from hai.types import STOP, Batch, Record

PRECISIONS = ["fp16", "bf16", False]
MEGABYTES = 64


class Steep(ToyTask):
    """A loss so steep that the first gradients overflow in fp16 until the scale has been halved some times."""

    def loss(self, outputs: Tensor, batch: Batch, *, epoch: int) -> Tensor:
        return 100 * super().loss(outputs, batch, epoch=epoch)


class Poisoned(ToyTask):
    """The loss of the batch with example 7 is NaN in epoch 1."""

    def loss(self, outputs: Tensor, batch: Batch, *, epoch: int) -> Tensor:
        loss = super().loss(outputs, batch, epoch=epoch)
        return torch.where((batch["index"] == 7).any() & (epoch == 1), torch.nan, loss)


class Hungry(ToyTask):
    """Every example that is forwarded in training takes so much memory meanwhile."""

    def outputs(self, model: torch.nn.Module, batch: Batch) -> Tensor:
        if model.training:
            size = len(batch["index"]) * MEGABYTES * 2**20
            torch.empty(size, dtype=torch.uint8, device=batch["image"].device)
        return super().outputs(model, batch)


def config_of(precision: str | bool, **train: Any) -> RunConfig:
    """Build a config of 5 epochs of 6 steps."""
    return RunConfig.model_validate(
        {
            "train": {
                "max_epochs": 5, "global_batch_size": 16, "ema_decay": 0.9, "mixed_precision": precision, **train,
            },
            "optim": {"learning_rate": 0.02, "warmup_epochs": 1},
            "checkpoint": {"every_minutes": None, "every_epochs": 0.5, "keep": 100},
            "logging": {"tensorboard": False, "every_steps": 2},
        }
    )  # fmt: skip


def run(storage: Path, task: ToyTask, device: torch.device, *, stop_at: int | None = None, **context: Any) -> Record:
    """Train in this process; `stop_at`: ask for the end after so many steps."""
    return train(
        task.config, task, Context(str(storage), "run", device=device, request=_stop_after(stop_at), **context)
    )


def _stop_after(steps: int | None) -> Callable[[], int]:
    calls = iter(range(10**9))
    return lambda: STOP if steps is not None and next(calls) >= steps else 0


def newest(storage: Path) -> Path:
    return max((storage / "run" / "checkpoints").glob("step_*"))


def saved(storage: Path) -> tuple[bytes, bytes, Record]:
    """Return the tensors and the scaler's state of the newest checkpoint."""
    folder = newest(storage)
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    tensors = [(folder / f"{name}.safetensors").read_bytes() for name in ("model", "state")]
    return tensors[0], tensors[1], state["scaler"]


def losses(storage: Path) -> list[tuple[int, float]]:
    lines = (storage / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [(r["step"], r["train/loss"]) for r in map(json.loads, lines) if "train/loss" in r]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_resumed_equals_unbroken_bit_for_bit(
    tmp_path: Path, same_bits: torch.device, precision: str | bool, optimizer: str
) -> None:
    config = config_of(precision)
    config = config.model_copy(update={"optim": config.optim.model_copy(update={"name": optimizer})})

    def task() -> ToyTask:
        return Steep(config, dropout=0.3, batch_norm=True)

    run(tmp_path / "a", task(), same_bits)
    for stop in (2, 9):
        assert run(tmp_path / "b", task(), same_bits, stop_at=stop)["status"] == "interrupted"
    assert run(tmp_path / "b", task(), same_bits)["status"] == "finished"
    assert saved(tmp_path / "a") == saved(tmp_path / "b")
    assert losses(tmp_path / "a") == losses(tmp_path / "b")


def test_fp16_passes_over_gradients_that_overflow(tmp_path: Path, gpu: torch.device) -> None:
    config = config_of("fp16")
    run(tmp_path, Steep(config), gpu)
    state = load_file(newest(tmp_path) / "state.safetensors")
    steps = {int(value) for name, value in state.items() if name.endswith(".step")}
    scale = saved(tmp_path)[2]["scale"]
    assert scale < 65536
    assert steps == {30 - round(torch.log2(torch.tensor(65536 / scale)).item())}  # every halving passed over one step


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_step_that_is_not_finite_is_left_out(tmp_path: Path, device: torch.device, precision: str | bool) -> None:
    config = config_of(precision)
    said: list[str] = []
    summary = run(tmp_path, Poisoned(config, dropout=0.3, batch_norm=True), device, say=said.append)
    assert summary["status"] == "finished"
    (left_out,) = summary["left_out_steps"]
    assert 6 <= left_out < 12
    assert any("vector-7" in line and "NaN" in line for line in said)
    assert all(value.isfinite().all() for value in load_file(newest(tmp_path) / "model.safetensors").values())


def test_a_gpu_computes_what_a_cpu_does(tmp_path: Path, device: torch.device) -> None:
    config = config_of(False)
    for name, where in (("gpu", device), ("cpu", torch.device("cpu"))):
        run(tmp_path / name, ToyTask(config, batch_norm=True), where)
    for (step, one), (same, other) in zip(losses(tmp_path / "gpu"), losses(tmp_path / "cpu"), strict=True):
        assert step == same
        assert one == pytest.approx(other, abs=1e-4)
    found, expected = (load_file(newest(tmp_path / name) / "model.safetensors") for name in ("gpu", "cpu"))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)  # the averaged weights


def test_memory_that_runs_out_halves_the_micro_batch_bit_for_bit(tmp_path: Path, same_bits: torch.device) -> None:
    if same_bits.type != "cuda":
        pytest.skip("only on a GPU")
    said: list[str] = []
    with _room_for(6 * MEGABYTES * 2**20, same_bits):
        run(
            tmp_path / "a",
            Hungry(config_of("fp16"), dropout=0.3, batch_norm=True, pairs=True),
            same_bits,
            say=said.append,
        )
        run(
            tmp_path / "b",
            Hungry(config_of("fp16", micro_batch_size=4), dropout=0.3, batch_norm=True, pairs=True),
            same_bits,
        )
    assert any("at most 4 examples at once" in line for line in said)
    assert saved(tmp_path / "a") == saved(tmp_path / "b")


@contextmanager
def _room_for(size: int, device: torch.device) -> Iterator[None]:
    """Let this process take so many bytes of the GPU more than it has."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(device) + size) / total, device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
