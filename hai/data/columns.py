"""Columns of many examples in little memory: equal strings are one object, hashes travel to Arrow and back as bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["digest_array", "digests_of", "renamed", "strings_of"]


def renamed(values: list[str], rename: Callable[[str], str]) -> list[str]:
    """Rename strings, each distinct one once."""
    new = {value: rename(value) for value in set(values)}
    return list(map(new.__getitem__, values))


def strings_of(column: pa.ChunkedArray) -> list[str]:
    """Read a column of strings that repeat."""
    if column.null_count:
        values: list[str] = column.to_pylist()
        return values
    found: list[str] = []
    for chunk in column.dictionary_encode().unify_dictionaries().chunks:
        names = chunk.dictionary.to_pylist()
        found += map(names.__getitem__, chunk.indices.to_numpy().tolist())
    return found


def digest_array(sha256: NDArray[np.uint8]) -> pa.Array:
    """Return hashes [N, 32] as an Arrow array of 32 bytes each."""
    import pyarrow as pa

    return pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(32), len(sha256), [None, pa.py_buffer(np.ascontiguousarray(sha256))]
    )


def digests_of(column: Any) -> NDArray[np.uint8]:
    """Return a column of digest_array as [N, 32].

    Raises:
        ValueError: it is another column.
    """
    import pyarrow as pa

    if column.type != pa.binary(32) or column.null_count:
        raise ValueError(f"hashes are {column.type}, {column.null_count} of them missing")
    parts = [
        np.frombuffer(chunk.buffers()[1], dtype=np.uint8)[32 * chunk.offset : 32 * (chunk.offset + len(chunk))]
        for chunk in column.chunks
        if len(chunk)
    ]
    return np.concatenate([np.zeros(0, dtype=np.uint8), *parts]).reshape(-1, 32)
