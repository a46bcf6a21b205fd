"""Which files of a raw data set belong together, and the split of each; with what was done before in mind."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import replace

import numpy as np

from hai.data.layouts import RawFile, RawSet
from hai.data.splits import assign_splits, codes_of, linked
from hai.errors import DataError
from hai.faces.journal import FileRecord
from hai.types import SPLITS

__all__ = ["name_of", "plan_splits", "regroup"]


def name_of(raw: RawSet, file: RawFile) -> str:
    """Name a file by its path relative to the root."""
    return file.path.relative_to(raw.root).as_posix()


def regroup(raw: RawSet, done: dict[str, FileRecord]) -> RawSet:
    """Join what was one group before with what is one now, since more data may connect people.

    Args:
        raw: the listing.
        done: records of before; they take the groups, sources and videos of the listing.

    Returns:
        The listing with these groups.
    """
    files = {name_of(raw, file): file for file in raw.files}
    now = {name: file.group or name for name, file in files.items()}
    before = [record.group for record in done.values()]
    after = [now.get(name, record.group) for name, record in done.items()]
    codes, groups = codes_of([*now.values(), *before, *after])
    parts = linked(len(groups), codes[len(now) :].reshape(2, -1).T).tolist()
    current, first = set(now.values()), dict[int, str]()
    for group, part in sorted(zip(groups, parts, strict=True), key=lambda pair: pair[0] not in current):
        first.setdefault(part, group)
    joined = {group: first[part] for group, part in zip(groups, parts, strict=True)}
    for name, record in done.items():
        file = files.get(name)
        source, video = (file.source, file.video or name) if file else (record.source, record.video)
        done[name] = replace(record, group=joined[record.group], source=source, video=video)
    return replace(raw, files=[replace(file, group=joined[now[name]]) for name, file in files.items()])


def plan_splits(raw: RawSet, done: dict[str, FileRecord], share: float, seed: int) -> dict[str, str]:
    """Give every file a split, groups whole: the official one, that of its group's files done before, or a drawn one.

    The draw is a function of the listing and the seed alone, so a resumed run continues the same division.

    Args:
        raw: the listing.
        done: records of files that were done before.
        share: of train in what has no official split; the rest is val.
        seed: of the draw.

    Returns:
        Split by name.

    Raises:
        DataError: a group would be divided.
    """
    names = [name_of(raw, file) for file in raw.files]
    groups = [file.group or name for file, name in zip(raw.files, names, strict=True)]
    given: dict[str, set[str]] = defaultdict(set)
    for name, group, file in zip(names, groups, raw.files, strict=True):
        given[group] |= {split for split in (file.split, done[name].split if name in done else "") if split}
    for record in done.values():
        if record.group in given:
            given[record.group].add(record.split)
    divided = [
        f"group {group!r} would be in {' and '.join(sorted(splits))}; nothing of it may be in two splits"
        for group, splits in sorted(given.items())
        if len(splits) > 1
    ]
    if divided:
        hint = "mend the split lists" if not done else "the files were divided before; name a new --output"
        raise DataError("\n".join([*divided[:20], hint]))
    unit, unit_names = codes_of(groups)
    source, _ = codes_of([file.source for file in raw.files])
    keys = np.array(
        [_key(group) for group in unit_names],
        dtype=np.int64,
    )
    drawn = assign_splits(
        np.array([SPLITS.index(file.split) if file.split else -1 for file in raw.files], dtype=np.int8),
        np.array([file.label for file in raw.files], dtype=np.int8),
        source,
        unit,
        keys[unit],
        np.tile([share, 1 - share, 0.0], (len(names), 1)),
        seed,
    )
    return {
        name: next(iter(given[group]), SPLITS[code])
        for name, group, code in zip(names, groups, drawn.tolist(), strict=True)
    }


def _key(group: str) -> int:
    return int.from_bytes(hashlib.sha256(group.encode("utf-8", "surrogateescape")).digest()[:8], "little", signed=True)
