"""Columns of many examples, to Arrow files and back in little memory: equal strings are one object, numbers are arrays.

Arrow's own `array`, `read_table` and `to_numpy` load pandas, which takes two seconds and a hundred megabytes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import io

    import pyarrow as pa

__all__ = ["read_columns", "renamed", "taken", "write_columns"]

_BATCH: Final = 1 << 16
_HASH: Final = "sha256"


def renamed(values: list[str], rename: Callable[[str], str]) -> list[str]:
    """Rename strings, each distinct one once."""
    new = {value: rename(value) for value in set(values)}
    return list(map(new.__getitem__, values))


def taken(values: list[str], positions: NDArray[Any]) -> list[str]:
    """Return the strings at some positions."""
    chosen: list[str] = np.array(values, dtype=np.object_)[positions].tolist()
    return chosen


def write_columns(target: str | Path | io.BytesIO, columns: dict[str, Any], notes: dict[str, str]) -> None:
    """Write a parquet file that `read_columns` reads, a piece at a time.

    Args:
        target: the file; it is there half-written if this fails.
        columns: of equal length: lists of strings, numbers as [N], `sha256` as uint8 [N, 32], Arrow's arrays.
        notes: kept with the columns.

    Raises:
        OSError: it cannot be written.
        ValueError: a string is not Unicode.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    def piece(start: int) -> list[pa.Array]:
        return [_array(values[start : start + _BATCH]) for values in columns.values()]

    fields = [pa.field(name, array.type) for name, array in zip(columns, piece(0), strict=True)]
    schema = pa.schema(fields, notes or None)
    with pq.ParquetWriter(target, schema, compression="zstd") as writer:
        for start in range(0, len(next(iter(columns.values()))), _BATCH):
            writer.write_batch(pa.RecordBatch.from_arrays(piece(start), schema=schema))


def _array(values: Any) -> pa.Array:
    """Turn a part of a column into an Arrow array; of arrays nothing is copied."""
    import pyarrow as pa

    if isinstance(values, list):
        content = [value.encode() for value in values]
        ends = np.cumsum([0, *map(len, content)], dtype=np.int32)
        return pa.StringArray.from_buffers(len(values), pa.py_buffer(ends), pa.py_buffer(b"".join(content)))
    if isinstance(values, pa.Array):
        return values
    kind = pa.binary(values.shape[1]) if values.ndim == 2 else pa.from_numpy_dtype(values.dtype)
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(np.ascontiguousarray(values))])


def read_columns(
    path: str | Path, *, distinct: Collection[str], repeated: Collection[str]
) -> tuple[dict[str, Any], dict[bytes, bytes]]:
    """Read a parquet file a piece at a time.

    Args:
        path: the file.
        distinct: columns of strings that are all different.
        repeated: columns of strings that repeat.

    Returns:
        The columns by name: strings as a list, `sha256` as uint8 [N, 32], numbers as [N], others as Python's objects;
        and the notes of the file.

    Raises:
        ValueError: a column is of another kind, or holds nothing somewhere.
        OSError, ArrowException: it cannot be read, or is no parquet file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        schema = file.schema_arrow
        known: dict[str, dict[str, str]] = {name: {} for name in repeated}
        parts: dict[str, list[Any]] = {name: [] for name in schema.names}
        for batch in file.iter_batches(_BATCH):
            for name, array in zip(schema.names, batch.columns, strict=True):
                if name in known:
                    parts[name] += _repeated(name, array, known[name])
                elif name in distinct:
                    parts[name] += _checked(name, array, "string").to_pylist()
                elif name == _HASH:
                    parts[name].append(_values(_checked(name, array, "fixed_size_binary[32]"), np.dtype(np.uint8), 32))
                elif (dtype := _dtype_of(array.type)) is not None:
                    parts[name].append(_values(_checked(name, array, str(array.type)), dtype, 1))
                else:
                    parts[name] += array.to_pylist()
        columns: dict[str, Any] = {}
        for field in schema:
            dtype = np.dtype(np.uint8) if field.name == _HASH else _dtype_of(field.type)
            values = parts.pop(field.name)
            is_text = field.name in known or field.name in distinct or dtype is None
            columns[field.name] = values if is_text else np.concatenate([np.zeros(0, dtype=dtype), *values])
    if _HASH in columns:
        columns[_HASH] = columns[_HASH].reshape(-1, 32)
    pa.default_memory_pool().release_unused()  # it would keep a third of what was read
    return columns, dict(schema.metadata or {})


def _checked(name: str, array: pa.Array, kind: str) -> pa.Array:
    if str(array.type) != kind or array.null_count:
        raise ValueError(f"column {name} is {array.type}, {array.null_count} values missing; must be {kind}")
    return array


def _repeated(name: str, array: pa.Array, known: dict[str, str]) -> list[str]:
    """Read strings; equal ones of all batches are one object."""
    encoded = _checked(name, array, "string").dictionary_encode()
    names = [known.setdefault(value, value) for value in encoded.dictionary.to_pylist()]
    codes = _values(encoded.indices, np.dtype(np.int32), 1)
    return list(map(names.__getitem__, codes.tolist()))


def _dtype_of(kind: pa.DataType) -> np.dtype[Any] | None:
    """Return numpy's word for a type of numbers; None: it is none."""
    import pyarrow as pa

    if pa.types.is_floating(kind):
        return np.dtype(f"f{kind.bit_width // 8}")
    if pa.types.is_integer(kind):
        return np.dtype(f"{'u' if pa.types.is_unsigned_integer(kind) else 'i'}{kind.bit_width // 8}")
    return None


def _values(array: pa.Array, dtype: np.dtype[Any], width: int) -> NDArray[Any]:
    """Return what an array without gaps holds, so many values of a type in each row, as a copy."""
    if not len(array):
        return np.zeros(0, dtype=dtype)
    values = np.frombuffer(array.buffers()[1], dtype=dtype)
    return values[width * array.offset : width * (array.offset + len(array))].copy()
