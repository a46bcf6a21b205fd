"""Unpacking zip and tar files that may be hostile: all or nothing, and never outside the target folder."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import re
import shutil
import stat
import struct
import tarfile
import tempfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from hai.errors import DataError, StorageError
from hai.paths import check_room

__all__ = ["ARCHIVE_SUFFIXES", "DamagedError", "clean_name", "is_archive", "listed", "shown", "unpack"]

ARCHIVE_SUFFIXES: Final = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
"""File name endings, lower case, that count as archives."""

_CHUNK: Final = 1 << 20
_HEADER_BYTES: Final = 16 << 20
_BYTES_PER_HEADER: Final = 4 << 10
"""What the headers of a tar may take, in all and for each member besides: long names, times, owners."""
_METHODS: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
_UTF8_FLAG: Final = 0x800
_KOREAN: Final = re.compile(rb"[\xa1-\xfe]{2}")
"""A letter of KS X 1001. The rarer ones that cp949 adds are valid as western words in cp437 too: `Müller`, `más`."""
_MOST_PARTS: Final = 64
_SHOWN: Final = 120
_LISTED: Final = 50
_DAMAGED: Final = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, gzip.BadGzipFile, lzma.LZMAError, EOFError),
    *(RuntimeError, ValueError, struct.error, OverflowError, MemoryError),
)
"""What the libraries raise on damaged bytes; MemoryError where a header asks for a huge dictionary."""


class DamagedError(DataError):
    """An archive's bytes are not those that it was made of; another copy of it may be whole."""


@dataclass(frozen=True)
class _Member:
    name: str
    size: int
    is_folder: bool
    fault: str
    """Why the member itself is refused; empty if it is a plain file or folder."""
    handle: Any


def is_archive(path: str | Path) -> bool:
    """Tell by its name whether a file is an archive that unpack takes."""
    return str(path).lower().endswith(ARCHIVE_SUFFIXES)


def listed(lines: list[str]) -> str:
    """Join lines of a message, up to 50 of them, then say how many more there are."""
    more = len(lines) - _LISTED
    return "\n".join(lines[:_LISTED] + ([f"and {more} more"] if more > 0 else []))


def shown(text: str) -> str:
    """Quote a text that others wrote for a message, of a long one both ends."""
    half = _SHOWN // 2
    return repr(text if len(text) <= _SHOWN else f"{text[:half]}...{text[-half:]}")


