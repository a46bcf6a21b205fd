"""Copying data from URLs to this machine's cache folder, once: resumable, verified, whole or absent."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import time
from collections.abc import Callable, Collection, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Final

import fsspec

from hai.data.archives import clean_name, listed
from hai.data.content import Progress, in_threads, note_hash
from hai.errors import DataError, StorageError
from hai.paths import cache_folder, check_room, locked

__all__ = [
    "copy_file",
    "copy_folder",
    "is_remote_file",
    "is_remote_folder",
    "is_url",
    "known_file",
    "local_copy",
    "open_url",
    "partial_file",
    "plain_url",
    "relative_files",
]

_CHUNK: Final = 16 << 20
_STATE: Final = ".copied.json"
_FLUSH_SECONDS: Final = 5.0
_TOKENS: Final = (
    "etag",
    "ETag",
    "md5Hash",
    "crc32c",
    "generation",
    "mtime",
    "LastModified",
    "last_modified",
    "created",
)
_FINAL: Final = (FileNotFoundError, PermissionError, IsADirectoryError)


def is_url(path: str) -> bool:
    """Tell a URL from a local path."""
    return "://" in path


def plain_url(url: str) -> str:
    """Return a web address without its query, which may be a signature; other URLs as they are."""
    return url.partition("#")[0].partition("?")[0] if url.startswith(("http://", "https://")) else url


def open_url(url: str) -> tuple[Any, str]:
    """Return the fsspec file system of a URL or local path, and the path in it.

    Raises:
        StorageError: the scheme is unknown, its package is missing or its credentials are.
    """
    try:
        fs, path = fsspec.core.url_to_fs(url)
    except Exception as error:  # every backend has its own exceptions
        raise StorageError(f"{url}: cannot be reached ({error}); check the URL and the credentials") from None
    return fs, str(path).rstrip("/")


def is_remote_file(fs: Any, path: str) -> bool:
    """Tell whether there is a file at a path of a file system.

    Raises:
        StorageError: the file system cannot be reached.
    """
    try:
        return bool(fs.isfile(path))
    except Exception as error:  # every backend has its own exceptions
        raise StorageError(f"{path}: cannot be reached ({error}); check the URL and the credentials") from None


def is_remote_folder(url: str) -> bool:
    """Tell whether there is a folder at a URL.

    Raises:
        StorageError: the file system cannot be reached.
    """
    fs, path = open_url(url)
    try:
        return bool(fs.isdir(path))
    except Exception as error:  # every backend has its own exceptions
        raise StorageError(f"{url}: cannot be reached ({error}); check the URL and the credentials") from None


def relative_files(fs: Any, root: str, url: str) -> dict[str, dict[str, Any]]:
    """List the files below a folder: name relative to it -> what the file system knows, hidden ones left out.

    Raises:
        StorageError: the folder cannot be listed.
        DataError: a name leaves the folder.
    """
    try:
        fs.invalidate_cache()
        found = fs.find(root, detail=True)
    except Exception as error:  # every backend has its own exceptions
        raise StorageError(f"{url}: cannot be listed ({error}); check the URL and the credentials") from None
    files: dict[str, dict[str, Any]] = {}
    faults: list[str] = []
    for path, info in sorted(found.items()):
        name = path[len(root) :].lstrip("/") if path.startswith(root) else path
        if any(part.startswith(".") for part in name.split("/") if part != ".."):
            continue
        _, fault = clean_name(name)
        if fault:
            faults.append(f"{url}: {name!r} {fault}; refused")
        files[name] = info
    if faults:
        raise DataError(listed(faults))
    return files


def partial_file(to: Path, size: int, *, token: str = "", sha256: str | None = None) -> Path:
    """Name the file that holds the beginning of a copy; every version of the original has its own."""
    version = hashlib.sha256(f"{size} {token} {sha256}".encode()).hexdigest()[:8]
    return to.with_name(f"{to.name}.{version}.part")


def copy_file(
    fs: Any,
    path: str,
    to: Path,
    size: int,
    *,
    token: str = "",
    sha256: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Copy one file in chunks; an interrupted copy goes on where it stopped.

    Args:
        fs: an fsspec file system.
        path: the file in it.
        to: the local file, which appears when it is complete.
        size: its length in bytes.
        token: changes when the file does, so that a copy never goes on with the rest of another version.
        sha256: its hash in hex; None: only the size is compared.
        progress: called with the number of bytes of each chunk (negative where a copy starts over).

    Raises:
        StorageError: the file cannot be read or written.
        DataError: what arrived is not what was announced.
    """
    part = partial_file(to, size, token=token, sha256=sha256)
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(2):
            resumed, written = _append(fs, path, part, size, progress)
            length = part.stat().st_size
            if length == size and (sha256 is None or (_hash(part) if resumed else written) == sha256):
                os.replace(part, to)
                if sha256 is not None:
                    note_hash(str(to), bytes.fromhex(sha256))
                return
            part.unlink()
            if progress:
                progress(-length)
            if not resumed:  # nothing wrong was there before: the original itself is damaged
                break
    except OSError as error:
        raise StorageError(f"{path}: cannot be copied to {to} ({error}); run again to go on with the copy") from None
    what = f"{length} bytes; expected {size}" if length != size else f"another content than its sha256 {sha256} says"
    raise DataError(f"{path}: damaged, has {what}; copy it to its place again")


