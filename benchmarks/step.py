"""A training step on this machine's CPUs against the usual one: float32, NCHW, AdamW as torch makes it.

Ours is the step of the loop: weights and images in channels_last, a fused AdamW, keyed dropout, training metrics, the
check for finite gradients. Both start from the same weights, read one ready batch, clip the gradient and take turns.
Before each step that counts goes one that does not.

- `b0_ratio`, `b4_ratio`: seconds of the usual step over seconds of ours, EfficientNet-B0 and B4 at 224 px.
- `*_kept_ratio`: seconds of our step over those of the same where the memory of the one before is kept, as runs do.
- `*_loss_difference`: the two losses of the first step, on the same weights and images; what the memory format changes.
- `*_seconds`: what these are made of.

Run alone with `python -m benchmarks.step [--quick]`.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks._measure import interleaved, main, ratios, record
from hai.config.schema import RunConfig
from hai.distributed import Workers
from hai.losses import DetectorLoss
from hai.memory import freed_memory_kept
from hai.models import build_model
from hai.optim import build_optimizer
from hai.step import Stepper
from hai.tasks.detector import DetectorTask
from hai.types import Batch

SIZE = 224
MODELS = (("b0", "timm:efficientnet_b0", 16, 1.15), ("b4", "timm:efficientnet_b4", 8, None))
"""Name, model, batch, floor."""


def run(quick: bool) -> list[dict[str, Any]]:
    """Measure; each record says whether it keeps its floor."""
    records = []
    for name, model, batch, floor in MODELS[:1] if quick else MODELS:
        steps = _steps(model, batch)
        losses = [step() for step in steps.values()]  # picks kernels, makes the optimizers' state
        timed = {key: _seconds(step) for key, step in steps.items()} | {"kept": _seconds(steps["ours"], keeps=True)}
        taken = interleaved(timed, 1 if quick else 5)
        records += [
            record(f"{name}_ratio", ratios(taken["usual"], taken["ours"]), floor=floor),
            record(f"{name}_kept_ratio", ratios(taken["ours"], taken["kept"])),
            record(f"{name}_loss_difference", [abs(losses[0] - losses[1])], most=1e-4),
            *(record(f"{name}_{key}_seconds", seconds) for key, seconds in taken.items()),
        ]
    return records


def _seconds(step: Callable[[], float], keeps: bool = False) -> Callable[[], float]:
    def measured() -> float:
        with freed_memory_kept(torch.device("cpu")) if keeps else nullcontext():
            step()
            began = time.perf_counter()
            step()
            return time.perf_counter() - began

    return measured


def _steps(name: str, size: int) -> dict[str, Callable[[], float]]:
    """Build both steps; each returns its loss."""
    config = RunConfig.model_validate(
        {
            "data": {"image_size": SIZE},
            "model": {"name": name, "pretrained": False, "dropout": 0.0},
            "train": {"global_batch_size": size, "micro_batch_size": size, "ema_decay": None},
        }
    )
    usual = build_model(config.model, SIZE, config.seed).train()
    images = torch.randn(size, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(size) % 2
    return {
        "ours": _our_step(config, copy.deepcopy(usual), images, labels),
        "usual": _usual_step(usual, images, labels),
    }


def _usual_step(model: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01)

    def step() -> float:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return float(loss.detach())

    return step


def _our_step(config: RunConfig, model: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], float]:
    device = torch.device("cpu")
    task = DetectorTask(config)
    task._loss = DetectorLoss(config.loss, [1, 1])
    model = model.to(memory_format=torch.channels_last)
    optimizer = build_optimizer(model, config.optim, task.backbone(model), device)
    stepper = Stepper(
        config, task, model, optimizer, None, Workers(device=device),
        learning_rate=lambda step: 1e-4, micro_batch_size=len(labels),
    )  # fmt: skip
    batch: Batch = {"image": images, "label": labels, "index": torch.arange(len(labels))}
    number = 0

    def step() -> float:
        nonlocal number
        stepper.step(batch, step=number, epoch=0, prepare=lambda part: part)
        number += 1
        loss, count, *_ = stepper.take_sums()
        return loss / count

    return step


if __name__ == "__main__":
    main(run)
