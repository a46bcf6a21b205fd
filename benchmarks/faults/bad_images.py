"""Damaged pictures: rotten, cut, shuffled, lying, explosive; and what Pillow alone says of each."""

from __future__ import annotations

import io
import random
import struct
import warnings
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from hai.data.images import FORMATS

__all__ = ["damage", "is_picture", "originals"]

_SUFFIXES = (".jpg", ".png", ".webp", ".bmp", ".gif", ".tif", ".jpeg", ".avif", ".jp2", ".ppm", ".psd")


def originals(real_data: Path | None = None) -> list[bytes]:
    """Draw small pictures in every common format; add a few real ones where there are some."""
    rng = np.random.default_rng(7)
    coarse = rng.integers(0, 256, (6, 7, 3)).astype(np.uint8)
    color = Image.fromarray(coarse).resize((61, 47), Image.Resampling.BICUBIC)
    clear = color.convert("RGBA")
    clear.putalpha(128)
    forms = [
        *((color, "JPEG", {"quality": q, "progressive": p}) for q, p in ((90, False), (60, True))),
        *((color.convert("L"), kind, {}) for kind in ("JPEG", "PNG", "BMP", "TIFF")),
        *((clear, kind, {}) for kind in ("PNG", "WEBP")),
        *((color, kind, {}) for kind in ("PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")),
        *((color, "TIFF", {"compression": name}) for name in ("tiff_lzw", "tiff_deflate", "jpeg")),
        (color, "WEBP", {"lossless": True}),
        (color.convert("CMYK"), "JPEG", {}),
        (color.convert("P"), "PNG", {}),
        (color, "GIF", {"save_all": True, "append_images": [color.rotate(90)]}),
    ]
    made = []
    for image, kind, options in forms:
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        made.append(buffer.getvalue())
    if real_data is not None and real_data.is_dir():
        found = sorted(path for path in real_data.rglob("*.jpg") if path.stat().st_size < 200_000)
        made += [path.read_bytes() for path in found[:: max(1, len(found) // 4)][:4]]
    return made


def damage(rng: random.Random, sources: Sequence[bytes]) -> tuple[str, bytes]:
    """Damage one of the pictures; returns a suffix and the bytes."""
    data = bytearray(rng.choice(sources))
    data = rng.choice(_DAMAGES)(rng, data, sources)
    if rng.random() < 0.2:
        data = rng.choice(_DAMAGES)(rng, data, sources)
    return rng.choice(_SUFFIXES), bytes(data)


def is_picture(data: bytes, max_megapixels: float) -> bool:
    """Say whether Pillow decodes it, with the formats that are allowed, whole and small enough."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                if not 0 < image.size[0] * image.size[1] <= max_megapixels * 1e6:
                    return False
                image.load()
                return True
    except Exception:
        return False


def _flip(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> bytearray:
    for _ in range(rng.choice((1, 1, 3, 40)) if data else 0):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return data


def _flip_header(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> bytearray:
    for _ in range(rng.randint(1, 6) if data else 0):
        data[rng.randrange(min(len(data), 64))] = rng.randrange(256)
    return data


def _truncate(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> bytearray:
    return data[: rng.randrange(len(data) + 1)]


def _swap(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> bytearray:
    a, b, c = sorted(rng.randrange(len(data) + 1) for _ in range(3))
    return data[:a] + data[b:c] + data[a:b] + data[c:]


def _zero(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> bytearray:
    at = rng.randrange(len(data) + 1)
    size = min(len(data) - at, rng.choice((1, 16, 512, 4096)))
    data[at : at + size] = bytes([rng.choice((0, 255))]) * size
    return data


def _append(rng: random.Random, data: bytearray, sources: Sequence[bytes]) -> bytearray:
    return data + rng.choice(
        (rng.randbytes(rng.randint(1, 3000)), bytes(1000), rng.choice(sources), b"PK\5\6" + bytes(18))
    )


def _nest(rng: random.Random, data: bytearray, sources: Sequence[bytes]) -> bytearray:
    at = rng.choice((0, 2, 8, rng.randrange(len(data) + 1)))
    return data[:at] + rng.choice(sources) + data[at:]


def _repeat(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> bytearray:
    at = rng.randrange(len(data) + 1)
    return data[:at] + data[at : at + rng.randint(1, 200)] * rng.randint(2, 300) + data[at:]


def _other(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> bytearray:
    texts = (b"", b"\0", b"not an image", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.7\n", b"GIF89a", b"BM")
    texts += (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"RIFF\xff\xff\xff\xffWEBPVP8 ", b"\xff\xd8\xff")
    texts += (b"\x89PNG\r\n\x1a\n", b"\0\0\1\0\1\0", b"SIMPLE  =", b"II*\0\x08\0\0\0", b"P6 9 9 255 ", b"8BPS\0\1")
    return bytearray(rng.choice((*texts, bytes(data[: len(data) // 2]) + b"\0" * 400, rng.randbytes(500))))


def _bomb(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> bytearray:
    """Announce more pixels than any picture has."""
    side = rng.choice((3000, 20_000, 65_500, 2**31 - 1))
    short = min(side, 65_500)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(
        ">IIBBBBB", side, side, rng.choice((1, 8, 16)), rng.choice((0, 2, 3, 6)), 0, 0, rng.randint(0, 1)
    )
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head)
    frame = struct.pack(">BHHB", 8, short, short, 3) + b"\1\x11\0\2\x11\0\3\x11\0"
    made: tuple[Callable[[], bytes], ...] = (
        lambda: png + chunk(b"IDAT", zlib.compress(bytes(3_000_000))) + chunk(b"IEND", b""),
        lambda: png + chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(9_000_000))) + chunk(b"IEND", b""),
        lambda: b"\xff\xd8\xff\xc0" + struct.pack(">H", len(frame) + 2) + frame + bytes(data[2:]),
        lambda: b"BM" + struct.pack("<IIIIiiHHIIIIII", 99, 0, 54, 40, side, side, 1, 24, 0, 0, 1, 1, 0, 0),
        lambda: b"GIF89a" + struct.pack("<HHBBB", short, short, 0x80, 0, 0) + bytes(6) + b"," + bytes(9) + b"\2\1\0\0;",
        lambda: b"P6 %d %d 255\n" % (side, side) + bytes(100),
        lambda: b"II*\0\x08\0\0\0\1\0" + struct.pack("<HHII", rng.choice((256, 273, 279)), 4, side, 8) + b"\x08\0\0\0",
        lambda: b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, short, short, 8, 3) + bytes(40),
    )
    return bytearray(rng.choice(made)())


_DAMAGES: tuple[Callable[[random.Random, bytearray, Sequence[bytes]], bytearray], ...] = (
    *(_flip, _flip, _flip_header, _truncate, _truncate, _swap, _zero, _append, _nest, _repeat, _other, _bomb),
)
