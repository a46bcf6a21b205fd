"""Comparing images with the whole ranker: a DINOv2-large of random weights and its head."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.device import Setting, record_of
from benchmarks.gpu.embedding import ranker_config
from hai.data.augment import normalise
from hai.memory import is_out_of_memory
from hai.models.scorer import build_scorer
from hai.precision import precision_on
from hai.ranking import BATCH_SIZE
from hai.tasks.ranker import RankerTask
from hai.trained import use_full_precision

__all__ = ["run"]

_PAIR_MS, _GIGABYTES, _PAIRS = 100.0, 12.0, 32


def run(setting: Setting) -> list[dict[str, Any]]:
    """Measure a pair, and 32 pairs in the batches that `hai compare` makes."""
    with tempfile.TemporaryDirectory(prefix="hai-benchmark-") as scratch, full_precision():
        server = _Server(setting, Path(scratch))
        records = []
        for precision in (None, precision_on(setting.device, True)):
            records += server.measured("as served, float32" if precision is None else str(precision)[6:], precision)
            if setting.is_tiny:
                break
        return records


class _Server:
    """The ranker on its device, and pictures to compare."""

    def __init__(self, setting: Setting, scratch: Path) -> None:
        config = ranker_config(setting, scratch)
        self._setting, self._task = setting, RankerTask(config)
        size = config.data.image_size
        self._model = build_scorer(config, size).to(setting.device).eval()
        generator = torch.Generator().manual_seed(0)
        self._pixels = torch.randint(0, 256, (2 * _PAIRS, 3, size, size), dtype=torch.uint8, generator=generator)
        self._pixels = self._pixels.to(setting.device)
        self._repeats = 3 if setting.is_tiny else 20

    def measured(self, name: str, precision: torch.dtype | None) -> list[dict[str, Any]]:
        """Return the records of one precision."""
        return [
            record_of(f"one pair, ms ({name})", [1e3 * s for s in self._times(1, precision)], most=_PAIR_MS),
            *self._of_many(name, precision),
        ]

    def _of_many(self, name: str, precision: torch.dtype | None) -> list[dict[str, Any]]:
        self._setting.begin_peak()
        times = self._times(_PAIRS, precision)
        peaks = [self._setting.peak()] if times else []
        return [
            record_of(f"{_PAIRS} pairs, pairs_per_second ({name})", [_PAIRS / s for s in times]),
            record_of(f"{_PAIRS} pairs, gigabytes ({name})", peaks, most=_GIGABYTES, without=False),
        ]

    def _times(self, pairs: int, precision: torch.dtype | None) -> list[float]:
        """Return the seconds of each repeat; none where memory runs out."""
        try:
            self._score(pairs, precision)
            seconds = [self._setting.seconds_of(lambda: self._score(pairs, precision)) for _ in range(self._repeats)]
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return []
        return seconds if pairs == 1 else [statistics.median(seconds)]

    def _score(self, pairs: int, precision: torch.dtype | None) -> None:
        for pixels in torch.split(self._pixels[: 2 * pairs], BATCH_SIZE):
            index = torch.arange(len(pixels), device=pixels.device)
            batch = {"image": normalise(pixels), "index": index, "label": torch.zeros_like(index)}
            with torch.inference_mode(), torch.autocast(pixels.device.type, precision, enabled=precision is not None):
                self._task.predict(self._model, batch)["score"].double().cpu()


@contextmanager
def full_precision() -> Iterator[None]:
    """Compute in full precision, as a server does, and as before afterwards."""
    convolution, product = torch.backends.cudnn.conv, torch.backends.cuda.matmul  # type: ignore[attr-defined]
    before = convolution.fp32_precision, product.fp32_precision
    use_full_precision()
    try:
        yield
    finally:
        convolution.fp32_precision, product.fp32_precision = before
