"""What must survive: weights, averaged weights, optimizer and a few numbers, as named tensors and JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hai.errors import CheckpointError
from hai.optim import Ema
from hai.types import Record

__all__ = ["Progress", "optimizer_tensors", "restore_optimizer", "restore_tensors", "state_tensors"]

_RAW, _OPTIMIZER = "raw.", "optimizer."


@dataclass
class Progress:
    """The numbers of a run's state; everything random follows from `step`.

    Args:
        step: optimizer steps done.
        evaluated_step: step of the last evaluation.
        evaluations_without_improvement: for early stopping.
        best: {metric, value, step, checkpoint} of the best evaluation.
        metrics: validation metrics of the last evaluation.
        fitted: what the task fitted on the validation split (threshold, temperature).
        sums: training statistics since the last record.
        rollbacks: steps that were not finite, whose batches are left out, with their examples.
        memory: the micro-batch that was found to fit when memory had run out, and where.
        evaluations: the records of the evaluations so far, which metrics.jsonl can be mended from.
    """

    step: int = 0
    evaluated_step: int = 0
    evaluations_without_improvement: int = 0
    best: Record | None = None
    metrics: dict[str, float | None] = field(default_factory=dict)
    fitted: Record = field(default_factory=dict)
    sums: list[float] = field(default_factory=list)
    rollbacks: list[Record] = field(default_factory=list)
    memory: Record | None = None
    evaluations: list[Record] = field(default_factory=list)

    def record(self) -> Record:
        """Return this state as JSON."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: Record) -> Progress:
        """Read the state out of a checkpoint's record, which holds more than this."""
        return cls(**{name: record[name] for name in cls.__dataclass_fields__ if name in record})


def state_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer, ema: Ema | None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Name the live tensors of a run: the weights to serve, and everything else that a resume needs."""
    raw = dict(model.state_dict())
    state = optimizer_tensors(model, optimizer)
    if ema is None:
        return raw, state
    state.update({_RAW + name: value for name, value in raw.items()})
    return dict(ema.tensors), state


def restore_tensors(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    ema: Ema | None,
    served: dict[str, Tensor],
    state: dict[str, Tensor],
) -> None:
    """Put saved tensors back in place; raises CheckpointError when they do not fit the model."""
    raw = {name.removeprefix(_RAW): value for name, value in state.items() if name.startswith(_RAW)} or served
    own = model.state_dict()
    wrong = sorted(
        name
        for name in own.keys() | raw.keys()
        if name not in own or name not in raw or own[name].shape != raw[name].shape
    )
    if wrong:
        raise CheckpointError(
            f"checkpoint: {len(wrong)} tensors do not fit the model, first {wrong[0]!r}; "
            "the model's code or config has changed since; --restart begins anew"
        )
    model.load_state_dict(raw)
    if ema is not None:
        ema.load(served)
    restore_optimizer(model, optimizer, state)


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Name the optimizer's tensors after the parameters they belong to."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{_OPTIMIZER}{names[parameter]}.{key}": value
        for parameter, values in optimizer.state.items()
        for key, value in values.items()
        if isinstance(value, Tensor)
    }


def restore_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Tensor]) -> None:
    """Put the optimizer's tensors back, in the memory format of their parameters."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    by_parameter: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        if name.startswith(_OPTIMIZER):
            parameter, _, key = name.removeprefix(_OPTIMIZER).rpartition(".")
            by_parameter.setdefault(parameter, {})[key] = value
    restored: dict[int, dict[str, Any]] = {}
    ordered = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for position, parameter in enumerate(ordered):
        values = by_parameter.get(names[parameter])
        if values:
            restored[position] = {
                key: torch.empty_like(parameter).copy_(value) if value.shape == parameter.shape else value
                for key, value in values.items()
            }
    optimizer.load_state_dict({"state": restored, "param_groups": optimizer.state_dict()["param_groups"]})
