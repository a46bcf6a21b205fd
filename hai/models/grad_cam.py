"""Grad-CAM: which places of an image, or of its spectrum, speak for a detector's call."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hai.models.dual_branch import DualBranch, DualBranchV2, half_spectrum, spectra

__all__ = ["IMAGE", "SPECTRUM", "grad_cam", "spectrum_of"]

IMAGE: Final = "image"
SPECTRUM: Final = "spectrum"
"""Names of the views that a detector can have of an image."""

_ATTENTION: Final = ("attn", "attention")

_Seen = list[tuple[str, Tensor]]
"""View and output of each module that keeps places apart, in the order in which they ran."""


def grad_cam(model: nn.Module, image: Tensor, called: Tensor) -> dict[str, Tensor]:
    """Find the places that speak for a call, by the deepest layer that still keeps places apart.

    That layer is found by trying: the last map or normalised token sequence that the logits depend on at more places
    than one. In a transformer that reads a class token this is the first norm of its last block, behind which only that
    token counts.

    Args:
        model: a detector in evaluation mode.
        image: float32 [B, 3, S, S] as the model takes it.
        called: 0 real, 1 fake: the class whose evidence is looked for [B].

    Returns:
        View -> evidence float32 [B, h, w] >= 0: `image`, and for a detector with a frequency branch `spectrum`, which
        lies as `spectrum_of` draws it. 0 everywhere where nothing in that view speaks for the call; a view without
        places is left out.

    Source: Selvaraju et al., Grad-CAM, 2017, equations 1 and 2, of the difference of the two logits. The gradient is
    not averaged over places before it weighs the activations, after Draelos and Carin, Use HiResCAM instead of Grad-CAM
    for faithful explanations of convolutional neural networks, 2020. Both are the same where a network averages its
    last map; where it does not (`compact` also takes the deviation, a frequency branch each place by itself), the mean
    gradient belongs to no place.
    """
    with torch.inference_mode(False), torch.enable_grad():
        image = image.clone().requires_grad_()  # so that the graph exists where every parameter is frozen
        with _recorded(model) as seen:
            logits: Tensor = model(image)
        if not seen:
            return {}
        margin = (logits[:, 1] - logits[:, 0]) * (2 * called.to(logits) - 1)
        gradients = torch.autograd.grad(margin.sum(), [output for _, output in seen], allow_unused=True)
    found: dict[str, Tensor] = {}
    for (view, output), gradient in zip(reversed(seen), reversed(gradients), strict=True):
        weight = None if gradient is None else _as_map(gradient)
        if view in found or weight is None or not weight.any():
            continue
        activation = _as_map(output.detach())
        assert activation is not None, "a gradient is shaped as what it is of"
        found[view] = (weight * activation).sum(dim=1).float().clamp(min=0)
    if SPECTRUM in found and isinstance(model, DualBranchV2):
        size = (image.shape[2], image.shape[3] // 2 + 1)
        found[SPECTRUM] = _mirrored(F.interpolate(found[SPECTRUM][:, None], size, mode="bilinear")[:, 0])
    return found


@contextmanager
def _recorded(model: nn.Module) -> Iterator[_Seen]:
    """Note the outputs that keep places apart of the modules that run meanwhile."""
    seen: _Seen = []

    def note(view: str, is_tokens: bool) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.requires_grad and output.dim() in ((3, 4) if is_tokens else (4,)):
                seen.append((view, output))

        return hook

    hooks = []
    for view, part in _views(model).items():
        for name, module in part.named_modules():
            if not any(word in name.lower() for word in _ATTENTION):
                is_tokens = "norm" in type(module).__name__.lower()
                hooks.append(module.register_forward_hook(note(view, is_tokens)))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _views(model: nn.Module) -> dict[str, nn.Module]:
    """Name the part of a detector that makes each view's map."""
    if isinstance(model, DualBranch | DualBranchV2):
        before_pooling = model.frequency.convolutions[-3]
        return {IMAGE: model.spatial.backbone, SPECTRUM: before_pooling}
    return {IMAGE: model}


def _as_map(values: Tensor) -> Tensor | None:
    """Lay values out as [B, C, h, w]; None where they are of one place only.

    Args:
        values: [B, C, h, w], [B, h, w, C], or tokens [B, N, C] of a square, those of no place first and fewer than it
            has of them on two sides.
    """
    if values.dim() == 3:
        side = math.isqrt(values.shape[1])
        values = values[:, values.shape[1] - side * side :].reshape(len(values), side, side, -1)
        values = values.permute(0, 3, 1, 2)
    elif values.shape[1] == values.shape[2] != values.shape[3]:
        values = values.permute(0, 3, 1, 2)
    return values if min(values.shape[2:]) > 1 else None


def spectrum_of(model: nn.Module, image: Tensor) -> Tensor | None:
    """Return the spectrum that a frequency branch looks at; None where the detector has none.

    Args:
        model: a detector.
        image: float32 [B, 3, S, S] as the model takes it.

    Returns:
        Log-amplitude [B, S, S] or one column wider, frequency 0 in the middle, the highest at the edges.
    """
    with torch.no_grad():
        if isinstance(model, DualBranchV2):
            return _mirrored(half_spectrum(image)[:, 0])
        if isinstance(model, DualBranch):
            return spectra(image)[:, :3].mean(dim=1)
        return None


def _mirrored(half: Tensor) -> Tensor:
    """Complete half of a symmetric plane [B, h, w], its first column in the middle, to [B, h, 2 w - 1].

    The highest vertical frequency has a row of its own only above the middle if h is even; it mirrors into itself.
    """
    other = half[:, :, 1:].flip(1, 2)
    if half.shape[1] % 2 == 0:
        other = other.roll(1, dims=1)
    return torch.cat([other, half], dim=2)
