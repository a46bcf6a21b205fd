"""What preprocessing counts at the end."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

from hai.faces.journal import FileRecord
from hai.types import LABELS

__all__ = ["summarise"]


def summarise(records: list[FileRecord], detector: str) -> dict[str, Any]:
    """Count files, frames and crops: overall, by split and class, by class and source; name what was unusable."""
    by_split: dict[str, Counter[str]] = defaultdict(Counter)
    for record in records:
        by_split[f"{record.split}/{LABELS[record.label]}"].update(
            files=1, files_with_faces=bool(record.crops), crops=len(record.crops)
        )
    kinds: dict[tuple[int, str], list[FileRecord]] = defaultdict(list)
    for record in records:
        kinds[record.label, record.source].append(record)
    return {
        **_counts(records, detector),
        "by_split": {key: dict(by_split[key]) for key in sorted(by_split)},
        "by_source": [
            {"label": LABELS[label], "source": source, **_counts(part, detector)}
            for (label, source), part in sorted(kinds.items())
        ],
        "unusable": {record.path: record.error for record in records if record.error},
        "without_face": [record.path for record in records if not record.error and not record.crops],
    }


def _counts(records: list[FileRecord], detector: str) -> dict[str, Any]:
    frames, found = sum(record.num_frames for record in records), sum(record.num_found for record in records)
    return {
        "files": len(records),
        "videos": sum(record.kind == "video" for record in records),
        "images": sum(record.kind == "image" for record in records),
        "files_unusable": sum(bool(record.error) for record in records),
        "files_with_faces": sum(bool(record.crops) for record in records),
        "frames": frames,
        "frames_with_faces": found,
        "face_rate": round(found / frames, 4) if frames else None,
        "crops": sum(len(record.crops) for record in records),
        "by_fallback": sum(crop.detector != detector for record in records for crop in record.crops),
    }
