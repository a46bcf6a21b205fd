"""The small files of a run folder: metrics.jsonl, summary.json, best.json, and the table of runs made from them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from hai.checkpoint.files import save_bytes
from hai.types import Record

__all__ = [
    "BEST",
    "CONFIG",
    "LABEL_AUDIT",
    "LOG",
    "METRICS",
    "OWNER",
    "REPORT",
    "SMALL_FILES",
    "SUMMARY",
    "TENSORBOARD",
    "append_record",
    "load_json",
    "load_records",
    "merge_records",
    "parse_json",
    "parse_records",
    "save_json",
    "save_text",
    "to_json",
    "truncate_after",
]

METRICS: Final = "metrics.jsonl"
SUMMARY: Final = "summary.json"
CONFIG: Final = "run.yaml"
LOG: Final = "log.txt"
BEST: Final = "best.json"
REPORT: Final = "report.html"
LABEL_AUDIT: Final = "label_audit.csv"
OWNER: Final = "owner.json"
TENSORBOARD: Final = "tensorboard"

SMALL_FILES: Final = (METRICS, SUMMARY, CONFIG, LOG, BEST, REPORT, LABEL_AUDIT)
"""Files of a run folder that are pushed to the storage whole, as TensorBoard's are; owner.json goes there directly."""


def append_record(path: Path, record: Record) -> None:
    """Append one line to metrics.jsonl, in a single write; a torn line before it stays alone on its line."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        end = os.lseek(descriptor, 0, os.SEEK_END)
        torn = end > 0 and os.pread(descriptor, 1, end - 1) != b"\n"
        os.write(descriptor, (b"\n" if torn else b"") + _line(record))
    finally:
        os.close(descriptor)


def load_records(path: Path) -> list[Record]:
    """Read metrics.jsonl; no file is no records, a torn line is passed over."""
    try:
        return parse_records(path.read_bytes())
    except FileNotFoundError:
        return []


def parse_records(content: bytes) -> list[Record]:
    """Read the records in the bytes of a metrics.jsonl, leaving out lines that are not whole."""
    records = []
    for line in content.splitlines():
        try:
            record = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


def truncate_after(path: Path, step: int, known: Iterable[Record] = ()) -> list[Record]:
    """Drop the records beyond a step, so that a resumed run writes no step twice.

    Args:
        path: metrics.jsonl.
        step: the step that training goes on from.
        known: records that a checkpoint remembers; those the file has lost are put back in their place.

    Returns:
        The records that are left.
    """
    records = [record for record in load_records(path) if _step(record) <= step]
    present = {json.dumps(record, sort_keys=True) for record in records}
    known = [json.loads(_line(record)) for record in known]
    lost = [r for r in known if _step(r) <= step and json.dumps(r, sort_keys=True) not in present]
    if lost:
        records = sorted([*records, *lost], key=_step)
    content = b"".join(_line(record) for record in records)
    if (path.read_bytes() if path.exists() else b"") != content:
        save_bytes(path, content)
    return records


def merge_records(theirs: bytes, ours: bytes, *, until: float, prefer_ours: bool) -> bytes:
    """Join two versions of metrics.jsonl; a step that is in both is taken from one.

    Args:
        theirs: of the storage.
        ours: of this machine.
        until: step that this machine goes on from; what theirs says of later ones was given up.
        prefer_ours: which of the two counts where both have a step.
    """
    versions = [[record for record in parse_records(theirs) if _step(record) <= until], parse_records(ours)]
    first, second = reversed(versions) if prefer_ours else versions
    steps = {_step(record) for record in first}
    records = [*first, *(record for record in second if _step(record) not in steps)]
    return b"".join(_line(record) for record in sorted(records, key=_step))


def save_json(path: Path, record: Record) -> None:
    """Write a JSON file atomically."""
    save_bytes(path, to_json(record))


def save_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    save_bytes(path, text.encode("utf-8"))


def load_json(path: Path) -> Record | None:
    """Read a JSON object; None when the file is absent or not one."""
    try:
        return parse_json(path.read_bytes())
    except OSError:
        return None


def parse_json(content: bytes | None) -> Record | None:
    """Parse a JSON object; None when there is none, or something else."""
    try:
        record = json.loads((content or b"").decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def to_json(record: Record) -> bytes:
    """Serialise as strict JSON for people: NaN and infinities, which JSON lacks, become null."""
    return (json.dumps(_finite(record), indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")


def _line(record: Record) -> bytes:
    return (json.dumps(_finite(record), ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")


def _step(record: Record) -> int:
    step = record.get("step", 0)
    return step if isinstance(step, int) else 0


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
