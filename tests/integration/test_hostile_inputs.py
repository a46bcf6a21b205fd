"""Damaged pictures, bad tables and hostile archives: named, never believed, and nothing outside its place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.faults.inputs import try_bad_inputs
from hai.config.load import config_from_yaml_text
from hai.data.dataset import ImageDataset
from hai.data.manifest import build_manifest
from hai.errors import DataError


def assert_nothing_came_through(found: dict[str, object], tried: int) -> None:
    assert found == {"tried": tried, "crashes": 0, "unlisted": 0, "escaped": 0, "over_limit": 0, "notes": []}


def test_bad_inputs_are_named_and_kept_out(tmp_path: Path) -> None:
    assert_nothing_came_through(try_bad_inputs(150, 200, 100, 1, tmp_path), 450)


@pytest.mark.slow
def test_thousands_of_bad_inputs_are_named_and_kept_out(tmp_path: Path) -> None:
    assert_nothing_came_through(try_bad_inputs(2500, 1000, 500, 2, tmp_path), 4000)


ROT = {
    "flipped": lambda data: data[:-40] + bytes([data[-40] ^ 4]) + data[-39:],
    "cut": lambda data: data[:-1],
    "longer": lambda data: data + b"\0",
    "emptied": lambda data: b"",
    "zeroed": lambda data: bytes(len(data)),
}


@pytest.mark.parametrize("epoch", [0, 1])
@pytest.mark.parametrize("kind", [*ROT, "deleted", "folder"])
def test_a_picture_that_rots_after_the_manifest_was_made_is_named(
    small_faces: Path, tmp_path: Path, kind: str, epoch: int
) -> None:
    for path in sorted(small_faces.rglob("00*.jpg")):
        copy = tmp_path / path.relative_to(small_faces)
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(path.read_bytes())
    text = f"data: {{sources: [{{path: '{tmp_path}'}}], image_size: 32, cache_decoded: 'off'}}"
    config = config_from_yaml_text(text)
    manifest = build_manifest(config.data, 1, require=())
    dataset = ImageDataset(manifest, config, None)
    positions = np.arange(len(dataset))
    rotten = tmp_path / manifest.path[7]

    def read(epoch: int) -> int:
        batches = dataset.batches([(epoch, positions)], device=torch.device("cpu"), training=True)
        return sum(len(batch["index"]) for batch in batches)

    assert epoch == 0 or read(0) == len(positions)
    content = rotten.read_bytes()
    rotten.unlink()
    if kind == "folder":
        rotten.mkdir()
    elif kind != "deleted":
        rotten.write_bytes(ROT[kind](content))
    with pytest.raises(DataError, match=manifest.path[7]):
        read(epoch)
