"""A bare PyTorch loop whose steps alternate with another loop's, both on a model that costs next to nothing.

Each time the other loop asks for something between two of its steps, the bare loop carries out one of its own: so both
share the machine's moods, and their difference is what the other loop adds.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

__all__ = ["CLIP", "EXAMPLES", "INPUT", "LOG_EVERY", "RATE", "Alternation", "build_model"]

EXAMPLES, INPUT, RATE, CLIP, LOG_EVERY = 32, 32, 1e-3, 1.0, 10
_WARM_UP = 20  # steps of a measurement that do not count


def build_model() -> nn.Module:
    """Build a classifier of [B, 3, 32, 32] with one layer."""
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * INPUT * INPUT, 2))


class Alternation:
    """The bare loop, and when each loop began and ended its steps."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(EXAMPLES, 3, INPUT, INPUT, generator=generator)
        self.labels = torch.arange(EXAMPLES) % 2
        self._model = build_model().train()
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=RATE, fused=True)
        self._entered: list[tuple[float, float]] = []
        self._left: list[tuple[float, float]] = []

    def step(self) -> int:
        """Carry out a step of the bare loop; returns 0."""
        self._entered.append(_clocks())
        loss = cross_entropy(self._model(self.images), self.labels)
        loss.backward()
        nn.utils.clip_grad_norm_(self._model.parameters(), CLIP)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._left.append(_clocks())
        return 0

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the same batch for ever, after a step of the bare loop each time."""
        while True:
            self.step()
            yield self.images, self.labels

    def result(self, steps: int) -> dict[str, Any]:
        """Return the mean seconds of a step of the bare loop and what the other adds to it, wall and processor time."""
        counted = range(_WARM_UP, steps - 1)
        result = {}
        for clock, kind in enumerate(("", "_cpu")):
            own = [self._entered[k + 1][clock] - self._left[k][clock] for k in counted]
            bare = [self._left[k][clock] - self._entered[k][clock] for k in counted]
            result[f"bare{kind}"] = sum(bare) / len(counted)
            result[f"added{kind}"] = (sum(own) - sum(bare)) / len(counted)
        return result


def _clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()
