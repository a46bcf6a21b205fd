"""Hostile pictures, tables and archives through the ways by which data come in; each batch in a process of its own."""

from __future__ import annotations

import io
import json
import os
import random
import re
import resource
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks._measure import real_data
from benchmarks.faults.bad_archives import MAX_BYTES, MAX_FILES, MAX_RATIO, build_archive
from benchmarks.faults.bad_images import damage, is_picture, originals
from benchmarks.faults.bad_tables import IMAGES, TWINS, build_table
from hai.config.schema import DataConfig, RunConfig, SourceConfig
from hai.data.archives import shown, unpack
from hai.data.manifest import Manifest, build_manifest
from hai.errors import DataError, HaiError

__all__ = ["try_bad_inputs"]

_COUNTS = ("tried", "crashes", "unlisted", "escaped", "over_limit")
_MEGAPIXELS = 2.0
_MEMORY = {"images": 2 << 30, "tables": 256 << 20, "archives": 256 << 20}
"""Bytes beyond those of an idle process."""
_SECONDS = 300
_AT_ONCE = 500


def try_bad_inputs(images: int, csvs: int, archives: int, seed: int, folder: Path) -> dict[str, Any]:
    """Let hai read hostile inputs; all counts but the first must be 0.

    Args:
        images: how many damaged pictures.
        csvs: how many generated tables.
        archives: how many generated archives.
        seed: of all of them.
        folder: an empty one to work in.

    Returns:
        `tried`; `crashes`: a process that died, hung or took too much memory, or an error that is none of hai's;
        `unlisted`: bad things that were not named, good ones that were, pictures that were taken but not loaded;
        `escaped`: files outside an archive's folder; `over_limit`: archives unpacked beyond a limit; `notes`: a line
        for each of these.
    """
    total: Counter[str] = Counter(dict.fromkeys(_COUNTS, 0))
    notes: list[str] = []
    for kind, count in (("images", images), ("tables", csvs), ("archives", archives)):
        for start in range(0, count, _AT_ONCE):
            found, lines = _guarded(kind, start, min(start + _AT_ONCE, count), seed, Path(folder) / kind)
            total.update(found)
            notes += lines
    return {**total, "notes": notes}


def _guarded(kind: str, start: int, stop: int, seed: int, folder: Path) -> tuple[dict[str, int], list[str]]:
    """Try inputs in a process of its own; where that dies, each half again, down to the one that kills it."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder / "here", ignore_errors=True)
    command = [sys.executable, "-m", "benchmarks.faults.inputs", kind, str(start), str(stop), str(seed), str(folder)]
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "HAI_CACHE": str(folder / "here" / "cache"), "MALLOC_ARENA_MAX": "2"}
    environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command, cwd=root, env=environment, capture_output=True, text=True, timeout=_SECONDS, errors="replace"
        )
        if done.returncode == 0:
            found = json.loads(done.stdout.splitlines()[-1])
            return found["counts"], found["notes"]
        reason = f"status {done.returncode}: {done.stderr[-1500:]}"
    except subprocess.TimeoutExpired:
        reason = f"not done after {_SECONDS} s"
    if stop - start == 1:
        return {"tried": 1, "crashes": 1}, [f"{kind} {start}: {reason}"]
    middle = (start + stop) // 2
    halves = [_guarded(kind, *part, seed, folder) for part in ((start, middle), (middle, stop))]
    total = Counter(halves[0][0])
    total.update(halves[1][0])
    return dict(total), [f"{kind} {start} to {stop}: {reason}", *halves[0][1], *halves[1][1]]


class _Tally:
    """What a process finds."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.notes: list[str] = []

    def note(self, count: str, line: str) -> None:
        self.counts[count] += 1
        self.notes.append(f"{count}: {line}"[:2000])


def _listed(error: DataError) -> list[str]:
    """Return all lines of a message, with those that it leaves to a file."""
    lines = str(error).split("\n")
    file = next((match[1] for line in lines if (match := re.search(r"; all \d+ are listed in (.+)$", line))), None)
    return lines + (Path(file).read_text(encoding="utf-8").split("\n") if file else [])


# -- pictures ----------------------------------------------------------------------------------------------------------


def _try_images(numbers: range, seed: int, folder: Path, tally: _Tally) -> None:
    sources = originals(real_data())
    pictures: dict[str, bytes] = {}
    for number in numbers:
        suffix, data = damage(random.Random(f"image {seed} {number}"), sources)
        label = "fake" if sum(data) % 2 else "real"  # equal bytes get one label
        pictures[f"{label}/{number:06d}{suffix}"] = data
    for label in ("real", "fake"):
        (folder / label).mkdir(parents=True)
        (folder / label / "good.png").write_bytes(_png(label == "real"))
    for name, data in pictures.items():
        (folder / name).write_bytes(data)
    source = SourceConfig(name="s", path=str(folder))
    data = partial(DataConfig, sources=[source], max_megapixels=_MEGAPIXELS, image_size=32, cache_decoded="off")
    manifest = build_manifest(data(max_bad_fraction=1.0), seed, require=())
    _load(manifest, RunConfig(data=data(max_bad_fraction=1.0)), tally)
    refused = {problem.path: problem.reason for problem in manifest.problems}
    for name, content in pictures.items():
        good = is_picture(content, _MEGAPIXELS)
        if good == (name in refused) or good != (name in manifest.path) or not refused.get(name, "why"):
            said = refused.get(name, "taken")
            tally.note("unlisted", f"{name}: Pillow says {'good' if good else 'bad'}, hai says {said}")
    try:
        build_manifest(data(max_bad_fraction=0.01), seed, require=())
        lines = []
    except DataError as error:
        lines = _listed(error)
    if len(refused) > 0.01 * len(pictures):
        unnamed = [name for name, reason in refused.items() if f"{name}: {reason}" not in lines]
        if unnamed or not any("data.max_bad_fraction = 0.01" in line for line in lines):
            tally.note("unlisted", f"above max_bad_fraction: {unnamed[:5]} not named")


