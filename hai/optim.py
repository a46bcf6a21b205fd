"""The optimizer and its parameter groups, the learning rate as a function of the step, and averaged weights."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hai.config.schema import OptimConfig
from hai.errors import CheckpointError

__all__ = ["Ema", "build_optimizer", "learning_rate_at", "learning_rate_scales", "same_kind", "set_learning_rate"]

_LAYER = re.compile(
    r"^((?:.*?\.)?(?:h|layer\d*|layers|blocks?|stages?)\.\d+(?:\.\d+)?(?:\.(?:layers?|blocks?)\.\d+)?)\."
)
_EMBEDDING = re.compile(
    r"(?:^|[._])(?:pos_embed|position_embeddings?|pos_embedding|relative_position_bias_table"
    r"|cls_token|dist_token|reg_token|register_tokens|mask_token)(?:$|\.weight$)"
)


def build_optimizer(
    model: nn.Module, config: OptimConfig, backbone: Set[str], device: torch.device
) -> torch.optim.Optimizer:
    """Build the optimizer over all parameters, frozen ones included (they are passed over while without gradient).

    Each group carries `lr_scale`, the multiple of the learning rate that its parameters get (`set_learning_rate`), and
    `param_names`. Normalisation weights, biases, position embeddings and class tokens are not decayed unless
    `decay_norm_and_bias` is set.

    Args:
        model: not wrapped, on its device.
        config: the optimizer's section of the config.
        backbone: names of the backbone's parameters.
        device: of the model; decides whether a fused step exists.
    """
    scales = learning_rate_scales([name for name, _ in model.named_parameters()], config, backbone)
    groups: dict[tuple[float, float], list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in model.named_parameters():
        undecayed = parameter.ndim <= 1 or _EMBEDDING.search(name) is not None
        decay = 0.0 if undecayed and not config.decay_norm_and_bias else config.weight_decay
        groups.setdefault((scales[name], decay), []).append((name, parameter))
    listed: list[dict[str, Any]] = [
        {"params": members, "weight_decay": decay, "lr_scale": scale, "lr": config.learning_rate * scale}
        for (scale, decay), members in groups.items()
    ]
    fused = device.type in ("cpu", "cuda")
    if config.name == "sgd":
        return torch.optim.SGD(listed, lr=config.learning_rate, momentum=0.9, nesterov=True, fused=fused)
    betas = (config.betas[0], config.betas[1])
    return torch.optim.AdamW(listed, lr=config.learning_rate, betas=betas, fused=fused)


def learning_rate_scales(names: list[str], config: OptimConfig, backbone: Set[str]) -> dict[str, float]:
    """Return each parameter's multiple of the learning rate.

    The head has 1. The backbone has `backbone_lr_scale`, and with `layer_decay` d its last layer d times that, the one
    before d squared, and so on; a layer is what the names count (`blocks.3`, `layer2.0`, `stages.1.blocks.4`), and what
    has no number belongs to the layer before it.

    Args:
        names: of all parameters, in the model's order.
        config: the optimizer's section of the config.
        backbone: names of the backbone's parameters.

    Source: layer-wise decay: Bao et al., BEiT, 2021, appendix; Clark et al., ELECTRA, 2020.
    """
    depth, seen = 0, dict[str, int]()
    depths: dict[str, int] = {}
    for name in names:
        if name in backbone:
            found = _LAYER.match(name)
            if found:
                depth = seen.setdefault(found[1], len(seen) + 1)
            depths[name] = depth
    decay = 1.0 if config.layer_decay is None else config.layer_decay
    top = len(seen) + 1
    return {
        name: config.backbone_lr_scale * decay ** (top - depths[name]) if name in backbone else 1.0 for name in names
    }


def learning_rate_at(step: int, config: OptimConfig, steps_per_epoch: float, total_steps: int) -> float:
    """Return the learning rate of a step.

    The warm-up rises linearly from `warmup_start_learning_rate` at step 0 and reaches `learning_rate` at the first step
    after it; from there the schedule falls to `min_learning_rate` at the run's last step. A warm-up longer than the run
    is cut to it. Beyond the last step the minimum holds.

    Args:
        step: optimizer steps taken before this one, from 0.
        config: the optimizer's section of the config.
        steps_per_epoch: optimizer steps an epoch.
        total_steps: optimizer steps of the run.

    Source: cosine: Loshchilov and Hutter, SGDR, 2017, equation 5, without restarts.
    """
    peak, low = config.learning_rate, config.min_learning_rate
    warmup = min(round(config.warmup_epochs * steps_per_epoch), total_steps)
    if step < warmup:
        return config.warmup_start_learning_rate + (peak - config.warmup_start_learning_rate) * step / warmup
    if config.schedule == "constant":
        return peak
    progress = min((step - warmup) / max(total_steps - 1 - warmup, 1), 1.0)
    share = 0.5 * (1 + math.cos(math.pi * progress)) if config.schedule == "cosine" else 1 - progress
    return low + (peak - low) * share


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Give each group its multiple, `lr_scale`, of a learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["lr_scale"]


def same_kind(first: Iterable[Tensor], second: Iterable[Tensor]) -> list[tuple[list[Tensor], list[Tensor]]]:
    """Divide two lists of tensors by data type: torch works on a list at once, on GPUs in one go, if it has one type.

    Args:
        first: tensors that are going to be changed.
        second: of the same types and shapes.
    """
    groups: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
    for one, other in zip(first, second, strict=True):
        mine, others = groups.setdefault(one.dtype, ([], []))
        mine.append(one)
        others.append(other)
    return list(groups.values())


class Ema:
    """An exponential moving average of a model's parameters, with its current buffers.

    Step t uses the decay min(decay, (1 + t) / (10 + t)), so that the first, fast steps do not linger.

    Args:
        model: not wrapped, on its device; the average starts at its weights and follows these tensors.
        decay: share of the old average that a step keeps.

    Source: Polyak and Juditsky, 1992; the warm-up is that of TensorFlow's ExponentialMovingAverage (`num_updates`).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.tensors: dict[str, Tensor] = {name: value.detach().clone() for name, value in model.state_dict().items()}
        self._averaged = self._pairs(dict(model.named_parameters(remove_duplicate=False)))
        self._copied = self._pairs(dict(model.named_buffers(remove_duplicate=False)))

    def _pairs(self, live: dict[str, Tensor]) -> list[tuple[list[Tensor], list[Tensor]]]:
        """Put what is averaged beside what the model computes with; looking both up at every step would cost ms."""
        names = [name for name in live if name in self.tensors]
        return same_kind([self.tensors[name] for name in names], [live[name] for name in names])

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average towards the model after an optimizer step.

        Args:
            step: optimizer steps taken before this one, from 0.
        """
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        for averages, values in self._averaged:
            torch._foreach_lerp_(averages, values, weight)
        for averages, values in self._copied:
            torch._foreach_copy_(averages, values)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over the tensors of a checkpoint.

        Raises:
            CheckpointError: names that are missing, superfluous or of another shape.
        """
        wrong = sorted(
            name
            for name in self.tensors.keys() | tensors.keys()
            if name not in tensors or name not in self.tensors or tensors[name].shape != self.tensors[name].shape
        )
        if wrong:
            raise CheckpointError(
                f"averaged weights; {len(wrong)} tensors do not fit the model, first {wrong[0]}; "
                "the checkpoint is of another model"
            )
        for name, average in self.tensors.items():
            average.copy_(tensors[name])

    @contextmanager
    def swapped(self, model: nn.Module) -> Iterator[None]:
        """Let the model compute with the averaged weights meanwhile; its own come back bit for bit, errors or not.

        No values are copied: parameters and buffers point to the average for a while.
        """
        live = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        own = {name: tensor.data for name, tensor in live.items() if name in self.tensors}
        try:
            for name in own:
                live[name].data = self.tensors[name]
            yield
        finally:
            for name, data in own.items():
                live[name].data = data
