"""The page of an audit: what tells label and source, with what it looks like, and examples of every finding."""

from __future__ import annotations

import base64
import io
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from hai.checkpoint.records import save_json, save_text
from hai.console import plain
from hai.data.audit import ALL_FACTS, THUMBNAIL, WARN_FROM, Audit, Separability
from hai.data.audit_checks import Finding
from hai.data.looks import BYTES_PER_PIXEL, Looks
from hai.data.remote import plain_url
from hai.errors import StorageError
from hai.provenance import provenance
from hai.report.blocks import GALLERY_SIZE, markup, metric_row, thumbnail
from hai.report.drawing import FAKE, REAL, SERIES, inline_svg, open_figure
from hai.report.pages import ReportData, render_page
from hai.report.training import provenance_facts
from hai.types import Record

__all__ = ["audit_page", "write_audit"]

_TABLES: Final = ("labels", "metadata", "comparisons")
_MOST_VALUES: Final = 8
_MOST_NOTES: Final = 30
_EXAMPLES: Final = 5
"""Pictures of a class beside its mean: together they fill a row of the page."""
_UNITS: Final = {
    "file size": "file size, kB",
    BYTES_PER_PIXEL: "bytes per pixel",
    "dimensions": "longer side, pixels",
}
"""What stands below the histogram of a fact that is a number."""

_LEADS: Final = {
    "contradiction": ("Contradicting labels", "One picture, several labels: at most one of them can be right."),
    "duplicates": ("Copies across splits", "The same file on both sides: the model has learned the answer."),
    "near-duplicates": (
        "Near-duplicates across splits",
        "Different files that look alike, the earlier split on the left. Frames of one video and edits of one "
        "photograph belong into one group.",
    ),
    "repeated": ("Copies within a split", "They count twice in what is learned and measured."),
    "tiny": ("Smallest images", "Too few pixels for traces of a manipulation, or for a judgement of quality."),
    "no detail": (
        "Enlarged or blurred images",
        "Faces that were tiny before they were cut out, or out of focus: traces of a manipulation are gone.",
    ),
    "odd files": ("Odd files", "All of them can be read; look whether one class has more of them."),
}


def write_audit(audit: Audit, data: str, output: Path | None = None) -> list[Path]:
    """Write audit.json and report.html.

    Args:
        audit: what was found.
        data: as the user named it.
        output: the folder; None: audit/<name of the data>/.

    Returns:
        The files.

    Raises:
        StorageError: they cannot be written.
    """
    path = Path(plain_url(data))
    name = (path.parent.name if path.stem in _TABLES else "") or path.stem or "data"
    folder = output or Path("audit", name)
    origin = provenance()
    page = audit_page(audit, data, name, origin)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_json(folder / "audit.json", {"data": plain_url(data), **audit.record(), **origin})
        save_text(folder / "report.html", page)
    except OSError as error:
        raise StorageError(
            f"--output = {folder}; cannot be written ({error.strerror or error}); choose another"
        ) from None
    return [folder / "audit.json", folder / "report.html"]


def audit_page(audit: Audit, data: str, name: str, origin: Record) -> str:
    """Write the page, one file without scripts or outside references.

    Args:
        audit: what was found.
        data: as the user named it.
        name: of the data.
        origin: as of `provenance`.
    """
    count = len(audit.findings)
    more = [f"{count - _MOST_NOTES} more, listed in audit.json"] if count > _MOST_NOTES else []
    run = ReportData(
        name=name,
        title="Data audit",
        status=f"{count} {'warning' if count == 1 else 'warnings'}" if count else "nothing found",
        facts=[("Data", plain_url(data)), *provenance_facts(origin)],
        notes=[*audit.lines[:_MOST_NOTES], *more],
        commands=[("The same audit again:", origin["command"])],
        versions=origin["versions"],
        written=time.strftime("%Y-%m-%d %H:%M %Z"),
    )
    return render_page("audit.html", run, _parts(audit))


def _parts(audit: Audit) -> Record:
    label = [test for test in audit.tests if test.target == "label"]
    ranked = sorted((t for t in label if t.fact != ALL_FACTS), key=lambda test: -test.separation.value)
    warned = [test for test in audit.tests if test.is_warning and test.fact != ALL_FACTS]
    warned.sort(key=lambda test: (test.target, -test.separation.value))
    size = f"{len(audit.manifest):,} usable images of {audit.num_rows:,} files"
    return {
        "pill": "warned" if audit.findings else "finished",
        "heading": "What was found",
        "strongest": next((test for test in [*ranked, *label] if test.is_warning), None),
        "headline": _row(ranked[0], f"AUC of the label by {ranked[0].fact} alone") if ranked else None,
        "tiles": [_row(test, test.fact) for test in ranked[1:7]],
        "size": size,
        "warn_from": WARN_FROM,
        "audit_notes": audit.notes,
        "targets": [
            {
                "name": target,
                "rows": [
                    _row(test, test.fact)
                    | {"warned": test.is_warning, "n": len(test.plan.rows), "between": test.between}
                    for test in audit.tests
                    if test.target == target
                ],
            }
            for target in ("label", "source")
        ],
        "shortcuts": [_shortcut(audit, test, number) for number, test in enumerate(warned)],
        "counts": audit.manifest.table(),
        "labels": audit.manifest.labels,
        "galleries": [_gallery(audit, found) for found in audit.findings if found.kind in _LEADS],
        "unusable": [found.text for found in audit.findings if found.kind in ("unreadable", "unusable row")],
    }


def _row(test: Separability, title: str) -> Record:
    value, low, high, _ = test.separation
    return metric_row(title, "", {"value": value, "low": low, "high": high})


