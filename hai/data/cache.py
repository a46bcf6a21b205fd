"""Decoded images on local disk: read from the second epoch on instead of being decoded again.

A cache is a folder `HAI_CACHE/decoded/<key>` with two files: `pixels`, one slot per distinct image, and `index`, the
CRC-32 of each slot, 0 where it is empty. The key covers the contents of the images, the geometry and the libraries that
decode, so runs with the same images share one cache whatever their labels and splits, and any number of processes may
fill it at once: they write equal bytes. Pixels are written before their CRC, and a slot is checked when a process first
touches it, so whatever was cut short, whenever, is decoded again.

Geometries `resize` and `pad` store the finished square; `crop` stores the whole image, from which each epoch cuts its
own part.
"""

from __future__ import annotations

import hashlib
import logging
import mmap
import os
import shutil
import weakref
import zlib
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hai.config.schema import DataConfig
from hai.errors import DataError
from hai.paths import cache_folder, is_mount

if TYPE_CHECKING:
    from hai.data.manifest import Manifest

__all__ = ["DecodedCache", "open_cache"]

_FORMAT = "1"
_DECODERS = ("pillow", "simplejpeg", "torch")

log = logging.getLogger(__name__)


def open_cache(manifest: Manifest, config: DataConfig, *, num_uses: float) -> DecodedCache | None:
    """Open the cache of a manifest's images if the config wants one and it is worth its space.

    Args:
        manifest: all splits; they share one cache.
        config: geometry, size and `cache_decoded`.
        num_uses: how often the run decodes each image; `auto` wants more than once.

    Raises:
        DataError: `cache_decoded` is `on` and the cache cannot be made.
    """
    wish = config.cache_decoded
    if wish == "off" or len(manifest) == 0 or (wish == "auto" and num_uses <= 1):
        return None
    if wish == "auto" and is_mount(cache_folder()):
        log.warning("decoded images are not cached: %s is no local disk; set HAI_CACHE to one", cache_folder())
        return None
    try:
        cache = DecodedCache(manifest, config, cache_folder() / "decoded")
        missing, free = cache.missing_bytes(), shutil.disk_usage(cache.folder).free
    except OSError as error:
        if wish == "on":
            raise DataError(
                f"data.cache_decoded: {cache_folder()} = {error.strerror or error}; must be a local folder that can "
                "be written; set HAI_CACHE to one or data.cache_decoded=off"
            ) from error
        log.warning("decoded images are not cached: %s: %s", cache_folder(), error.strerror or error)
        return None
    if wish == "auto" and missing > free / 2:
        cache.close()
        return None
    return cache


