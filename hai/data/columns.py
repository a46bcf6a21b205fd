"""Columns of many examples, to Arrow and back in little memory: equal strings are one object, numbers stay arrays.

Arrow's own `read_table` and `to_numpy` load pandas, which takes two seconds and a hundred megabytes at every start.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["digest_array", "digests_of", "numbers_of", "read_parquet", "renamed", "strings_of"]


def read_parquet(path: str | Path) -> pa.Table:
    """Read a file; raises OSError or ArrowException."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        return file.read()


def numbers_of(column: pa.ChunkedArray) -> NDArray[Any]:
    """Read a column of numbers, [N].

    Raises:
        ValueError: it is another column.
    """
    import pyarrow as pa

    kind = "f" if pa.types.is_floating(column.type) else "u" if pa.types.is_unsigned_integer(column.type) else "i"
    if not (pa.types.is_integer(column.type) or kind == "f") or column.null_count:
        raise ValueError(f"numbers are {column.type}, {column.null_count} of them missing")
    return _joined(column, np.dtype(f"{kind}{column.type.bit_width // 8}"), 1)


def renamed(values: list[str], rename: Callable[[str], str]) -> list[str]:
    """Rename strings, each distinct one once."""
    new = {value: rename(value) for value in set(values)}
    return list(map(new.__getitem__, values))


def strings_of(column: pa.ChunkedArray) -> list[str]:
    """Read a column of strings that repeat."""
    if column.null_count or not len(column):
        values: list[str] = column.to_pylist()
        return values
    chunks = column.dictionary_encode().unify_dictionaries().chunks
    names = chunks[0].dictionary.to_pylist()
    found: list[str] = []
    for chunk in chunks:
        codes = np.frombuffer(chunk.indices.buffers()[1], dtype=np.int32)
        found += map(names.__getitem__, codes[chunk.offset : chunk.offset + len(chunk)].tolist())
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
    return _joined(column, np.dtype(np.uint8), 32).reshape(-1, 32)


def _joined(column: pa.ChunkedArray, dtype: np.dtype[Any], width: int) -> NDArray[Any]:
    """Join the chunks of a column that holds so many values of a type in each row."""
    parts = [np.zeros(0, dtype=dtype)]
    for chunk in column.chunks:
        if len(chunk):
            values = np.frombuffer(chunk.buffers()[1], dtype=dtype)
            parts.append(values[width * chunk.offset : width * (chunk.offset + len(chunk))])
    return np.concatenate(parts)
