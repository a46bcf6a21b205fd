"""Freezing parts of a model: no gradients, no new statistics, no noise."""

from __future__ import annotations

from collections.abc import Iterator, Set
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["set_frozen", "statistics_kept", "statistics_of", "train_mode"]


def set_frozen(model: nn.Module, names: Set[str], frozen: bool) -> None:
    """Freeze or unfreeze parameters by name.

    Args:
        model: not wrapped (DDP puts a prefix before its names).
        names: of parameters, as `model.named_parameters()` gives them.
        frozen: True stops their gradients, False lets them flow again.
    """
    parameters = dict(model.named_parameters())
    assert names <= parameters.keys(), sorted(names - parameters.keys())[:5]
    for name in names:
        parameters[name].requires_grad_(not frozen)
        if frozen:
            parameters[name].grad = None


def train_mode(model: nn.Module, frozen: Set[str]) -> None:
    """Put the model in training mode, except the modules that have parameters but none that learns.

    Those compute as when serving: their BatchNorm uses and keeps its running statistics, their dropout and stochastic
    depth are off.

    Args:
        model: not wrapped.
        frozen: names of the frozen parameters.
    """
    model.train()
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad} - frozen
    for prefix, module in model.named_modules():
        names = {f"{prefix}.{name}" if prefix else name for name, _ in module.named_parameters()}
        if names and not names & learning:
            module.eval()


def statistics_of(model: nn.Module) -> list[Tensor]:
    """List the running statistics of the model's BatchNorm layers: what a forward pass in training mode changes."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    return [buffer for norm in norms for buffer in norm.buffers(recurse=False)]


@contextmanager
def statistics_kept(model: nn.Module) -> Iterator[None]:
    """Undo on leaving what BatchNorm layers of the model did to their running statistics meanwhile."""
    buffers = statistics_of(model)
    before = [buffer.detach().clone() for buffer in buffers]
    try:
        yield
    finally:
        for buffer, value in zip(buffers, before, strict=True):
            buffer.data.copy_(value)  # not through autograd, which may still hold the buffer for a backward pass
