"""Where a run lives: its local work folder, and its place on the storage when that is a bucket or a mount."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from typing_extensions import override

from hai.checkpoint import records
from hai.checkpoint.files import TEMPORARY, read_blocks, save_bytes
from hai.checkpoint.reach import reach
from hai.errors import StorageError
from hai.paths import cache_folder, is_mount
from hai.types import Record

__all__ = [
    "Bucket",
    "Location",
    "Mount",
    "Remote",
    "check_storage",
    "is_bucket",
    "is_mount",
    "last_attempt",
    "load_run_id",
    "local_folder",
    "locate",
    "newest_attempt",
    "open_remote",
    "run_id_in",
    "settle",
]

_ATTEMPT: Final = re.compile(r"attempt-(\d{1,9})")
_RUN_ID: Final = re.compile(r"[0-9a-f]{12}")
_RUN_ID_FILE: Final = "run_id"
"""In a work folder: of which run on the storage it is, once that was read there."""
_OBJECT_STORES: Final = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oss", "r2", "hf")
_DISK_ERRORS: Final = {
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "you may not write there",
    errno.EPERM: "you may not write there",
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "your disk quota is used up",
    errno.ENOTDIR: "a file is in the way",
    errno.EEXIST: "a file is in the way",
}
_BLOCK: Final = 16 << 20
_UNREADABLE: Final = "what was written does not read back; use another storage"


class Remote(Protocol):
    """A folder on a storage that is not a local disk; names are relative to it, with `/`.

    Every method raises whatever the storage raises.
    """

    url: str

    def put(self, source: Path, name: str) -> None:
        """Copy a local file there, replacing what there was."""

    def write(self, name: str, content: bytes) -> None:
        """Write a small file there, replacing what there was."""

    def read(self, name: str) -> bytes | None:
        """Read a small file; None when it is absent."""

    def fetch(self, name: str, target: Path) -> None:
        """Copy a file here."""

    def blocks(self, name: str) -> Iterator[bytes]:
        """Read a file back, in blocks."""
        ...

    def size(self, name: str) -> int | None:
        """Return the bytes of a file; None when it is absent."""

    def names(self, folder: str) -> list[str]:
        """List the names in a folder; empty when it is absent."""

    def delete(self, name: str) -> None:
        """Delete a file; its absence is fine."""

    def delete_folder(self, folder: str) -> None:
        """Delete an empty folder, where folders are more than parts of names; its absence is fine."""

    def renew(self) -> None:
        """Forget the connection, after a call that hung."""
        return


class Bucket(Remote):
    """A folder of an fsspec file system: a bucket, or anything else that has a URL."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._opened: tuple[Any, str] | None = None

    def inside(self, folder: str) -> Bucket:
        """Return a folder of this folder, on the same connection."""
        bucket = Bucket(f"{self.url}/{folder}")
        if self._opened is not None:
            bucket._opened = self._opened[0], f"{self._opened[1]}/{folder}"
        return bucket

    def _open(self) -> tuple[Any, str]:
        """Return the file system and the folder's path in it."""
        if self._opened is None:
            import fsspec

            filesystem, root = fsspec.core.url_to_fs(self.url, use_listings_cache=False, skip_instance_cache=True)
            self._opened = filesystem, str(root).rstrip("/")
        return self._opened

    @override
    def renew(self) -> None:
        self._opened = None

    @override
    def put(self, source: Path, name: str) -> None:
        filesystem, root = self._open()
        options = {"max_concurrency": 2} if "s3" in _protocols(filesystem) else {}  # of 50 MB parts, else ten in memory
        self._write(filesystem, f"{root}/{name}", lambda path: filesystem.put_file(str(source), path, **options))

    @override
    def write(self, name: str, content: bytes) -> None:
        filesystem, root = self._open()
        self._write(filesystem, f"{root}/{name}", lambda path: filesystem.pipe_file(path, content))

    def _write(self, filesystem: Any, path: str, send: Callable[[str], Any]) -> None:
        if not _is_object_store(filesystem):  # there, making a folder could make a bucket
            filesystem.makedirs(path.rpartition("/")[0], exist_ok=True)
        send(path)

    @override
    def read(self, name: str) -> bytes | None:
        filesystem, root = self._open()
        try:
            return bytes(filesystem.cat_file(f"{root}/{name}"))
        except FileNotFoundError:
            return None

    @override
    def fetch(self, name: str, target: Path) -> None:
        filesystem, root = self._open()
        filesystem.get_file(f"{root}/{name}", str(target))

    @override
    def blocks(self, name: str) -> Iterator[bytes]:
        filesystem, root = self._open()
        path = f"{root}/{name}"
        size = int(filesystem.info(path)["size"])
        for start in range(0, size, _BLOCK):
            yield bytes(filesystem.cat_file(path, start=start, end=min(start + _BLOCK, size)))

    @override
    def size(self, name: str) -> int | None:
        filesystem, root = self._open()
        try:
            return int(filesystem.info(f"{root}/{name}")["size"])
        except FileNotFoundError:
            return None

    @override
    def names(self, folder: str) -> list[str]:
        filesystem, root = self._open()
        path = f"{root}/{folder}".rstrip("/")
        filesystem.invalidate_cache()
        try:
            found = filesystem.ls(path, detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted({str(item).rstrip("/").rpartition("/")[2] for item in found if str(item).rstrip("/") != path})

    @override
    def delete(self, name: str) -> None:
        filesystem, root = self._open()
        with contextlib.suppress(FileNotFoundError):
            filesystem.rm_file(f"{root}/{name}")

    @override
    def delete_folder(self, folder: str) -> None:
        filesystem, root = self._open()
        if not _is_object_store(filesystem):  # whose folders are but names
            with contextlib.suppress(FileNotFoundError):
                filesystem.rmdir(f"{root}/{folder}")


class Mount(Remote):
    """A folder of a mounted drive or network share: written under a temporary name, then replaced."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = str(folder)

    @override
    def put(self, source: Path, name: str) -> None:
        self._replace(name, lambda target: shutil.copyfile(source, target))

    @override
    def write(self, name: str, content: bytes) -> None:
        self._replace(name, lambda target: target.write_bytes(content))

    def _replace(self, name: str, send: Callable[[Path], Any]) -> None:
        path = self.folder / name
        temporary = path.parent / f"{TEMPORARY}{path.name}-{uuid.uuid4().hex[:12]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            send(temporary)
            with open(temporary, "rb+") as stream:
                os.fsync(stream.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise

    @override
    def read(self, name: str) -> bytes | None:
        try:
            return (self.folder / name).read_bytes()
        except FileNotFoundError:
            return None

    @override
    def fetch(self, name: str, target: Path) -> None:
        shutil.copyfile(self.folder / name, target)

    @override
    def blocks(self, name: str) -> Iterator[bytes]:
        return read_blocks(self.folder / name)

    @override
    def size(self, name: str) -> int | None:
        try:
            return (self.folder / name).stat().st_size
        except FileNotFoundError:
            return None

    @override
    def names(self, folder: str) -> list[str]:
        try:
            return sorted(os.listdir(self.folder / folder))
        except (FileNotFoundError, NotADirectoryError):
            return []

    @override
    def delete(self, name: str) -> None:
        (self.folder / name).unlink(missing_ok=True)

    @override
    def delete_folder(self, folder: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            (self.folder / folder).rmdir()


@dataclass(frozen=True)
class Location:
    """A run's local work folder, and its folder on the storage; None when the work folder is the storage."""

    path: Path
    remote: Remote | None
    other: Path | None = None
    """The work folder of another run, which once had this one's name in this place; it is left as it is."""


def is_bucket(storage: str) -> bool:
    """Tell a URL from a path; `file://` is a path."""
    return "://" in storage and not storage.startswith(("file://", "local://"))


def open_remote(storage: str) -> Remote | None:
    """Open a storage path or URL; None for a local disk."""
    if is_bucket(storage):
        return Bucket(storage)
    folder = local_folder(storage)
    return Mount(folder) if is_mount(folder) else None


def local_folder(storage: str) -> Path:
    """Turn a path or a `file://` URL into an absolute path."""
    return Path(re.sub(r"^(file|local)://", "", storage)).expanduser().absolute()


def locate(storage: str, name: str) -> Location:
    """Find a run's folders; on a bucket the newest `attempt-N/` of the run, when there is one.

    Raises:
        StorageError: the storage cannot be read.
    """
    if not is_bucket(storage):
        folder = local_folder(storage) / name
        if not is_mount(folder):
            return Location(folder, None)
        return _locate_work(Mount(folder), name)
    bucket = Bucket(f"{storage.rstrip('/')}/{name}")
    return _locate_work(reach(bucket.url, lambda: newest_attempt(bucket)), name)


def newest_attempt(bucket: Bucket) -> Bucket:
    """Return the folder on a bucket where a run lives: its newest `attempt-N/`, or its own where there is none."""
    attempt = last_attempt(bucket.names(""))
    return bucket.inside(attempt) if attempt else bucket


def last_attempt(names: Iterable[str]) -> str | None:
    """Return the newest `attempt-N` among the names in a run's folder, if there is one."""
    numbers = [int(match[1]) for name in names if (match := _ATTEMPT.fullmatch(name))]
    return f"attempt-{max(numbers)}" if numbers else None


def _locate_work(remote: Remote, name: str) -> Location:
    """Find the work folder of the run that is on the storage now, not of one that was set aside or deleted there."""
    folder = cache_folder() / "runs" / f"{name}-{hashlib.sha256(remote.url.encode()).hexdigest()[:16]}"
    known = load_run_id(folder)
    if known is None:  # nothing is here, or nothing that is known to have been there
        return Location(folder, remote)

    def find() -> str | None:
        found = run_id_in(records.parse_json(remote.read(records.OWNER)))
        return found or (known if remote.names("") else None)  # an owner.json that is torn, or of an older version

    try:
        return _choose(folder, remote, reach(remote.url, find))
    except StorageError:
        if not isinstance(remote, Mount):
            raise
        noted = folder.parent.glob(f"{glob.escape(folder.name)}*/{_RUN_ID_FILE}")
        return Location(max(noted, key=lambda path: path.stat().st_mtime).parent, remote)


def _choose(folder: Path, remote: Remote, run: str | None) -> Location:
    if load_run_id(folder) in (None, run):
        return Location(folder, remote)
    return Location(folder.with_name(f"{folder.name}-{run or 'new'}"), remote, other=folder)


def load_run_id(folder: Path) -> str | None:
    """Read which run on the storage a work folder belongs to; None when that is not known."""
    try:
        text = (folder / _RUN_ID_FILE).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
    return text if _RUN_ID.fullmatch(text) else None


def run_id_in(owner: Record | None) -> str | None:
    """Return the run's id in the content of owner.json; None when there is none."""
    run = (owner or {}).get("run")
    return run if isinstance(run, str) and _RUN_ID.fullmatch(run) else None


def settle(location: Location, run: str, report: Callable[[str], None]) -> Location:
    """Note of which run the work folder is, now that its id was read on the storage; choose another if it differs."""
    if location.remote is None:
        return location
    settled = _choose(location.other or location.path, location.remote, run)
    if settled.other is not None and load_run_id(settled.path) is None:
        report(
            f"storage: {location.remote.url} holds another run now than this machine knew; what is here of that one "
            f"stays in {settled.other}"
        )
    with contextlib.suppress(OSError):  # a full disk: what is here counts as not known to be there
        save_bytes(settled.path / _RUN_ID_FILE, run.encode())
    return settled


def check_storage(storage: str) -> None:
    """Write a tiny file, read it back and delete it, so that a wrong storage fails in the first second.

    Raises:
        StorageError: one line: what is wrong and how to mend it.
    """
    probe = f"{TEMPORARY}probe-{uuid.uuid4().hex[:12]}"
    if is_bucket(storage):
        bucket = Bucket(storage)

        def attempt() -> bool:
            bucket.write(probe, b"hai")
            read = bucket.read(probe)
            bucket.delete(probe)
            return read == b"hai"

        if not reach(storage, attempt):
            raise StorageError(f"storage: {storage}: {_UNREADABLE}")
        return
    folder = local_folder(storage)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            (folder / probe).write_bytes(b"hai")
            read_back = (folder / probe).read_bytes()
        finally:  # a full disk leaves an empty file
            (folder / probe).unlink(missing_ok=True)
    except OSError as error:
        reason = _DISK_ERRORS.get(error.errno or 0, error.strerror or str(error))
        raise StorageError(f"storage: {folder}: {reason}; choose another folder with --storage") from error
    if read_back != b"hai":
        raise StorageError(f"storage: {folder}: {_UNREADABLE}")


def _is_object_store(filesystem: Any) -> bool:
    return bool(_protocols(filesystem) & set(_OBJECT_STORES))


def _protocols(filesystem: Any) -> set[str]:
    return set(filesystem.protocol if isinstance(filesystem.protocol, tuple | list) else (filesystem.protocol,))
