"""The doctor's findings and advice as people read them, on a terminal, in a notebook's cell or in a pipe."""

from __future__ import annotations

import sys
import textwrap
from typing import Any, Final

from hai.console import print_table, shown_bytes
from hai.doctor.advice import Advice, Row
from hai.doctor.diagnosis import Diagnosis
from hai.doctor.findings import Finding
from hai.masking import without_secrets

__all__ = ["print_end", "print_finding"]

_STYLES: Final = {"ok": "green", "warning": "yellow", "problem": "bold red"}
_INDENT: Final = 23
_MANY: Final = 10_000


def print_finding(finding: Finding) -> None:
    """Print a finding, and how to mend it on a line of its own; nothing is cut, long lines are folded on terminals."""
    text, mend = without_secrets(finding.text), without_secrets(finding.mend)
    lines = [*_folded(text), *(_folded(f"-> {mend}") if mend else [])]
    console = _console()
    console.print(f"{finding.status:8}", style=_STYLES[finding.status], end="")
    console.print(f"{finding.check:{_INDENT - 8}}{lines[0]}", markup=False)
    for line in lines[1:]:
        console.print(f"{'':{_INDENT}}{line}", markup=False)


def _console() -> Any:
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 10_000, highlight=False, soft_wrap=True)


def _folded(text: str) -> list[str]:
    if not sys.stdout.isatty():
        return [text]
    width = max(40, _console().width - _INDENT)
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False) or [""]


def print_end(diagnosis: Diagnosis, config: str | None = None) -> None:
    """Print the advice for a config and what it all adds up to."""
    console, advice = _console(), diagnosis.advice
    if advice is not None:
        console.print()
        console.print(f"{config} here: {_sentence(advice)}", markup=False)
        console.print()
        console.print(
            f"What fits, {advice.image_size} px, the whole batch on one card; by the sizes of a step's tensors, "
            "so it is an estimate:",
            markup=False,
        )
        columns = ["card", "memory", "precision", "a step takes", "fit at once", "set"]
        print_table(columns, [_cells(row) for row in advice.rented])
    console.print()
    count = len(diagnosis.problems)
    worries = sum(finding.status == "warning" for finding in diagnosis.findings)
    noted = f"; {worries} warning{'s' if worries > 1 else ''}" if worries else ""
    if count:
        console.print(f"{count} problem{'s' if count > 1 else ''} would stop a run{noted}", style="bold red")
    else:
        console.print(f"nothing is in the way of a run{noted}", style="bold green")


def _sentence(advice: Advice) -> str:
    number = f"{advice.workers} worker{'s' if advice.workers > 1 else ''}"
    return ", ".join([f"{number} on {advice.here.card}", advice.here.precision, _settings(advice.here)])


def _settings(row: Row) -> str:
    if row.settings is None:
        return "does not fit"
    return " ".join(row.settings) or "nothing to set: it fits as it is"


def _cells(row: Row) -> list[str]:
    settings = "does not fit" if row.settings is None else " ".join(row.settings) or "-"
    most = str(row.most) if row.most < _MANY else f"over {_MANY}"
    return [row.card, shown_bytes(row.memory), row.precision, shown_bytes(row.takes), most, settings]
