"""Near-duplicates: perceptual hashes of images, and the ones that differ in few bits joined.

Hashes are remembered by content in one file of the cache folder; entries carry a checksum, and a damaged file costs
time only.
"""

from __future__ import annotations

import logging
import os
import zlib
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from hai.data.content import Progress, in_threads
from hai.data.images import decode_image
from hai.errors import DataError
from hai.paths import cache_folder, locked

__all__ = ["SIDE", "close_pairs", "look_alike", "perceptual_hash", "perceptual_hashes", "thumbnail_hashes"]

logger = logging.getLogger(__name__)

SIDE: Final = 32
"""Height and width of the gray thumbnails that hashes are made of."""

_LOW: Final = 8
_FLAT: Final = 1.0  # levels: images with no coefficient above it have no structure to compare
_ENTRY: Final = np.dtype([("sha256", "V32"), ("hash", "<u8"), ("checksum", "<u4")])

_frequency, _position = np.arange(_LOW)[:, None], np.arange(SIDE)[None, :]
_COSINES: Final = np.cos(np.pi * _frequency * (2 * _position + 1) / (2 * SIDE)) * np.sqrt(2 / SIDE)


def perceptual_hash(image: NDArray[np.uint8]) -> int:
    """Hash what an image looks like: the signs of its 64 lowest cosine coefficients around their median.

    Args:
        image: uint8 [H, W, 3], RGB.

    Returns:
        64 bits; small changes of size, compression or brightness flip few. 0 for an image without structure.

    Source: C. Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010 (DCT hash).
    """
    gray = _area_mean(_area_mean(image @ np.array([0.299, 0.587, 0.114]), 0), 1)
    return int(_signs(gray[None])[0])


