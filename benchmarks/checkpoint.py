"""Checkpoints against torch.save: how long training waits, what it costs in all, what memory it takes.

The state is that of the detector `dual_branch`, 43.7 million parameters in channels-last format, and of AdamW: 523 MB.
torch.save writes it into one file and promises nothing about a crash; ours copies it and goes on, while a thread
hashes, writes, syncs, reads back and renames. Both write to the same disk by turns; the disk is synced before, outside
the time.

- `blocked_ratio`: seconds that training waits for a checkpoint over seconds of torch.save; at most 0.2. The write
  before has ended, as it has at every cadence above some seconds.
- `first_blocked_ratio`: the same for the first checkpoint of a process, which also takes the memory of the copy.
- `whole_cpu_ratio`, `whole_wall_ratio`: what a checkpoint takes until it is whole on the disk, with everything that the
  thread does, over torch.save.
- `extra_memory_copies`: peak memory of a process that saves three times above what it holds in any case, in units of
  the state, to a tenth: some MB are blocks on their way; at most 1.0. `torch_save_memory_copies`: torch.save's. Left
  out with --quick.
- `load_ratio`: seconds to load and verify a checkpoint over torch.load of the same state.

Run alone with `python -m benchmarks.checkpoint [--quick]`.
"""

from __future__ import annotations

import ctypes
import gc
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks._measure import Cost, cpu_seconds, interleaved, main, memory, output_of, ratios, record
from hai.checkpoint.format import load_checkpoint
from hai.checkpoint.store import RunFolder
from hai.config.schema import RunConfig
from hai.models import build_model
from hai.optim import build_optimizer
from hai.state import state_tensors

BLOCKED, COPIES = 0.2, 1.0
Tensors = dict[str, Tensor]


def run(quick: bool) -> list[dict[str, Any]]:
    """Measure; each record says whether it keeps its floor."""
    model, state = build_state()
    with tempfile.TemporaryDirectory(prefix="hai-benchmark-") as scratch:
        measured = _measured(Path(scratch), model, state, 1 if quick else 7)
    copies = [] if quick else _memory_records(_bytes(model, state))
    own, peer = measured["hai"], measured["torch"]
    waits, peer_waits = ([save.blocked.wall for save in saves] for saves in (own, peer))
    return [
        record("blocked_ratio", ratios(waits, peer_waits), most=BLOCKED),
        record("first_blocked_ratio", [measured["first"] / statistics.median(peer_waits)]),
        record("whole_wall_ratio", ratios([save.whole for save in own], [save.whole for save in peer], 0)),
        record("whole_cpu_ratio", ratios([save.whole for save in own], [save.whole for save in peer], 1)),
        record("load_ratio", ratios(measured["load"], measured["torch load"], 0)),
        *copies,
        record("blocked_milliseconds", [1000 * seconds for seconds in waits]),
        record("torch_save_milliseconds", [1000 * seconds for seconds in peer_waits]),
    ]


def build_state() -> tuple[Tensors, Tensors]:
    """Return the weights of the detector and what AdamW holds of them, as training does: channels last."""
    config = RunConfig.model_validate({"model": {"name": "dual_branch", "pretrained": False}})
    model = build_model(config.model, config.data.image_size, config.seed).to(memory_format=torch.channels_last)
    optimizer = build_optimizer(model, config.optim, set(), torch.device("cpu"))
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.01)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return state_tensors(model, optimizer, None)


class _Save:
    """What one checkpoint took: until training went on, and until it was whole."""

    def __init__(self, begin: Callable[[], object], finish: Callable[[], object]) -> None:
        wall, cpu = time.perf_counter(), cpu_seconds()
        begin()
        self.blocked = Cost(time.perf_counter() - wall, cpu_seconds() - cpu)
        finish()
        self.whole = Cost(time.perf_counter() - wall, cpu_seconds() - cpu)


def _measured(scratch: Path, model: Tensors, state: Tensors, repeats: int) -> dict[str, Any]:
    folder = RunFolder(str(scratch), "run", keep=1, report=_say)
    steps = iter(range(1, 1000))
    file = scratch / "state.pt"

    def save() -> _Save:
        os.sync()
        step = next(steps)
        return _Save(lambda: folder.save(model, state, {}, step=step), folder.wait)

    def save_with_torch() -> _Save:
        file.unlink(missing_ok=True)
        os.sync()
        return _Save(lambda: torch.save({"model": model, "optimizer": state}, file), lambda: None)

    def load() -> Cost:
        return _Save(lambda: load_checkpoint(folder.checkpoints / folder.names()[0]), lambda: None).whole

    def load_with_torch() -> Cost:
        return _Save(lambda: torch.load(file, weights_only=True), lambda: None).whole

    first = save()
    contestants: dict[str, Callable[[], Any]] = {"hai": save, "torch": save_with_torch}
    measured: dict[str, Any] = dict(interleaved(contestants, repeats))
    assert not folder.problems, folder.problems
    loaders: dict[str, Callable[[], Any]] = {"load": load, "torch load": load_with_torch}
    measured |= interleaved(loaders, max(2, repeats // 2))
    folder.close()
    return {**measured, "first": first.blocked.wall}


def _bytes(*parts: Tensors) -> int:
    return sum(tensor.nbytes for part in parts for tensor in part.values())


def _memory_records(size: int) -> list[dict[str, Any]]:
    return [
        record("extra_memory_copies", [peak_copies("hai", size)], most=COPIES),
        record("torch_save_memory_copies", [peak_copies("torch", size)]),
    ]


def peak_copies(kind: str, size: int) -> float:
    """Return the peak above a process's own memory while it saves three times, in units of the state."""
    command = [sys.executable, "-m", "benchmarks.checkpoint", "memory", kind]
    root = Path(__file__).resolve().parent.parent
    return round(int(output_of(command, cwd=root).split()[-1]) / size, 1)


def _print_peak(kind: str) -> None:
    model, state = build_state()
    with tempfile.TemporaryDirectory(prefix="hai-benchmark-") as scratch:
        small = {"weight": torch.zeros(1000)}
        folders = [RunFolder(str(Path(scratch)), name, keep=1, report=_say) for name in ("small", "run")]
        folders[0].save(small, small, {}, step=1, wait=True)  # what saving needs in any case
        torch.save(small, Path(scratch) / "small.pt")
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # what gradients left behind would pass for a part of the copy
        before = memory("VmRSS", anew=True)
        for step in range(1, 4):
            if kind == "hai":
                assert folders[1].save(model, state, {}, step=step, wait=True)
            else:
                torch.save({"model": model, "optimizer": state}, Path(scratch) / "state.pt")
        print(memory("VmHWM") - before)


def _say(line: str) -> None:
    print(line, file=sys.stderr)


if __name__ == "__main__":
    if sys.argv[1:2] == ["memory"]:
        _print_peak(sys.argv[2])
    else:
        main(run)
