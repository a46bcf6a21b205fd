"""How long saving keeps training waiting: a detector's whole state on the device, saved by a run and by torch.save."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks._measure import interleaved
from benchmarks.gpu.device import Setting, record_of
from benchmarks.gpu.training import Case
from hai.checkpoint.store import RunFolder
from hai.models import build_model
from hai.optim import build_optimizer
from hai.state import state_tensors

__all__ = ["run"]

_BLOCKED = 0.2


def run(setting: Setting) -> list[dict[str, Any]]:
    """Save by turns, each save when the one before it is whole."""
    case = Case("compact", 64, 4) if setting.is_tiny else Case("dual_branch", 224, 32)
    config = case.config()
    model = build_model(config.model, case.size, config.seed).to(setting.device)
    model = model.to(memory_format=torch.channels_last)
    optimizer = build_optimizer(model, config.optim, set(), setting.device)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    served, state = state_tensors(model, optimizer, None)
    megabytes = sum(value.numel() * value.element_size() for value in (*served.values(), *state.values())) / 1e6
    with tempfile.TemporaryDirectory(prefix="hai-benchmark-") as scratch:
        folder = RunFolder(scratch, "run", keep=1, report=lambda line: None)
        step = 0

        def save() -> float:
            nonlocal step
            step += 1
            setting.wait()
            began = time.perf_counter()
            folder.save(served, state, {}, step=step)
            blocked = time.perf_counter() - began
            folder.wait()
            return blocked

        def torch_save() -> float:
            both = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            return setting.seconds_of(lambda: torch.save(both, Path(scratch) / "usual.pt"))

        first = save()
        contestants: dict[str, Callable[[], float]] = {"ours": save, "usual": torch_save}
        seconds = interleaved(contestants, 2 * setting.turns)
        folder.close()
        if folder.problems:
            raise RuntimeError("; ".join(folder.problems))
    name = f"{case.model}, {megabytes:.0f} MB"
    ratios = [ours / usual for ours, usual in zip(seconds["ours"], seconds["usual"], strict=True)]
    return [
        record_of(f"{name}, blocked over torch.save", ratios, most=_BLOCKED),
        record_of(f"{name}, blocked_ms", [1e3 * second for second in seconds["ours"]]),
        record_of(f"{name}, first_blocked_ms", [1e3 * first]),
        record_of(f"{name}, torch_save_ms", [1e3 * second for second in seconds["usual"]]),
    ]
