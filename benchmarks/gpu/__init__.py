"""What a GPU does with the two models: steps, feeding, embeddings, pairs, checkpoints. No Ray, no process beside this.

    python -m benchmarks.gpu [--quick] [--json FILE] [--only PART ...]
    python -m benchmarks.gpu --device cpu       the same code at a tiny size, to see that it runs; no floor is judged

Needed are torch, torchvision, timm and transformers with what they bring, and pydantic and simplejpeg. Nothing is
fetched: weights are random, images are made. FILE is written after each part.

- `training`: EfficientNet-B7 at 228 px, batches of 16 and 32, B4, B0 and `dual_branch` at 224 px, batches of 32. The
  usual loop (fp32, NCHW, AdamW as it comes), the same in mixed precision, and a step of this project (mixed precision,
  channels_last, fused AdamW, keyed dropout, finite checks, training metrics), on images that lie on the device.
  `step_ratio`: images per second, ours over the usual loop's; at least 1.15. `memory_ratio`: peaks, ours over theirs.
  `searched_gain`: what `torch.backends.cudnn.benchmark` would add to ours, which does not use it.
- `feeding`: B4 and B0 with the recipe's augmentation on the device, fed by the ring loader from JPEGs, over the same
  with a batch that is there already; at least 0.9.
- `embedding`: DINOv2-large at 756 px as `hai embed` computes it; `minutes_10000`, at most 30.
- `pairs`: the whole ranker as `hai compare` serves it, in full precision, and in mixed precision: milliseconds of one
  pair, at most 100; pairs per second and gigabytes of 32 pairs, at most 12.
- `stall`: how long a checkpoint of the whole `dual_branch` state (523 MB) keeps training waiting, over `torch.save` of
  the same; at most 0.2. The first one also takes pinned memory and has its own record.

What does not fit into memory has no value and is not judged (`holds` is None), with two exceptions that miss: 32 pairs,
and ours where what it is compared with fits. In each turn every contestant comes once, alone on the
device, after warming up; `low` and `high` are the extremes over turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

PARTS = ("training", "feeding", "embedding", "pairs", "stall")


def run(quick: bool, *, device: str = "cuda", only: Sequence[str] = PARTS) -> list[dict[str, Any]]:
    """Measure; each record says whether it keeps its floor, or None where that is not judged.

    Args:
        quick: fewer and shorter turns.
        device: cuda, or cpu for a tiny size without floors.
        only: parts to measure.
    """
    import importlib

    import torch

    from benchmarks.gpu.device import Setting

    setting = Setting.of(device, quick=quick)
    records, threads = [], torch.get_num_threads()
    if setting.is_tiny:  # on a busy machine threads wait for each other longer than they work
        torch.set_num_threads(1)
    try:
        for part in only:
            found = importlib.import_module(f"benchmarks.gpu.{part}").run(setting)
            records += [entry | {"name": f"{part}: {entry['name']}"} for entry in found]
    finally:
        torch.set_num_threads(threads)
    if setting.is_tiny:
        records = [
            entry | {"name": f"{entry['name']} (tiny, on a CPU)", "floor": None, "holds": None} for entry in records
        ]
    return records