def _append(fs: Any, path: str, part: Path, size: int, progress: Callable[[int], None] | None) -> tuple[bool, str]:
    """Fill up the partial file; return whether it held something before, and the sha256 of what was added, in hex."""
    have = part.stat().st_size if part.exists() else 0
    if have > size:
        part.unlink()
        have = 0
    resumed = have > 0
    if progress and have:
        progress(have)
    from tenacity import (
        Retrying,
        retry_if_exception_type,
        retry_if_not_exception_type,
        stop_after_attempt,
        wait_exponential,
    )

    retrying = Retrying(
        stop=stop_after_attempt(4),
        wait=wait_exponential(0.25, max=4),
        retry=retry_if_exception_type(OSError) & retry_if_not_exception_type(_FINAL),
        reraise=True,
    )

    def chunk_at(start: int) -> bytes:
        try:
            return bytes(fs.cat_file(path, start=start, end=min(start + _CHUNK, size)))
        except OSError:
            raise
        except Exception as error:  # every backend has its own exceptions
            raise OSError(f"{type(error).__name__}: {error}") from error

    added = hashlib.sha256()
    with open(part, "ab") as file, closing(_ahead(functools.partial(retrying, chunk_at), have, size)) as chunks:
        for chunk in chunks:
            file.write(chunk)
            added.update(chunk)
            if progress:
                progress(len(chunk))
    return resumed, added.hexdigest()


def _ahead(read: Callable[[int], bytes], start: int, size: int) -> Generator[bytes]:
    """Yield chunks until the end, or an empty one; the next is on its way while one is used."""
    if size - start <= _CHUNK:  # no thread for each of many small files
        while start < size and (chunk := read(start)):
            yield chunk
            start += len(chunk)
        return
    with ThreadPoolExecutor(1, thread_name_prefix="copy") as pool:
        coming = pool.submit(read, start)
        while chunk := coming.result():
            start += len(chunk)
            if start >= size:
                yield chunk
                return
            coming = pool.submit(read, start)
            yield chunk


