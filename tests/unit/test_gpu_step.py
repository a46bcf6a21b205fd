"""A GPU's steps on pretended tensors, without one: types and devices fit together, and nothing waits for the device.

What would wait, such as reading a number or a shape that depends on values, cannot be done with tensors without values.
Only the backward pass, which is torch's own and needs a driver, is left out: gradients are pretended too. The GPU has a
number that no other test uses, since constants are kept by device.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode

from hai import step as module
from hai.config.schema import RunConfig
from hai.data.augment import apply_changes, draw_changes, normalise
from hai.distributed import Workers
from hai.losses import DetectorLoss
from hai.optim import Ema, build_optimizer
from hai.pair_losses import PairLoss
from hai.step import Stepper
from hai.tasks.detector import DetectorTask
from hai.types import Batch

GPU = torch.device("cuda", 7)
MODE = FakeTensorMode()
RECIPE = {
    "flip": 0.5, "rotation_degrees": 10, "brightness": 0.15, "contrast": 0.15, "saturation": 0.15, "hue": 0.05,
    "noise_probability": 0.5, "blur_probability": 0.5,
}  # fmt: skip


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let tensors be pretended ones, and mixed precision think that there is a GPU."""
    monkeypatch.setattr(torch.cuda, "default_generators", tuple(torch.Generator() for _ in range(GPU.index + 1)))
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
    with MODE:
        yield


class _Task(DetectorTask):
    """The detector's task, whose images need no manifest; notes the type of its outputs."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        self._loss = DetectorLoss(config.loss, [1, 1])
        self.types: set[torch.dtype] = set()

    def outputs(self, model: torch.nn.Module, batch: Batch) -> Tensor:
        outputs = super().outputs(model, batch)
        self.types.add(outputs.dtype)
        return outputs


@pytest.mark.usefixtures("pretended")
def test_what_waits_is_told(pretended: None) -> None:
    value = torch.zeros(3, dtype=torch.int64, device=GPU)
    for waits in (value.sum().item, value.nonzero, lambda: torch.bincount(value, minlength=4)):
        with pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
            waits()
    with pytest.raises(RuntimeError, match="same device"):
        value + torch.zeros(3)


@pytest.mark.parametrize(
    ("precision", "micro_batch_size"),
    [(torch.float16, 8), (torch.float16, 4), (torch.bfloat16, 4), (None, 8)],
)
def test_no_step_waits(
    monkeypatch: pytest.MonkeyPatch,
    pretended: None,
    precision: torch.dtype | None,
    micro_batch_size: int,
) -> None:
    monkeypatch.setattr(module, "precision_on", lambda *_: precision)
    config = RunConfig.model_validate(
        {
            "data": {"image_size": 64},
            "augment": RECIPE,
            "model": {"name": "compact", "pretrained": False},
            "loss": {"cross_entropy": 0.5, "focal": 0.3, "soft_f1": 0.2},
            "train": {"global_batch_size": 8, "max_steps": 100},
        }
    )
    task = _Task(config)
    with GPU:
        model = task.build_model()
        pixels, index = torch.zeros(8, 64, 64, 3, dtype=torch.uint8).permute(0, 3, 1, 2), torch.arange(8)
    built = build_optimizer(model, config.optim, task.backbone(model), GPU)
    stepper = Stepper(
        config, task, model, built, Ema(model, 0.9), Workers(device=GPU),
        learning_rate=lambda step: 1e-3, micro_batch_size=micro_batch_size,
    )  # fmt: skip

    def backward(loss: Tensor) -> None:
        assert loss.device == GPU
        assert loss.requires_grad
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)

    monkeypatch.setattr(Tensor, "backward", backward)
    monkeypatch.setattr(torch.autograd, "grad", lambda loss, outputs: (torch.zeros_like(outputs),))

    def prepare(batch: Batch) -> Batch:
        changes = draw_changes(batch["index"], config.augment, seed=1, epoch=0)
        return {**batch, "image": normalise(apply_changes(batch["image"], changes))}

    batch = {"image": pixels, "index": index, "label": index % 2}
    for number in range(2):
        stepper.step(batch, step=number, epoch=0, prepare=prepare)
    assert task.types == {precision or torch.float32}
    assert stepper.scaler.is_enabled() == (precision is torch.float16)
    assert all(value.device == GPU for state in built.state.values() for value in state.values())
    assert stepper.num_micro_batches == 8 // micro_batch_size
    with pytest.raises(DataDependentOutputException):
        stepper.check(2)


@pytest.mark.parametrize(
    "fields",
    [
        {"loss": "margin"},
        {"loss": "bradley_terry", "ties": True, "gap_shares": [0.5, 0.3, 0.2]},
        {"loss": "bradley_terry", "max_per_image": 3},
        {"loss": "coral"},
    ],
)
def test_no_pair_loss_waits(pretended: None, fields: dict[str, Any]) -> None:
    config = RunConfig.model_validate({"task": "ranker", "pairs": fields})
    with GPU:
        outputs = torch.randn(12, 5, 3 if fields["loss"] == "coral" else 2)
        batch = {"label": torch.arange(12) % 4, "index": torch.arange(12)}
    loss = PairLoss(config.pairs, 4, seed=1)
    for epoch in range(2):  # the second time with constants that are there
        assert loss(outputs, batch, epoch=epoch).device == GPU
