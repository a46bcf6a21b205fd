"""Reading the CSVs that name images: header, rows, paths and the folder that they start from."""

from __future__ import annotations

import csv
import os
import posixpath
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

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
            return "", f"{column} = {path!r}; holds a zero byte"
        clean = path.replace("\\", "/")
        if clean.startswith("/") and folder is not None:
            clean = posixpath.relpath(posixpath.normpath(clean), folder)
        clean = posixpath.normpath(clean)
        if clean == "." or PurePosixPath(clean).is_absolute() or clean == ".." or clean.startswith("../"):
            return (
                "",
                f"{column} = {path!r}; leaves its folder{f' {folder}' if folder else ''}, name that with image_dir",
            )
        return clean, ""


def settle_files(
    rows: Rows, folder: ImageFolder, named: Sequence[str], faults: list[str], progress: Progress | None
) -> None:
    """Find the files of a CSV's rows, copying them from a URL first.

    Args:
        rows: with paths; `file` and `stats` are set.
        folder: where the paths start.
        named: `table:line: column` of each row, for faults.
        faults: missing files are appended to it.
        progress: called with (done, total) while files are copied.
    """
    local: Path = folder.path if folder.url is None else local_copy(folder.url, set(rows.path), progress)
    rows.file = [f"{local}/{path}" for path in rows.path]
    rows.stats = stat_files(rows.file)
    missing = (rows.stats[:, 0] < 0).nonzero()[0].tolist()
    faults += [f"{named[i]} = {rows.path[i]!r}; there is no such file in {folder.url or folder.path}" for i in missing]


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
        raise DataError(f"{table}:1: {' and '.join(wrong)} (found: {', '.join(cells)}); needs {form}")
    return [name for name in known if name in names]


def read_table(table: Path, known: Sequence[str], needed: int, form: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (line number, cells by column) of a CSV's rows that are not empty; missing columns are left out.

    Args and Raises: as of open_table.
    """
    present = open_table(table, known, needed, form)
    columns: dict[str, int] = {}
    for line, cells in _records(table):
        if not columns:
            names = [cell.strip().lower() for cell in cells]
            columns = {name: names.index(name) for name in present}
        elif any(cell.strip() for cell in cells):
            yield line, {name: cells[at].strip() if at < len(cells) else "" for name, at in columns.items()}


def _records(table: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, cells) of a CSV."""
    try:
        with open(table, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            for cells in reader:
                yield reader.line_num, cells
    except UnicodeDecodeError as error:
        raise DataError(f"{table}: not UTF-8 (byte {error.start} of a block); save it as CSV UTF-8") from None
    except csv.Error as error:
        raise DataError(f"{table}:{reader.line_num}: cannot be read as CSV ({error})") from None
    except OSError as error:
        raise DataError(f"{table}: cannot be read ({error.strerror or error})") from None
