"""A web server on this machine that breaks off, stalls, refuses and truncates, and speaks as Kaggle's does."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.server
import json
import threading
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlsplit

__all__ = ["File", "WebServer"]

_METHODS = {
    "/v1/datasets.DatasetApiService/DownloadDataset": ("ownerSlug", "datasetSlug"),
    "/v1/competitions.CompetitionApiService/DownloadDataFiles": ("competitionName",),
}


@dataclass
class File:
    """A file, and how it is served."""

    content: bytes
    breaks: list[int] = field(default_factory=list)
    """The next answers are cut after so many bytes each."""
    statuses: list[int] = field(default_factory=list)
    """The next answers, before any body."""
    stall_s: float = 0.0
    """The next answer stands still for so long after half of its body."""
    has_ranges: bool = True
    has_length: bool = True
    has_version: bool = True
    """Whether an ETag tells one version from another."""
    kind: str = "application/octet-stream"
    headers: dict[str, str] = field(default_factory=dict)


class WebServer:
    """Serve files by path; what Kaggle's client asks for is at `/kaggle/OWNER/NAME` or `/kaggle/NAME`.

    Kaggle's own storage is played by the name `localhost`, which must see neither login nor stale signature.
    """

    def __init__(self) -> None:
        self.files: dict[str, File] = {}
        self.logins: list[str] = []
        """The logins that Kaggle takes, as `Authorization` says them; empty: anyone may read."""
        self.refusal: tuple[int, str] | None = None
        """What Kaggle answers instead: status and message."""
        self.requests: list[tuple[str, str, str]] = []
        """Of each request: method, path, Range."""
        self.signature = 0

    def __enter__(self) -> WebServer:
        owner = self

        class Handler(_Handler):
            server_of = owner

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        """Return its address."""
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def storage(self) -> str:
        """Return its address as another host."""
        return f"http://localhost:{self._server.server_port}"

    @staticmethod
    def basic(username: str, key: str) -> str:
        """Return what `Authorization` says of a user name and key."""
        return "Basic " + base64.b64encode(f"{username}:{key}".encode()).decode()


class _Handler(http.server.BaseHTTPRequestHandler):
    server_of: WebServer

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def do_POST(self) -> None:
        owner = self.server_of
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
        owner.requests.append(("POST", self.path, self.headers.get("Range", "")))
        if owner.refusal is not None:
            return self._json(owner.refusal[0], {"code": owner.refusal[0], "message": owner.refusal[1]})
        if owner.logins and self.headers.get("Authorization") not in owner.logins:
            return self._json(401, {"code": 401, "message": "Unauthenticated"})
        name = "/kaggle/" + "/".join(body[key] for key in _METHODS[self.path])
        if version := body.get("datasetVersionNumber"):
            name += f"/{version}"
        if name not in owner.files:
            return self._json(404, {"code": 404, "message": "Not found"})
        owner.signature += 1
        self.send_response(302)
        self.send_header("Location", f"{owner.storage}{name}/archive.zip?X-Goog-Signature=signature{owner.signature}")
        self.send_header("Content-Length", "0")
        self.end_headers()
        return None

    def _json(self, status: int, content: dict[str, Any]) -> None:
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_GET(self) -> None:
        owner, parts = self.server_of, urlsplit(self.path)
        owner.requests.append(("GET", parts.path, self.headers.get("Range", "")))
        path = parts.path
        if path.startswith("/kaggle/"):
            path = path.removesuffix("/archive.zip")
            fresh = dict(parse_qsl(parts.query)).get("X-Goog-Signature") == f"signature{owner.signature}"
            if not fresh or "Authorization" in self.headers:
                return self.send_error(400)
        if path not in owner.files:
            return self.send_error(404)
        file = owner.files[path]
        if file.statuses:
            return self.send_error(file.statuses.pop(0))
        self._send(file)
        return None

    def _send(self, file: File) -> None:
        etag = '"' + hashlib.sha256(file.content).hexdigest()[:16] + '"'
        start, wanted = 0, self.headers.get("Range", "")
        if file.has_ranges and wanted and self.headers.get("If-Range", etag) == etag:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(file.content):
                return self.send_error(416)
        body = file.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Type", file.kind)
        for name, value in file.headers.items():
            self.send_header(name, value)
        if file.has_version:
            self.send_header("ETag", etag)
        if file.has_length:
            self.send_header("Content-Length", str(len(body)))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(file.content) - 1}/{len(file.content)}")
        self.end_headers()
        with contextlib.suppress(OSError):
            if file.stall_s:
                pause, file.stall_s = file.stall_s, 0.0
                self.wfile.write(body[: len(body) // 2])
                self.wfile.flush()
                time.sleep(pause)
                self.close_connection = True
                return None
            if file.breaks:
                self.wfile.write(body[: file.breaks.pop(0)])
                self.wfile.flush()
                self.close_connection = True
                return None
            self.wfile.write(body)
        return None
