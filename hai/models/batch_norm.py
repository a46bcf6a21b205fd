"""BatchNorm whose statistics are those of all workers' batches."""

from __future__ import annotations

from typing import cast

from torch import nn

__all__ = ["share_statistics"]


def share_statistics(model: nn.Module) -> nn.Module:
    """Let the BatchNorm layers of a model take mean and variance over all workers, on GPUs; names and values stay.

    torch's own conversion would leave timm's BatchNorm layers without the activation that is part of them, and a
    network of such layers nearly linear; timm's knows both kinds.

    Args:
        model: not wrapped, on its device; its layers are replaced in place, its parameters stay the same objects.

    Returns:
        The model, or its replacement where it is a BatchNorm layer itself.
    """
    from timm.layers.norm_act import convert_sync_batchnorm

    return cast(nn.Module, convert_sync_batchnorm(model))  # type: ignore[no-untyped-call]
