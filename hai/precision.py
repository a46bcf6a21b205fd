"""The number format of the forward pass."""

from __future__ import annotations

import torch

__all__ = ["precision_of", "precision_on"]


def precision_on(device: torch.device, mixed_precision: bool | str) -> torch.dtype | None:
    """Choose the autocast type of a device; see `precision_of`. CPUs compute in fp32."""
    if device.type != "cuda":
        return None
    return precision_of(torch.cuda.get_device_capability(device), mixed_precision)


def precision_of(capability: tuple[int, int], mixed_precision: bool | str) -> torch.dtype | None:
    """Choose the autocast type of a card: bf16 from sm_80, fp16 on sm_70 and sm_75, none (fp32) below.

    Args:
        capability: of the card, (8, 0) for sm_80.
        mixed_precision: the config's wish; false: none; bf16 or fp16: that on any card.
    """
    if mixed_precision is False:
        return None
    if isinstance(mixed_precision, str):
        return torch.bfloat16 if mixed_precision == "bf16" else torch.float16
    if capability >= (8, 0):
        return torch.bfloat16
    return torch.float16 if capability >= (7, 0) else None
