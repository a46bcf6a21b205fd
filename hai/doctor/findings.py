"""What the doctor finds: one fact of the surroundings, whether it is in the way, and how to mend it."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from hai.errors import HaiError
from hai.masking import masked
from hai.types import Record

__all__ = ["Finding", "fine", "from_error", "private", "problem", "tilde", "warning"]


@dataclass(frozen=True)
class Finding:
    """One line of the doctor.

    Args:
        check: what was looked at, one or two words.
        status: `problem` would stop a run, `warning` would harm it or somebody, `ok` is neither.
        text: what was found.
        mend: what to do; empty where nothing is.
    """

    check: str
    status: Literal["ok", "warning", "problem"]
    text: str
    mend: str = ""

    def record(self) -> Record:
        """Return the finding as JSON, secrets masked."""
        return dict(masked(asdict(self)))


def fine(check: str, text: str) -> Finding:
    """Report that nothing is in the way."""
    return Finding(check, "ok", text)


def warning(check: str, text: str, mend: str) -> Finding:
    """Report what does not stop a run and should be mended."""
    return Finding(check, "warning", text, mend)


def problem(check: str, text: str, mend: str) -> Finding:
    """Report what would stop a run."""
    return Finding(check, "problem", text, mend)


def from_error(check: str, error: HaiError) -> Iterator[Finding]:
    """Report every line of an error as a problem; what stands behind its last semicolon is the mend."""
    for line in str(error).splitlines():
        text, _, mend = line.rpartition("; ")
        yield problem(check, text or line, mend if text else "")


def tilde(path: str | Path) -> str:
    """Write a path without the name of the home folder."""
    with contextlib.suppress(ValueError, RuntimeError):
        return str(Path("~") / Path(path).relative_to(Path.home()))
    return str(path)


def private(path: str | Path) -> str:
    """Write the command that lets nobody but its owner read a file."""
    shown = tilde(path)
    return f"chmod 600 ~/{shlex.quote(shown[2:])}" if shown.startswith("~/") else f"chmod 600 {shlex.quote(shown)}"