def thumbnail_hashes(thumbnails: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Hash gray thumbnails as perceptual_hash hashes images; rounding them to uint8 may turn a bit.

    Args:
        thumbnails: uint8 [N, 32, 32].

    Returns:
        [N]; 0 for an image without structure.
    """
    parts = [_signs(thumbnails[at : at + 4096].astype(np.float64)) for at in range(0, len(thumbnails), 4096)]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.uint64)


def _signs(gray: NDArray[np.float64]) -> NDArray[np.uint64]:
    """Hash gray thumbnails [N, 32, 32]."""
    low = np.round(_COSINES @ gray @ _COSINES.T, 3).reshape(len(gray), -1)
    bits = low > np.median(low[:, 1:], axis=1, keepdims=True)
    bits[:, 0] = True  # says only that there is structure
    hashes = np.packbits(bits, axis=1).view(">u8").reshape(-1).astype(np.uint64)
    hashes[np.abs(low[:, 1:]).max(axis=1) < _FLAT] = 0
    return hashes


def look_alike(thumbnails: NDArray[np.uint8], pairs: NDArray[np.int64], least: float) -> NDArray[np.bool_]:
    """Tell which pairs of gray thumbnails correlate at least this much, [P]: brightness and contrast do not count.

    Args:
        thumbnails: uint8 [N, 32, 32].
        pairs: positions, [P, 2].
        least: correlation, up to 1.
    """
    result = np.zeros(len(pairs), dtype=np.bool_)
    for at in range(0, len(pairs), 4096):
        left, right = (thumbnails[pairs[at : at + 4096, side]].reshape(-1, SIDE * SIDE) for side in (0, 1))
        sides = [part - part.mean(axis=1, keepdims=True, dtype=np.float32) for part in (left, right)]
        product = np.einsum("pi,pi->p", *sides)
        norm = np.sqrt(np.einsum("pi,pi->p", sides[0], sides[0]) * np.einsum("pi,pi->p", sides[1], sides[1]))
        result[at : at + 4096] = product >= least * np.maximum(norm, 1e-6)
    return result


def _area_mean(gray: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """Shrink or stretch one axis to 32 cells, each the mean of what it covers."""
    size = gray.shape[axis]
    total = np.insert(np.cumsum(gray, axis=axis), 0, 0.0, axis=axis)
    edges = np.linspace(0, size, SIDE + 1)
    low = np.minimum(edges.astype(np.int64), size - 1)
    rest = np.expand_dims(edges - low, 1 - axis)
    at_edges = np.take(total, low, axis=axis) * (1 - rest) + np.take(total, low + 1, axis=axis) * rest
    mean: NDArray[np.float64] = np.diff(at_edges, axis=axis) * (SIDE / size)
    return mean


def perceptual_hashes(
    sha256: NDArray[np.uint8],
    read: Callable[[int], bytes],
    max_megapixels: float,
    progress: Progress | None = None,
) -> NDArray[np.uint64]:
    """Hash images, each content once; what is known from earlier runs is not read again.

    Args:
        sha256: content hashes, [N, 32].
        read: returns the bytes of an image by its position; called in threads.
        max_megapixels: as in decode_image.
        progress: called with (done, total).

    Returns:
        [N]; 0 for an image without structure.
    """
    keys = np.ascontiguousarray(sha256).view("V32").reshape(-1)
    known = _remembered()
    wanted = dict.fromkeys(key.tobytes() for key in keys)
    first = {key.tobytes(): i for i, key in reversed(list(enumerate(keys)))}
    missing = [first[key] for key in wanted if key not in known]
    done = 0

    def measure(i: int) -> int:
        try:
            return perceptual_hash(decode_image(read(i), max_megapixels))
        except (OSError, DataError):  # gone since it was checked: whoever needs the image will say so
            return 0

    def keep(positions: Sequence[int], results: list[int]) -> None:
        nonlocal done
        for position, result in zip(positions, results, strict=True):
            known[keys[missing[position]].tobytes()] = result
        done += len(results)
        if progress:
            progress(done, len(missing))

    in_threads(measure, missing, keep)
    if missing:
        _remember({keys[i].tobytes(): known[keys[i].tobytes()] for i in missing})
    return np.array([known[key.tobytes()] for key in keys], dtype=np.uint64)


def _file() -> str:
    return str(cache_folder() / "perceptual-1.npy")


def _checksum(key: bytes, value: int) -> int:
    return zlib.crc32(value.to_bytes(8, "little"), zlib.crc32(key))


def _remembered() -> dict[bytes, int]:
    try:
        entries = np.load(_file(), allow_pickle=False)
        if entries.dtype != _ENTRY or entries.ndim != 1:
            return {}
    except (OSError, ValueError, EOFError):
        return {}
    found = zip(map(bytes, entries["sha256"]), entries["hash"].tolist(), entries["checksum"].tolist(), strict=True)
    return {key: value for key, value, checksum in found if checksum == _checksum(key, value)}


def _remember(fresh: dict[bytes, int]) -> None:
    file = _file()
    temporary = f"{file}.{os.getpid()}.part"
    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
        with locked(file):
            known = {**_remembered(), **fresh}
            rows = [(key, value, _checksum(key, value)) for key, value in known.items()]
            with open(temporary, "wb") as stream:
                np.save(stream, np.array(rows, dtype=_ENTRY), allow_pickle=False)
            os.replace(temporary, file)
    except OSError as error:
        logger.warning("%s: cannot be written (%s); images are hashed again next time", file, error)


def close_pairs(hashes: NDArray[np.uint64], distance: int, apart: NDArray[Any] | None = None) -> NDArray[np.int64]:
    """Find all pairs of hashes that differ in at most some bits, without comparing all with all.

    Such two are equal in one of `distance + 1` bands of bits, so only hashes that share a band are compared. Hashes of
    0 stand for nothing and are in no pair.

    Args:
        hashes: [N].
        distance: bits.
        apart: a number for each row; only pairs that differ in it are wanted, [N].

    Returns:
        Positions, [P, 2]; equal hashes are chained, each with the next, instead of all with all. With `apart` one row
        stands for all that are equal in hash and number.
    """
    side = np.zeros(len(hashes), dtype=np.int64) if apart is None else np.asarray(apart, dtype=np.int64)
    order = np.lexsort((side, hashes))
    order = order[hashes[order] != 0]
    values = hashes[order]
    if len(order) < 2:
        return np.zeros((0, 2), dtype=np.int64)
    same = (values[1:] == values[:-1]) & (side[order[1:]] == side[order[:-1]])
    chained = np.stack([order[:-1][same], order[1:][same]], axis=1)
    pairs: list[NDArray[Any]] = [chained if apart is None else chained[:0]]
    unique, place = values[np.append(True, ~same)], order[np.append(True, ~same)]
    edges = np.linspace(0, 64, distance + 2).astype(np.int64)
    for low, high in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        band = (unique >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)
        sequence = np.argsort(band, kind="stable")
        band, members = band[sequence], unique[sequence]
        at, step = np.arange(len(band)), 1
        while True:
            at = at[at + step < len(band)]
            at = at[band[at] == band[at + step]]
            if not len(at):
                break
            near = at[np.bitwise_count(members[at] ^ members[at + step]) <= distance]
            couples = np.stack([place[sequence[near]], place[sequence[near + step]]], axis=1)
            pairs.append(couples if apart is None else couples[side[couples[:, 0]] != side[couples[:, 1]]])
            step += 1
    found: NDArray[np.int64] = np.unique(np.sort(np.concatenate(pairs), axis=1), axis=0)
    return found
