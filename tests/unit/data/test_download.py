from __future__ import annotations

import base64
import hashlib
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.faults.web import File, WebServer
from hai.data import download as downloads
from hai.data.download import download, plain_request
from hai.errors import DataError, StorageError

PIECE = 65_536
DATA = random.Random(0).randbytes(5 * PIECE)


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(downloads, "_PAUSE_S", 0.001)
    monkeypatch.setattr(downloads, "_LONGEST_PAUSE_S", 0.01)
    monkeypatch.setattr(downloads, "TIMEOUT", (2.0, 0.3))
    with WebServer() as server:
        yield server


def taken(web: WebServer, folder: Path, path: str = "/x.zip", seen: list[tuple[int, int]] | None = None) -> bytes:
    folder.mkdir(exist_ok=True)
    body, _ = download(
        plain_request(web.url + path),
        folder,
        "there",
        refusal=lambda response: f"refused {response.status_code}",
        before=lambda name, left, size: None,
        progress=None if seen is None else lambda done, total: seen.append((done, total)),
    )
    return body.read_bytes()


def ranges(web: WebServer) -> list[str]:
    return [wanted for _, _, wanted in web.requests]


@pytest.mark.parametrize("has_length", [True, False])
def test_a_file_arrives_whole(web, tmp_path, has_length):
    web.files["/x.zip"] = File(DATA, has_length=has_length)
    seen = []
    assert taken(web, tmp_path, seen=seen) == DATA
    assert seen[-1] == (len(DATA), len(DATA) if has_length else 0)
    web.requests.clear()
    assert taken(web, tmp_path) == DATA
    assert web.requests == []


def test_broken_connections_go_on_where_they_broke(web, tmp_path):
    web.files["/x.zip"] = File(DATA, breaks=[2 * PIECE, PIECE, PIECE], statuses=[503, 429])
    assert taken(web, tmp_path) == DATA
    assert ranges(web) == ["", "", "", "bytes=131072-", "bytes=196608-", "bytes=262144-"]


def test_a_server_that_stands_still_is_asked_again(web, tmp_path):
    web.files["/x.zip"] = File(DATA, stall_s=1.0)
    assert taken(web, tmp_path) == DATA
    assert ranges(web) == ["", "bytes=131072-"]


def test_a_later_call_goes_on_with_what_is_there(web, tmp_path):
    web.files["/x.zip"] = File(DATA, breaks=[3 * PIECE] + [0] * 20)
    with pytest.raises(StorageError, match=r"connection .*; run again to go on with the download"):
        taken(web, tmp_path)
    web.files["/x.zip"].breaks.clear()
    web.requests.clear()
    seen = []
    assert taken(web, tmp_path, seen=seen) == DATA
    assert ranges(web) == ["bytes=196608-"]
    assert seen[0] == (3 * PIECE, len(DATA))
    web.requests.clear()
    assert taken(web, tmp_path) == DATA
    assert web.requests == []


@pytest.mark.parametrize("size", [5 * PIECE, 4 * PIECE, PIECE])
def test_a_beginning_of_another_version_is_not_used(web, tmp_path, size):
    web.files["/x.zip"] = File(DATA, breaks=[3 * PIECE] + [0] * 20)
    with pytest.raises(StorageError):
        taken(web, tmp_path)
    web.files["/x.zip"] = File(other := os.urandom(size))
    assert taken(web, tmp_path) == other


@pytest.mark.parametrize("size", [5 * PIECE + 1, PIECE])
def test_without_a_version_the_size_must_be_the_same(web, tmp_path, size):
    web.files["/x.zip"] = File(DATA, breaks=[3 * PIECE] + [0] * 20, has_version=False)
    with pytest.raises(StorageError):
        taken(web, tmp_path)
    web.files["/x.zip"] = File(other := os.urandom(size), has_version=False)
    assert taken(web, tmp_path) == other


def test_a_server_without_ranges_starts_over(web, tmp_path):
    web.files["/x.zip"] = File(DATA, breaks=[3 * PIECE, PIECE], has_ranges=False)
    assert taken(web, tmp_path) == DATA
    assert ranges(web) == ["", "bytes=196608-", "bytes=65536-"]


def test_a_server_without_ranges_that_always_breaks_off_is_given_up(web, tmp_path):
    web.files["/x.zip"] = File(DATA, breaks=[PIECE, 2 * PIECE] * 10, has_ranges=False)
    with pytest.raises(StorageError, match="run again to go on with the download"):
        taken(web, tmp_path)
    assert len(web.requests) == 7


def test_damage_is_seen_by_the_servers_md5(web, tmp_path):
    right = base64.b64encode(hashlib.md5(DATA).digest()).decode()
    web.files["/x.zip"] = File(DATA, headers={"x-goog-hash": f"crc32c=abc==,md5={right}"})
    assert taken(web, tmp_path / "a") == DATA
    web.files["/x.zip"] = File(DATA[:-1] + b"?", headers={"x-goog-hash": f"crc32c=abc==,md5={right}"})
    with pytest.raises(DataError, match="there: damaged on its way, its md5 is not what the server says"):
        taken(web, tmp_path / "b")
    web.files["/x.zip"].content = DATA
    assert taken(web, tmp_path / "b") == DATA


@pytest.mark.parametrize(("status", "tries"), [(403, 1), (404, 1), (500, 6)])
def test_refusals_are_final_and_trouble_is_not(web, tmp_path, status, tries):
    web.files["/x.zip"] = File(DATA, statuses=[status] * 10)
    match = f"there: refused {status}" if tries == 1 else f"there: the server answers {status} .*run again"
    with pytest.raises(StorageError, match=match):
        taken(web, tmp_path)
    assert len(web.requests) == tries


def test_a_web_page_is_no_file(web, tmp_path):
    web.files["/x.zip"] = File(b"<html>log in</html>", kind="text/html; charset=utf-8")
    with pytest.raises(StorageError, match="sends a web page, not a file"):
        taken(web, tmp_path)


def test_nobody_there(tmp_path, web):
    with WebServer() as gone:
        url = gone.url
    gone_request = plain_request(f"{url}/x.zip?sig=secret")
    with pytest.raises(StorageError, match="the connection fails") as caught:
        download(gone_request, tmp_path, "there", refusal=str, before=lambda name, left, size: None)
    assert "secret" not in str(caught.value)
    assert "0x" not in str(caught.value)


def test_names(web, tmp_path):
    for path, headers, name in (
        ("/a%20b.zip", {}, "a b.zip"),
        ("/get", {"Content-Disposition": 'attachment; filename="faces.tar.gz"'}, "faces.tar.gz"),
        ("/got", {"Content-Disposition": 'attachment; filename="../../x.zip"'}, "x.zip"),
        ("/two", {"Content-Disposition": "attachment; filename*=UTF-8''%EC%96%BC%EA%B5%B4.zip"}, "얼굴.zip"),
    ):
        web.files[path] = File(b"1", headers=headers)
        folder = tmp_path / name
        folder.mkdir()
        told: list[object] = []
        request = plain_request(web.url + path)
        found = download(request, folder, "there", refusal=str, before=lambda *args, told=told: told.append(args))
        assert found[1] == name
        assert told == [(name, 1, 1)]
