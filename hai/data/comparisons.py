"""Explicit comparisons of images in a manifest: what they join, which ones are kept, and how files hold them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hai.data.gather import Table
from hai.data.splits import linked
from hai.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

    from hai.config.schema import DataConfig

__all__ = ["comparison_arrays", "comparison_units", "comparisons_of", "keep_comparisons", "refuse_equal"]


def comparison_units(
    table: Table, comparisons: NDArray[np.int32], unit: NDArray[np.int64], num_sources: int
) -> NDArray[np.int64]:
    """Join units that are compared, in each source where that leaves something to divide.

    Args:
        table: the rows, [N].
        comparisons: left, right, preference with positions in the table, [P, 3].
        unit: number of what must stay together anyway, 0 to U - 1, [N].
        num_sources: how many there are.

    Returns:
        A number for each row: that of its component of the comparison graph if the largest one of its source holds at
        most half of the source's images, else its own, [N].
    """
    if not len(unit):
        return unit
    component = linked(int(unit.max()) + 1, unit[comparisons[:, :2]])[unit]
    joins = np.zeros(num_sources, dtype=np.bool_)
    for root in range(num_sources):
        counts = np.bincount(component[table.root == root])
        joins[root] = len(counts) and 2 * counts.max() <= counts.sum()
    chosen = np.where(joins[table.root], component, int(component.max()) + 1 + unit)
    return np.unique(chosen, return_inverse=True)[1].astype(np.int64).reshape(-1)


def refuse_equal(table: Table, comparisons: NDArray[np.int32]) -> list[str]:
    """Name comparisons between two files with the same content."""
    left, right = comparisons[:, 0], comparisons[:, 1]
    return [
        f"{table.place[i] or table.source[i]}: {table.path[i]} and {table.path[j]} are compared but hold the same image"
        for i, j in zip(left.tolist(), right.tolist(), strict=True)
        if table.content[i] == table.content[j]
    ]


def keep_comparisons(
    table: Table, comparisons: NDArray[np.int32], num_rows: int, data: DataConfig
) -> tuple[NDArray[np.int32], list[str]]:
    """Number comparisons by the final rows and keep those within one split.

    Args:
        table: the final rows; `number` says which they once were.
        comparisons: with those earlier numbers.
        num_rows: how many rows there were.
        data: names the sources.

    Returns:
        The comparisons in an order of their own, and lines on what was left out.
    """
    position = np.full(num_rows, -1, dtype=np.int32)
    position[table.number] = np.arange(len(table.number), dtype=np.int32)
    kept = np.concatenate([position[comparisons[:, :2]], comparisons[:, 2:]], axis=1).astype(np.int32)
    kept = kept[(kept[:, :2] >= 0).all(axis=1)]
    crosses = table.split[kept[:, 0]] != table.split[kept[:, 1]]
    notes = []
    for root, source in enumerate(data.sources):
        own = table.root[kept[:, 0]] == root
        if count := int((own & crosses).sum()):
            notes.append(
                f"source {source.name}: {count} of {int(own.sum())} comparisons are between images of different splits "
                "and are left out, because comparisons connect more than half of the images; give the CSV a split "
                "column to decide otherwise"
            )
    kept = kept[~crosses]
    return kept[np.lexsort((kept[:, 2], kept[:, 1], kept[:, 0]))], notes


def comparison_arrays(comparisons: NDArray[np.int32], size: int) -> dict[str, pa.Array]:
    """Write comparisons as columns of a table with one row per image: lists of whom it met on the right, and how."""
    import pyarrow as pa

    ordered = comparisons[np.argsort(comparisons[:, 0], kind="stable")]
    offsets = pa.array(np.searchsorted(ordered[:, 0], np.arange(size + 1)).astype(np.int32))
    return {
        "right": pa.ListArray.from_arrays(offsets, pa.array(ordered[:, 1])),
        "preference": pa.ListArray.from_arrays(offsets, pa.array(ordered[:, 2].astype(np.int8))),
    }


def comparisons_of(columns: dict[str, Any]) -> NDArray[np.int32]:
    """Read comparisons from the columns that `read_columns` made of comparison_arrays, which are taken out.

    Without them there are none.

    Raises:
        DataError: they name rows that are not there.
    """
    if "right" not in columns:
        return np.zeros((0, 3), dtype=np.int32)
    rights, preferences = columns.pop("right"), columns.pop("preference")
    rows = [
        (left, right, preference)
        for left, (met, how) in enumerate(zip(rights, preferences, strict=True))
        for right, preference in zip(met, how, strict=True)
    ]
    found = np.array(rows, dtype=np.int32).reshape(-1, 3)
    if len(found) and not (found[:, 1].min() >= 0 and found[:, 1].max() < len(rights)):
        raise DataError("comparisons name images that are not there; build it again")
    return found
