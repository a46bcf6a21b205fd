"""Archives that try to write elsewhere, to explode or to lie; each with what is right to say about it."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import random
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["MAX_BYTES", "MAX_FILES", "MAX_RATIO", "Made", "build_archive"]

MAX_FILES, MAX_BYTES, MAX_RATIO = 60, 1 << 20, 50.0
"""The limits that the archives are tried with."""

_PACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".tar": bytes,
    ".tar.gz": gzip.compress,
    ".tgz": gzip.compress,
    ".tar.bz2": bz2.compress,
    ".tar.xz": lzma.compress,
}
_TAR_KINDS = (
    tarfile.SYMTYPE,
    tarfile.LNKTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
    tarfile.FIFOTYPE,
    tarfile.CONTTYPE,
    b"Z",
)


@dataclass
class Made:
    """An archive and what is right: its files, or the members that must be named, or (neither) any safe answer."""

    path: Path
    files: dict[str, bytes] | None = None
    refused: frozenset[str] = frozenset()


def build_archive(rng: random.Random, folder: Path, outside: Path) -> Made:
    """Write an archive into a folder; what it attacks lies in the folder `outside`."""
    return rng.choice(_MAKERS)(rng, folder, outside)


def _plain(rng: random.Random) -> dict[str, bytes]:
    names = ["real/a.jpg", "fake/b.jpg", "labels.csv", "x/y/z.png", "한글/그림.png", "A.jpg", "a.jpg", "cafe\u0301.png"]
    names += ["caf\u00e9.png", "...", "a b.png", "CON", "\uff0e\uff0e\uff0ffull.png", "deep/" * 20 + "d.png"]
    chosen = rng.sample(names, rng.randint(1, 8))
    return {name: rng.randbytes(rng.choice((0, 1, 100, 5000))) for name in chosen}


def _hostile_names(rng: random.Random, outside: Path) -> list[str]:
    names = [
        "../up.png",
        "a/../../up.png",
        "..\\up.png",
        "a\\..\\..\\up.png",
        f"{outside}/abs.png",
        "/abs.png",
        "//abs.png",
    ]
    names += ["C:\\win.png", "c:win.png", "\\\\host\\share", "tab\t.png", "line\n.png", "\x1b[2Jclear.png", "x" * 300]
    names += [
        "bidi\u202egnp.exe",
        "d/" * 100 + "deep.png",
        "..",
        "a/..",
        f"./../{outside.name}/rel.png",
        "y/" * 1100 + "z",
    ]
    return rng.sample(names, rng.randint(1, 6))


def _tar(members: list[tuple[tarfile.TarInfo, bytes]], form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for info, data in members:
            info.size = info.size or len(data)
            archive.addfile(info, io.BytesIO(data.ljust(0)) if len(data) == info.size else None)
    return buffer.getvalue()


def _member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", **headers: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode, info.pax_headers = kind, link, 0o6777, headers
    return info


def _save_tar(rng: random.Random, folder: Path, data: bytes) -> Path:
    suffix = rng.choice(tuple(_PACKERS))
    path = folder / f"archive{suffix}"
    path.write_bytes(_PACKERS[suffix](data))
    return path


def _save_zip(folder: Path, members: list[tuple[str | zipfile.ZipInfo, bytes]], method: int = 0) -> Path:
    path = folder / "archive.zip"
    with zipfile.ZipFile(path, "w", compression=method) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path


def _method(rng: random.Random) -> int:
    return rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))


def _good(rng: random.Random, folder: Path, outside: Path) -> Made:
    files = _plain(rng)
    if rng.random() < 0.5:
        return Made(_save_zip(folder, list(files.items()), _method(rng)), files)
    form = rng.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT))
    return Made(_save_tar(rng, folder, _tar([(_member(n), data) for n, data in files.items()], form)), files)


def _names(rng: random.Random, folder: Path, outside: Path) -> Made:
    bad, good = _hostile_names(rng, outside), list(_plain(rng).items())
    members = [*good, *((name, b"escaped") for name in bad)]
    rng.shuffle(members)
    if rng.random() < 0.5:
        return Made(_save_zip(folder, list(members)), refused=frozenset(bad))
    form = rng.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT))
    return Made(_save_tar(rng, folder, _tar([(_member(n), d) for n, d in members], form)), refused=frozenset(bad))


def _links(rng: random.Random, folder: Path, outside: Path) -> Made:
    """A link that leads out, then a file to be written through it."""
    target = rng.choice((str(outside), f"../{outside.name}", "/", ".."))
    if rng.random() < 0.3:
        link = zipfile.ZipInfo("link")
        link.external_attr = (rng.choice((stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK)) | 0o777) << 16
        return Made(
            _save_zip(folder, [(link, target.encode()), ("link/through.png", b"1")]), refused=frozenset({"link"})
        )
    kind = rng.choice(_TAR_KINDS)
    members = [(_member("link", kind, target), b""), (_member("link/through.png"), b"escaped")]
    refused = frozenset({"link"}) if kind != tarfile.CONTTYPE else frozenset()
    return Made(_save_tar(rng, folder, _tar(members)), refused=refused)


def _twice(rng: random.Random, folder: Path, outside: Path) -> Made:
    second = rng.choice(("a.png", "./a.png", "a.png/inner", "/".join((".", ".", "a.png"))))
    data = _tar([(_member("a.png"), b"1"), (_member(second), b"2")])
    return Made(_save_tar(rng, folder, data), refused=frozenset({"a.png"} if "inner" in second else {second}))


def _bomb(rng: random.Random, folder: Path, outside: Path) -> Made:
    size = rng.choice((2_000_000, 20_000_000))
    if rng.random() < 0.5:
        return Made(_save_zip(folder, [("a.bmp", bytes(size))], rng.choice((8, 12, 14))))
    return Made(_save_tar(rng, folder, _tar([(_member("a.bmp"), bytes(size))])))


def _many(rng: random.Random, folder: Path, outside: Path) -> Made:
    count = rng.choice((MAX_FILES + 1, 3000))
    names = [rng.choice((f"{i}", f"{i}/" * 30 + "f")) for i in range(count if rng.random() < 0.5 else 20)]
    if rng.random() < 0.5:
        return Made(_save_zip(folder, [(name, b"") for name in names]))
    return Made(_save_tar(rng, folder, _tar([(_member(name), b"") for name in names])))


def _huge_headers(rng: random.Random, folder: Path, outside: Path) -> Made:
    """Long names, pax headers and sparse maps of many megabytes, which compress to nothing."""
    size, head = rng.choice((2, 2, 2, 300)) << 20, tarfile.TarInfo("././@LongLink")
    head.type, head.size = rng.choice((b"L", b"K", b"x", b"g")), size
    path = folder / "archive.tar.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(head.tobuf() + f"{size} comment=".encode().ljust(512, b"a"))
        for _ in range(size // 512 - 1):
            file.write(b"a" * 511 + b"\n")
        file.write(_tar([(_member("a.png"), b"1")]))
    return Made(path)


def _header_chain(rng: random.Random, folder: Path, outside: Path) -> Made:
    head = tarfile.TarInfo("././@LongLink")
    head.type, head.size = rng.choice((b"L", b"x", b"g")), rng.choice((0, 512))
    return Made(_save_tar(rng, folder, (head.tobuf() + b"n" * head.size) * rng.choice((10, 3000)) + bytes(1024)))


def _sparse(rng: random.Random, folder: Path, outside: Path) -> Made:
    real = rng.choice((5000, 1 << 40, -1))
    headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": rng.choice(("s.png", "../s.png"))}
    headers["GNU.sparse.realsize"] = str(real)
    body = rng.choice((b"1\n0\n10\n", b"999999999\n", b"2\n-5\n10\n4000\n10\n", b"1\n" * 3000, b"x")).ljust(512, b"\0")
    return Made(_save_tar(rng, folder, _tar([(_member("s", **headers), body + b"0123456789")])))


def _pax_tricks(rng: random.Random, folder: Path, outside: Path) -> Made:
    tricks = (
        {"size": "-1"},
        {"size": "9" * 30},
        {"path": f"{outside}/pax.png"},
        {"path": "../pax.png"},
        {"linkpath": "/"},
    )
    tricks += (
        {"size": "-512"},
        {"hdrcharset": "BINARY", "path": "\udcff.png"},
        {"mtime": "1e999"},
        {"path": ""},
        {"uid": "x"},
    )
    return Made(
        _save_tar(rng, folder, _tar([(_member("p.png", **rng.choice(tricks)), b"1"), (_member("q.png"), b"2")]))
    )


def _lying_tar(rng: random.Random, folder: Path, outside: Path) -> Made:
    """Sizes that are negative, enormous or another number, with a checksum that fits."""
    head = bytearray(_member("lie.png").tobuf())
    size = rng.choice(
        (
            b"77777777777\0",
            b"\xff" * 11 + b"\0",
            b"\xff" * 12,
            b"\x80" + b"\x7f" * 11,
            b"-0000000512\0",
            b"\x80" + bytes(9) + b"\4\0",
        )
    )
    head[124:136] = size
    head[156:157] = rng.choice((b"0", b"0", b"Z", b"5", b"S"))
    head[148:156] = b"        "
    head[148:156] = b"%06o\0 " % sum(head)
    return Made(_save_tar(rng, folder, bytes(head) + b"1".ljust(512, b"\0") + bytes(1024)))


def _lying_zip(rng: random.Random, folder: Path, outside: Path) -> Made:
    """Sizes, offsets, names, methods and extra fields of one place that are not those of the other."""
    path = _save_zip(folder, [("a.png", rng.randbytes(400)), ("b.png", bytes(9000))], _method(rng))
    data = bytearray(path.read_bytes())
    for _ in range(rng.randint(1, 3)):
        start = rng.choice((data.find(b"PK\1\2"), data.rfind(b"PK\1\2"), 0, data.find(b"PK\5\6")))
        at = start + rng.randrange(4, 46)
        value = rng.choice(
            (b"\xff\xff\xff\xff", bytes(4), struct.pack("<I", rng.randrange(2**32)), b"\x01\0", b"\xff\xff")
        )
        data[at : at + len(value)] = value
    path.write_bytes(data)
    return Made(path)


def _zip64(rng: random.Random, folder: Path, outside: Path) -> Made:
    info = zipfile.ZipInfo("z.png")
    info.extra = struct.pack("<HH", 1, rng.choice((0, 4, 8, 24, 0xFFFF))) + rng.randbytes(rng.choice((0, 8, 24)))
    try:
        path = _save_zip(folder, [(info, b"1" * 100)])
    except (zipfile.BadZipFile, struct.error):
        path = _save_zip(folder, [("z.png", b"1" * 100)])
    data = bytearray(path.read_bytes())
    at = data.find(b"PK\1\2")
    for field in rng.sample((20, 24, 42), 2):
        data[at + field : at + field + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(data)
    return Made(path)


def _overlap(rng: random.Random, folder: Path, outside: Path) -> Made:
    """Many central entries for one local file: a small zip that unpacks to much."""
    path = _save_zip(folder, [("k.bmp", bytes(200_000))], zipfile.ZIP_DEFLATED)
    data = path.read_bytes()
    at, end = data.find(b"PK\1\2"), data.find(b"PK\5\6")
    count = rng.choice((2, 40, 400))
    entries = b"".join(data[at : at + 46] + f"{i:05d}".encode() + data[at + 51 : end] for i in range(count))
    tail = b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, count, count, len(entries), at, 0)
    path.write_bytes(data[:at] + entries + tail)
    return Made(path)


def _nested(rng: random.Random, folder: Path, outside: Path) -> Made:
    """A zip in a zip in a zip, down to one that explodes: only the outermost is unpacked."""
    inner = _save_zip(folder, [("bomb.bmp", bytes(1_000_000))], zipfile.ZIP_DEFLATED).read_bytes()
    for _ in range(rng.randint(1, 5)):
        inner = _save_zip(folder, [("inner.zip", inner)]).read_bytes()
    path = folder / "archive.zip"
    with zipfile.ZipFile(path) as archive:
        return Made(path, {"inner.zip": archive.read("inner.zip")})


def _quine(rng: random.Random, folder: Path, outside: Path) -> Made:
    """A gzip stream of gzip streams; garbage before, between and behind."""
    data = _tar([(_member("a.png"), b"1")])
    for _ in range(rng.randint(0, 3)):
        data = gzip.compress(data)
    path = folder / f"archive{rng.choice(('.tar.gz', '.zip', '.tar', '.tar.xz'))}"
    path.write_bytes(
        rng.choice((b"", b"MZ")) + gzip.compress(data) + rng.choice((b"", gzip.compress(b"x"), b"junk", bytes(99)))
    )
    return Made(path)


def _damaged(rng: random.Random, folder: Path, outside: Path) -> Made:
    made = rng.choice((_good, _names, _links, _sparse))(rng, folder, outside)
    data = bytearray(made.path.read_bytes())
    for _ in range(rng.randint(1, 4)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    made.path.write_bytes(data[: rng.choice((len(data), rng.randrange(len(data) + 1)))])
    return Made(made.path)


_MAKERS = (
    *(_good, _good, _names, _names, _links, _twice, _bomb, _many, _huge_headers, _header_chain, _sparse, _pax_tricks),
    *(_lying_tar, _lying_zip, _lying_zip, _zip64, _overlap, _nested, _quine, _damaged, _damaged),
)
