"""A step never waits for the GPU, so that the next one is queued while it computes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from hai.config.schema import RunConfig
from hai.data.augment import augment, normalise
from hai.distributed import Workers
from hai.losses import DetectorLoss
from hai.models import build_model
from hai.optim import Ema, build_optimizer
from hai.step import Stepper
from hai.tasks.detector import DetectorTask
from hai.types import Batch

RECIPE = {
    "flip": 0.5, "rotation_degrees": 10, "brightness": 0.15, "contrast": 0.15, "saturation": 0.15, "hue": 0.05,
    "noise_probability": 0.5, "blur_probability": 0.5,
}  # fmt: skip


class _Task(DetectorTask):
    """The detector's task, whose images need no manifest."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        self._loss = DetectorLoss(config.loss, [1, 1])


class _Runner:
    """A small detector on a device, its step and a batch."""

    def __init__(self, device: torch.device, precision: str | bool, micro_batch_size: int = 8, **train: Any) -> None:
        self.config = RunConfig.model_validate(
            {
                "data": {"image_size": 64},
                "augment": RECIPE,
                "model": {"name": "compact", "pretrained": False},
                "loss": {"cross_entropy": 0.5, "focal": 0.3, "soft_f1": 0.2},
                "train": {"global_batch_size": 8, "mixed_precision": precision, "max_steps": 100, **train},
            }
        )
        self.task = _Task(self.config)
        self.model = self.task.build_model().to(device, memory_format=torch.channels_last)
        optimizer = build_optimizer(self.model, self.config.optim, self.task.backbone(self.model), device)
        self.ema = Ema(self.model, 0.9)
        self.stepper = Stepper(
            self.config, self.task, self.model, optimizer, self.ema, Workers(device=device),
            learning_rate=lambda step: 1e-3, micro_batch_size=micro_batch_size,
        )  # fmt: skip
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randint(0, 256, (8, 64, 64, 3), dtype=torch.uint8, generator=generator).permute(0, 3, 1, 2)
        index = torch.arange(8)
        self.batch = {"image": pixels.to(device), "label": (index % 2).to(device), "index": index.to(device)}

    def prepare(self, batch: Batch) -> Batch:
        image = augment(batch["image"], batch["index"], self.config.augment, seed=1, epoch=0)
        return {**batch, "image": normalise(image)}

    def step(self, number: int) -> None:
        self.stepper.step(self.batch, step=number, epoch=0, prepare=self.prepare)


@pytest.mark.parametrize("micro_batch_size", [8, 4])
@pytest.mark.parametrize("precision", ["fp16", "bf16", False])
def test_no_step_waits(gpu: torch.device, precision: str | bool, micro_batch_size: int) -> None:
    runner = _Runner(gpu, precision, micro_batch_size)
    for number in range(3):  # constants and the optimizer's state come to the device
        runner.step(number)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for number in range(3, 6):
            runner.step(number)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    runner.stepper.check(6)
    assert runner.stepper.take_sums()[1] == 6 * 8


def test_steps_learn_and_keep_the_average(device: torch.device) -> None:
    runner = _Runner(device, mixed_precision_of(device))
    expected = copy.deepcopy(runner.ema.tensors)
    first = None
    for number in range(20):
        runner.step(number)
        weight = 1 - min(0.9, (1 + number) / (10 + number))
        for name, value in runner.model.state_dict().items():
            expected[name] = torch.lerp(expected[name], value, weight) if name in _parameters(runner) else value.clone()
        sums = runner.stepper.take_sums()
        first = first or sums[0] / sums[1]
    assert sums[0] / sums[1] < first
    torch.testing.assert_close(runner.ema.tensors, expected, rtol=1e-6, atol=1e-7)
    own = {name: value.clone() for name, value in runner.model.state_dict().items()}
    with runner.ema.swapped(runner.model):
        torch.testing.assert_close(dict(runner.model.state_dict()), expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(dict(runner.model.state_dict()), own, rtol=0, atol=0)


def mixed_precision_of(device: torch.device) -> str | bool:
    return "fp16" if device.type == "cuda" else False


def _parameters(runner: _Runner) -> set[str]:
    return {name for name, _ in runner.model.named_parameters()}


def test_pairs_of_label_and_prediction_are_counted(device: torch.device) -> None:
    generator = torch.Generator().manual_seed(0)
    logits, label = torch.randn(50, 2, generator=generator), torch.randint(0, 2, (50,), generator=generator)
    counts = _Task(RunConfig()).statistics(logits.to(device), {"label": label.to(device)})
    assert counts.tolist() == torch.bincount(2 * label + logits.argmax(dim=1), minlength=4).tolist()


def test_one_hot_does_not_wait(gpu: torch.device) -> None:
    label = torch.arange(4, device=gpu)
    torch.cuda.set_sync_debug_mode("error")
    try:
        F.one_hot(label, 4)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_model_built_twice_is_the_same(device: torch.device) -> None:
    config = RunConfig.model_validate({"model": {"name": "compact", "pretrained": False}})
    one, other = (build_model(config.model, 64, 3).to(device).state_dict() for _ in range(2))
    torch.testing.assert_close(one, other, rtol=0, atol=0)
