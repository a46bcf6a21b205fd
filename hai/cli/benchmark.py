"""The verb `hai benchmark`."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from hai.types import Record

__all__ = ["benchmark"]


def benchmark(
    suite: Annotated[
        str, typer.Argument(metavar="SUITE", help="A suite of benchmarks/, or all: those of speed.", show_default=False)
    ],
    quick: Annotated[bool, typer.Option("--quick", help="Fewer repetitions.")] = False,
    checkpoint: Annotated[
        str | None, typer.Option(metavar="REF", help="What the suite inference measures: a run or a checkpoint.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the numbers here.")
    ] = None,
) -> None:
    """Measure this machine; exit status 1 where a number misses its floor."""
    from hai.benchmark import failed_floors, run_all, run_suite
    from hai.console import print_table

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that suites end what they have started

    def save(record: Record) -> None:
        if json_file:
            json_file.parent.mkdir(parents=True, exist_ok=True)
            json_file.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    if suite == "all" and checkpoint is None:
        record = run_all(quick=quick, finished=save)
    else:
        record = run_suite(suite, quick=quick, checkpoint=checkpoint)
        save(record)
    columns = ("name", "value", "low", "high", "floor", "holds")
    print_table(columns, [[result[column] for column in columns] for result in record["results"]])
    failed = failed_floors(record["results"])
    if failed:
        print(f"below their floors: {', '.join(failed)}", file=sys.stderr)
        raise typer.Exit(1)
