"""Notices of the clouds, over real HTTP from a server on loopback."""

from __future__ import annotations

import http.server
import queue
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from metadata_server import metadata_server

from hai.launch import preemption
from hai.launch.preemption import Notice, NoticeWatch, find_source

CLOUDS = [("google", "Google Cloud", 30), ("amazon", "Amazon EC2", 120)]


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preemption, "_EVERY_SECONDS", 0.05)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # a proxy would answer for another machine


@pytest.mark.parametrize(("cloud", "name", "seconds"), CLOUDS)
def test_a_notice_is_taken_once(cloud: str, name: str, seconds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: queue.Queue[Notice] = queue.Queue()
    with metadata_server(cloud) as server:
        for variable, value in server.environment.items():
            monkeypatch.setenv(variable, value)
        watch = NoticeWatch(taken.put)
        watch.start()
        while server.asked < 3:
            time.sleep(0.01)
        assert taken.empty()
        server.failures, server.notice = 3, seconds  # it answers 503 a few times first
        notice = taken.get(timeout=30)
        watch.join(timeout=30)
    assert not watch.is_alive()
    assert taken.empty()
    assert notice.cloud == name
    assert seconds - 10 < notice.seconds <= seconds


@pytest.mark.parametrize("cloud", ["google", "amazon"])
def test_a_cloud_is_found_by_its_server(cloud: str) -> None:
    with metadata_server(cloud) as server:
        source = find_source(server.environment)
        assert source is not None
        assert source() is None
        server.failures = 1
        assert find_source(server.environment) is not None  # the second try


@pytest.mark.parametrize(("cloud", "other"), [("google", "amazon"), ("amazon", "google")])
def test_a_server_of_another_kind_is_no_cloud(cloud: str, other: str) -> None:
    with metadata_server(cloud) as asked, metadata_server(other) as there:
        (name,) = [name for name in asked.environment if name.endswith(("HOST", "ENDPOINT"))]
        (off,) = set(asked.environment) - {name}
        port = there.server_port
        url = asked.environment[name].replace(str(asked.server_port), str(port))
        assert find_source({name: url, off: "true"}) is None


def test_a_file_is_a_notice_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: queue.Queue[Notice] = queue.Queue()
    monkeypatch.setenv("HAI_NOTICE_FILE", str(tmp_path / "leave"))
    watch = NoticeWatch(taken.put)
    watch.start()
    with pytest.raises(queue.Empty):
        taken.get(timeout=0.3)
    (tmp_path / "leave").touch()
    assert taken.get(timeout=30) == Notice("the cluster", 15.0)
    watch.join(timeout=30)
    assert not watch.is_alive()


def test_off_the_clouds_nobody_asks_on() -> None:
    closed = {"GCE_METADATA_HOST": "127.0.0.1:9", "AWS_EC2_METADATA_SERVICE_ENDPOINT": "http://127.0.0.1:9"}
    assert find_source(closed) is None
    assert find_source({"NO_GCE_CHECK": "true", "AWS_EC2_METADATA_DISABLED": "true"}) is None


def test_a_server_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preemption, "_ANSWER_SECONDS", 0.1)
    with metadata_server("google") as server:
        server.hang = threading.Event()
        assert find_source(server.environment) is None


class _Nonsense(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.wfile.write(b"nonsense\r\n\r\n")

    def do_PUT(self) -> None:
        self.do_GET()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def nonsense() -> Iterator[str]:
    with http.server.HTTPServer(("127.0.0.1", 0), _Nonsense) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_server_that_speaks_nonsense_is_no_cloud(nonsense: str) -> None:
    assert (
        find_source({"GCE_METADATA_HOST": nonsense, "AWS_EC2_METADATA_SERVICE_ENDPOINT": f"http://{nonsense}"}) is None
    )
