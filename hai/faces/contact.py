"""The contact sheet: a picture of what was cut out, a row for each video, and of what no face was found in."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from hai.data.images import decode_image, fit_image
from hai.data.video import read_frames
from hai.faces.journal import CropRecord, FileRecord
from hai.types import LABELS

__all__ = ["CONTACT_SHEET", "draw_contact_sheet"]

CONTACT_SHEET: Final = "contact_sheet.jpg"

_TILE, _GAP, _TEXT, _LINE = 112, 4, 210, 15  # pixels
_COLUMNS: Final = 8
_MOST_ROWS: Final = 24
_PAPER, _INK, _FAINT = (255, 255, 255), (20, 20, 20), (110, 110, 110)


def draw_contact_sheet(records: Sequence[FileRecord], inputs: Path, output: Path) -> bytes:
    """Draw crops of some files of each class and source, in order of time, and frames in which no face was found.

    Args:
        records: of all files, sorted.
        inputs: folder that their paths start from; what is not there is left out.
        output: folder that the crops' paths start from.

    Returns:
        A JPEG.
    """
    rows: list[tuple[list[str], list[Image.Image]]] = []
    found = [record for record in records if record.crops]
    for record in _choice([record for record in found if record.kind == "video"]):
        crops = [record.crops[at] for at in _spread(len(record.crops), _COLUMNS)]
        frames = f"{record.num_found} of {record.num_frames} frames"
        rows.append(([_heading(record), record.path, frames], [_tile(output, crop) for crop in crops]))
    pictures = _choice([record for record in found if record.kind == "image"])
    for start in range(0, len(pictures), _COLUMNS):
        part = pictures[start : start + _COLUMNS]
        text = list(dict.fromkeys(_heading(record) for record in part))
        rows.append(([*text, "images such as", part[0].path], [_tile(output, record.crops[0]) for record in part]))
    empty = [record for record in records if not record.crops and not record.error]
    tiles = [tile for record in (empty[at] for at in _spread(len(empty), _COLUMNS)) for tile in _frames(inputs, record)]
    if tiles:
        rows.append((["no face was found", f"{len(empty)} files, such as:", empty[0].path], tiles))
    return _sheet(rows)


def _choice(records: list[FileRecord]) -> list[FileRecord]:
    """Choose files evenly over classes and sources."""
    kinds: dict[tuple[int, str], list[FileRecord]] = {}
    for record in records:
        kinds.setdefault((record.label, record.source), []).append(record)
    each = max(1, _MOST_ROWS // max(1, len(kinds)))
    return [part[at] for _, part in sorted(kinds.items()) for at in _spread(len(part), each)][:_MOST_ROWS]


def _spread(total: int, wanted: int) -> list[int]:
    number = min(total, wanted)
    return [(2 * part + 1) * total // (2 * number) for part in range(number)]


def _heading(record: FileRecord) -> str:
    return " ".join(filter(None, (LABELS[record.label], record.source, record.split)))


def _tile(output: Path, crop: CropRecord) -> Image.Image:
    return Image.fromarray(fit_image(decode_image((output / crop.path).read_bytes()), _TILE, "pad"))


def _frames(inputs: Path, record: FileRecord) -> Iterable[Image.Image]:
    """Yield one of the frames of a video that were looked at, the first, or the image."""
    path = inputs / record.path
    try:
        if record.kind == "video":
            images = [frame.image for frame in islice(read_frames(path, max(1, record.num_frames)), 1)]
        else:
            images = [decode_image(path.read_bytes())]
    except Exception:  # decoders raise anything on files that changed; the sheet then lacks a tile
        return
    for image in images:
        yield Image.fromarray(np.ascontiguousarray(fit_image(image, _TILE, "pad")))


def _sheet(rows: list[tuple[list[str], list[Image.Image]]]) -> bytes:
    """Lay rows of tiles out under each other, with text on their left."""
    width = _TEXT + _COLUMNS * (_TILE + _GAP) + _GAP
    sheet = Image.new("RGB", (width, max(1, len(rows)) * (_TILE + _GAP) + _GAP), _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for number, (text, tiles) in enumerate(rows):
        top = _GAP + number * (_TILE + _GAP)
        for place, line in enumerate(_folded(text, draw, font)):
            draw.text((_GAP, top + place * _LINE), line, fill=_FAINT if place else _INK, font=font)
        for column, tile in enumerate(tiles):
            sheet.paste(tile, (_TEXT + column * (_TILE + _GAP), top))
    buffer = io.BytesIO()
    sheet.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _folded(
    text: list[str], draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont
) -> list[str]:
    """Break lines that are too long for the margin; no more of them than a row is high."""
    lines: list[str] = []
    for line in text:
        rest = " ".join(line.encode("utf-8", "replace").decode("utf-8").split())
        while rest:
            end = len(rest)
            while end > 1 and draw.textlength(rest[:end], font) > _TEXT - 3 * _GAP:
                end -= 1
            lines.append(rest[:end])
            rest = rest[end:]
    return lines[: _TILE // _LINE]
