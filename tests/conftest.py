"""What every test shares: an environment of its own, and the real data where there is some."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import settings

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
    folder = Path(os.environ.get("HAI_TEST_DATA", "../shared/data")).absolute()
    if not folder.is_dir():
        pytest.skip("no real data: HAI_TEST_DATA names no folder")
    return folder


class Cluster(NamedTuple):
    """A Ray cluster on this machine: where drivers join it, and where jobs are submitted."""

    address: str
    dashboard: str


@pytest.fixture(scope="session")
def ray_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The one Ray cluster of the test session: two CPUs on this machine, as `ray start --head` makes it."""
    log = tmp_path_factory.mktemp("ray") / "start.txt"
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for _ in range(3):  # Ray gives its own processes 30 s, which a busy machine can exceed
        port, dashboard = _free_port(), _free_port()
        command = ["ray", "start", "--head", "--block", "--num-cpus=2", "--disable-usage-stats", f"--port={port}"]
        command += ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
        with open(log, "a", encoding="utf-8") as output:
            head = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        while head.poll() is None and "Ray runtime started" not in log.read_text(encoding="utf-8"):
            time.sleep(0.2)
        if head.poll() is None:
            break
    assert head.poll() is None, log.read_text(encoding="utf-8")
    yield Cluster(f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}")
    head.terminate()
    head.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def small_faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 96 small JPEGs, real/ and fake/: smooth pictures, the fakes with a fine grid over them."""
    import numpy as np
    from PIL import Image

    folder = tmp_path_factory.mktemp("small-faces")
    rng = np.random.default_rng(1)
    for label in ("real", "fake"):
        (folder / label).mkdir()
        for number in range(48):
            coarse = rng.integers(40, 215, size=(6, 6, 3)).astype(np.uint8)
            picture = np.asarray(Image.fromarray(coarse).resize((72, 72), Image.Resampling.BICUBIC)).astype(np.int16)
            if label == "fake":
                picture[::2, ::2] += 14
            Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(
                folder / label / f"{number:03d}.jpg", quality=92
            )
    return folder


@pytest.fixture(scope="session")
def small_art(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with metadata.csv and images/: 72 small pictures in tiers S, A, B, C, the better ones the sharper."""
    import numpy as np
    from PIL import Image

    folder = tmp_path_factory.mktemp("small-art")
    (folder / "images").mkdir()
    rng = np.random.default_rng(2)
    lines = ["image_id,filename,tier,group,split,quality"]
    for number in range(72):
        tier, split = number % 4, "train" if number < 48 else ("val" if number < 60 else "test")
        fine = rng.integers(0, 255, size=(60, 72, 3)).astype(np.float64)
        coarse = np.asarray(Image.fromarray(rng.integers(40, 215, size=(5, 6, 3)).astype(np.uint8)).resize((72, 60)))
        share = 0.32 - 0.09 * tier + 0.02 * rng.normal()
        picture = ((1 - share) * coarse + share * fine).clip(0, 255).astype(np.uint8)
        Image.fromarray(picture).save(folder / "images" / f"{number:03d}.jpg", quality=95)
        lines.append(f"art{number:03d},{number:03d}.jpg,{'SABC'[tier]},g{number // 2},{split},{4 - tier}")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


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
