"""What every test shares: an environment of its own, and the real data where there is some."""

import os
import shutil
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from ray_runs import DETECTOR, Cluster, output, start

from benchmarks._measure import real_data as given_data
from benchmarks.faults.pictures import draw_art, draw_faces
from benchmarks.faults.ray_kills import free_port, start_head

settings.register_profile("tests", deadline=None, derandomize=True, database=None)
settings.load_profile("tests")

_CACHE = tempfile.mkdtemp(prefix="hai-test-cache-")
os.environ |= {
    "HAI_CACHE": _CACHE,
    "HF_HUB_OFFLINE": "1",
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "WANDB_MODE": "offline",
}
for name in ("HAI_STORAGE", "RAY_ADDRESS"):
    os.environ.pop(name, None)


def pytest_unconfigure() -> None:
    shutil.rmtree(_CACHE, ignore_errors=True)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images; tests that need it are skipped where it is absent."""
    if not given_data().is_dir():
        pytest.skip("no real data: HAI_TEST_DATA names no folder")
    return given_data()


@pytest.fixture(scope="session")
def ray_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The one Ray cluster of the test session: two CPUs on this machine, as `ray start --head` makes it."""
    patience = {"RAY_JOB_STOP_WAIT_TIME_S": "30", "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"}
    head = start_head(tmp_path_factory.mktemp("ray") / "start.txt", **patience)
    yield Cluster(head.address, head.dashboard)
    head.process.terminate()
    head.process.wait()


@pytest.fixture(scope="session")
def small_faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 96 small JPEGs, real/ and fake/: smooth pictures, the fakes with a fine grid over them."""
    return draw_faces(tmp_path_factory.mktemp("small-faces"))


@pytest.fixture(scope="session")
def small_art(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with metadata.csv and images/: 72 small pictures in tiers S, A, B, C, the better ones the sharper."""
    return draw_art(tmp_path_factory.mktemp("small-art"))


@pytest.fixture(scope="session")
def tiny_detector(small_faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The config of a detector that trains 60 steps in seconds; tests kill its runs."""
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(DETECTOR.format(faces=small_faces), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def unbroken(tiny_detector: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of that run, never interrupted, without Ray."""
    storage = tmp_path_factory.mktemp("unbroken")
    process = start(tiny_detector, storage, "scale.launcher=in_process")
    assert process.wait(timeout=300) == 0, output(storage)
    return storage / "tiny"


@pytest.fixture(scope="session")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Raw data: moving faces, a wall without one, an image, broken files; skips without the weights of MTCNN."""
    from videos import save_raw

    from hai.errors import ConfigError
    from hai.faces.mtcnn import load_weights

    pytest.importorskip("skimage")
    try:
        load_weights()
    except ConfigError as error:
        pytest.skip(str(error))
    return save_raw(tmp_path_factory.mktemp("raw"))


@pytest.fixture
def s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of an S3 server of this test's own, which holds the empty bucket `bucket`; the cache is empty too."""
    server = pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    boto3 = pytest.importorskip("boto3")
    monkeypatch.setenv("HAI_CACHE", str(tmp_path / "cache"))
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    reset = urllib.request.Request(f"{endpoint}/moto-api/reset", method="POST")  # servers of one process share a memory
    urllib.request.urlopen(reset).close()
    client = boto3.client("s3", endpoint_url=endpoint)
    client.create_bucket(Bucket="bucket")
    yield client
    client.close()
    running.stop()


@pytest.fixture
def gcs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The port of a GCS server of this test's own, which holds the empty bucket `bucket`; the cache is empty too."""
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    server = pytest.importorskip("gcp_storage_emulator.server")
    pytest.importorskip("gcsfs")
    from fsspec.config import conf

    monkeypatch.setenv("HAI_CACHE", str(tmp_path / "cache"))
    for name in ("GOOGLE_APPLICATION_CREDENTIALS", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(conf, "gcs", {"token": "anon"})
    port = free_port()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    running = server.create_server("127.0.0.1", port, in_memory=True, default_bucket="bucket")
    running.start()
    yield port
    running.stop()
