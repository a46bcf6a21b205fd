"""Run a benchmark suite of the repository and judge its numbers by their floors."""

from __future__ import annotations

import importlib.util
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

from hai.errors import ConfigError
from hai.provenance import provenance
from hai.types import Record

__all__ = ["failed_floors", "run_suite", "suites"]

_OF_CHECKPOINTS = ("inference",)
_FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"


def suites() -> list[str]:
    """Name the suites of this checkout."""
    return sorted(path.stem for path in _FOLDER.glob("*.py") if not path.stem.startswith("_"))


def run_suite(suite: str, *, quick: bool = False, checkpoint: str | None = None) -> Record:
    """Run one suite: a file with `run(quick: bool) -> list[{name, value, low, high, floor, holds}]`.

    Args:
        suite: name of the file.
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
    module = _load(_FOLDER / f"{suite}.py")
    results = module.run(quick) if checkpoint is None else module.run(quick, checkpoint)
    date = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {"suite": suite, "quick": quick, "date": date, **provenance(), "results": results}


def failed_floors(results: list[Record]) -> list[str]:
    """Name the results that miss their floors."""
    return [result["name"] for result in results if not result["holds"]]


def _load(path: Path) -> ModuleType | Any:
    if str(_FOLDER.parent) not in sys.path:  # suites import each other as `benchmarks.name`
        sys.path.insert(0, str(_FOLDER.parent))
    spec = importlib.util.spec_from_file_location(f"hai_benchmark_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None  # a .py file has both
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for their own
    spec.loader.exec_module(module)
    return module
