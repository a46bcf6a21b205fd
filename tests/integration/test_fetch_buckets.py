"""Fetching from buckets, against servers of S3 and GCS on this machine, over a wire that drops, stalls and cuts."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image

from benchmarks.faults.wire import FaultyWire
from hai.config.load import config_from_yaml_text
from hai.data import remote
from hai.data.fetch import fetch
from hai.data.index import pack_data
from hai.errors import DataError, StorageError

FILES = {f"{label}/{i}.png": os.urandom(30_000) + b"." for label in ("real", "fake") for i in range(4)}
"""The last byte is no line end: the emulator of GCS takes those of an upload away."""


def as_zip(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tree(folder: Path) -> dict[str, bytes]:
    found = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


@pytest.fixture(params=["s3", "gcs"])
def bucket(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str, int]:
    """URL of an empty bucket, the variable that names its server, and the server's port."""
    server = request.getfixturevalue(request.param)
    monkeypatch.setattr(remote, "_CHUNK", 50_000)
    fsspec.get_filesystem_class("s3" if request.param == "s3" else "gs").clear_instance_cache()  # of other servers
    if request.param == "gcs":
        return "gs://bucket", "STORAGE_EMULATOR_HOST", server
    return "s3://bucket", "AWS_ENDPOINT_URL", int(server.meta.endpoint_url.rpartition(":")[2])


def put(url: str, content: bytes) -> None:
    fs, path = fsspec.core.url_to_fs(url)
    fs.pipe_file(path, content)


def test_archives_folders_and_packs(bucket, tmp_path):
    url, _, _ = bucket
    put(f"{url}/faces.zip", as_zip(FILES))
    found = fetch(f"{url}/faces.zip", tmp_path / "zip")
    assert (found.files, found.source) == (len(FILES), f"{url}/faces.zip")
    assert tree(tmp_path / "zip") == FILES
    for name, content in FILES.items():
        put(f"{url}/folder/{name}", content)
    fetch(f"{url}/folder/", tmp_path / "folder")
    assert tree(tmp_path / "folder") == FILES
    assert not fetch(f"{url}/folder/", tmp_path / "folder").is_new
    for label, shade in (("real", 10), ("fake", 200)):
        (tmp_path / "images" / label).mkdir(parents=True)
        for i in range(3):
            picture = np.full((32, 32, 3), shade + i, dtype=np.uint8)
            Image.fromarray(picture).save(tmp_path / "images" / label / f"{i}.png")
    config = config_from_yaml_text(f"data: {{sources: [{{path: '{tmp_path / 'images'}'}}]}}").data
    pack_data(config, tmp_path / "pack", 1)
    for path in (tmp_path / "pack").iterdir():
        put(f"{url}/pack/{path.name}", path.read_bytes())
    fetch(f"{url}/pack", tmp_path / "fetched-pack")
    assert tree(tmp_path / "fetched-pack") == tree(tmp_path / "pack")


def test_what_is_not_there(bucket, tmp_path):
    url, _, _ = bucket
    for gone in (f"{url}/none.zip", f"{url}/none", f"{url}-of-nobody/x.zip"):
        with pytest.raises((DataError, StorageError), match=f"{gone}: (nothing is there|cannot be)"):
            fetch(gone, tmp_path / "x")
    assert not list(tmp_path.glob("x*"))


def test_a_bad_wire(bucket, tmp_path, monkeypatch):
    """However often the wire fails, what arrives is whole; a call that gives up is gone on with."""
    monkeypatch.setattr(remote, "_CHUNK", 20_000)
    url, variable, port = bucket
    content = as_zip({f"{i}.png": os.urandom(40_000) for i in range(20)})
    put(f"{url}/faces.zip", content)
    with FaultyWire(port, rate=0.3, seed=3, stall_s=0.2) as wire:
        monkeypatch.setenv(variable, f"http://127.0.0.1:{wire.port}")
        fsspec.get_filesystem_class(url.partition("://")[0]).clear_instance_cache()
        for _ in range(20):
            try:
                fetch(f"{url}/faces.zip", tmp_path / "x")
            except StorageError:
                continue
            break
        assert wire.faults.total() >= 5
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert tree(tmp_path / "x") == {name: archive.read(name) for name in archive.namelist()}