def _hash(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def copy_folder(url: str, to: Path, progress: Progress | None = None) -> int:
    """Copy a folder, local or behind a URL, file by file; a second call copies what is missing or has changed.

    Args:
        url: of the folder; hidden files are left out.
        to: the local folder, for nothing else: what is not behind the URL is removed from it.
        progress: called with bytes (done, total).

    Returns:
        How many files there are.

    Raises:
        DataError: there are none, or one is not what the storage announced.
        StorageError: the folder cannot be read or written, or the disk has too little room.
    """
    fs, root = open_url(url)
    found = relative_files(fs, root, url)
    if not found:
        raise DataError(f"{url}: nothing is there; check the URL")
    _mirror(fs, root, to, found, "", is_whole=True, progress=progress)
    kept = {str(to / name) for name in found}
    for folder, _, files in os.walk(to, topdown=False):
        for path in (os.path.join(folder, file) for file in files):
            if path not in kept:
                os.unlink(path)
        with suppress(OSError):  # it is not empty
            os.rmdir(folder)
    return len(found)


def local_copy(url: str, names: Collection[str] | None = None, progress: Progress | None = None) -> Path:
    """Mirror a URL, a file or a folder, in the cache folder; files that have not changed are not copied again.

    Args:
        url: of a file or a folder.
        names: the files below the folder to copy; None: all. Names that are not there are left out.
        progress: called with bytes (done, total).

    Returns:
        The local file or folder.
    """
    fs, path = open_url(url)
    is_file = is_remote_file(fs, path)
    plain = plain_url(path)
    root, _, name = plain.rpartition("/") if is_file else (plain, "", "")
    key = hashlib.sha256(fs.unstrip_protocol(root).encode()).hexdigest()[:20]
    folder = cache_folder() / "copies" / key
    with locked(str(folder)):
        if is_file:
            found = {name: _known(fs, path)}
        else:
            found = relative_files(fs, root, url)
            if not found:
                raise DataError(f"{url}: nothing is there; check the URL")
            if names is not None:
                found = {name: info for name, info in found.items() if name in names}
        query = path[len(plain) :]
        _mirror(fs, root, folder, found, query, is_whole=not is_file and names is None, progress=progress)
    return folder / name if is_file else folder


def known_file(fs: Any, path: str) -> tuple[int, str]:
    """Return the bytes of a file, and a token that changes when the file does."""
    info = _known(fs, path)
    return int(info["size"]), _token(info)


def _known(fs: Any, path: str) -> dict[str, Any]:
    """Ask what a file system knows of a file; its size must be among it."""
    try:
        info: dict[str, Any] = fs.info(path)
    except Exception as error:  # every backend has its own exceptions
        raise StorageError(f"{path}: cannot be reached ({error}); check the URL and the credentials") from None
    if info.get("size") is None:
        raise StorageError(f"{path}: the server does not say how long it is; copy it here and name the copy")
    return info


def _mirror(
    fs: Any,
    root: str,
    folder: Path,
    found: dict[str, dict[str, Any]],
    query: str,
    *,
    is_whole: bool,
    progress: Progress | None,
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    state = folder / _STATE
    try:
        copied: dict[str, Any] = dict(json.loads(state.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):
        copied = {}
    sizes = {name: int(info["size"]) for name, info in found.items()}
    tokens = {name: f"{sizes[name]} {_token(info)}" for name, info in found.items()}
    todo = [
        name
        for name, size in sizes.items()
        if copied.get(name) != tokens[name] or not (folder / name).is_file() or (folder / name).stat().st_size != size
    ]
    done, total, flushed = 0, sum(sizes[name] for name in todo), time.monotonic()
    check_room(folder, total, f"{root}: the copy")

    def add(count: int) -> None:
        nonlocal done
        done += count
        if progress:
            progress(done, total)

    def remember() -> None:
        temporary = state.with_name(f"{_STATE}.part")
        temporary.write_text(json.dumps(copied), encoding="utf-8")
        os.replace(temporary, state)

    def keep(positions: Any, results: list[int]) -> None:
        nonlocal flushed
        copied.update({todo[i]: tokens[todo[i]] for i in positions})
        add(sum(results))
        if time.monotonic() - flushed > _FLUSH_SECONDS:
            remember()
            flushed = time.monotonic()

    def copy(name: str) -> int:
        size = sizes[name]
        path = (f"{root}/{name}" if root else name) + query
        copy_file(fs, path, folder / name, size, token=tokens[name], progress=add if size > _CHUNK else None)
        return 0 if size > _CHUNK else size

    try:
        in_threads(copy, todo, keep)
        if is_whole:
            for name in set(copied) - set(sizes):
                (folder / name).unlink(missing_ok=True)
                del copied[name]
    finally:
        remember()


def _token(info: dict[str, Any]) -> str:
    return next((str(info[name]) for name in _TOKENS if info.get(name) is not None), "")
