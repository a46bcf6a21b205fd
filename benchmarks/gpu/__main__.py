"""`python -m benchmarks.gpu`: see the package."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu import PARTS, run
from hai.provenance import provenance


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure part after part; what was measured is on disk before the next part begins."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="Measure this machine's first GPU.")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter turns")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers here")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a tiny size, without floors")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS))
    given = parser.parse_args(arguments)
    date = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    results: list[dict[str, Any]] = []
    record = {"suite": "gpu", "quick": given.quick, "date": date, **provenance(), "results": results}
    for part in given.only:
        for result in run(given.quick, device=given.device, only=[part]):
            results.append(result)
            print(_line(result), flush=True)
        if given.json:
            _write(record, given.json)
    missed = [result["name"] for result in results if result["holds"] is False]
    if missed:
        print(f"beyond their limits: {', '.join(missed)}", file=sys.stderr)
    return 1 if missed else 0


def _write(record: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    ahead = path.with_name(f".{path.name}.{os.getpid()}")
    ahead.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    ahead.replace(path)


def _line(result: dict[str, Any]) -> str:
    value = "-" if result["value"] is None else f"{result['value']:.4g}"
    spread = "" if result["low"] is None else f" ({result['low']:.4g} to {result['high']:.4g})"
    missed = ": MISSED" if result["holds"] is False else ""
    limit = "" if result["floor"] is None else f", limit {result['floor']:g}{missed}"
    return f"{result['name']}: {value}{spread}{limit}"


if __name__ == "__main__":
    sys.exit(main())
