"""Run the benchmark suites of the repository and judge their numbers by their floors."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from hai.errors import ConfigError
from hai.provenance import provenance
from hai.types import Record

__all__ = ["SPEED", "failed_floors", "run_all", "run_suite", "suites"]

SPEED = ("loader", "step", "loop", "checkpoint", "launch", "scaling", "million", "ranker")
"""The suites that together are `all`; the others take a checkpoint, real data, other environments or an hour."""

_HAI = "from hai.cli import main; main()"
_OF_CHECKPOINTS = ("inference",)
_PATIENCE = 20.0  # seconds for a suite to end
_FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"


def suites() -> list[str]:
    """Name the suites of this checkout: files of `benchmarks`, and folders with a `__main__.py`."""
    return sorted(_files())


def run_suite(suite: str, *, quick: bool = False, checkpoint: str | None = None) -> Record:
    """Run one suite: a file with `run(quick: bool) -> list[{name, value, low, high, floor, holds}]`.

    What could not be measured has None for its value and for whether it holds.

    Args:
        suite: name of the file or folder.
        quick: fewer repetitions.
        checkpoint: REF, for the suite `inference`, whose `run` takes it too.

    Returns:
        `results` as the suite gave them, with the date, commit, hardware, versions and command they belong to.

    Raises:
        ConfigError: there is no such suite, or it needs a checkpoint, or takes none.
    """
    if suite not in suites():
        known = ", ".join(suites()) or "none: benchmarks come with a checkout of the repository"
        raise ConfigError(f"benchmark: suite = {suite}; must be one of this checkout's suites: {known}")
    if (checkpoint is not None) != (suite in _OF_CHECKPOINTS):
        need = "takes none" if checkpoint is not None else "measures one; give --checkpoint REF"
        raise ConfigError(f"benchmark: --checkpoint = {checkpoint}; suite {suite} {need}")
    module = _load(suite)
    results = module.run(quick) if checkpoint is None else module.run(quick, checkpoint)
    date = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {"suite": suite, "quick": quick, "date": date, **provenance(), "results": results}


def run_all(*, quick: bool = False, finished: Callable[[Record], None] = lambda record: None) -> Record:
    """Run the suites of `SPEED` one after the other, each in a process of its own.

    Args:
        quick: fewer repetitions.
        finished: called after each suite with the record so far, so that an interruption costs one suite.

    Returns:
        As `run_suite`: `results` of all suites, each `name` behind its suite's, and `suites` with the seconds and
        CPU-seconds that each took. A suite that fails is a result that does not hold, named `SUITE: failed`.
    """
    date = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    record: Record = {"suite": "all", "quick": quick, "date": date, **provenance(), "suites": [], "results": []}
    _find_benchmarks()
    of_speed = [name for name in SPEED if name in suites()]
    for number, suite in enumerate(of_speed, start=1):
        print(f"benchmark {number}/{len(of_speed)}: {suite}", file=sys.stderr)
        wall, waited = time.perf_counter(), _waited_for()
        with importlib.import_module("benchmarks._measure").TreeClock() as clock:
            results = _run_apart(suite, quick)
        record["results"] += [{**result, "name": f"{suite}: {result['name']}"} for result in results]
        seconds = time.perf_counter() - wall
        cpu_seconds = max(clock.seconds(), _waited_for() - waited)  # a short suite may end between two looks
        record["suites"].append({"suite": suite, "seconds": round(seconds, 1), "cpu_seconds": round(cpu_seconds, 1)})
        finished(record)
    return record


def _waited_for() -> float:
    """Return the processor seconds of the processes that have ended and were waited for."""
    times = os.times()
    return times.children_user + times.children_system


def _run_apart(suite: str, quick: bool) -> list[Record]:
    """Run a suite in a fresh process, whose threads, memory and settings no other suite has touched."""
    with tempfile.TemporaryDirectory(prefix="hai-benchmark-") as scratch:
        written = Path(scratch) / "record.json"
        command = [sys.executable, "-c", _HAI, "benchmark", suite, "--json", str(written)]
        with subprocess.Popen([*command, *(["--quick"] if quick else [])], stdout=subprocess.DEVNULL) as process:
            try:
                code = process.wait()
            except BaseException as error:
                with suppress(subprocess.TimeoutExpired):
                    if isinstance(error, KeyboardInterrupt):  # of which a terminal has told it, too
                        process.wait(_PATIENCE)
                process.terminate()  # it ends what it has started and removes its files
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_PATIENCE)
                process.kill()
                raise
        if written.exists():
            results: list[Record] = json.loads(written.read_text(encoding="utf-8"))["results"]
            return results
    print(f"benchmark: {suite} = exit status {code}; run hai benchmark {suite} to see why", file=sys.stderr)
    return [{"name": "failed", "value": None, "low": None, "high": None, "floor": None, "holds": False}]


def failed_floors(results: list[Record]) -> list[str]:
    """Name the results that were measured and miss their floors."""
    return [result["name"] for result in results if result["holds"] is not None and not result["holds"]]


def _files() -> dict[str, Path]:
    files = {path.stem: path for path in _FOLDER.glob("*.py") if not path.stem.startswith("_")}
    return files | {path.parent.name: path for path in _FOLDER.glob("*/__main__.py")}


def _find_benchmarks() -> None:
    """Let suites import each other as `benchmarks.name`."""
    if str(_FOLDER.parent) not in sys.path:
        sys.path.insert(0, str(_FOLDER.parent))


def _load(suite: str) -> ModuleType | Any:
    path = _files()[suite]
    _find_benchmarks()
    spec = importlib.util.spec_from_file_location(f"hai_benchmark_{suite}", path)
    assert spec is not None
    assert spec.loader is not None  # a .py file has both
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for their own
    spec.loader.exec_module(module)
    return module
