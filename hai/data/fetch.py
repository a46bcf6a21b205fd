"""Fetching a data set into a local folder, once: from Kaggle, a bucket, a web server, a mounted drive."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode, urlsplit

from hai.data.archives import ARCHIVE_SUFFIXES, DamagedError, clean_name, is_archive, unpack
from hai.data.content import Progress
from hai.data.download import Ask, download, plain_request
from hai.data.kaggle import find_login, is_kaggle, kaggle_data, kaggle_refusal, kaggle_request, login_help
from hai.data.pack import PACK_FILE, copy_pack
from hai.data.remote import (
    copy_file,
    copy_folder,
    is_remote_file,
    is_url,
    known_file,
    open_url,
    partial_file,
    plain_url,
)
from hai.errors import ConfigError, DataError, HaiError, StorageError
from hai.masking import has_login, without_secrets
from hai.paths import check_room, is_mount, locked

__all__ = ["Fetched", "fetch"]

Show = Callable[[str], AbstractContextManager[Progress]]
"""Opens a display of progress in bytes for a step, such as `progress_bar`."""

_STAMP: Final = ".fetched.json"
_NOTE: Final = ".hai-fetch.json"
_MAGIC: Final = "unfinished-hai-fetch"
"""The key of a note that makes the folder around it one that may be deleted."""
_SIGNED: Final = re.compile(
    r"x-(?:amz|goog)-.*|signature|expires|key-pair-id|policy|googleaccessid|awsaccesskeyid|(?:access_)?token"
    r"|sv|ss|srt|sp|se|st|spr|sig|sr|sip|si|sdd|skoid|sktid|skt|ske|sks|skv|ses",
    re.IGNORECASE,
)
"""The parts of a query that say who may read until when, not what: of S3, GCS, CloudFront and Azure."""


@dataclass(frozen=True)
class Fetched:
    """A data set that was fetched."""

    path: Path
    source: str
    """Without what is secret in it."""
    files: int
    archives: int
    """How many of the files are archives, which stay as they are."""
    bytes: int
    date: str
    is_new: bool
    """Whether this call fetched it."""


@contextmanager
def _unseen(what: str) -> Iterator[Progress]:
    yield lambda done, total: None


def fetch(source: str, to: str | Path, *, show: Show = _unseen) -> Fetched:
    """Bring a data set to this machine: downloaded, verified and, if it is an archive, unpacked.

    The folder appears when everything is in it. What is there of an unfinished download lies beside it, in a folder
    whose name ends in `.part`, and the next call goes on with it. A call for what is already there does nothing.

    Args:
        source: `kaggle:OWNER/DATASET`, `kaggle:competitions/NAME`, a file or folder behind a URL (`https://` only
            files), an archive, a file or a folder on this machine or a mounted drive.
        to: the folder to create.
        show: opens a display of progress for each step.

    Raises:
        ConfigError: the source or the folder makes no sense, or a login is needed and there is none.
        DataError: what arrived is damaged or refused.
        StorageError: the source cannot be read, the disk cannot be written or is too small.
    """
    if has_login(source):
        raise ConfigError(
            f"SOURCE = {source}; must not hold a login: put it into ~/.netrc, or a variable of the storage"
        )
    if "::" in source and not source.startswith(("http://", "https://")):
        raise ConfigError(f"SOURCE = {source}; must not be a chain with '::'; name the address itself")
    target = Path(os.path.abspath(os.path.expanduser(to)))
    identity = _identity(source)
    with locked(f"fetch {target}"):
        known = _stamp(target)
        if known is not None and known["identity"] == identity:
            return Fetched(**{**known["fetched"], "path": target, "is_new": False})
        if known is not None:
            held = known["fetched"]["source"]
            raise ConfigError(f"--to = {target}; holds {held} already, name another folder")
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise ConfigError(f"--to = {target}; is there and was not made from SOURCE, name another folder")
        if target.is_symlink() or os.path.ismount(target):
            raise ConfigError(f"--to = {target}; is a link or a mount point, name a folder in what it leads to")
        part = target.with_name(f"{target.name}.part")
        try:
            _begin(part, identity, _shown(source))
            try:
                fetched = _finish(_brought(source, part, show), target, identity, source)
            except HaiError:
                if not _is_begun(part):
                    shutil.rmtree(part)
                raise
            shutil.rmtree(part, ignore_errors=True)
        except OSError as error:
            raise StorageError(
                f"{target}: cannot be written ({error.strerror or error}); name another folder"
            ) from None
    return fetched


def _identity(source: str) -> str:
    """Return what makes two sources the same data: of a signed address not the signature."""
    if is_kaggle(source):
        return kaggle_data(source).source
    if not is_url(source):
        return str(Path(os.path.abspath(os.path.expanduser(source))))
    plain = plain_url(source)
    query = urlsplit(source).query if plain != source else ""
    asked = [(key, value) for key, value in parse_qsl(query) if not _SIGNED.fullmatch(key)]
    return plain + (f" {hashlib.sha256(urlencode(asked).encode()).hexdigest()[:16]}" if asked else "")


def _shown(source: str) -> str:
    """Return a source as people may read it, without what is secret in it."""
    return plain_url(source) if is_url(source) and not is_kaggle(source) else _identity(source)


def _stamp(target: Path) -> dict[str, Any] | None:
    try:
        content = json.loads((target / _STAMP).read_text(encoding="utf-8"))
        Fetched(**{**content["fetched"], "path": target, "is_new": False})
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return dict(content) if "identity" in content else None


def _begin(part: Path, identity: str, shown: str) -> None:
    """Open the folder of the unfinished, which is this source's or nobody's; what a killed process left half goes.

    Raises:
        ConfigError: the folder is none of ours, or holds what was downloaded of another source.
    """
    if part.is_symlink() or (part.exists() and not part.is_dir()):
        raise ConfigError(f"{part}: is in the way; move it, or name another folder with --to")
    note = _noted(part)
    if note is None and part.exists() and any(path.name != _NOTE for path in part.iterdir()):
        raise ConfigError(f"{part}: is in the way; move it, or name another folder with --to")
    if note is not None and note["identity"] != identity:
        if _is_begun(part):
            raise ConfigError(
                f"{part}: holds an unfinished download of {without_secrets(note['source'])}; delete it, or name "
                "another folder with --to"
            )
        shutil.rmtree(part)
        note = None
    part.mkdir(parents=True, exist_ok=True)
    if note is None:
        (part / _NOTE).write_text(json.dumps({_MAGIC: 1, "identity": identity, "source": shown}), encoding="utf-8")
    _whole_again(part)
    for left in part.glob("content.part-*"):
        shutil.rmtree(left)


def _noted(part: Path) -> dict[str, str] | None:
    """Return what a folder of the unfinished says of itself; None: it is none of ours, or as good as empty."""
    try:
        note = json.loads((part / _NOTE).read_text(encoding="utf-8"))
        return {key: str(note[key]) for key in (_MAGIC, "identity", "source")}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _is_begun(part: Path) -> bool:
    """Tell whether there is something that the next call could go on with."""
    return any(
        path.is_file()
        and not (path.name.startswith(".") or path.name in ("body.json", "token"))
        and path.stat().st_size > 0
        for path in part.rglob("*")
    )


def _brought(source: str, part: Path, show: Show) -> Path:
    """Bring everything of a source into a folder inside the folder of the unfinished."""
    if is_kaggle(source):
        data, login = kaggle_data(source), find_login()
        if login is None and not data.owner:
            raise ConfigError(f"{data.source}: competitions need a login of Kaggle: {login_help()}")
        return _downloaded(
            kaggle_request(data, login), data.source, part, lambda said: kaggle_refusal(data, login, said), show
        )
    if source.startswith(("http://", "https://")):
        return _downloaded(plain_request(source), plain_url(source), part, _refusal, show)
    if is_url(source):
        return _copied(source, part, show)
    local = Path(os.path.abspath(os.path.expanduser(source)))
    if not local.exists():
        raise ConfigError(f"SOURCE = {source}; there is no such file or folder")
    if part.is_relative_to(local):
        raise ConfigError(f"--to = {part.with_suffix('')}; lies in SOURCE, name a folder outside of it")
    if local.is_dir() or not is_archive(local) or is_mount(local):
        return _copied(str(local), part, show)
    return _unpacked(local, part, show)


def _downloaded(ask: Ask, where: str, part: Path, refusal: Callable[[Any], str], show: Show) -> Path:
    def before(name: str, left: int, size: int) -> None:
        _check_room(part, name, left, size, f"{where}: the download")

    is_begun = (part / "body").exists()
    with show("going on with the download" if is_begun else "downloading") as progress:
        body, name = download(ask, part, where, refusal=refusal, before=before, progress=progress)
    return _settled(body, name, where, part, show)


def _refusal(response: Any) -> str:
    status = response.status_code
    if status in (401, 403):
        return f"the server refuses ({status}); the address needs a login (~/.netrc), or its signature has expired"
    if status in (404, 410):
        return f"the server has no such file ({status}); check the address"
    return f"the server answers {status} {response.reason}"


def _copied(source: str, part: Path, show: Show) -> Path:
    """Copy a file or folder of a storage or a mounted drive."""
    fs, path = open_url(source)
    content = part / "content"
    if not is_remote_file(fs, path):
        with show("copying") as progress:
            if is_remote_file(fs, f"{path}/{PACK_FILE}"):
                copy_pack(source, content, progress=progress)
            else:
                copy_folder(source, content, progress)
        return content
    size, token = known_file(fs, path)
    name, done = path.rpartition("/")[2], 0
    body = part / "body"
    begun = partial_file(body, size, token=token)
    left = size - (begun.stat().st_size if begun.exists() else 0)
    with show("going on with the copy" if left < size else "copying") as progress:

        def add(count: int) -> None:
            nonlocal done
            done += count
            progress(done, size)

        if not (body.is_file() and body.stat().st_size == size and _text(part / "token") == token):
            _check_room(part, name, left, size, f"{source}: the copy")
            copy_file(fs, path, body, size, token=token, progress=add)
            (part / "token").write_text(token, encoding="utf-8")
    return _settled(body, name, source, part, show)


def _text(file: Path) -> str | None:
    return file.read_text(encoding="utf-8") if file.is_file() else None


def _check_room(part: Path, name: str, left: int, size: int, what: str) -> None:
    """Refuse what the disk does not hold; what is in an archive is at least as large as it, as a rule."""
    if is_archive(name):
        left, what = left + size, f"{what}, and what is in it as far as that can be told before,"
    check_room(part, left, what)


def _settled(body: Path, name: str, where: str, part: Path, show: Show) -> Path:
    """Unpack what was brought if it is an archive, else put it into a folder under its name."""
    suffix = _archive_suffix(body, name)
    if not suffix:
        clean, fault = clean_name(name)
        content = part / "content"
        content.mkdir(exist_ok=True)
        os.replace(body, content / ("data" if fault or not clean or clean.startswith(".") else clean))
        return content
    archive = part / f"archive{suffix}"
    os.replace(body, archive)
    try:
        return _unpacked(archive, part, show)
    except DamagedError as error:
        archive.unlink()
        raise DataError(f"{str(error).replace(str(archive), where)}: run again to fetch it anew") from None
    except (DataError, StorageError) as error:
        raise type(error)(f"{str(error).replace(str(archive), where)} (the download is kept in {part})") from None
    finally:
        _whole_again(part)


def _whole_again(part: Path) -> None:
    """Give an archive the name under which the next call finds the download."""
    for archive in part.glob("archive.*"):
        os.replace(archive, part / "body")


def _archive_suffix(body: Path, name: str) -> str:
    """Return the ending that says how to unpack a file, from its name or, where that has none, from its content."""
    lower = name.lower()
    if found := next((suffix for suffix in ARCHIVE_SUFFIXES if lower.endswith(suffix)), ""):
        return found
    if os.path.splitext(lower)[1]:
        return ""
    if zipfile.is_zipfile(body):
        return ".zip"
    return ".tar" if tarfile.is_tarfile(body) else ""


def _unpacked(archive: Path, part: Path, show: Show) -> Path:
    content = part / "content"
    if content.exists():  # whole, but the process ended before it got its place
        shutil.rmtree(content)
    with show("unpacking") as progress:
        return unpack(archive, content, progress=progress)


def _finish(content: Path, target: Path, identity: str, source: str) -> Fetched:
    """Give the folder its stamp and its place."""
    paths = [f"{folder}/{file}" for folder, _, files in os.walk(content) for file in files]
    sizes, archives = [os.path.getsize(path) for path in paths], sum(map(is_archive, paths))
    date = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
    fetched = Fetched(target, _shown(source), len(sizes), archives, sum(sizes), f"{date} UTC", is_new=True)
    facts = {key: value for key, value in asdict(fetched).items() if key not in ("path", "is_new")}
    note = json.dumps({"identity": identity, "fetched": facts}, indent=1)
    (content / _STAMP).write_text(note + "\n", encoding="utf-8")
    os.replace(content, target)
    return fetched