class DecodedCache:
    """Slots of decoded pixels, by manifest row.

    Args:
        manifest: contents and sizes of the images.
        config: geometry and size.
        root: folder of all such caches.
    """

    def __init__(self, manifest: Manifest, config: DataConfig, root: Path) -> None:
        distinct = np.ones(len(manifest), dtype=bool)
        distinct[1:] = (manifest.sha256[1:] != manifest.sha256[:-1]).any(axis=1)  # rows are sorted by it
        self._slots = np.cumsum(distinct) - 1
        self._shapes = self._stored_shapes(manifest, config, distinct)
        sizes = self._shapes.prod(axis=1)
        self._offsets = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(sizes)])
        self.folder = root / self._key(manifest.sha256[distinct], config)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._ends: list[weakref.finalize[..., DecodedCache]] = []
        self._pixels_file, self._pixels = self._open("pixels", int(self._offsets[-1]))
        self._index_file, index = self._open("index", 4 * len(sizes))
        self._index = index.view(np.uint32)
        self._checked = np.zeros(len(sizes), dtype=bool)
        self._is_writing = True
        square = (-1, config.image_size, config.image_size, 3)
        self._squares = None if config.geometry == "crop" else self._pixels.reshape(square)

    def read(self, row: int) -> NDArray[np.uint8] | None:
        """Return the image of a manifest row, [H, W, 3], to be left unchanged; None if it has to be decoded."""
        slot = self._slots[row]
        crc = int(self._index[slot])
        if crc == 0:
            return None
        image = self._pixels[self._offsets[slot] : self._offsets[slot + 1]]
        if not self._checked[slot]:
            if _crc(image) != crc:
                log.warning("%s: slot %d is damaged; its image is decoded again", self.folder, slot)
                return None
            self._checked[slot] = True
        return image.reshape(self._shapes[slot])

    def read_squares(self, rows: NDArray[np.int64], out: NDArray[np.uint8]) -> bool:
        """Copy the images of manifest rows at once: threads wait for each other once, not at every image.

        Args:
            rows: [N].
            out: contiguous uint8 [N, S, S, 3].

        Returns:
            Whether it has: not with geometry `crop`, and not before each of them was read or written once.
        """
        slots = self._slots[rows]
        if self._squares is None or not self._checked[slots].all():
            return False
        np.take(self._squares, slots, axis=0, out=out, mode="clip")  # the default mode would copy twice
        return True

    def write(self, row: int, image: NDArray[np.uint8]) -> None:
        """Store the image of a manifest row, [H, W, 3]; a full disk ends the filling, not the run."""
        slot = self._slots[row]
        if not self._is_writing or image.shape != tuple(self._shapes[slot]):
            return
        image = np.ascontiguousarray(image)
        crc = _crc(image)
        try:
            _write_at(self._pixels_file, image.data.cast("B"), int(self._offsets[slot]))
            _write_at(self._index_file, memoryview(crc.to_bytes(4, "little")), 4 * int(slot))
        except OSError as error:
            self._is_writing = False
            log.warning("%s: %s; no more images are cached", self.folder, error.strerror or error)
        else:
            self._checked[slot] = True

    def missing_bytes(self) -> int:
        """Return what the cache would still take of the disk."""
        return max(0, int(self._offsets[-1]) - os.fstat(self._pixels_file).st_blocks * 512)

    def close(self) -> None:
        """Close the files; images that were read stay valid. Dropping the last reference does it too."""
        for end in self._ends:
            end()

    @staticmethod
    def _stored_shapes(manifest: Manifest, config: DataConfig, distinct: NDArray[np.bool_]) -> NDArray[np.int64]:
        shapes = np.full((int(distinct.sum()), 3), 3, dtype=np.int64)
        if config.geometry == "crop":
            shapes[:, 0], shapes[:, 1] = manifest.height[distinct], manifest.width[distinct]
        else:
            shapes[:, :2] = config.image_size
        return shapes

    def _key(self, contents: NDArray[np.uint8], config: DataConfig) -> str:
        size = "native" if config.geometry == "crop" else f"{config.geometry}-{config.image_size}"
        hashed = hashlib.sha256("\n".join([_FORMAT, size, *(version(name) for name in _DECODERS)]).encode())
        hashed.update(np.ascontiguousarray(contents).data)
        hashed.update(self._shapes.data)
        return f"{size}-{hashed.hexdigest()[:32]}"

    def _open(self, name: str, size: int) -> tuple[int, NDArray[np.uint8]]:
        """Open a file of the cache, sparse at first, for writing by descriptor and reading by mapping.

        Writing through the mapping would end the process with SIGBUS on a full disk.
        """
        file = os.open(self.folder / name, os.O_RDWR | os.O_CREAT, 0o644)
        self._ends.append(weakref.finalize(self, os.close, file))
        if os.fstat(file).st_size != size:
            os.ftruncate(file, size)
        return file, np.frombuffer(mmap.mmap(file, size), dtype=np.uint8)


def _crc(image: NDArray[Any]) -> int:
    return zlib.crc32(image.data) or 1  # 0 says that the slot is empty


def _write_at(file: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(file, data, offset)
        data, offset = data[written:], offset + written
