"""The few shapes and names that every layer shares, documented once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import numpy as np
    import torch

__all__ = ["LABELS", "LOST", "SAVE", "SPLITS", "STOP", "Arrays", "Batch", "Record"]

LABELS: Final = ("real", "fake")
"""Class names of the detector; the position is the label."""

SPLITS: Final = ("train", "val", "test")
"""Split names; the position is the code that a manifest stores."""

SAVE: Final = 1
"""What a launcher can ask of the loop between two steps: a checkpoint."""

STOP: Final = 2
"""The same: a checkpoint, and the end."""

LOST: Final = 3
"""What the loop finds out itself: another attempt owns the run now, this one must end."""

Batch = dict[str, "torch.Tensor"]
"""A batch of examples, all tensors with the same first dimension B and on one device.

- `index` int64 [B]: position of the example in the manifest, the key of all its random draws;
- `image` [B, 3, H, W]: RGB, uint8 as loaded, float32 normalised after the device transform (detector, ranker);
- `label` int64 [B]: 0 real, 1 fake (detector); tier, 0 the best (ranker).

Everything but `image` is small and is gathered over workers for the loss.
"""

Arrays = dict[str, "np.ndarray[Any, Any]"]
"""Predictions of a split: arrays with the same first dimension N, among them `index` int64 [N]."""

Record = dict[str, Any]
"""A JSON object: one line of metrics.jsonl, the state of a checkpoint."""
