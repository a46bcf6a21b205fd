"""From the rows of all sources to the columns of a manifest: joined, measured, checked and divided."""

from __future__ import annotations

from dataclasses import dataclass, fields
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from hai.data.columns import renamed, taken
from hai.data.content import Content, Progress, check_images
from hai.data.rows import COMPARED, Rows, raise_faults
from hai.data.splits import assign_splits, codes_of, components, content_keys, follow
from hai.errors import DataError
from hai.types import LABELS, SPLITS

if TYPE_CHECKING:
    from hai.config.schema import DataConfig, SourceConfig

__all__ = [
    "Table",
    "content_codes",
    "divide",
    "divided_groups",
    "is_divided",
    "join_comparisons",
    "join_sources",
    "leaks",
    "near_leaks",
    "refuse_contradictions",
    "refuse_empty",
    "repeats",
    "units_of",
]

_NAMED: Final = 5
"""How many examples a line about many of them names."""


@dataclass
class Table:
    """Columns of all sources together, while the manifest is made."""

    path: list[str]
    file: list[str]
    source: list[str]
    group: list[str]
    video: list[str]
    error: list[str]
    root: NDArray[np.int64]
    """Position of the source in the config."""
    content: NDArray[np.int64]
    """Number of the content, in the order of the hashes."""
    offset: NDArray[np.int64]
    length: NDArray[np.int64]
    sha256: NDArray[np.uint8]
    label: NDArray[np.int8]
    split: NDArray[np.int8]
    width: NDArray[np.int32]
    height: NDArray[np.int32]
    image_id: list[str]
    place: list[str]
    """Where a CSV names the row; "" if nowhere."""
    score: NDArray[np.float64]
    has_test_list: NDArray[np.bool_]
    """Whether the row's source names its whole test split."""
    number: NDArray[np.int64]
    """Position among all rows that the sources named."""

    def rows(self, chosen: NDArray[Any]) -> Table:
        """Return the chosen rows, by mask or position."""
        if chosen.dtype == np.bool_ and chosen.all():
            return self
        positions = np.flatnonzero(chosen) if chosen.dtype == np.bool_ else chosen
        return Table(**{field.name: _chosen(getattr(self, field.name), positions) for field in fields(self)})

    def reorder(self, order: NDArray[np.int64]) -> None:
        """Put the rows into another order, a column at a time."""
        for field in fields(self):
            setattr(self, field.name, _chosen(getattr(self, field.name), order))


def _chosen(column: Any, positions: NDArray[Any]) -> Any:
    return taken(column, positions) if isinstance(column, list) else column[positions]


def join_sources(
    loaded: list[tuple[SourceConfig, Rows]],
    max_megapixels: float,
    progress: Progress | None,
    *,
    consume: bool = False,
) -> Table:
    """Put the sources' rows together, with what is inside the files.

    Args:
        loaded: the sources.
        max_megapixels: as in decode_image.
        progress: called with (done, total).
        consume: take the columns out of the rows as they are joined, so that none is in memory twice.
    """
    loose = [rows for _, rows in loaded if rows.packed is None]
    files = [file for rows in loose for file in rows.file]
    stats = np.concatenate([rows.stats for rows in loose]) if loose else np.zeros((0, 2), dtype=np.int64)
    found = check_images(files, stats, max_megapixels, progress)
    tables: list[Table] = []
    at = 0
    for root, (config, rows) in enumerate(loaded):
        size = len(rows.path)
        if rows.packed is None:
            here = slice(at, at + size)
            at += size
            content = Content(found.sha256[here], found.width[here], found.height[here], found.error[here])
            offset, length = np.zeros(size, dtype=np.int64), rows.stats[:, 0]
        else:
            packed = rows.packed
            content = Content(packed.sha256, packed.width, packed.height, [""] * size)
            offset, length = packed.offset, packed.length
        name = config.name if len(loaded) > 1 else ""
        group = _named(rows.group, name)
        tables.append(
            Table(
                path=rows.path,
                file=rows.file,
                source=rows.source,
                group=group,
                video=_named(rows.video, name) if rows.video else group,
                error=content.error,
                root=np.full(size, root, dtype=np.int64),
                content=np.zeros(0, dtype=np.int64),
                offset=offset,
                length=length,
                sha256=content.sha256,
                label=np.array(rows.label, dtype=np.int8),
                split=np.array(rows.split, dtype=np.int8),
                width=content.width,
                height=content.height,
                image_id=rows.image_id or rows.path,
                place=rows.place or [""] * size,
                score=np.array(rows.score) if rows.score else np.full(size, np.nan),
                has_test_list=np.full(size, rows.has_test_list),
                number=np.zeros(size, dtype=np.int64),
            )
        )
    if consume:
        for _, rows in loaded:
            rows.forget()
    joined: dict[str, Any] = {}
    for field in fields(Table):
        parts = [getattr(table, field.name) for table in tables]
        if isinstance(parts[0], list):
            joined[field.name] = parts[0] if len(parts) == 1 else list(chain(*parts))
        else:
            joined[field.name] = parts[0] if len(parts) == 1 else np.concatenate(parts)
        for table in tables:
            setattr(table, field.name, None)
    joined["content"] = content_codes(joined["sha256"])
    joined["number"] = np.arange(len(joined["path"]), dtype=np.int64)
    return Table(**joined)


