"""The project against other libraries at the same work on the same files, each in an environment of its own.

Every contestant is a process that has prepared and warmed up before the turns begin; in each turn each measures once,
and a ratio is taken within a turn. A record is the median over turns, `low` and `high` the extremes. A peer that cannot
be installed, does not run to the end or loads something else has a record without a value, and a line says why.

- `loader_PEER_wall_ratio`: seconds of an epoch over ours: 4,000 JPEGs of 224 to 256 px, resized to 224, shuffled, in
  batches of 64, with as many workers or threads as there are cores; `..._cpu_ratio`: the same in processor seconds of
  the process tree. Each peer reads its own format, made before. Ours reads the folder and verifies every file: by
  SHA-256 in the epoch that warms up, in those measured by CRC-32.
- `augment_PEER_wall_ratio`, `..._cpu_ratio`: the same with the changes of configs/detector/baseline.yaml (flip,
  rotation, colour jitter, JPEG, blur, noise), normalised float32 at the end.
- `loop_PEER_added_ratio`: what the peer's loop adds to a step of a bare PyTorch loop over what ours adds; all clip,
  follow a schedule and write loss and accuracy to TensorBoard every 10 steps; `..._added_cpu_ratio`: the same in
  processor time of the process.
- `..._images_per_second`, `..._microseconds`: what these are made of.

Run alone with `python -m benchmarks.peers [--quick]`. The first run makes the environments, 1 GB under HAI_CACHE.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks._measure import main, missing, ratios, record
from benchmarks.peers.contest import measure_by_turns
from benchmarks.peers.contestant import BATCH, SIZE, Job
from hai.config.load import load_config
from hai.cpus import num_cpus

NUM_IMAGES, LOOP_STEPS = 4000, 420
LOADERS = {"spdl": 1.5, "ffcv": 1.2, "webdataset": 2.5, "mosaicml": 3.0, "litdata": 3.0, "timm": 5.0, "classic": None}
AUGMENTATIONS = {"torchvision": 2.0, "albumentations": 2.0}
LOOPS = {"accelerate": 1.0, "lightning": 1.0}
RECIPE = Path(__file__).resolve().parents[2] / "configs" / "detector" / "baseline.yaml"

Turns = dict[str, list[dict[str, Any]]]


def run(quick: bool) -> list[dict[str, Any]]:
    """Measure; each record says whether it keeps its floor."""
    from benchmarks._images import draw_faces

    repeats = 3 if quick else 7
    with tempfile.TemporaryDirectory(prefix="hai-benchmark-") as scratch:
        job = Job(
            folder=draw_faces(Path(scratch) / "faces", NUM_IMAGES),
            scratch=Path(scratch),
            workers=num_cpus(),
            recipe=load_config(str(RECIPE)).augment.model_dump(),
            steps=LOOP_STEPS,
        )
        loaders = measure_by_turns(_scripts("loader", LOADERS), job, repeats, wrong=_wrong_epoch)
        changed = measure_by_turns(_scripts("augment", AUGMENTATIONS), job, repeats, wrong=_wrong_epoch)
        loops = measure_by_turns(_scripts("loop", LOOPS), job, 2 * repeats)
    return [
        *_of_epochs("loader", loaders, LOADERS),
        *_of_epochs("augment", changed, AUGMENTATIONS),
        *_of_loops(loops),
    ]


def _scripts(work: str, peers: Iterable[str]) -> list[str]:
    return [f"{work}_{peer}" for peer in ("hai", *peers)]


def _wrong_epoch(turn: dict[str, Any]) -> str:
    if turn["images"] <= NUM_IMAGES - BATCH:  # some drop the last batch
        return f"loads {turn['images']} of {NUM_IMAGES} images"
    others = [batch for batch in turn["batches"] if f"{SIZE}, {SIZE}" not in batch]
    return f"loads {', '.join(others)}, not {SIZE} x {SIZE} px" if others else ""


def _of_epochs(work: str, turns: Turns, floors: Mapping[str, float | None]) -> list[dict[str, Any]]:
    records = []
    for peer, floor in floors.items():
        for kind in ("wall", "cpu"):
            name, least = f"{work}_{peer}_{kind}_ratio", floor if kind == "wall" else None
            if peer not in turns:
                records.append(missing(name, least))
                continue
            theirs, ours = ([turn[kind] / turn["images"] for turn in turns[side]] for side in (peer, "hai"))
            records.append(record(name, ratios(theirs, ours), floor=least))
    for peer, measured in turns.items():
        rates = [turn["images"] / turn["wall"] for turn in measured]
        records.append(record(f"{work}_{peer}_images_per_second", rates))
    return records


def _of_loops(turns: Turns) -> list[dict[str, Any]]:
    records = []
    for peer, floor in LOOPS.items():
        for kind in ("added", "added_cpu"):
            name, least = f"loop_{peer}_{kind}_ratio", floor if kind == "added" else None
            if peer not in turns:
                records.append(missing(name, least))
                continue
            pairs = ratios([turn[kind] for turn in turns[peer]], [turn[kind] for turn in turns["hai"]])
            records.append(record(name, pairs, floor=least))
    for peer, measured in turns.items():
        records += [
            record(f"loop_{peer}_{kind}_microseconds", [1e6 * turn[kind] for turn in measured])
            for kind in ("added", "added_cpu")
        ]
    records.append(record("loop_bare_microseconds", [1e6 * turn["bare"] for turn in turns["hai"]]))
    return records


if __name__ == "__main__":
    main(run)
