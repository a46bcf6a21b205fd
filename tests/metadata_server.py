"""A cloud's metadata server on loopback, which tests let give notice."""

from __future__ import annotations

import contextlib
import datetime
import http.server
import json
import threading
from collections.abc import Iterator


class MetadataServer(http.server.ThreadingHTTPServer):
    """Answers as Google's and Amazon's do; `notice` is what is left, in seconds, once there is a notice."""

    daemon_threads = True

    def __init__(self, cloud: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.cloud = cloud
        self.notice: float | None = None
        self.failures = 0
        self.hang: threading.Event | None = None
        self.asked = 0
        self.tokens: set[str] = set()

    @property
    def environment(self) -> dict[str, str]:
        """What makes a process ask this server; the other cloud is switched off."""
        host = f"127.0.0.1:{self.server_port}"
        if self.cloud == "google":
            return {"GCE_METADATA_HOST": host, "AWS_EC2_METADATA_DISABLED": "true"}
        return {"AWS_EC2_METADATA_SERVICE_ENDPOINT": f"http://{host}/", "NO_GCE_CHECK": "true"}


class _Handler(http.server.BaseHTTPRequestHandler):
    server: MetadataServer

    def do_GET(self) -> None:
        server = self.server
        server.asked += 1
        if server.hang is not None:
            server.hang.wait(30)
        if server.failures > 0:
            server.failures -= 1
            return self._answer(503, b"")
        if server.cloud == "google" and self.path == "/computeMetadata/v1/instance/preempted":
            if self.headers["Metadata-Flavor"] != "Google":
                return self._answer(403, b"")
            return self._answer(200, b"TRUE" if server.notice is not None else b"FALSE")
        if server.cloud == "amazon" and self.path == "/latest/meta-data/spot/instance-action":
            if self.headers["X-aws-ec2-metadata-token"] not in server.tokens:
                return self._answer(401, b"")
            if server.notice is None:
                return self._answer(404, b"")
            end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=server.notice)
            plan = {"action": "terminate", "time": end.strftime("%Y-%m-%dT%H:%M:%SZ")}
            return self._answer(200, json.dumps(plan).encode())
        return self._answer(404, b"")

    def do_PUT(self) -> None:
        if self.server.cloud != "amazon" or self.path != "/latest/api/token":
            return self._answer(405, b"")
        if not self.headers["X-aws-ec2-metadata-token-ttl-seconds"]:
            return self._answer(400, b"")
        token = f"token-{len(self.server.tokens)}"
        self.server.tokens.add(token)
        return self._answer(200, token.encode())

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        if self.server.cloud == "google":
            self.send_header("Metadata-Flavor", "Google")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(OSError):  # the one who asked may have given up
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def metadata_server(cloud: str) -> Iterator[MetadataServer]:
    with MetadataServer(cloud) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            if server.hang is not None:
                server.hang.set()
            server.shutdown()
