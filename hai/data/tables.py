"""Reading the CSVs that name images: header, rows, paths and the folder that they start from."""

from __future__ import annotations

import csv
import os
import posixpath
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from hai.data.archives import shown
from hai.data.content import Progress, stat_files
from hai.data.remote import is_url, local_copy
from hai.data.rows import Rows
from hai.errors import DataError

__all__ = ["ImageFolder", "header_of", "open_table", "read_table", "settle_files"]


class ImageFolder:
    """The folder that a CSV's paths start from, local or a URL.

    Args:
        table: the CSV.
        image_dir: what the config says; None: the CSV's own folder.
        name: of the source.

    Raises:
        DataError: there is no such folder.
    """

    def __init__(self, table: Path, image_dir: str | None, name: str) -> None:
        self.url = image_dir if image_dir is not None and is_url(image_dir) else None
        self.path = table.parent if image_dir is None else Path(os.path.abspath(os.path.expanduser(image_dir)))
        if self.url is None and not self.path.is_dir():
            raise DataError(f"source {name}: image_dir = {image_dir}; there is no such folder")

    def relative(self, path: str, column: str) -> tuple[str, str]:
        """Return a path relative to the folder, and the rule it breaks if any."""
        folder = self.path if self.url is None else None
        if not path:
            return "", f"{column} is empty"
        if "\0" in path:
            return "", f"{column} = {shown(path)}; holds a zero byte"
        clean = path.replace("\\", "/")
        if clean.startswith("/") and folder is not None:
            clean = posixpath.relpath(posixpath.normpath(clean), folder)
        clean = posixpath.normpath(clean)
        if clean == "." or clean.startswith("/") or clean == ".." or clean.startswith("../"):
            where = f" {folder}" if folder else ""
            return "", f"{column} = {shown(path)}; leaves its folder{where}, name that with image_dir"
        return clean, ""


def settle_files(rows: Rows, folder: ImageFolder, progress: Progress | None) -> dict[int, str]:
    """Find the files of a CSV's rows, copying them from a URL first.

    Args:
        rows: with paths; `file` and `stats` are set.
        folder: where the paths start.
        progress: called with (done, total) while files are copied.

    Returns:
        Position of each row whose file is missing -> what is wrong, to be put behind `table:line: column`.
    """
    local: Path = folder.path if folder.url is None else local_copy(folder.url, set(rows.path), progress)
    rows.file = [f"{local}/{path}" for path in rows.path]
    rows.stats = stat_files(rows.file)
    missing = (rows.stats[:, 0] < 0).nonzero()[0].tolist()
    return {i: f"= {shown(rows.path[i])}; there is no such file in {folder.url or folder.path}" for i in missing}


def header_of(table: Path) -> list[str]:
    """Return the column names of a CSV in lower case; none if it is empty."""
    cells: list[str] = next((cells for _, cells in _records(table)), [])
    return [cell.strip().lower() for cell in cells]


def open_table(table: Path, known: Sequence[str], needed: int, form: str) -> list[str]:
    """Check the header of a CSV; return those of the known columns that it has.

    Args:
        table: the CSV.
        known: names of columns that mean something; others are left alone.
        needed: how many of them, from the first, must be there.
        form: of the header, for people.

    Raises:
        DataError: a column is missing or there twice, or the file is empty or cannot be read.
    """
    cells = next((cells for _, cells in _records(table)), None)
    if cells is None:
        raise DataError(f"{table}: the file is empty; the first line must be {form}")
    names = [cell.strip().lower() for cell in cells]
    wrong = [f"has no column {name!r}" for name in known[:needed] if name not in names]
    wrong += [f"has the column {name!r} twice" for name in known if names.count(name) > 1]
    if wrong:
        raise DataError(f"{table}:1: {' and '.join(wrong)} (found: {shown(', '.join(cells))[1:-1]}); needs {form}")
    return [name for name in known if name in names]


def read_table(
    table: Path, known: Sequence[str], needed: int, form: str, faults: list[str]
) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (line number, cells by column) of a CSV's rows that are not empty; missing columns are left out.

    A row of several lines has the number of its first. Rows that cannot be read are appended to `faults`.

    Other Args and Raises: as of open_table.
    """
    present = open_table(table, known, needed, form)
    columns: dict[str, int] = {}
    for line, cells in _records(table, faults):
        if not columns:
            names = [cell.strip().lower() for cell in cells]
            columns = {name: names.index(name) for name in present}
        elif any(cell.strip() for cell in cells):
            yield line, {name: cells[at].strip() if at < len(cells) else "" for name, at in columns.items()}


def _records(table: Path, faults: list[str] | None = None) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, cells) of a CSV; what cannot be read is a fault, or raises DataError without such a list."""
    csv.field_size_limit(sys.maxsize)  # else a row of any size would end the table, and with it the list of bad rows
    try:
        with open(table, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.reader(file, strict=True)  # a quote that is never closed would swallow rows in silence
            while True:
                line = reader.line_num + 1
                try:
                    cells = next(reader)
                    "".join(cells).encode()
                except StopIteration:
                    return
                except UnicodeEncodeError:
                    fault = f"{table}:{line}: not UTF-8; save it as CSV UTF-8"
                except csv.Error as error:
                    fault = f"{table}:{line}: cannot be read as CSV ({error}); is a quote missing?"
                else:
                    yield line, cells
                    continue
                if faults is None:
                    raise DataError(fault)
                faults.append(fault)
    except OSError as error:
        raise DataError(f"{table}: cannot be read ({error.strerror or error})") from None
