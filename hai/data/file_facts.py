"""What a file says besides its picture: format, compression, colours, metadata, read from its header.

Nothing is decoded. A detector never sees these facts, but each leaves traces in pixels, and where one of them tells the
classes apart, a score measures how files were made.
"""

from __future__ import annotations

import io
import struct
import zlib
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from PIL import Image

from hai.data.images import FORMATS

__all__ = ["FileFacts", "file_facts"]

_TEXTS: Final = (0x010F, 0x0110, 0x0131)
"""EXIF tags that name what made a file: make, model, software."""
_ORIENTATION: Final = 0x0112
_MOST_ENTRIES: Final = 200
_MOST_NAMED: Final = 32
"""Blocks of metadata that are named; a file may hold any number of them."""
_STANDARD_LUMINANCE: Final = 3688
"""Sum of the luminance table of ITU-T T.81, annex K, which encoders scale by the quality."""
_STANDARD_HUFFMAN: Final = 416
"""Bytes of the four Huffman tables of that annex; an encoder that fits its own writes others."""
_SUBSAMPLING: Final = {"22 11 11": "4:2:0", "21 11 11": "4:2:2", "11 11 11": "4:4:4", "12 11 11": "4:4:0"}
_PNG_MODES: Final = {0: "gray", 2: "RGB", 3: "palette", 4: "gray with alpha", 6: "RGB with alpha"}
_PNG_PICTURE: Final = (b"IHDR", b"PLTE", b"tRNS", b"eXIf")


@dataclass
class FileFacts:
    """Facts of one image file; a text is "" where the format knows no such thing."""

    format: str = "unknown"
    """Such as JPEG or PNG."""
    colours: str = ""
    """Such as RGB, gray, CMYK, 16-bit gray."""
    tables: str = ""
    """JPEG quantisation tables: a hash of them."""
    quality: float = 0.0
    """JPEG quality that the luminance table stands for, 0-100; 0: no JPEG."""
    subsampling: str = ""
    """Of the chroma of a JPEG or WebP."""
    coding: str = ""
    """How the data are coded, such as progressive, or with Huffman tables of the file's own."""
    exif: str = "none"
    """What made the file, in its own words; "none" without EXIF."""
    metadata: str = ""
    """Names of the blocks of metadata other than EXIF, in their order, up to 32."""
    oddities: list[str] = field(default_factory=list)
    """What a reader may not expect, such as several pictures."""


def file_facts(data: bytes) -> FileFacts:
    """Read the facts of an image file; damage ends the reading, never raises."""
    facts = FileFacts()
    with suppress(struct.error, IndexError):
        if data[:3] == b"\xff\xd8\xff":
            _read_jpeg(data, facts)
        elif data[:8] == b"\x89PNG\r\n\x1a\n":
            _read_png(data, facts)
        elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            _read_webp(data, facts)
        else:
            _read_other(data, facts)
    return facts


def _read_jpeg(data: bytes, facts: FileFacts) -> None:
    facts.format, at = "JPEG", 2
    tables, huffman, blocks = list[bytes](), 0, list[str]()
    coding = ["Huffman tables of its own"]
    while data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # fill
            at += 1
            continue
        (length,) = struct.unpack_from(">H", data, at + 2)
        body = data[at + 4 : at + 2 + length]
        if marker == 0xDB:
            tables.append(body)
        elif marker == 0xC4:
            huffman += len(body)
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC8, 0xCC):
            _read_frame(marker, body, facts, coding)
        elif marker == 0xDD and body != b"\0\0":
            coding.append("restarts")
        elif marker == 0xE1 and body[:4] == b"Exif":
            _read_exif(body[6:], facts)
        elif 0xE0 <= marker <= 0xEF or marker == 0xFE:
            blocks.append(_block_name(marker, body))
            if blocks[-1] == "MPF":
                facts.oddities.append("several pictures in one file")
        elif marker in (0xD9, 0xDA):
            break
        at += 2 + max(length, 2)
    if huffman == _STANDARD_HUFFMAN:
        coding[0] = "standard Huffman tables"
    facts.coding = ", ".join(dict.fromkeys(coding))
    facts.metadata = _named(blocks)
    whole = b"".join(tables)
    facts.tables = f"{zlib.crc32(whole):08x}" if whole else "none"
    facts.quality = _quality(whole)


def _read_frame(marker: int, body: bytes, facts: FileFacts, coding: list[str]) -> None:
    precision, parts = body[0], body[5]
    if marker not in (0xC0, 0xC1):
        coding.append("progressive" if marker in (0xC2, 0xC6, 0xCA, 0xCE) else f"frame of kind {marker - 0xC0}")
    factors = " ".join(f"{body[6 + 3 * k + 1] >> 4}{body[6 + 3 * k + 1] & 15}" for k in range(parts))
    facts.colours = {1: "gray", 3: "RGB", 4: "CMYK"}.get(parts, f"{parts} channels")
    facts.subsampling = _SUBSAMPLING.get(factors, factors) if parts > 1 else "no chroma"
    if precision != 8:
        facts.colours = f"{precision}-bit {facts.colours}"
    if facts.colours != "RGB":
        facts.oddities.append(facts.colours)


