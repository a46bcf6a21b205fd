"""What a GPU's steps do, carried out on a CPU: half precision with loss scaling, and errors that are told later."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_loop import losses_of, newest, tensors_of, toy_config, toy_run
from test_recovery import SAVES, Poisoned, summary_of
from torch import Tensor
from toy import ToyTask

from hai import step
from hai.config.schema import RunConfig
from hai.types import Batch, Record


class Steep(ToyTask):
    """A loss so steep that the first gradients overflow in fp16, until the scale has been halved some times."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config, dropout=0.3, batch_norm=True)

    def loss(self, outputs: Tensor, batch: Batch, *, epoch: int) -> Tensor:
        return 100 * super().loss(outputs, batch, epoch=epoch)


def scaler_of(storage: Path) -> Record:
    return json.loads((newest(storage) / "state.json").read_text(encoding="utf-8"))["scaler"]


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16])
def test_half_precision_resumes_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: torch.dtype
) -> None:
    monkeypatch.setattr(step, "precision_on", lambda *_: precision)
    config = toy_config(train={"max_epochs": 3})
    toy_run(tmp_path / "a", config, Steep(config))
    for stop in (2, 7):  # the first while the scale is still being found
        toy_run(tmp_path / "b", config, Steep(config), stop_at=stop)
    toy_run(tmp_path / "b", config, Steep(config))
    assert tensors_of(tmp_path / "a") == tensors_of(tmp_path / "b")
    assert losses_of(tmp_path / "a") == losses_of(tmp_path / "b")
    assert scaler_of(tmp_path / "a") == scaler_of(tmp_path / "b")
    assert bool(scaler_of(tmp_path / "a")) == (precision is torch.float16)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_gradients_that_overflow_are_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    monkeypatch.setattr(step, "precision_on", lambda *_: torch.float16)
    config = toy_config(train={"max_epochs": 3, "ema_decay": None}, optim={"name": optimizer})
    toy_run(tmp_path, config, Steep(config))
    halvings = round(math.log2(65536 / scaler_of(tmp_path)["scale"]))
    assert 1 <= halvings < 18
    state = load_file(newest(tmp_path) / "state.safetensors")
    assert all(value.isfinite().all() for value in state.values())
    counts = {int(value) for name, value in state.items() if name.endswith(".step")}
    assert counts == ({18 - halvings} if optimizer == "adamw" else set())


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("gradient", [False, True])
def test_what_a_gpu_tells_later_ends_as_if_it_were_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gradient: bool, optimizer: str
) -> None:
    config = toy_config(checkpoint=SAVES, optim={"name": optimizer})
    toy_run(tmp_path / "at once", config, Poisoned(config, {7}, epoch=1, gradient=gradient))
    monkeypatch.setattr(step.Stepper, "_waits", False)
    toy_run(tmp_path / "later", config, Poisoned(config, {7}, epoch=1, gradient=gradient))
    assert len(summary_of(tmp_path / "later")["left_out_steps"]) == 1
    assert tensors_of(tmp_path / "at once") == tensors_of(tmp_path / "later")
    assert losses_of(tmp_path / "at once") == losses_of(tmp_path / "later")
