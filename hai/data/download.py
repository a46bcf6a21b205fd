"""Downloads over HTTP: streamed, resumed where they broke off, compared with what the server says of the file."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from email.message import Message
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from hai.data.content import Progress
from hai.errors import DataError, StorageError
from hai.masking import without_secrets

__all__ = ["TIMEOUT", "Ask", "download", "plain_request"]

Ask = Callable[[Mapping[str, str]], Any]
"""Sends the request with these headers besides its own; returns the `requests.Response`, its body not yet read."""

_CHUNK: Final = 1 << 16
"""What at most is lost of each connection that breaks."""
TIMEOUT: Final = (10.0, 60.0)
"""Seconds to wait for a connection, and for the next bytes."""
_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 30.0
_BUSY: Final = (408, 425, 429, 500, 502, 503, 504)


@dataclass(frozen=True)
class _Offer:
    """What a server says of a file."""

    name: str
    size: int | None
    token: str
    """Its strong ETag, else its date: changes when the file does. Empty: the server names none."""
    md5: str
    """In base 64; empty: unknown."""


class _PassingError(Exception):
    """Trouble that another try may not meet."""

    def __init__(self, reason: str, pause_s: float = 0.0, tries: int = 6) -> None:
        super().__init__(reason)
        self.pause_s, self.tries = pause_s, tries


class _StartOverError(_PassingError):
    """The beginning that is here is none of what the server has now."""


def plain_request(url: str) -> Ask:
    """Return what asks for a URL, with the login of `~/.netrc` if there is one."""
    import requests

    session = requests.Session()
    return lambda headers: session.get(url, headers=dict(headers), stream=True, timeout=TIMEOUT)


def download(
    ask: Ask,
    folder: Path,
    where: str,
    *,
    refusal: Callable[[Any], str],
    before: Callable[[str, int, int], None],
    progress: Progress | None = None,
) -> tuple[Path, str]:
    """Download one file into a folder, which keeps the beginning of it until it is whole.

    A connection that breaks, stalls or meets a busy server is made again and the file goes on where it stopped, in
    this call or the next, as long as the server still has the same version of it.

    Args:
        ask: sends the request; called again after each break.
        folder: holds the file and what is known of it.
        where: the source, for messages.
        refusal: what to say of an answer that refuses.
        before: told the file's name, how many bytes will follow and how many it has, once that is known; may raise.
        progress: called with bytes (done, total); total is 0 where the server does not say it.

    Returns:
        The file, and its name at the server.

    Raises:
        StorageError: the server refuses or cannot be reached, or the disk cannot be written.
        DataError: what arrived is not what was announced.
    """
    body, notes = folder / "body", folder / "body.json"
    offer = _noted(notes) if body.exists() else None
    failures, furthest = 0, _size(body)
    while offer is None or offer.size is None or _size(body) != offer.size:
        try:
            offer = _go_on(ask, body, notes, offer, where, refusal, before, progress)
            break
        except _PassingError as error:
            offer = _noted(notes)
            failures = 1 if _size(body) > furthest else failures + 1
            furthest = max(furthest, _size(body))
            if failures >= error.tries:
                hint = "to go on with the download" if _size(body) else "later, or check the address and the network"
                raise StorageError(f"{where}: {error}; run again {hint}") from None
            time.sleep(min(_LONGEST_PAUSE_S, max(error.pause_s, _PAUSE_S * 2 ** (failures - 1))))
    if offer.md5 and _md5(body) != offer.md5:
        body.unlink()
        raise DataError(f"{where}: damaged on its way, its md5 is not what the server says; run again to fetch it anew")
    return body, offer.name


def _go_on(
    ask: Ask,
    body: Path,
    notes: Path,
    offer: _Offer | None,
    where: str,
    refusal: Callable[[Any], str],
    before: Callable[[str, int, int], None],
    progress: Progress | None,
) -> _Offer:
    """Ask for what is missing of a file and write it; returns when the server has sent all."""
    import requests
    import urllib3

    have = _size(body) if offer is not None else 0
    headers = {"Accept-Encoding": "identity"}
    if offer is not None and have:
        headers |= {"Range": f"bytes={have}-"} | ({"If-Range": offer.token} if offer.token else {})
    try:
        with ask(headers) as response:
            found, start = _offered(response, offer, have, where, refusal)
            if start == 0:
                body.unlink(missing_ok=True)
                _note(notes, found)
            if found.size is not None:
                before(found.name, found.size - start, found.size)
            _write(response, body, start, found.size, progress)
    except _StartOverError:
        body.unlink()
        raise
    except (
        requests.exceptions.SSLError,
        requests.exceptions.InvalidURL,
        requests.exceptions.TooManyRedirects,
    ) as error:
        raise StorageError(f"{where}: cannot be reached ({_reason(error)}); check the URL") from None
    except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
        tries = 6 if have else 3  # a wrong address is no passing trouble
        raise _PassingError(f"the connection fails ({_reason(error)})", tries=tries) from None
    except urllib3.exceptions.HTTPError as error:
        raise _PassingError(f"the connection broke ({_reason(error)})") from None
    except requests.RequestException as error:
        raise StorageError(f"{where}: cannot be reached ({_reason(error)}); check the URL") from None
    if found.size is not None and _size(body) != found.size:
        raise _PassingError(f"the server broke off after {_size(body)} of {found.size} bytes")
    if found.size is None:
        found = replace(found, size=_size(body))
        _note(notes, found)  # so that the next call does not ask for what follows
    return found


def _offered(
    response: Any, known: _Offer | None, have: int, where: str, refusal: Callable[[Any], str]
) -> tuple[_Offer, int]:
    """Judge an answer: what it offers, and at which byte its body starts."""
    status = response.status_code
    if status in _BUSY:
        wait = response.headers.get("Retry-After", "")
        raise _PassingError(f"the server answers {status} {response.reason}", float(wait) if wait.isdigit() else 0.0)
    if status == 416 and have:
        raise _StartOverError("the server has less of the file than before")
    if status not in (200, 206):
        raise StorageError(f"{where}: {refusal(response)}")
    kind = response.headers.get("Content-Type", "").partition(";")[0]
    path = urlsplit(response.url).path
    if kind == "text/html" and not path.lower().endswith((".html", ".htm")):
        raise StorageError(
            f"{where}: the server sends a web page, not a file; does it want a login or a click? give a direct link"
        )
    offer = _offer_of(response, path)
    if status == 200:
        return offer, 0
    span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    total = int(span[2]) if span and span[2] != "*" else None
    same = known is not None and known.size == total and offer.token in ("", known.token)
    if known is None or span is None or int(span[1]) != have or not same:
        raise _StartOverError("the file has changed on the server")
    return known, have


def _offer_of(response: Any, path: str) -> _Offer:
    headers = response.headers
    disposition = Message()
    disposition["Content-Disposition"] = headers.get("Content-Disposition", "")
    name = (disposition.get_filename() or unquote(path)).replace("\\", "/").rstrip("/").rpartition("/")[2]
    etag = headers.get("ETag", "")
    hashes = dict(part.strip().partition("=")[::2] for part in headers.get("x-goog-hash", "").split(","))
    length = headers.get("Content-Length", "")
    return _Offer(
        name=name,
        size=int(length) if length.isdigit() else None,
        token=headers.get("Last-Modified", "") if not etag or etag.startswith("W/") else etag,
        md5=hashes.get("md5", ""),
    )


def _write(response: Any, body: Path, start: int, size: int | None, progress: Progress | None) -> None:
    done = start
    if progress:
        progress(done, size or 0)
    with open(body, "ab") as file:
        for chunk in response.raw.stream(_CHUNK, decode_content=False):  # a .tar.gz is no encoding to be undone
            try:
                file.write(chunk)
            except OSError as error:
                reason = error.strerror or error
                raise StorageError(f"{body}: cannot be written ({reason}); run again to go on") from None
            done += len(chunk)
            if progress:
                progress(done, size or 0)


def _noted(notes: Path) -> _Offer | None:
    try:
        return _Offer(**json.loads(notes.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _note(notes: Path, offer: _Offer) -> None:
    temporary = notes.with_name(f"{notes.name}.part")
    temporary.write_text(json.dumps(asdict(offer)), encoding="utf-8")
    os.replace(temporary, notes)


def _size(body: Path) -> int:
    with suppress(FileNotFoundError):
        return body.stat().st_size
    return 0


def _md5(body: Path) -> str:
    with open(body, "rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).digest()
    return base64.b64encode(digest).decode()


def _reason(error: Exception) -> str:
    """Say in few words what an error of the network is about; libraries wrap theirs several times."""
    inner = error.args[0] if error.args and isinstance(error.args[0], Exception | str) else error
    text = str(getattr(inner, "reason", inner))
    return without_secrets(re.sub(r"^(?:<.*?>|\w+\(host=.*?\)): ?", "", text)[:200])