def _named(blocks: list[str]) -> str:
    """Write the names of blocks, of very many only the first."""
    more = ["and more"] if len(blocks) > _MOST_NAMED else []
    return " ".join([*blocks[:_MOST_NAMED], *more])


def _block_name(marker: int, body: bytes) -> str:
    if marker == 0xFE:
        return "comment"
    name = body.partition(b"\0")[0][:24]
    if name.startswith(b"http://ns.adobe.com/xap") or name.startswith(b"http://ns.adobe.com/xmp"):
        return "XMP"
    if name.startswith(b"Adobe"):
        return "Adobe"
    text = name.decode("ascii", "replace")
    return text.replace(" ", "_") if name and text.isprintable() else f"APP{marker - 0xE0}"


def _quality(tables: bytes) -> float:
    """Estimate the quality that the first table was scaled for.

    Source: jpeg_quality_scaling of the Independent JPEG Group's library; the scale is here the mean over the table.
    """
    if not tables:
        return 0.0
    deep = tables[0] >> 4
    values = struct.unpack_from(">64H" if deep else ">64B", tables, 1)
    scale: float = 100 * sum(values) / _STANDARD_LUMINANCE
    return round((200 - scale) / 2 if scale <= 100 else 5000 / scale, 1)


def _read_exif(tiff: bytes, facts: FileFacts) -> None:
    """Read who made a file, and whether it has to be turned, from an EXIF block."""
    facts.exif = "present, names nothing"
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        facts.oddities.append("damaged EXIF")
        return
    names: list[str] = []
    with suppress(struct.error):
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, start)
        for entry in range(start + 2, start + 2 + 12 * min(count, _MOST_ENTRIES), 12):
            tag, kind, number, value = struct.unpack_from(order + "HHII", tiff, entry)
            if tag == _ORIENTATION and kind == 3:
                (turn,) = struct.unpack_from(order + "H", tiff, entry + 8)
                if turn in range(2, 9):
                    facts.oddities.append("turned by EXIF")
            elif tag in _TEXTS and kind == 2:
                place = entry + 8 if number <= 4 else value
                text = tiff[place : place + min(number, 40)].partition(b"\0")[0].decode("ascii", "replace").strip()
                names += [text] if text and text.isprintable() else []
    facts.exif = " / ".join(names) or facts.exif


def _read_png(data: bytes, facts: FileFacts) -> None:
    facts.format, at, blocks = "PNG", 8, list[str]()
    while at < len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        body = data[at + 8 : at + 8 + min(length, 1 << 16)]
        if kind == b"IHDR":
            depth, colour, interlaced = body[8], body[9], body[12]
            facts.colours = (f"{depth}-bit " if depth != 8 else "") + _PNG_MODES.get(colour, f"colour type {colour}")
            facts.coding = "interlaced" if interlaced else "rows in order"
        elif kind == b"eXIf":
            _read_exif(body, facts)
        elif kind == b"acTL":
            facts.oddities.append("several pictures in one file")
        elif kind == b"tRNS" or (kind == b"IDAT" and "alpha" in facts.colours):
            facts.oddities.append("transparency")
        if kind == b"IDAT":
            break
        if kind not in _PNG_PICTURE:
            blocks.append(kind.decode("ascii", "replace"))
        at += 12 + length
    if facts.colours not in ("RGB", "RGB with alpha"):
        facts.oddities.append(facts.colours)
    facts.metadata = _named(blocks)


def _read_webp(data: bytes, facts: FileFacts) -> None:
    facts.format, facts.colours, at, blocks = "WebP", "RGB", 12, list[str]()
    while at + 8 <= len(data) and len(blocks) < _MOST_ENTRIES:
        kind, length = struct.unpack_from("<4sI", data, at)
        if kind == b"VP8 ":
            facts.coding, facts.subsampling = "lossy", "4:2:0"
        elif kind == b"VP8L":
            facts.coding = "lossless"
        elif kind == b"EXIF":
            body = data[at + 8 : at + 8 + length]
            _read_exif(body.removeprefix(b"Exif\0\0"), facts)
        elif kind == b"ANIM":
            facts.oddities.append("several pictures in one file")
        elif kind == b"ALPH":
            facts.oddities.append("transparency")
        elif kind not in (b"VP8X", b"ANMF"):
            blocks.append(kind.decode("ascii", "replace").strip())
        at += 8 + length + (length & 1)
    facts.metadata = _named(blocks)


def _read_other(data: bytes, facts: FileFacts) -> None:
    """Ask Pillow, which reads headers without decoding."""
    with suppress(Exception), Image.open(io.BytesIO(data), formats=FORMATS) as image:  # it raises anything on damage
        facts.format, facts.colours = image.format or facts.format, image.mode
        facts.coding = str(image.info.get("compression", ""))
        facts.metadata = " ".join(name for name in ("icc_profile", "comment", "dpi") if image.info.get(name))
        if getattr(image, "n_frames", 1) > 1:
            facts.oddities.append("several pictures in one file")
        if image.has_transparency_data:
            facts.oddities.append("transparency")
        if image.mode not in ("RGB", "RGBA", "P"):
            facts.oddities.append({"L": "gray", "1": "gray"}.get(image.mode, image.mode))
