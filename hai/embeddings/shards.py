"""Shards: files of content hashes and embeddings, named by the hash of their bytes, and where a row lies in them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hai.errors import DataError

__all__ = [
    "LARGE",
    "SUFFIX",
    "Index",
    "Keys",
    "Shard",
    "as_keys",
    "as_sha256",
    "is_shard",
    "open_shard",
    "parse_shard",
    "shard_bytes",
    "shard_name",
]

SUFFIX: Final = ".safetensors"
LARGE: Final = 64 << 20
"""Bytes that small shards are merged up to."""
_NAME: Final = re.compile(r"[0-9a-f]{64}\.safetensors")
_SHORT: Final = {"float32": "F32", "float16": "F16", "uint8": "U8"}
"""What safetensors calls the number formats."""

Keys = NDArray[np.bytes_]
"""Content hashes as one value each, S32 [N]: they compare and sort as the bytes do."""


class Shard(NamedTuple):
    """What is known of a shard without reading its embeddings."""

    keys: Keys
    size: int
    """Bytes of the file."""


def as_keys(sha256: NDArray[np.uint8]) -> Keys:
    """Turn hashes uint8 [N, 32] into keys [N]."""
    keys: Keys = np.ascontiguousarray(sha256).view("S32")[:, 0]
    return keys


def as_sha256(keys: Keys) -> NDArray[np.uint8]:
    """Turn keys [N] into hashes uint8 [N, 32]."""
    return np.ascontiguousarray(keys).view(np.uint8).reshape(-1, 32)


def shard_bytes(keys: Keys, rows: NDArray[Any]) -> bytes:
    """Write a shard; equal rows are equal bytes, whatever their order.

    Args:
        keys: [n].
        rows: embeddings [n, D].
    """
    from safetensors.numpy import save

    order = np.argsort(keys, kind="stable")
    return save({"embedding": rows[order], "sha256": as_sha256(keys[order])})


def shard_name(content: bytes) -> str:
    """Return the only name under which a shard with this content counts."""
    return hashlib.sha256(content).hexdigest() + SUFFIX


def is_shard(name: str) -> bool:
    """Tell whether a file's name may be that of a shard."""
    return _NAME.fullmatch(name) is not None


def open_shard(path: Path, width: int, dtype: np.dtype[Any]) -> Shard:
    """Read which contents a shard holds; its bytes are not compared with its name yet.

    Raises:
        DataError: it cannot be a shard of this width and format.
        FileNotFoundError: it is gone.
    """
    from safetensors import SafetensorError, safe_open

    if not is_shard(path.name):
        raise DataError("its name is not the hash of its content: not a file of this cache")
    size = path.stat().st_size
    try:
        with safe_open(path, framework="numpy") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
            layout = {name: (part.get_dtype(), part.get_shape()) for name, part in parts.items()}
            _check_layout(layout, width, dtype)
            return Shard(as_keys(file.get_tensor("sha256")), size)
    except SafetensorError as error:
        raise DataError(f"cannot be read ({error})") from None


def parse_shard(content: bytes, name: str, width: int, dtype: np.dtype[Any]) -> tuple[Keys, NDArray[Any]]:
    """Check a whole shard.

    Returns:
        Its keys [n] and embeddings [n, D].

    Raises:
        DataError: a byte of it is not what was written, or it holds something else than finite embeddings.
    """
    from safetensors.numpy import load

    if shard_name(content) != name:
        raise DataError("its content does not match its name: damaged")
    try:
        tensors = load(content)
    except Exception as error:  # of several libraries, all of them about the content
        raise DataError(f"cannot be read ({error})") from None
    layout = {tensor: (_SHORT.get(values.dtype.name), list(values.shape)) for tensor, values in tensors.items()}
    _check_layout(layout, width, dtype)
    rows = tensors["embedding"]
    if not np.isfinite(rows).all():
        raise DataError("holds numbers that are not finite")
    return as_keys(tensors["sha256"]), rows


def _check_layout(layout: dict[str, tuple[str | None, list[int]]], width: int, dtype: np.dtype[Any]) -> None:
    """Compare format and shape of the tensors with those of a shard."""
    if layout.keys() != {"embedding", "sha256"}:
        raise DataError(f"holds {', '.join(sorted(layout)) or 'nothing'}; must hold embedding and sha256")
    shape = layout["embedding"][1]
    if layout["embedding"] != (_SHORT[dtype.name], [*shape[:1], width]):
        raise DataError(f"embedding is {layout['embedding']}; must be {_SHORT[dtype.name]} [n, {width}]")
    if layout["sha256"] != (_SHORT["uint8"], [*shape[:1], 32]):
        raise DataError(f"sha256 is {layout['sha256']}; must be {_SHORT['uint8']} {[*shape[:1], 32]}")


class Index:
    """Where the embedding of each content lies.

    Args:
        shards: keys of each shard; where two hold the same content, the first counts.
    """

    def __init__(self, shards: Sequence[Keys]) -> None:
        keys = np.concatenate([np.empty(0, dtype="S32"), *shards])
        order = np.argsort(keys, kind="stable")  # which merges the sorted shards
        self._keys = keys[order]
        lengths = [len(part) for part in shards]
        self._shard = np.repeat(np.arange(len(shards), dtype=np.int32), lengths)[order]
        starts = np.cumsum([0, *lengths])[:-1]
        self._row = (np.arange(len(keys)) - np.repeat(starts, lengths)).astype(np.int32)[order]

    def find(self, keys: Keys) -> tuple[NDArray[np.bool_], NDArray[np.int32], NDArray[np.int32]]:
        """Look contents up, [N]: whether they are there, and where so, number of the shard and row in it."""
        if not len(self._keys):
            nowhere = np.zeros(len(keys), dtype=np.int32)
            return nowhere != 0, nowhere, nowhere
        place = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        return self._keys[place] == keys, self._shard[place], self._row[place]