def _named(names: list[str], source: str) -> list[str]:
    """Keep names of several sources apart."""
    return renamed(names, lambda name: f"{source}/{name}" if name else "") if source else names


def join_comparisons(loaded: list[tuple[SourceConfig, Rows]]) -> NDArray[np.int32]:
    """Put the sources' comparisons together, [P, 3], numbered as join_sources numbers rows."""
    starts = np.cumsum([0, *(len(rows.path) for _, rows in loaded)])
    parts = [np.array(rows.comparisons, dtype=np.int32).reshape(-1, 3) for _, rows in loaded]
    shifted = [part + np.array([start, start, 0]) for part, start in zip(parts, starts, strict=False)]
    return np.concatenate(shifted).astype(np.int32)


def content_codes(sha256: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Number the distinct contents in the order of their hashes [N, 32], counted from 0, [N]."""
    first = np.ascontiguousarray(sha256[:, :8]).view(">u8").reshape(-1).astype(np.uint64)
    order = np.argsort(first, kind="stable")
    alike = np.flatnonzero(np.diff(first[order]) == 0)  # seldom more than copies
    copies = (sha256[order[alike]] == sha256[order[alike + 1]]).all(axis=1)
    if not copies.all():
        words = np.ascontiguousarray(sha256).view(">u8").astype(np.uint64)
        order = np.lexsort([words[:, k] for k in (3, 2, 1, 0)])
        alike = np.flatnonzero((sha256[order[1:]] == sha256[order[:-1]]).all(axis=1))
        copies = np.ones(len(alike), dtype=np.bool_)
    is_new = np.ones(len(order), dtype=np.bool_)
    is_new[:1] = False
    is_new[alike[copies] + 1] = False
    codes = np.zeros(len(order), dtype=np.int64)
    codes[order] = np.cumsum(is_new)
    return codes


def repeats(key: NDArray[np.int64], column: NDArray[np.int8]) -> list[NDArray[np.int64]]:
    """Find the keys that occur with more than one value of a column: the rows of each, in the order of the keys."""
    if not len(key):
        return []
    order = np.argsort(key, kind="stable")
    starts = np.concatenate([[0], np.flatnonzero(np.diff(key[order])) + 1])
    lowest = np.minimum.reduceat(column[order], starts)
    highest = np.maximum.reduceat(column[order], starts)
    ends = np.append(starts[1:], len(order))
    return [order[starts[k] : ends[k]] for k in np.flatnonzero(lowest != highest)]


def refuse_contradictions(table: Table, labels: tuple[str, ...]) -> None:
    """Refuse contents that have two labels."""
    faults = []
    for rows in repeats(table.content, table.label):
        named = ", ".join(
            f"{table.place[i] or table.source[i]}: {table.path[i]} = {labels[table.label[i]]}" for i in rows[:_NAMED]
        )
        faults.append(f"{named}; the same image with contradicting labels")
    if faults:
        raise_faults(faults)


def _allowed(data: DataConfig) -> NDArray[np.bool_]:
    """Tell which splits each source contributes to, [number of sources, 3]."""
    return np.array([[config.splits is None or name in config.splits for name in SPLITS] for config in data.sources])


def _shares(table: Table, data: DataConfig) -> NDArray[np.float64]:
    """Return the share of each split in what has none and is of a row's source, [N, 3]."""
    allowed = _allowed(data)
    closed = allowed & (np.arange(len(SPLITS)) != SPLITS.index("test"))
    closed[~closed.any(axis=1), SPLITS.index("val")] = True  # a source of test alone contributes the list alone
    choices = np.stack([allowed, closed])
    shares = np.where(choices, data.split_ratios, 0.0)
    shares = np.where(shares.sum(axis=2, keepdims=True) > 0, shares, choices)
    shares /= np.maximum(shares.sum(axis=2, keepdims=True), 1e-12)
    of_rows: NDArray[np.float64] = shares[table.has_test_list.astype(np.int64), table.root]
    return of_rows


def is_divided(table: Table, data: DataConfig) -> bool:
    """Say whether some row has no split and more than one to go to."""
    return bool(((table.split < 0) & ((_shares(table, data) > 0).sum(axis=1) > 1)).any())


def _groups(table: Table, data: DataConfig) -> tuple[NDArray[np.int64], list[str]]:
    """Number the groups of all sources, [N], -1 without one: position in the names, sources alternating."""
    group, names = codes_of(table.group)
    grouped = np.array([bool(name) for name in names], dtype=np.bool_)[group] if names else np.zeros(0, dtype=np.bool_)
    return np.where(grouped, group * len(data.sources) + table.root, -1), names


def divided_groups(table: Table, data: DataConfig) -> list[str]:
    """Name the groups whose rows say that they are in more than one split, a line each."""
    group, names = _groups(table, data)
    given = np.flatnonzero((table.split >= 0) & (group >= 0))
    lines = []
    for rows in repeats(group[given], table.split[given]):
        code = int(group[given[rows[0]]])
        splits = " and ".join(SPLITS[k] for k in np.unique(table.split[given[rows]]))
        source = data.sources[code % len(data.sources)].name
        lines.append(f"source {source}: group {names[code // len(data.sources)]!r} is in {splits}")
    return lines


def units_of(
    table: Table, data: DataConfig, near: NDArray[np.int64] | None = None, *, refuse: bool = True
) -> NDArray[np.int64]:
    """Number what must stay in one split, [N]: groups, equal contents, near-duplicates.

    Args:
        table: the rows, [N].
        data: the sources.
        near: number of each row's near-duplicates, if they were looked for, [N].
        refuse: a group that is in two splits is an error.
    """
    if refuse and (faults := divided_groups(table, data)):
        raise_faults(faults, "a group must not be divided over splits; mend the split column or leave it empty")
    group, _ = _groups(table, data)
    keys = [table.content] if near is None else [table.content, near]
    return components(group, *(key * len(data.sources) + table.root for key in keys))


def divide(table: Table, data: DataConfig, seed: int, unit: NDArray[np.int64]) -> Table:
    """Give every row a split, units whole, and keep the rows that their source contributes."""
    source, _ = codes_of(table.source)
    split = follow(table.split, _groups(table, data)[0])  # before copies that were given another split
    table.split = assign_splits(
        split, table.label, source, unit, content_keys(table.sha256), _shares(table, data), seed
    )
    return table.rows(_allowed(data)[table.root, table.split])


def leaks(table: Table) -> list[str]:
    """Say in a line whether contents occur in more than one split."""
    found = repeats(table.content, table.split)
    if not found:
        return []
    named = ", ".join(f"{table.path[i]} ({SPLITS[table.split[i]]})" for i in found[0][:_NAMED])
    return [f"{len(found)} images are in more than one split, such as {named}; scores there are too good"]


def near_leaks(table: Table, near: NDArray[np.int64]) -> list[str]:
    """Say in a line whether near-duplicates, numbered by their `number`, were given different splits."""
    near = near[table.number]
    found = [rows for rows in repeats(near, table.split) if len(np.unique(table.content[rows])) > 1]
    if not found:
        return []
    named = ", ".join(f"{table.path[i]} ({SPLITS[table.split[i]]})" for i in found[0][:_NAMED])
    return [
        f"{len(found)} sets of near-duplicates are in more than one split, such as {named}; scores there are too good"
    ]


def refuse_empty(
    table: Table, require: tuple[str, ...], labels: tuple[str, ...], comparisons: NDArray[np.int32]
) -> None:
    """Refuse required splits without examples, a detector's `train` without both classes, a ranker's without pairs."""
    counts = np.zeros((len(SPLITS), len(labels)), dtype=np.int64)
    np.add.at(counts, (table.split, table.label), 1)
    compared = np.bincount(table.split[comparisons[:, 0]], minlength=len(SPLITS))
    have = ", ".join(f"{name} {counts[k].sum()}" for k, name in enumerate(SPLITS))
    faults = []
    for name in require:
        k = SPLITS.index(name)
        if counts[k].sum() == 0:
            faults.append(
                f"data: no {name} examples ({have}); name the split in the CSV or the folder, "
                "or name none and let data.split_ratios divide them"
            )
        elif labels == COMPARED and not compared[k]:
            faults.append(f"data: no comparisons in {name} ({have} images); it needs at least one, give them a split")
        elif labels not in (LABELS, COMPARED) and (counts[k] > 0).sum() < 2:
            only = labels[int(counts[k].argmax())]
            faults.append(f"data: only tier {only} in {name} ({have}); it needs images of at least two tiers")
        elif labels == LABELS and name == "train" and not counts[k].all():
            missing = LABELS[int(counts[k].argmin())]
            faults.append(
                f"data: no {missing} examples in train ({have}); training needs both classes (a sub-folder of a class "
                "is a group and stays in one split)"
            )
    if faults:
        raise DataError("\n".join(faults))