def _load(manifest: Manifest, config: RunConfig, tally: _Tally) -> None:
    """Read every accepted picture as training does."""
    import torch

    from hai.data.dataset import ImageDataset

    dataset = ImageDataset(manifest, config, None)
    requests = [(0, np.arange(start, min(start + 16, len(dataset)))) for start in range(0, len(dataset), 16)]
    try:
        batches = dataset.batches(requests, device=torch.device("cpu"), training=False)
        seen = sum(len(batch["index"]) for batch in batches)
    except HaiError as error:
        tally.note("unlisted", f"taken but not loaded: {error}")
    else:
        if seen != len(manifest):
            tally.note("unlisted", f"{seen} of {len(manifest)} pictures loaded")


def _png(is_light: bool) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (9, 9), "white" if is_light else "black").save(buffer, "PNG")
    return buffer.getvalue()


# -- tables ------------------------------------------------------------------------------------------------------------


def _try_tables(numbers: range, seed: int, folder: Path, tally: _Tally) -> None:
    rng = np.random.default_rng(3)
    twin = b""
    for name in (*IMAGES, TWINS[1]):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16, 3)).astype(np.uint8)).save(path)
        if name == TWINS[0]:
            twin = path.read_bytes()
    (folder / TWINS[1]).write_bytes(twin)
    for number in numbers:
        table = folder / f"{number}.csv"
        made = build_table(random.Random(f"table {seed} {number}"), table)
        task = "detector" if made.kind == "detector" else "ranker"
        score = "votes" if made.kind == "ranker" else None
        data = DataConfig(sources=[SourceConfig(name="s", path=str(table))], score_column=score)
        lines: list[str] | None = None
        try:
            build_manifest(data, seed, task=task, require=())
        except DataError as error:
            lines = _listed(error)
        except Exception as error:
            tally.note("crashes", f"{table}: {type(error).__name__}: {error}")
            continue
        found = {
            int(match[1]) for line in lines or () if (match := re.match(re.escape(f"{table}:") + r"(\d+): ", line))
        }
        if made.whole:
            right = lines is not None and str(table) in lines[0]
        elif made.twins and not made.bad:
            right = lines is not None and all(name in "\n".join(lines) for name in TWINS)
        else:
            right = found == made.bad and (lines is None) == (not made.bad)
        if not right:
            tally.note("unlisted", f"{made}: found {sorted(found)}, said {str(lines)[:600]}, table {table}")
        else:
            table.unlink()


# -- archives ----------------------------------------------------------------------------------------------------------


def _try_archives(numbers: range, seed: int, folder: Path, tally: _Tally) -> None:
    for number in numbers:
        room = folder / str(number)
        outside = room / "outside"
        outside.mkdir(parents=True)
        (outside / "keep").write_bytes(b"1")
        made = build_archive(random.Random(f"archive {seed} {number}"), room, outside)
        before, to, refusal = _tree(room), room / "to", ""
        try:
            unpack(made.path, to, max_files=MAX_FILES, max_bytes=MAX_BYTES, max_ratio=MAX_RATIO)
        except HaiError as error:
            refusal = str(error)
        except Exception as error:
            tally.note("crashes", f"{made.path}: {type(error).__name__}: {error}")
            continue
        after = _tree(room)
        inside = {name: size for name, size in after.items() if name.split("/")[0] == "to"}
        if {name: size for name, size in after.items() if name not in inside} != before or (refusal and inside):
            tally.note("escaped", f"{made.path}: {sorted(after.keys() - before.keys())[:9]}")
        size = sum(max(0, length) for length in inside.values())
        if len(inside) - 1 > MAX_FILES or size > min(MAX_BYTES, MAX_RATIO * made.path.stat().st_size):
            tally.note("over_limit", f"{made.path}: {len(inside)} files and folders of {size} bytes")
        if made.files is not None:
            got = {name: path.read_bytes() for name in made.files if (path := to / name).is_file()}
            if got != made.files or sum(length >= 0 for length in inside.values()) != len(got):
                tally.note("unlisted", f"{made.path}: good, but {refusal or 'not as it was packed'}")
        unnamed = [name for name in made.refused if f"member {shown(name)} " not in refusal]
        if unnamed:
            tally.note("unlisted", f"{made.path}: {unnamed} not in {refusal}")
        shutil.rmtree(room)


def _tree(folder: Path) -> dict[str, int]:
    """Size of each file below a folder; -1: a folder, -2: anything else."""
    kinds = {}
    for path in folder.rglob("*"):
        is_plain = path.is_file() and not path.is_symlink()
        size = path.stat().st_size if is_plain else -1 if path.is_dir() and not path.is_symlink() else -2
        kinds[str(path.relative_to(folder))] = size
    return kinds


_TRIALS: dict[str, Callable[[range, int, Path, _Tally], None]] = {
    "images": _try_images,
    "tables": _try_tables,
    "archives": _try_archives,
}


def _main(kind: str, start: str, stop: str, seed: str, folder: str) -> None:
    if kind == "images":
        import torch

        torch.set_num_threads(1)
    mapped = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + _MEMORY[kind], mapped + _MEMORY[kind]))
    tally = _Tally()
    numbers = range(int(start), int(stop))
    _TRIALS[kind](numbers, int(seed), Path(folder) / "here", tally)
    tally.counts["tried"] += len(numbers)
    print(json.dumps({"counts": tally.counts, "notes": tally.notes}))


if __name__ == "__main__":
    _main(*sys.argv[1:])
