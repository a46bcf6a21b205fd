"""`python -m benchmarks.gpu`: see the package."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu import PARTS, run
from hai.provenance import provenance


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="Measure this machine's first GPU.")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter turns")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers here")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a tiny size, without floors")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS))
    given = parser.parse_args()
    results = []
    for part in given.only:
        for result in run(given.quick, device=given.device, only=[part]):
            results.append(result)
            print(_line(result), flush=True)
    if given.json:
        date = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        record = {"suite": "gpu", "quick": given.quick, "date": date, **provenance(), "results": results}
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    missed = [result["name"] for result in results if not result["holds"]]
    if missed:
        print(f"beyond their limits: {', '.join(missed)}", file=sys.stderr)
    return 1 if missed else 0


def _line(result: dict[str, Any]) -> str:
    value = "-" if result["value"] is None else f"{result['value']:.4g}"
    spread = "" if result["low"] is None else f" ({result['low']:.4g} to {result['high']:.4g})"
    limit = "" if result["floor"] is None else f", limit {result['floor']:g}{'' if result['holds'] else ': MISSED'}"
    return f"{result['name']}: {value}{spread}{limit}"


if __name__ == "__main__":
    sys.exit(main())
