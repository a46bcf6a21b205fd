"""Ranked sources: images in tiers (metadata.csv, or a folder per tier) or compared in pairs (comparisons.csv)."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hai.data.archives import shown
from hai.data.content import Progress
from hai.data.folders import class_folders
from hai.data.layouts import is_layout
from hai.data.pack import PACK_FILE, load_pack
from hai.data.rows import COMPARED, Rows, source_name
from hai.data.sources import DETECTOR, Form, folder_table, locate_source
from hai.data.tables import ImageFolder, header_of, read_table, settle_files
from hai.errors import DataError
from hai.types import LABELS, SPLITS

if TYPE_CHECKING:
    from hai.config.schema import DataConfig

__all__ = ["IMAGES", "ranked_form", "task_of"]

IMAGES: Final = "images"
"""Folder beside a ranker's CSV that its file names start from, if it is there."""

_PREFERENCES: Final = {"left": 1, "right": -1, "tie": 0}
_METADATA: Final = "image_id,filename,tier[,group][,split][,source]"
_COMPARISONS: Final = "left,right,preference[,split]"


def ranked_form(data: DataConfig) -> Form:
    """Say what a ranker's sources look like: its tiers and its column of scores."""
    tiers = tuple(tier.strip() for tier in data.tiers)
    return Form(
        task="ranker",
        classes=tiers,
        tables=("metadata.csv", "comparisons.csv"),
        shown=f"a folder with {', '.join(f'{tier}/' for tier in tiers)} (also under train/ val/ test/) or with "
        "metadata.csv or comparisons.csv, a CSV, a pack, or an archive of these",
        parts={},
        read_csv=partial(_read_ranked, data),
        images=IMAGES,
    )


def task_of(data: DataConfig, progress: Progress | None = None) -> str:
    """Find out whether the first source is a detector's or a ranker's; what is neither counts as a detector's.

    Raises:
        DataError: it is missing, or could be both.
        StorageError: it cannot be reached or copied.
    """
    (source, *_), ranked = data.sources, ranked_form(data)
    local, _ = locate_source(source, ranked, progress)
    if local.is_dir() and (local / PACK_FILE).is_file():
        return "detector" if load_pack(local, source.name, progress).labels == LABELS else "ranker"
    if local.is_dir():
        found = {form.task for form in (DETECTOR, ranked) if folder_table(local, form, source.name)}
        found = found or {form.task for form in (DETECTOR, ranked) if any(class_folders(local, form.classes))}
        found = found or ({DETECTOR.task} if is_layout(local) else set())
    else:
        names = set(header_of(local)) if local.suffix.lower() == ".csv" else set()
        columns = {"detector": ({"path", "label"},), "ranker": ({"filename", "tier"}, {"left", "right", "preference"})}
        found = {task for task, choices in columns.items() if any(choice <= names for choice in choices)}
    if len(found) > 1:
        raise DataError(f"{source.path}: could be a detector's or a ranker's data; say which with --task")
    return found.pop() if found else "detector"


def _read_ranked(
    data: DataConfig, table: Path, image_dir: str | None, name: str, faults: list[str], progress: Progress | None
) -> Rows:
    beside = table.parent / IMAGES
    folder = ImageFolder(table, str(beside) if image_dir is None and beside.is_dir() else image_dir, name)
    if "preference" in header_of(table):
        return _read_comparisons(table, folder, name, faults, progress)
    return _read_metadata(data, table, folder, name, faults, progress)


