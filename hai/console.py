"""What verbs print: tables for people on a terminal and whole lines in a pipe, and values as people read them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["plain", "print_table", "shown", "shown_bytes", "shown_seconds"]


def plain(text: str) -> str:
    """Write a file's name so that it stays within its line."""
    return text if text.isprintable() else ascii(text)[1:-1]


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print rows under their headings; numbers stand to the right, None is a dash."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    rows = [list(row) for row in rows]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for position, column in enumerate(columns):
        is_number = any(isinstance(row[position], int | float) for row in rows)
        table.add_column(column, justify="right" if is_number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(shown(value)) for value in row))
    width = None if sys.stdout.isatty() else 1000  # nothing is cut or folded where a program reads along
    Console(width=width, highlight=False).print(table)


def shown(value: Any) -> str:
    """Write one value for people: four significant digits, a dash for None."""
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def shown_bytes(count: float) -> str:
    """Write a number of bytes for people, in powers of 1000 as disks and networks are sold."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def shown_seconds(seconds: float) -> str:
    """Write a time span for people, in the largest unit of which there are some."""
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
