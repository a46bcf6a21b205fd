"""What people see: bars and lines on a terminal or in a notebook, tables, whole lines in a pipe, values to read."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from hai.live import NotebookTerminal, in_notebook

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["build_console", "plain", "print_table", "shown", "shown_bytes"]


def build_console() -> Console:
    """Build what bars and lines for people are drawn on: standard error, or in a notebook the cell's output."""
    from rich.console import Console

    if not in_notebook():
        return Console(stderr=True, highlight=False, soft_wrap=True)
    return Console(
        file=NotebookTerminal(),  # type: ignore[arg-type]  # a text stream
        force_terminal=True,
        force_jupyter=False,  # rich would want widgets, which not every notebook has
        width=100,
        no_color=True,
        highlight=False,
        soft_wrap=True,
        _environ={"TERM": "xterm"},
    )


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
