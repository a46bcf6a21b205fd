"""What `hai data index`, `split` and `pack` do."""

from __future__ import annotations

import csv
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from hai.data.content import Progress
from hai.data.manifest import Manifest, build_manifest, save_manifest
from hai.data.pack import build_pack
from hai.errors import DataError, StorageError
from hai.types import LABELS, SPLITS

if TYPE_CHECKING:
    from hai.config.schema import DataConfig

__all__ = ["index_data", "pack_data", "split_data"]


def index_data(data: DataConfig, seed: int, output: str | Path, *, progress: Progress | None = None) -> Manifest:
    """Build the manifest of some data and write it as a parquet file."""
    manifest = build_manifest(data, seed, require=(), progress=progress)
    save_manifest(manifest, output)
    return manifest


def split_data(data: DataConfig, seed: int, output: str | Path, *, progress: Progress | None = None) -> Manifest:
    """Write a CSV `path,label,group,split,source` in which every row has a split, whole or not at all.

    Raises:
        DataError: an image does not lie below the CSV's folder, where its paths have to start.
    """
    target = Path(os.path.abspath(output))
    manifest = build_manifest(data, seed, require=(), progress=progress)
    common = os.path.commonpath([os.path.dirname(file) for file in manifest.file]) if len(manifest) else target.parent
    if manifest.offset.any() or not Path(common).is_relative_to(target.parent):
        raise DataError(f"{target}: must lie at or above the images' folder {common}, which its paths start from")
    temporary = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        with open(temporary, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["path", "label", "group", "split", "source"])
            for i, path in enumerate(manifest.file):
                label, split = LABELS[manifest.label[i]], SPLITS[manifest.split[i]]
                row = (os.path.relpath(path, target.parent), label, manifest.group[i], split, manifest.source[i])
                writer.writerow(row)
        os.replace(temporary, target)
    except OSError as error:
        raise StorageError(f"{target}: cannot be written ({error.strerror or error})") from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    return manifest


def pack_data(data: DataConfig, output: str | Path, seed: int, *, progress: Progress | None = None) -> Manifest:
    """Build the manifest of some data and write it as a pack."""
    manifest = build_manifest(data, seed, require=(), progress=progress)
    build_pack(manifest, output, progress=progress)
    return manifest
