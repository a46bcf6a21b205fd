"""What `hai data index`, `split` and `pack` do."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hai.data.content import Progress
from hai.data.manifest import Manifest, build_manifest, save_manifest
from hai.data.pack import build_pack
from hai.data.rows import COMPARED, without_root
from hai.data.tiers import IMAGES
from hai.errors import DataError, StorageError
from hai.types import SPLITS

if TYPE_CHECKING:
    from hai.config.schema import DataConfig

__all__ = ["index_data", "pack_data", "split_data"]


def index_data(
    data: DataConfig, seed: int, output: str | Path, *, task: str = "detector", progress: Progress | None = None
) -> Manifest:
    """Build the manifest of some data and write it as a parquet file."""
    manifest = build_manifest(data, seed, task=task, require=(), progress=progress)
    save_manifest(manifest, output)
    return manifest


def split_data(
    data: DataConfig, seed: int, output: str | Path, *, task: str = "detector", progress: Progress | None = None
) -> Manifest:
    """Write a CSV in which every row has a split, whole or not at all; the reader finds the same images through it.

    The columns are `path,label,group,split,source` and `video` where that is known; a ranker's
    `image_id,filename,tier,group,split,source` and its column of scores, or `left,right,preference,split`.

    Raises:
        DataError: an image does not lie below the folder that the CSV's paths have to start from.
    """
    target = Path(os.path.abspath(output))
    manifest = build_manifest(data, seed, task=task, require=(), progress=progress)
    base = target.parent / IMAGES if task == "ranker" and (target.parent / IMAGES).is_dir() else target.parent
    common = os.path.commonpath([os.path.dirname(file) for file in manifest.file]) if len(manifest) else base
    if manifest.offset.any() or not Path(common).is_relative_to(base):
        beside = f" and {base} is where its paths start" if base != target.parent else ", which its paths start from"
        raise DataError(f"{target}: must lie at or above the images' folder {common}{beside}")
    temporary = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        with open(temporary, "w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(_table(manifest, data, base))
        os.replace(temporary, target)
    except OSError as error:
        raise StorageError(f"{target}: cannot be written ({error.strerror or error})") from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    return manifest


def _table(manifest: Manifest, data: DataConfig, base: Path) -> Iterator[Sequence[str]]:
    """Yield header and rows of the CSV that stands for a manifest."""
    names = [os.path.relpath(path, base) for path in manifest.file]
    splits = [SPLITS[code] for code in manifest.split]
    labels = [manifest.labels[code] for code in manifest.label]
    sources = without_root(manifest.source)
    if manifest.labels == COMPARED:
        yield "left", "right", "preference", "split"
        for left, right, preference in manifest.comparisons.tolist():
            yield names[left], names[right], ("tie", "left", "right")[preference], splits[left]
    elif manifest.image_id is None:
        columns = {"path": names, "label": labels, "group": manifest.group, "split": splits, "source": sources}
        columns |= {"video": manifest.video} if manifest.video else {}
        yield tuple(columns)
        yield from zip(*columns.values(), strict=True)
    else:
        columns = {"image_id": manifest.image_id, "filename": names, "tier": labels, "group": manifest.group}
        columns |= {"split": splits, "source": sources}
        if manifest.score is not None and data.score_column:
            columns[data.score_column] = ["" if np.isnan(score) else repr(score) for score in manifest.score.tolist()]
        yield tuple(columns)
        yield from zip(*columns.values(), strict=True)


def pack_data(
    data: DataConfig, output: str | Path, seed: int, *, task: str = "detector", progress: Progress | None = None
) -> Manifest:
    """Build the manifest of some data and write it as a pack."""
    manifest = build_manifest(data, seed, task=task, require=(), progress=progress)
    build_pack(manifest, output, progress=progress)
    return manifest
