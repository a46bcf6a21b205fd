"""A data set of a million examples: how long until the first batch of an epoch, and in what memory.

The data are a pack of 1,000,000 JPEGs of 32 px and 20,000 loose ones in real/ and fake/, each with content of its own,
in groups of ten, without splits, a tenth of it copies across both sources to be found. A process of its own does what
the start of a run does: reads and verifies the sources, hashes and decodes the loose files, refuses contradictions,
finds copies, divides groups, counts, draws the order of an epoch and loads its first batch; then it writes the manifest
and reads it again. The second run finds the hashes remembered.

- `first_run_seconds`, `second_run_seconds`: all of that; at most 30.
- `peak_gigabytes`: the larger peak of the two processes, libraries included; at most 1.
- `files_read_again`: loose files that the second run had to hash and decode again; at most 0.
- `first_run: ...`, `second_run: ...`: what the seconds are made of.

Run alone with `python -m benchmarks.million [--quick]`; quick: once, a fifth of the examples, which
proves neither the seconds nor the memory.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks._measure import main, memory, output_of, record

SECONDS, GIGABYTES = 30.0, 1.0
NUM_PACKED, NUM_LOOSE, GROUP, SIDE, BATCH = 1_000_000, 20_000, 10, 32, 64
_ROOT = Path(__file__).resolve().parent.parent


def run(quick: bool) -> list[dict[str, Any]]:
    """Measure; each record says whether it keeps its floor."""
    packed, loose = (NUM_PACKED // 5, NUM_LOOSE // 5) if quick else (NUM_PACKED, NUM_LOOSE)
    found: dict[str, list[dict[str, Any]]] = {"first_run": [], "second_run": []}
    with tempfile.TemporaryDirectory(prefix="hai-benchmark-") as scratch:
        folder = Path(scratch)
        draw_data(folder, packed, loose)
        for repeat in range(1 if quick else 2):
            for name in found:
                one = start_in_process(folder, cache=folder / f"cache-{repeat}")
                assert one["files"] == loose, one
                assert one["remembered"] == 0 or name == "second_run", one
                found[name].append(one)
    scale = f": {packed + loose:,} examples"
    seconds = {name: [sum(one["seconds"].values()) for one in runs] for name, runs in found.items()}
    records = [
        record(f"{name}_seconds{scale}", values, most=None if quick else SECONDS) for name, values in seconds.items()
    ]
    peaks = [max(first["peak"], second["peak"]) / 1e9 for first, second in zip(*found.values(), strict=True)]
    records.append(record(f"peak_gigabytes{scale}", peaks, most=None if quick else GIGABYTES))
    again = [float(one["files"] - one["remembered"]) for one in found["second_run"]]
    records.append(record("files_read_again", again, most=0))
    for name, runs in found.items():
        records += [record(f"{name}: {part}, s", [one["seconds"][part] for one in runs]) for part in runs[0]["seconds"]]
    return records


def draw_data(folder: Path, num_packed: int, num_loose: int) -> None:
    """Make `pack/` and `loose/`; every tenth loose file is a copy of an image of the pack."""
    rng = np.random.default_rng(0)
    pictures = []
    for _ in range(200):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=80)
        pictures.append(buffer.getvalue())

    def content(number: int) -> bytes:
        return pictures[number % len(pictures)] + number.to_bytes(8, "little")  # decoders stop at the end marker

    _write_pack(folder / "pack", num_packed, content)
    for number in range(num_loose):
        group = f"{number // GROUP:05}"
        place = folder / "loose" / ("real", "fake")[number // GROUP % 2] / group
        place.mkdir(parents=True, exist_ok=True)
        copied = number % 10 == 0
        (place / f"{number:06}.jpg").write_bytes(content(number if copied else num_packed + number))


def _write_pack(folder: Path, count: int, content: Any) -> None:
    """Write a pack as `hai data pack` does, without a manifest to make it of, which would take a million files."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True)
    hasher, offset, offsets, lengths, digests = hashlib.sha256(b"HAIPACK1"), 8, [], [], []
    with open(folder / "part", "wb") as file:
        file.write(b"HAIPACK1")
        for number in range(count):
            data = content(number)
            offsets.append(offset)
            lengths.append(len(data))
            digests.append(hashlib.sha256(data).digest())
            offset += len(data)
            hasher.update(data)
            file.write(data)
    part = f"train-00000-{hasher.hexdigest()[:16]}.pack"
    os.replace(folder / "part", folder / part)
    numbers = np.arange(count)
    table = pa.table(
        {
            "path": pa.array([f"frames/{number // GROUP:06}/{number:07}.jpg" for number in range(count)], pa.string()),
            "part": pa.array(np.zeros(count, dtype=np.int32)),
            "offset": pa.array(offsets),
            "length": pa.array(lengths),
            "sha256": pa.array(digests, pa.binary(32)),
            "label": pa.array((numbers // GROUP % 2).astype(np.int8)),
            "split": pa.array(np.full(count, -1, dtype=np.int8)),
            "group": pa.array([f"video-{number // GROUP:06}" for number in range(count)], pa.string()),
            "source": pa.array(["" if number % 3 else "extra" for number in range(count)], pa.string()),
            "width": pa.array(np.full(count, SIDE, dtype=np.int32)),
            "height": pa.array(np.full(count, SIDE, dtype=np.int32)),
        }
    )
    pq.write_table(table, folder / "index", compression="zstd")
    digest = hashlib.sha256((folder / "index").read_bytes()).hexdigest()
    index = f"index-{digest[:16]}.parquet"
    os.replace(folder / "index", folder / index)
    files = [(index, digest), (part, hasher.hexdigest())]
    entries = [{"name": name, "bytes": (folder / name).stat().st_size, "sha256": sha256} for name, sha256 in files]
    marker = {"format": 1, "index": entries[0], "parts": entries[1:]}
    (folder / "pack.json").write_text(json.dumps(marker), encoding="utf-8")


def start_in_process(folder: Path, *, cache: Path) -> dict[str, Any]:
    """Return what `measure_start` measures in a process of its own, with `cache` as HAI_CACHE."""
    command = [sys.executable, "-m", "benchmarks.million", "start", str(folder)]
    environment = {**os.environ, "HAI_CACHE": str(cache)}
    measured: dict[str, Any] = json.loads(output_of(command, cwd=_ROOT, env=environment).splitlines()[-1])
    return measured


def measure_start(folder: Path) -> dict[str, Any]:
    """Do what a run does until its first batch; return `seconds` of each part, `peak` bytes and what was remembered."""
    import torch

    from hai.config.schema import RunConfig
    from hai.data.manifest import load_manifest, save_manifest
    from hai.order import Order
    from hai.tasks.detector import DetectorTask

    sources = [{"name": name, "path": str(folder / name)} for name in ("pack", "loose")]
    data = {"sources": sources, "image_size": SIDE, "sampling": "balanced"}
    config = RunConfig.model_validate({"data": data, "train": {"global_batch_size": BATCH}})
    files, remembered = 0, 0

    def progress(done: int, total: int) -> None:  # the first call about many files says how many are known
        nonlocal files, remembered
        if total > files:
            files, remembered = total, done

    seconds, at = {}, time.perf_counter()

    def note(part: str) -> None:
        nonlocal at
        now = time.perf_counter()
        seconds[part], at = now - at, now

    task = DetectorTask(config)
    datasets = task.build_datasets(progress=progress)
    note("read, verify, divide")
    training = datasets.splits["train"]
    order = Order(*training.strata(), batch_size=BATCH, seed=config.seed)
    requests = order.requests(0, 2, rank=0, world_size=1)
    with closing(training.batches(requests, device=torch.device("cpu"), training=True)) as batches:
        assert len(next(batches)["image"]) == BATCH
    note("order, first batch")
    save_manifest(datasets.details, folder / "manifest.parquet")
    note("write the manifest")
    peak = memory()
    identity = datasets.identity
    del task, datasets, training, order, requests, batches
    at = time.perf_counter()
    assert load_manifest(folder / "manifest.parquet").identity == identity
    note("read the manifest")
    return {"seconds": seconds, "peak": max(peak, memory()), "files": files, "remembered": remembered}


if __name__ == "__main__":
    if sys.argv[1:2] == ["start"]:
        print(json.dumps(measure_start(Path(sys.argv[2]))))
    else:
        main(run)
