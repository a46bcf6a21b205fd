"""Everything that can go wrong, many times, against real training: what survives is counted.

For each model 100 SIGKILLs at random points, 90 of training in forked children and 10 of drivers, workers and heads of
Ray, a quarter of the forked ones inside a save, with damage to the newest checkpoint after three in ten; every finished
run is compared with an unbroken one: weights, averaged weights and optimizer byte by byte, the examples of every step,
every recorded loss. Then corrupted checkpoints, storages that fail, hang and lie, hostile images, tables, archives and
files, and secrets in the environment that must not appear in anything that is written.

Every number below is a count; what must not happen has the floor 0. Run alone with `python -m benchmarks.chaos
[--quick]`.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.faults.kills import KillCounts, survive_kills

TASKS = ("detector", "ranker")
FORKED, OF_RAY = 90, {"workers": 6, "drivers": 2, "heads": 2}
QUICK_FORKED, QUICK_OF_RAY = 6, {"workers": 1, "drivers": 1, "heads": 0}


def run(quick: bool) -> list[dict[str, Any]]:
    """Throw everything at hai and count; each record that has a floor says whether it keeps it."""
    with tempfile.TemporaryDirectory(prefix="hai-chaos-") as name:
        scratch = Path(name)
        os.environ["HAI_CACHE"] = str(scratch / "cache")
        records: list[dict[str, Any]] = []
        for task in TASKS:
            records += _of_kills(task, quick, scratch)
        records += _of_checkpoints(quick, scratch / "corruption")
        records += _of_uploads(quick, scratch / "uploads")
        records += _of_inputs(quick, scratch / "inputs")
        records += _of_secrets(scratch / "secrets")
    print(_table(records), file=sys.stderr)
    return records


def _of_kills(task: str, quick: bool, scratch: Path) -> list[dict[str, Any]]:
    from benchmarks.faults.ray_kills import survive_ray_kills

    forked = survive_kills(task, kills=QUICK_FORKED if quick else FORKED, seed=1, folder=scratch, say=_say)
    kinds = QUICK_OF_RAY if quick else OF_RAY
    ray = survive_ray_kills(task, **kinds, seed=2, folder=scratch / f"{task}-ray", say=_say)
    both = (forked, ray)
    return [
        _record(f"{task}: kills survived, forked", forked.kills["forked"]),
        *(_record(f"{task}: kills survived, Ray {kind}", ray.kills[kind]) for kind in ("driver", "worker", "head")),
        _record(f"{task}: of them inside a save", forked.inside_save),
        _record(f"{task}: newest checkpoints damaged", _sum(both, "rotten")),
        _record(f"{task}: damaged checkpoints not refused", _sum(both, "unrefused"), most=0),
        _record(f"{task}: examples lost", _sum(both, "lost"), most=0),
        _record(f"{task}: examples repeated", _sum(both, "repeated"), most=0),
        _record(f"{task}: final files and records that differ", _sum(both, "differing"), most=0),
    ]


def _sum(counts: tuple[KillCounts, ...], field: str) -> int:
    return sum(int(getattr(one, field)) for one in counts)


def _of_checkpoints(quick: bool, folder: Path) -> list[dict[str, Any]]:
    from benchmarks.faults.corruption import corrupt_checkpoints

    found = corrupt_checkpoints(100 if quick else 1000, seed=3, folder=_made(folder))
    return [
        _record("sets of checkpoints corrupted", found["tried"]),
        _record("corrupt checkpoints refused", found["refused"]),
        _record("corrupt checkpoints loaded silently", found["silent"], most=0),
        _record("corrupt checkpoints not named, or an older one taken", found["unnamed"] + found["older"], most=0),
    ]


def _of_uploads(quick: bool, folder: Path) -> list[dict[str, Any]]:
    from benchmarks.faults.uploads import break_uploads

    found = break_uploads(10 if quick else 60, seed=4, folder=_made(folder))
    return [
        _record("faults of a storage", found["faults"]),
        _record("uploads missing and not said", found["missing"], most=0),
        _record("stops because of a storage", found["stops"], most=0),
    ]


def _of_inputs(quick: bool, folder: Path) -> list[dict[str, Any]]:
    from benchmarks.faults.inputs import try_bad_inputs
    from benchmarks.faults.malice import try_malice

    images, tables, archives = (200, 100, 50) if quick else (5000, 2000, 1000)
    found = try_bad_inputs(images, tables, archives, seed=5, folder=_made(folder))
    malice = try_malice(_made(folder / "malice"))
    return [
        _record("bad inputs tried", found["tried"] + malice["tried"]),
        _record("bad inputs: crashes", found["crashes"] + len(malice["crashed"]), most=0),
        _record("bad inputs not listed", found["unlisted"], most=0),
        _record("files written outside, or over the limits", found["escaped"] + found["over_limit"], most=0),
        _record("code executed from data", len(malice["executed"]), most=0),
    ]


def _of_secrets(folder: Path) -> list[dict[str, Any]]:
    from benchmarks.faults.secrets import leak_secrets

    found = leak_secrets(_made(folder))
    return [
        _record("secrets planted", found["secrets"]),
        _record("files searched for them", found["places"]),
        _record("secrets leaked", len(found["leaked"]), most=0),
    ]


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    _say(f"{folder.name} ...")
    return folder


def _record(name: str, value: int, most: int | None = None) -> dict[str, Any]:
    holds = most is None or value <= most
    return {"name": name, "value": value, "low": value, "high": value, "floor": most, "holds": holds}


def _table(records: list[dict[str, Any]]) -> str:
    """Write the counts as a Markdown table, as docs/reliability.md holds it."""
    lines = ["| what | count | at most |", "|---|---:|---:|"]
    for record in records:
        limit = "" if record["floor"] is None else str(record["floor"])
        lines.append(f"| {record['name']} | {record['value']:,}{'' if record['holds'] else ' !'} | {limit} |")
    return "\n".join(lines)


def _say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr)


if __name__ == "__main__":
    print(json.dumps(run("--quick" in sys.argv), indent=1))