def _read_metadata(
    data: DataConfig, table: Path, folder: ImageFolder, name: str, faults: list[str], progress: Progress | None
) -> Rows:
    scored = data.score_column.strip().lower() if data.score_column else None
    required = ["image_id", "filename", "tier"]
    known = [*required, *([scored] if scored and scored not in required else []), "group", "split", "source"]
    form = _METADATA + (f" and {scored} (data.score_column)" if scored else "")
    form_of_tiers = {tier.strip().lower(): code for code, tier in enumerate(data.tiers)}
    rows, named, before = Rows(labels=tuple(tier.strip() for tier in data.tiers)), list[str](), len(faults)
    first: dict[tuple[str, str], int] = {}
    for line, row in read_table(table, list(dict.fromkeys(known)), 4 if scored else 3, form, faults):
        path, rule = folder.relative(row["filename"], "filename")
        wrong = [rule] if rule else []
        if not row["image_id"]:
            wrong.append("image_id is empty")
        tier, split = form_of_tiers.get(row["tier"].lower()), _split_code(row, wrong)
        if not row["tier"]:
            wrong.append("tier is empty")
        elif tier is None:
            wrong.append(f"tier = {shown(row['tier'])}; must be one of {', '.join(rows.labels)} (data.tiers)")
        for column, value in (("image_id", row["image_id"]), ("filename", path)):
            earlier = first.setdefault((column, value), line)
            if value and earlier != line:
                wrong.append(f"{column} = {shown(value)}; already in line {earlier}, each may occur once")
        score = _number(row[scored], scored, wrong) if scored else math.nan
        if wrong or tier is None:
            faults += [f"{table}:{line}: {rule}" for rule in wrong]
            continue
        rows.add(path, "", tier, split, row.get("group", ""), source_name(name, row.get("source", "")))
        rows.image_id.append(row["image_id"])
        rows.place.append(f"{table}:{line}")
        named.append(f"{table}:{line}: filename")
        if scored:
            rows.score.append(score)
    if not named and len(faults) == before:
        raise DataError(f"{table}: there are no rows below the header")
    missing = settle_files(rows, folder, progress)
    faults += [f"{named[i]} {rule}" for i, rule in missing.items()]
    return rows


def _read_comparisons(
    table: Path, folder: ImageFolder, name: str, faults: list[str], progress: Progress | None
) -> Rows:
    rows, lines, before = Rows(labels=COMPARED), list[int](), len(faults)
    position: dict[tuple[str, int], int] = {}
    undivided: list[int] = []
    is_divided = False
    for line, row in read_table(table, ("left", "right", "preference", "split"), 3, _COMPARISONS, faults):
        ends = [(column, *folder.relative(row[column], column)) for column in ("left", "right")]
        wrong = [rule for _, _, rule in ends if rule]
        if not wrong and ends[0][1] == ends[1][1]:
            wrong.append(f"left and right are both {shown(ends[0][1])}; an image cannot be compared with itself")
        preference, split = _PREFERENCES.get(row["preference"].lower()), _split_code(row, wrong)
        if preference is None:
            wrong.append(f"preference = {shown(row['preference'])}; must be left, right or tie")
        is_divided |= split >= 0
        if not row.get("split"):
            undivided.append(line)
        if wrong or preference is None:
            faults += [f"{table}:{line}: {rule}" for rule in wrong]
            continue
        for _, path, _ in ends:  # an image that is compared in two splits has a row in each
            if (path, split) not in position:
                position[path, split] = len(rows.path)
                rows.add(path, "", 0, split, "", name)
                rows.place.append(f"{table}:{line}")
        left, right = (position[path, split] for _, path, _ in ends)
        rows.comparisons.append((left, right, preference))
        lines.append(line)
    if not lines and len(faults) == before:
        raise DataError(f"{table}: there are no rows below the header")
    if is_divided:
        faults += [f"{table}:{line}: split is empty, other lines have one; fill all or none" for line in undivided]
    missing = settle_files(rows, folder, progress)
    for line, ends_at in zip(lines, rows.comparisons, strict=True):
        named = zip(("left", "right"), ends_at, strict=False)
        faults += [f"{table}:{line}: {column} {missing[i]}" for column, i in named if i in missing]
    return rows


def _split_code(row: dict[str, str], wrong: list[str]) -> int:
    split = row.get("split", "").lower()
    if split and split not in SPLITS:
        wrong.append(f"split = {shown(row['split'])}; must be {', '.join(SPLITS)} or empty")
    return SPLITS.index(split) if split in SPLITS else -1


def _number(cell: str, column: str, wrong: list[str]) -> float:
    """Read a score; an empty cell is NaN."""
    try:
        value = float(cell) if cell else math.nan
    except ValueError:
        value = math.inf
    if cell and not math.isfinite(value):
        wrong.append(f"{column} = {shown(cell)}; must be a number or empty (data.score_column)")
    return value
