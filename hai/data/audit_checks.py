"""The checks of an audit that count and compare: copies, groups, balance, sizes, odd files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hai.console import plain
from hai.data.duplicates import close_pairs, look_alike, thumbnail_hashes
from hai.data.gather import repeats
from hai.data.layouts import MANIPULATIONS
from hai.data.looks import DETAIL_SIDE, Looks
from hai.data.manifest import Manifest
from hai.data.rows import COMPARED
from hai.data.splits import codes_of
from hai.types import SPLITS

__all__ = [
    "ALIKE",
    "DISTANCE",
    "Finding",
    "balance",
    "copies",
    "divided",
    "enlarged",
    "near_copies",
    "near_sets",
    "odd_files",
    "small",
]

DISTANCE: Final = 6
"""Bits in which the perceptual hashes of near-duplicates may differ."""
ALIKE: Final = 0.95
"""Least correlation of the gray thumbnails of near-duplicates; different faces of one framing stay below 0.9."""
_SMALLEST: Final = 64
_RARE: Final = 0.4
"""Share of its even part below which a label is called rare: 20 % of images for one of two labels."""
_FEW_GROUPS: Final = 10
_KEPT: Final = 1000


@dataclass
class Finding:
    """Something that makes a score mean less than it seems."""

    kind: str
    """Such as duplicates, separable, unreadable."""
    text: str
    """One line."""
    count: int = 1
    """How many images or things it is about."""
    examples: list[list[str]] = field(default_factory=list)
    """Names, those that belong together in one list; the first 1,000."""
    rows: list[list[int]] = field(default_factory=list)
    """Positions in the manifest of the same, where they are images."""


def _about(
    kind: str, text: str, manifest: Manifest, sets: Sequence[Iterable[int]], count: int | None = None
) -> Finding:
    rows = [[int(row) for row in members] for members in sets[:_KEPT]]
    names = [[plain(manifest.path[row]) for row in members] for members in rows]
    return Finding(kind, text, len(sets) if count is None else count, names, rows)


def _such_as(manifest: Manifest, rows: Sequence[int]) -> str:
    return " and ".join(f"{plain(manifest.path[row])} ({SPLITS[manifest.split[row]]})" for row in rows)


def _by_label(manifest: Manifest, rows: Sequence[int]) -> str:
    """Count images by label, in brackets; "" where images have no labels."""
    if manifest.labels == COMPARED:
        return ""
    counts = np.bincount(manifest.label[list(rows)], minlength=len(manifest.labels)).tolist()
    named = [f"{count:,} {label}" for label, count in zip(manifest.labels, counts, strict=True) if count]
    return f" ({', '.join(named)})"


def copies(manifest: Manifest) -> list[Finding]:
    """Find equal files: with two labels, in two splits, or repeated within one."""
    content = _contents(manifest)
    found = []
    several = repeats(content, manifest.label)
    if several:
        first = several[0]
        low, high = (
            int(first[manifest.label[first] == code][0])
            for code in (manifest.label[first].min(), manifest.label[first].max())
        )
        names = " and ".join(f"{plain(manifest.path[i])} ({manifest.labels[manifest.label[i]]})" for i in (low, high))
        text = f"{_counted(len(several), 'image has', 'images have')} more than one label, such as {names}"
        found.append(_about("contradiction", text, manifest, several))
    across = _across(content, manifest.split)
    for (one, other), (pairs, count) in across.items():
        text = _crossing(manifest, one, other, count, "a copy", pairs[0])
        found.append(_about("duplicates", text, manifest, pairs, count))
    order = np.lexsort((manifest.split, content))
    again = (np.diff(content[order]) == 0) & (np.diff(manifest.split[order]) == 0)
    if again.any():
        pairs = [[int(order[k]), int(order[k + 1])] for k in np.flatnonzero(again)]
        text = f"{_counted(len(pairs), 'file repeats', 'files repeat')} another of the same split, such as "
        found.append(_about("repeated", text + _such_as(manifest, pairs[0]), manifest, pairs))
    return found


def _contents(manifest: Manifest) -> NDArray[np.int64]:
    keys = np.ascontiguousarray(manifest.sha256).view("V32").reshape(-1)
    return np.unique(keys, return_inverse=True)[1].reshape(-1).astype(np.int64)


def _counted(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"


def _crossing(manifest: Manifest, one: int, other: int, count: int, what: str, pair: Sequence[int]) -> str:
    """Say how much of the later split is also in the earlier one."""
    total = int((manifest.split == other).sum())
    verb = "has" if count == 1 else "have"
    return (
        f"{count:,} of {total:,} {SPLITS[other]} images {verb} {what} in {SPLITS[one]}, "
        f"such as {_such_as(manifest, pair)}; scores there are too good"
    )


def _across(key: NDArray[np.int64], split: NDArray[np.int8]) -> dict[tuple[int, int], tuple[list[list[int]], int]]:
    """Find what equal keys share over splits.

    Returns:
        (earlier, later split) -> a pair of rows per key, and how many rows of the later split have one.
    """
    found: dict[tuple[int, int], tuple[list[list[int]], int]] = {}
    for rows in repeats(key, split):
        members = {code: rows[split[rows] == code] for code in np.unique(split[rows]).tolist()}
        codes = sorted(members)
        for position, one in enumerate(codes):
            for other in codes[position + 1 :]:
                pairs, count = found.get((one, other), ([], 0))
                pairs.append([int(members[one][0]), int(members[other][0])])
                found[one, other] = (pairs, count + len(members[other]))
    return dict(sorted(found.items()))


def near_copies(manifest: Manifest, looks: Looks) -> list[Finding]:
    """Find images that look alike, mirrored or not, though their files differ, in two splits."""
    size, split = len(looks.rows), manifest.split[looks.rows].astype(np.int64)
    both = np.concatenate([looks.gray, looks.gray[:, :, ::-1]])  # each image, then each mirrored
    sides = np.tile(split, 2)
    hashes = thumbnail_hashes(both)
    pairs = close_pairs(hashes, DISTANCE, sides)
    pairs = np.where((sides[pairs[:, 0]] > sides[pairs[:, 1]])[:, None], pairs[:, ::-1], pairs)
    pairs = pairs[pairs[:, 0] < size]  # both mirrored is no news
    pairs = pairs[look_alike(both, pairs, ALIKE)]
    stands_for = np.unique(np.stack([hashes, sides.astype(np.uint64)]), axis=1, return_inverse=True)[1].reshape(-1)
    content = _contents(manifest)
    found = []
    for one, other in combinations(range(len(SPLITS)), 2):
        here = pairs[(sides[pairs[:, 0]] == one) & (sides[pairs[:, 1]] == other)]
        partner = np.full(int(stands_for.max(initial=0)) + 1, -1)
        partner[stands_for[here[:, 1]]] = here[:, 0]
        alike = np.flatnonzero(partner[stands_for] >= 0)
        alike = alike[~np.isin(content[looks.rows[alike % size]], content[manifest.split == one])]  # told as copies
        listed = np.stack([partner[stands_for[alike]], alike], axis=1)
        listed = listed[look_alike(both, listed, ALIKE)] % size
        listed = looks.rows[listed[np.unique(listed[:, 1], return_index=True)[1]]]
        if len(listed):
            text = _crossing(manifest, one, other, len(listed), "a near-duplicate", listed[0].tolist())
            found.append(_about("near-duplicates", text, manifest, listed.tolist()))
    return found


def near_sets(looks: Looks) -> NDArray[np.int64]:
    """Return all pairs of rows that look alike, [P, 2]."""
    pairs = close_pairs(thumbnail_hashes(looks.gray), DISTANCE)
    return pairs[look_alike(looks.gray, pairs, ALIKE)]


def divided(lines: list[str]) -> list[Finding]:
    """Report groups that are in two splits, by name."""
    if not lines:
        return []
    text = f"{_counted(len(lines), 'group is', 'groups are')} in more than one split, such as {plain(lines[0])}"
    return [
        Finding("divided group", f"{text}; scores there are too good", len(lines), [[line] for line in lines[:_KEPT]])
    ]


def balance(manifest: Manifest) -> list[Finding]:
    """Find rare labels, splits with too few independent groups, and sources that give the label away."""
    if manifest.labels == COMPARED or not len(manifest):
        return []
    found = []
    for k, split in enumerate(SPLITS):
        rows = np.flatnonzero(manifest.split == k)
        if len(rows):
            counts = np.bincount(manifest.label[rows], minlength=len(manifest.labels))
            found += _rare(manifest, split, counts) + _few_groups(manifest, split, rows, counts)
    return found + _pure_sources(manifest)


def _rare(manifest: Manifest, split: str, counts: NDArray[np.int64]) -> list[Finding]:
    missing = [manifest.labels[code] for code in np.flatnonzero(counts == 0)]
    if missing:
        return [Finding("imbalance", f"{split} holds no {' and no '.join(missing)} images", len(missing))]
    code = int(counts.argmin())
    if counts[code] * len(counts) >= _RARE * counts.sum():
        return []
    share = 100 * counts[code] / counts.sum()
    text = f"only {share:.2g} % of {split} images are {manifest.labels[code]} ({counts[code]:,} of {counts.sum():,})"
    return [Finding("imbalance", f"{text}; accuracy says little there", int(counts[code]))]


def _few_groups(manifest: Manifest, split: str, rows: NDArray[np.int64], counts: NDArray[np.int64]) -> list[Finding]:
    groups = [
        {manifest.group[i] or f"\0{i}" for i in rows[manifest.label[rows] == code].tolist()}
        for code in range(len(counts))
    ]
    few = [(len(names), manifest.labels[code]) for code, names in enumerate(groups) if 0 < len(names) < _FEW_GROUPS]
    if split == SPLITS[0] or not few:
        return []
    shown = " and ".join(f"{count} of {label}" for count, label in few)
    return [
        Finding(
            "few groups",
            f"{split} holds few independent groups or images, {shown}; scores there are uncertain",
            len(few),
        )
    ]


def _pure_sources(manifest: Manifest) -> list[Finding]:
    """Find out whether the source alone tells the label; how a fake was made is no source of its own here."""
    made = {name.lower() for name in MANIPULATIONS}
    origin = [
        source.rpartition("/")[0] if source.rpartition("/")[2].lower() in made else source for source in manifest.source
    ]
    source, names = codes_of(origin)
    held = np.zeros((len(names), len(manifest.labels)), dtype=np.bool_)
    held[source, manifest.label] = True
    if len(names) < 2 or (held.sum(axis=1) > 1).any() or held.any(axis=0).sum() < 2:
        return []
    only = [f"{plain(name)}: {manifest.labels[int(row.argmax())]}" for name, row in zip(names, held, strict=True)]
    shown = ", ".join(only[:6] + (["..."] if len(only) > 6 else []))
    text = f"every source holds one label only ({shown}); a model can learn the source instead"
    return [Finding("pure sources", text, len(names), [only])]


def small(manifest: Manifest) -> list[Finding]:
    """Find images with too few pixels for a face to show anything."""
    side = np.minimum(manifest.width, manifest.height)
    rows = np.flatnonzero(side < _SMALLEST)
    if not len(rows):
        return []
    rows = rows[np.argsort(side[rows], kind="stable")]
    first = int(rows[0])
    size = f"{manifest.width[first]}x{manifest.height[first]}"
    text = f"{_counted(len(rows), 'image is', 'images are')} smaller than {_SMALLEST} pixels on a side"
    text += f"{_by_label(manifest, rows.tolist())}, the smallest "
    return [_about("tiny", f"{text}{plain(manifest.path[first])} with {size}", manifest, [[int(row)] for row in rows])]


def enlarged(manifest: Manifest, rows: list[int], num_seen: int) -> list[Finding]:
    """Report images whose pixels show no more than far fewer would."""
    if not rows:
        return []
    text = (
        f"{len(rows):,} of {num_seen:,} images looked at closely show no more than {DETAIL_SIDE} pixels would, "
        f"enlarged or blurred{_by_label(manifest, rows)}, such as {plain(manifest.path[rows[0]])}"
    )
    return [_about("no detail", text, manifest, [[row] for row in rows])]


def odd_files(manifest: Manifest, looks: Looks) -> list[Finding]:
    """Count files that a reader may not expect, by what is odd about them."""
    found = []
    for oddity, rows in sorted(looks.oddities.items(), key=lambda item: (-len(item[1]), item[0])):
        text = f"{_counted(len(rows), 'odd file', 'odd files')}, {oddity}{_by_label(manifest, rows)}"
        text += f", such as {plain(manifest.path[rows[0]])}"
        found.append(_about("odd files", text, manifest, [[row] for row in rows]))
    return found