def _shortcut(audit: Audit, test: Separability, number: int) -> Record:
    """Show what a warning is about: pictures for the thumbnail, else how the fact's values are distributed."""
    shown: Record = {
        "title": f"{test.target.capitalize()} by {test.fact}",
        "between": test.between,
        "test": test.separation,
    }
    rows = audit.looks.rows[test.plan.rows]
    codes = np.unique(test.plan.target)
    if test.fact == THUMBNAIL:
        shown["classes"] = [
            {
                "name": test.classes[code],
                "mean": _pixels(audit.looks.patch[test.plan.rows[test.plan.target == code]].mean(axis=0)),
                "examples": [_shot(audit, int(rows[k])) for k in _typical(test, code)],
            }
            for code in codes.tolist()
        ]
        return shown
    values = _values(audit.looks, test)
    if isinstance(values, np.ndarray):
        shown["svg"] = markup(_histogram(values, test, number))
    else:
        shown["table"] = _common(values, test)
    return shown


def _typical(test: Separability, code: int) -> NDArray[np.int64]:
    """Return the rows of a class that the classifier is surest of; of a middle tier those in its midst."""
    own = np.flatnonzero(test.plan.target == code)
    scores = test.separation.scores[own]
    if code == test.plan.target.min():
        order = np.argsort(-scores, kind="stable")
    elif code == test.plan.target.max():
        order = np.argsort(scores, kind="stable")
    else:
        order = np.argsort(np.abs(scores - np.median(scores)), kind="stable")
    return own[order[:_EXAMPLES]]


def _values(looks: Looks, test: Separability) -> NDArray[np.float64] | list[str]:
    """Return what a fact says of each image of a test, in words or as a number that is worth a histogram."""
    rows, columns = test.plan.rows, looks.columns
    if test.fact == "file size":
        return np.asarray(columns["bytes"], dtype=np.float64)[rows] / 1000
    if test.fact == BYTES_PER_PIXEL:
        return np.asarray(columns["bytes per pixel"], dtype=np.float64)[rows]
    if test.fact == "dimensions":
        width, height = (np.asarray(columns[name], dtype=np.float64)[rows] for name in ("width", "height"))
        if len(np.unique(np.stack([width, height]), axis=1).T) > 4 * _MOST_VALUES:
            return np.maximum(width, height)
        return [f"{w:.0f}x{h:.0f}" for w, h in zip(width, height, strict=True)]
    if test.fact == "JPEG quantisation tables":
        pairs = zip(columns["tables"], columns["quality"], strict=True)
        named = [f"quality {quality:.0f}, tables {tables}" if quality else "no JPEG" for tables, quality in pairs]
        return [named[i] for i in rows.tolist()]
    name = {"EXIF": "exif", "other metadata": "metadata", "chroma subsampling": "subsampling"}.get(test.fact, test.fact)
    return [str(columns[name][i]) or "none" for i in rows.tolist()]


def _common(values: list[str], test: Separability) -> Record:
    """Count the commonest values of each class, in percent of it."""
    codes = np.unique(test.plan.target).tolist()
    counts = [
        Counter(value for value, own in zip(values, test.plan.target, strict=True) if own == code) for code in codes
    ]
    shares = [{value: 100 * count / counter.total() for value, count in counter.items()} for counter in counts]
    common = sorted(
        {v for share in shares for v in share}, key=lambda v: (-max(share.get(v, 0) for share in shares), v)
    )
    rows = [
        {"value": plain(value), "shares": [share.get(value, 0.0) for share in shares]}
        for value in common[:_MOST_VALUES]
    ]
    return {"classes": [test.classes[code] for code in codes], "rows": rows, "more": max(0, len(common) - _MOST_VALUES)}


def _histogram(values: NDArray[np.float64], test: Separability, number: int) -> str:
    codes = np.unique(test.plan.target).tolist()
    low, high = np.quantile(values, [0.0, 0.995])
    edges = np.linspace(low, max(high, low + 1e-9), 41)
    colours = (REAL, FAKE) if len(codes) == 2 else SERIES
    with open_figure(5.6, max(2.4, 0.6 + 0.9 * len(codes)), rows=len(codes)) as (figure, axes):
        for k, (axis, code) in enumerate(zip(axes, codes, strict=True)):
            own = np.clip(values[test.plan.target == code], low, high)
            share = np.histogram(own, edges)[0] / max(1, len(own)) * 100
            axis.stairs(share, edges, fill=True, color=colours[k % len(colours)], alpha=0.6, linewidth=0)
            axis.set_ylabel(f"% of {test.classes[code][-16:]}", parse_math=False)
            axis.grid(visible=False, axis="x")
            axis.set_ylim(bottom=0)
        axes[-1].set_xlabel(_UNITS[test.fact])
        return inline_svg(figure, f"fact{number}", f"Distribution of {test.fact}")


def _pixels(mean: NDArray[np.floating[Any]]) -> str:
    """Encode a tiny picture, [h, w, 3], as a PNG data URI."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.rint(mean).astype(np.uint8)).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _gallery(audit: Audit, found: Finding) -> Record:
    title, lead = _LEADS[found.kind]
    sets = [[_shot(audit, row) for row in rows[:2]] for rows in found.rows[:GALLERY_SIZE]]
    return {
        "title": title,
        "lead": lead,
        "text": found.text[:1].upper() + found.text[1:],
        "pairs": all(len(rows) > 1 for rows in sets),
        "sets": sets,
    }


def _shot(audit: Audit, row: int) -> Record:
    manifest = audit.manifest
    return {
        "image": thumbnail(manifest.read, row),
        "path": plain(manifest.path[row]),
        "label": manifest.labels[manifest.label[row]],
        "split": ("train", "val", "test")[manifest.split[row]],
        "size": f"{manifest.width[row]}x{manifest.height[row]}",
    }
