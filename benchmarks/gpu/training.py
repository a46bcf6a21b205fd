"""Training steps of the detectors on images that lie on the device."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from benchmarks.gpu.device import Setting, Turn, record_of, turns_of
from hai.config.schema import RunConfig
from hai.distributed import Workers
from hai.losses import DetectorLoss
from hai.models import build_model
from hai.optim import build_optimizer
from hai.precision import precision_on
from hai.step import Stepper
from hai.tasks.detector import DetectorTask
from hai.types import Batch

__all__ = ["Case", "OwnStep", "run"]

_STEP_RATIO = 1.15
_RATE = 1e-4


class Case(NamedTuple):
    """A model, the height and width of its images in pixels, and how many make a batch."""

    model: str
    size: int
    batch: int

    @property
    def name(self) -> str:
        """Name it for people."""
        return f"{self.model.removeprefix('timm:')} {self.size} px, batch {self.batch}"

    def config(self, **sections: dict[str, Any]) -> RunConfig:
        """Return the config of a run of this case: random weights, mixed precision where the card has it."""
        train = {"global_batch_size": self.batch, "max_steps": 1000, "gradient_clip_norm": 1.0}
        own: dict[str, Any] = {
            "data": {"image_size": self.size},
            "model": {"name": self.model, "pretrained": False},
            "optim": {"learning_rate": _RATE, "weight_decay": 0.01},
            "train": train | sections.pop("train", {}),
        }
        return RunConfig.model_validate(own | sections)


CASES = (
    Case("timm:efficientnet_b7", 228, 16),
    Case("timm:efficientnet_b7", 228, 32),
    Case("timm:efficientnet_b4", 224, 32),
    Case("timm:efficientnet_b0", 224, 32),
    Case("dual_branch", 224, 32),
)
TINY = (Case("timm:mobilenetv3_small_050", 64, 4),)


class _Task(DetectorTask):
    """The detector's task, whose images need no manifest."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        self._loss = DetectorLoss(config.loss, [1, 1])


def run(setting: Setting) -> list[dict[str, Any]]:
    """Measure all cases."""
    records = []
    for case in TINY if setting.is_tiny else CASES:
        config = case.config()
        model = build_model(config.model, case.size, config.seed)
        contestants = {
            "usual": lambda model=model, case=case: usual_step(setting, model, case, precision=None),
            "mixed": lambda model=model, case=case: usual_step(
                setting, model, case, precision=precision_on(setting.device, True)
            ),
            "ours": lambda model=model, case=case: OwnStep(setting, model, case),
            "searched": lambda model=model, case=case: OwnStep(setting, model, case, is_searched=True),
        }
        records += _records(case, turns_of(setting, contestants, warm_up=2 if setting.is_tiny else 8))
    return records


def _records(case: Case, turns: dict[str, list[Turn]]) -> list[dict[str, Any]]:
    def over(above: str, below: str, field: int) -> list[float]:
        return [one[field] / other[field] for one, other in zip(turns[above], turns[below], strict=False)]

    lost = False if turns["usual"] else None  # without a ratio: the usual loop fits in, ours does not
    records = [
        record_of(f"{case.name}, step_ratio", over("ours", "usual", 0), floor=_STEP_RATIO, without=lost),
        record_of(f"{case.name}, ours over the usual loop with mixed precision", over("ours", "mixed", 0)),
        record_of(f"{case.name}, memory_ratio", over("ours", "usual", 1)),
        record_of(f"{case.name}, searched_gain", over("searched", "ours", 0)),
    ]
    for name, found in turns.items():
        records.append(record_of(f"{case.name}, {name}_images_per_second", [turn.rate for turn in found]))
        records.append(record_of(f"{case.name}, {name}_gigabytes", [turn.gigabytes for turn in found]))
        if any(0 < turn.at_once < case.batch for turn in found):
            records.append(record_of(f"{case.name}, {name}_images_at_once", [turn.at_once for turn in found]))
    return records


def batch_of(setting: Setting, case: Case) -> Batch:
    """Make normalised images and labels on the device; random, since zeros run faster than pictures."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(case.batch, 3, case.size, case.size, generator=generator)
    index = torch.arange(case.batch)
    batch = {"image": image, "label": index % 2, "index": index}
    return {name: values.to(setting.device) for name, values in batch.items()}


def usual_step(setting: Setting, model: nn.Module, case: Case, *, precision: torch.dtype | None) -> Callable[[], int]:
    """Return a step of the usual loop, on a copy of the model."""
    device = setting.device
    model = copy.deepcopy(model).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE, weight_decay=0.01)
    scaler = torch.amp.GradScaler(device.type, enabled=precision is torch.float16)
    batch = batch_of(setting, case)

    def step() -> int:
        optimizer.zero_grad()
        with torch.autocast(device.type, precision, enabled=precision is not None):
            loss = cross_entropy(model(batch["image"]), batch["label"])
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        return case.batch

    return step


class OwnStep:
    """A step of this project's loop, on a copy of a model; where memory runs out it halves its micro-batch.

    Args:
        setting: where.
        model: on the CPU; stays as it is.
        case: its sizes.
        config: of the run; default: the case's.
        batches: gives the next batch; default: always the same one.
        prepare: turns it into the model's input.
        is_searched: let cuDNN try its algorithms.
    """

    def __init__(
        self,
        setting: Setting,
        model: nn.Module,
        case: Case,
        *,
        config: RunConfig | None = None,
        batches: Callable[[], Batch] | None = None,
        prepare: Callable[[Batch], Batch] = lambda batch: batch,
        is_searched: bool = False,
    ) -> None:
        config, device = config or case.config(), setting.device
        model = copy.deepcopy(model).to(device).to(memory_format=torch.channels_last)
        task = _Task(config)
        optimizer = build_optimizer(model, config.optim, task.backbone(model), device)
        self._stepper = Stepper(
            config, task, model, optimizer, None, Workers(device=device),
            learning_rate=lambda step: _RATE, micro_batch_size=case.batch,
        )  # fmt: skip
        resident = {} if batches else batch_of(setting, case)
        self._batches = batches or (lambda: resident)
        self._prepare, self._is_searched = prepare, is_searched
        self._number = 0

    def __call__(self) -> int:
        batch = self._batches()
        torch.backends.cudnn.benchmark = self._is_searched
        try:
            self._stepper.step(batch, step=self._number, epoch=0, prepare=self._prepare)
        finally:
            torch.backends.cudnn.benchmark = False
        self._number += 1
        return len(batch["index"])

    @property
    def micro_batch_size(self) -> int:
        """Return how many images are forwarded at once."""
        return self._stepper.micro_batch_size
