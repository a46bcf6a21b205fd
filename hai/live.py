"""Bars and lines that change in place: on a terminal, in the output of a notebook's cell, and read off a terminal."""

from __future__ import annotations

import io
import re
import sys
from typing import TYPE_CHECKING, Any, Final

from typing_extensions import override

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["NotebookTerminal", "Screen", "build_console", "in_notebook"]

_MOST_LINES: Final = 500
_CONTROL: Final = re.compile(
    r"\x1b\[(?P<numbers>[\d;?]*)(?P<code>[@-~])|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[@-Z\\^_]|[\r\n\b]|[^\x1b\r\n\b]+"
)
_BEGUN: Final = re.compile(r"\x1b(?:\[[\d;?]*|\][^\x07\x1b]*\x1b?)?$")


def in_notebook() -> bool:
    """Tell whether this process is the kernel of a notebook, Colab's or Jupyter's."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and bool(shell.has_trait("kernel"))


class Screen:
    """What stands on a terminal after a program wrote to it: lines, and bars that are drawn over and over.

    It knows what progress bars use: carriage return, cursor up and down, erasing. Colours are left out.
    """

    def __init__(self) -> None:
        self._lines = [""]
        self._row = self._column = 0
        self._rest = ""

    @property
    def text(self) -> str:
        """Return the lines, without what is empty at the end."""
        return "\n".join(line.rstrip() for line in self._lines).rstrip("\n")

    def write(self, text: str) -> None:
        """Take what the program wrote; a control sequence may be cut in two."""
        text = self._rest + text
        begun = _BEGUN.search(text)
        self._rest, text = (begun[0], text[: begun.start()]) if begun else ("", text)
        for found in _CONTROL.finditer(text):
            if code := found["code"]:
                self._control(code, found["numbers"])
            elif found[0] == "\n":
                self._move(1)
                self._column = 0
            elif found[0] == "\r":
                self._column = 0
            elif found[0] == "\b":
                self._column = max(0, self._column - 1)
            elif not found[0].startswith("\x1b"):
                line = self._lines[self._row].ljust(self._column)
                self._lines[self._row] = line[: self._column] + found[0] + line[self._column + len(found[0]) :]
                self._column += len(found[0])
        excess = len(self._lines) - _MOST_LINES
        if excess > 0:
            del self._lines[:excess]
            self._row = max(0, self._row - excess)

    def _move(self, rows: int) -> None:
        self._row = max(0, self._row + rows)
        self._lines += [""] * (self._row + 1 - len(self._lines))

    def _control(self, code: str, numbers: str) -> None:
        number = int(numbers) if numbers.isdecimal() else 0
        if code in "AB":
            self._move((number or 1) * (-1 if code == "A" else 1))
        elif code == "G":
            self._column = max(0, number - 1)
        elif code == "K":
            line = self._lines[self._row]
            kept = {0: line[: self._column], 1: " " * self._column + line[self._column :]}
            self._lines[self._row] = kept.get(number, "")
        elif code == "J" and number == 0:
            self._lines[self._row] = self._lines[self._row][: self._column]
            del self._lines[self._row + 1 :]


class NotebookTerminal(io.TextIOBase):
    """A terminal in the output of a notebook's cell: one block of text, replaced as a whole when it changes."""

    def __init__(self) -> None:
        self._screen = Screen()
        self._shown: str | None = None
        self._handle: Any = None

    @override
    def isatty(self) -> bool:
        return True

    @override
    def writable(self) -> bool:
        return True

    @override
    def write(self, text: str) -> int:
        self._screen.write(text)
        return len(text)

    @override
    def flush(self) -> None:
        """Show what has changed."""
        text = self._screen.text
        if text == (self._shown or ""):
            return
        from IPython.display import display

        content = {"text/plain": text}
        if self._handle is None:
            self._handle = display(content, raw=True, display_id=True)
        else:
            self._handle.update(content, raw=True)
        self._shown = text


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
