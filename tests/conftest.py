"""What every test shares: an environment of its own, and the real data where there is some."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

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


@pytest.fixture(scope="session")
def ray_address() -> Iterator[str]:
    """The one Ray cluster of the test session: two CPUs on this machine; its address for other processes."""
    import ray

    from hai.launch.cluster import start_local

    start_local(lambda line: None, num_cpus=2)
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


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
