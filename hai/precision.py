"""The number format of the forward pass."""

from __future__ import annotations

import torch

__all__ = ["precision_on"]


def precision_on(device: torch.device, mixed_precision: bool | str) -> torch.dtype | None:
    """Choose the autocast type: bf16 from sm_80, fp16 on sm_70 and sm_75, none (fp32) elsewhere and on CPUs."""
    if mixed_precision is False or device.type != "cuda":
        return None
    if isinstance(mixed_precision, str):
        return torch.bfloat16 if mixed_precision == "bf16" else torch.float16
    capability = torch.cuda.get_device_capability(device)
    if capability >= (8, 0):
        return torch.bfloat16
    return torch.float16 if capability >= (7, 0) else None
