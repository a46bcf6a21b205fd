"""The table of a prediction, as people or contests want it, and what is said about it."""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from hai.predict.files import Row
from hai.types import LABELS

__all__ = ["COLUMNS", "FORMATS", "tell", "write_tables"]

COLUMNS: Final = {
    "full": ("filename", "probability_fake", "prediction", "num_frames", "num_faces", "error"),
    "dacon": ("filename", "prob"),
    "aifactory": ("filename", "label"),
}
"""Of each format."""

FORMATS: Final = tuple(COLUMNS)
_MOST_LINES: Final = 10


def write_tables(target: Path, rows: Sequence[Row], threshold: float, format: str) -> Path | None:
    """Write the CSV and, as those of contests have no column for an error, the full one beside it.

    Returns:
        Where the full one is; None: it cannot be written.

    Raises:
        OSError: the CSV itself cannot be written.
    """
    _write(target, rows, threshold, format)
    if format == "full":
        return target
    beside = target.with_name(f"{target.name.removesuffix('.csv')}.full.csv")
    try:
        _write(beside, rows, threshold, "full")
    except OSError as error:
        print(f"note: {beside} cannot be written ({error.strerror or error})", file=sys.stderr)
        return None
    return beside


def _write(target: Path, rows: Sequence[Row], threshold: float, format: str) -> None:
    """Write a CSV under a temporary name, then put it in place."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    encoding = "utf-8-sig" if format == "dacon" else "utf-8"
    try:
        with open(temporary, "w", encoding=encoding, errors="backslashreplace", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(COLUMNS[format])
            for row in rows:
                label = int(row.probability >= threshold)
                if format == "full":
                    scored = ["", "", 0, 0]
                    if not row.error:
                        scored = [f"{row.probability:.7g}", LABELS[label], row.num_frames, row.num_faces]
                    table.writerow([row.name, *scored, row.error])
                else:
                    table.writerow([row.name, f"{row.probability:.7g}" if format == "dacon" else label])
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def tell(target: Path, full: Path | None, rows: Sequence[Row], threshold: float, format: str, *, cut: bool) -> None:
    """Say what came out; `full` is the table with all columns, `cut` is set where faces were looked for."""
    scored = [row for row in rows if not row.error]
    fakes = sum(row.probability >= threshold for row in scored)
    bad = [row for row in rows if row.error]
    print(
        f"{len(rows)} files: {len(scored) - fakes} real, {fakes} fake at the threshold {threshold:.3f}"
        + (f", {len(bad)} unusable" if bad else "")
        + f" -> {target}"
        + (f" (in full: {full})" if full not in (None, target) else "")
    )
    for row in bad[:_MOST_LINES]:
        print(f"unusable: {row.name}: {row.error}", file=sys.stderr)
    if len(bad) > _MOST_LINES:
        see = f", see {full}" if full else ""
        print(f"unusable: and {len(bad) - _MOST_LINES} more{see}", file=sys.stderr)
    if bad and format != "full":
        unknown = Row("", None).probability
        value = f"prob {unknown}" if format == "dacon" else f"label {int(threshold <= unknown)}"
        print(f"note: unusable files have {value} in the table, which must have no gaps", file=sys.stderr)
    faceless = [row.name for row in scored if not row.num_faces and not row.is_ready]
    if cut and faceless:
        names = ", ".join(faceless[:3])
        if len(faceless) > 3:
            names += f", ..., see num_faces in {full}" if full else ", ..."
        print(f"note: no face in {len(faceless)} files ({names}); the middle square was scored", file=sys.stderr)
