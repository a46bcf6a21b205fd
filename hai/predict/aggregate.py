"""How the logits of a file's frames become one."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["AGGREGATES", "aggregate"]

AGGREGATES: Final = ("mean", "median", "topk", "max")
_TOP: Final = 0.25


def aggregate(logits: NDArray[np.float64], how: str) -> float:
    """Make one logit of those of a file's frames.

    Args:
        logits: [N], N > 0.
        how: mean; median; topk, the mean of the highest quarter, at least one; or max.
    """
    if how == "median":
        return float(np.median(logits))
    if how == "topk":
        return float(np.sort(logits)[-math.ceil(_TOP * len(logits)) :].mean())
    return float(logits.max() if how == "max" else logits.mean())