def unpack(
    archive: str | Path,
    to: str | Path,
    *,
    max_files: int = 5_000_000,
    max_bytes: int = 1 << 41,
    max_ratio: float = 200.0,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Unpack a zip or tar file into a folder that appears when everything is in it.

    Nothing is written before every member has been looked at: absolute names, `..`, links, devices, sparse and
    encrypted members, names that occur twice and files in the place of a folder are refused together. Permissions,
    owners and times are not taken over.

    Args:
        archive: a local file.
        to: the folder to create; if it exists, it is taken as complete.
        max_files: most members, and most files and folders together.
        max_bytes: most bytes unpacked.
        max_ratio: most bytes unpacked per byte of the archive.
        progress: called with bytes (done, total).

    Returns:
        `to` as a path.

    Raises:
        DataError: the archive is refused; as DamagedError: it is damaged.
        StorageError: the disk has too little room.
    """
    archive, to = Path(archive), Path(to)
    if to.is_dir():
        return to
    with ExitStack() as stack:
        try:
            room = min(max_bytes, int(max_ratio * archive.stat().st_size))
            opened = _opened(archive, stack, room)
            members = _checked(archive, opened, max_files, room)
        except (*_DAMAGED, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise DataError(f"{archive}: cannot be read ({error.strerror})") from None
            reason = str(error) or type(error).__name__
            raise DamagedError(
                f"{archive}: cannot be unpacked ({reason}); damaged or not an archive, copy it again"
            ) from None
        total = sum(member.size for member in members)
        to.parent.mkdir(parents=True, exist_ok=True)
        check_room(to.parent, total, f"{archive}: unpacking")
        part = Path(tempfile.mkdtemp(prefix=f"{to.name}.part-", dir=to.parent))
        stack.callback(shutil.rmtree, part, ignore_errors=True)
        try:
            _write(opened, members, part, total, progress)
        except _DAMAGED as error:
            raise DamagedError(f"{archive}: cannot be unpacked ({error}); damaged, copy it again") from None
        except OSError as error:
            if error.errno is None:  # how bz2 says that its stream is damaged
                raise DamagedError(f"{archive}: cannot be unpacked ({error}); damaged, copy it again") from None
            raise StorageError(f"{archive}: cannot be unpacked to {to.parent} ({error.strerror})") from None
        part.chmod(0o755)
        try:
            part.rename(to)
        except OSError:
            if not to.is_dir():  # else another process was faster, with the same result
                raise
    return to


class _Bounded(io.RawIOBase):
    """The plain bytes of a tar, as far as an honest archive would have them read or skipped.

    tarfile reads a long name, a pax header or a sparse map of any size into memory, and skips what it does not know
    by decompressing it.

    Args:
        stream: the plain bytes.
        end: no position lies behind it.
    """

    def __init__(self, stream: IO[bytes], end: int) -> None:
        self._stream, self._end = stream, end
        self.left: int | None = _HEADER_BYTES
        """Bytes of headers that may still be read; None: members are read."""
        self.last = b""
        """What was read last; to go back for it would decompress everything once more."""

    def read(self, size: int = -1) -> bytes:
        """Read as much as asked for; raises tarfile.ReadError beyond the bounds."""
        if self.left is not None:
            if not 0 <= size <= self.left:
                raise tarfile.ReadError("its headers are larger than those of an honest archive")
            self.left -= size
        self.last = self._stream.read(size)
        return self.last

    def seek(self, position: int, whence: int = os.SEEK_SET) -> int:
        """Go to a position; raises tarfile.ReadError beyond the bounds."""
        if whence == os.SEEK_SET and not 0 <= position <= self._end:
            raise tarfile.ReadError("a member lies where an honest archive has none")
        return self._stream.seek(position, whence)

    def tell(self) -> int:
        """Return the position."""
        return self._stream.tell()


def _opened(archive: Path, stack: ExitStack, room: int) -> zipfile.ZipFile | tuple[tarfile.TarFile, _Bounded]:
    if archive.name.lower().endswith(".zip"):
        return stack.enter_context(zipfile.ZipFile(archive))
    file: Any = stack.enter_context(archive.open("rb"))
    magic = file.read(6)
    file.seek(0)
    openers: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
    for start, opener in openers.items():
        if magic.startswith(start):
            file = stack.enter_context(opener(file))
    bounded = _Bounded(file, end=2 * room + _HEADER_BYTES)
    return stack.enter_context(tarfile.open(fileobj=bounded, mode="r:")), bounded


def _members(opened: zipfile.ZipFile | tuple[tarfile.TarFile, _Bounded]) -> Iterator[_Member]:
    if isinstance(opened, zipfile.ZipFile):
        for info in opened.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            fault = "is encrypted" if info.flag_bits & 1 else ""
            if not fault and info.compress_type not in _METHODS:
                fault = f"is compressed by method {info.compress_type}, which is not supported, repack it"
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                fault = "is a link" if kind == stat.S_IFLNK else "is a device"
            yield _Member(_zip_name(info), info.file_size, info.filename.endswith("/"), fault, info)
        return
    tar, bounded = opened
    for entry in tar:
        assert bounded.left is not None
        bounded.left += _BYTES_PER_HEADER
        if entry.size < 0:
            raise tarfile.ReadError("a member has a negative size")
        fault = "is a link" if entry.islnk() or entry.issym() else "is a device"
        if entry.isreg() or entry.isdir():
            fault = "is a sparse file" if entry.issparse() else ""
        yield _Member(entry.name, entry.size if entry.isreg() else 0, entry.isdir(), fault, entry)
    if not bounded.last:  # tarfile takes every header but the first that is cut off or wrong for the end
        raise tarfile.ReadError("it breaks off before its end")
    rest = bounded.last
    while rest:  # up to where the compressed stream is compared with its checksum
        if rest.strip(b"\0"):
            raise tarfile.ReadError("a header is wrong, or something follows its end")
        rest = bounded.read(tarfile.RECORDSIZE)
    bounded.left = None


def _zip_name(info: zipfile.ZipInfo) -> str:
    """Return a member's name; without the flag for UTF-8 it can be UTF-8 all the same (macOS), cp949 or cp437."""
    if info.flag_bits & _UTF8_FLAG:
        return info.filename
    try:
        raw = info.filename.encode("cp437")  # what zipfile read it as
    except UnicodeEncodeError:
        return info.filename
    for encoding in ("utf-8", "cp949") if _KOREAN.search(raw) else ("utf-8",):
        try:
            return raw.decode(encoding)
        except UnicodeDecodeError:
            continue
    return info.filename


def _checked(archive: Path, opened: Any, max_files: int, room: int) -> list[_Member]:
    """List the members with clean names, or refuse the archive with all its faults."""
    members: list[_Member] = []
    files: set[str] = set()
    folders: set[str] = set()
    faults: list[str] = []
    total = 0
    for count, member in enumerate(_members(opened), 1):
        total += member.size
        if max(count, len(files) + len(folders)) > max_files or total > room:
            limit = f"{room} bytes unpacked" if total > room else f"{max_files} members"
            raise DataError(f"{archive}: more than {limit}; refused as a decompression bomb, unpack it yourself if not")
        name, fault = clean_name(member.name)
        fault = member.fault or fault or ("" if name or member.is_folder else "has no name")
        if not fault and not member.is_folder and name in files:
            fault = "occurs twice"
        if fault:
            faults.append(f"{archive}: member {shown(member.name)} {fault}; refused")
            continue
        if name:
            (folders if member.is_folder else files).add(name)
        parent = os.path.dirname(name)
        while parent and parent not in folders:
            folders.add(parent)
            parent = os.path.dirname(parent)
        members.append(_Member(name, member.size, member.is_folder, "", member.handle))
    if len(files) + len(folders) > max_files:
        raise DataError(f"{archive}: more than {max_files} files and folders; refused as a decompression bomb")
    faults += [f"{archive}: member {shown(name)} is a file and a folder; refused" for name in sorted(files & folders)]
    if faults:
        raise DataError(listed(faults))
    return members


def clean_name(name: str) -> tuple[str, str]:
    """Return the relative name with / between its parts, and what is wrong with it."""
    slashed = name.replace("\\", "/")
    parts = [part for part in slashed.split("/") if part not in ("", ".")]
    if slashed.startswith("/") or (len(slashed) > 1 and slashed[1] == ":"):
        return "", "has an absolute name"
    if ".." in parts:
        return "", "leaves the folder by '..'"
    if not (name.isprintable() or all(char.isprintable() or unicodedata.category(char) == "Zs" for char in name)):
        return "", "has unprintable characters in its name"
    if any(len(part.encode("utf-8", "surrogateescape")) > 255 for part in parts) or len(slashed.encode()) > 2000:
        return "", "has a name that is too long"
    if len(parts) > _MOST_PARTS:
        return "", f"lies more than {_MOST_PARTS} folders deep"
    return "/".join(parts), ""


def _write(
    opened: zipfile.ZipFile | tuple[tarfile.TarFile, _Bounded],
    members: list[_Member],
    part: Path,
    total: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    done = 0
    for member in members:
        target = part / member.name
        if member.is_folder:
            target.mkdir(parents=True, exist_ok=True)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        source: IO[bytes] | None
        if isinstance(opened, zipfile.ZipFile):
            source = opened.open(member.handle)
        else:
            source = opened[0].extractfile(member.handle)
        assert source is not None, member.name
        with source, open(target, "xb") as file:
            left = member.size
            while chunk := source.read(min(_CHUNK, left + 1)):
                left -= len(chunk)
                if left < 0:
                    raise EOFError(f"{member.name} is longer than it says")
                file.write(chunk)
                done += len(chunk)
                if progress:
                    progress(done, total)
            if left:
                raise EOFError(f"{member.name} is shorter than it says")
