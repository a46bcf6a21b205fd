"""What every test shares: an environment of its own, and the real data where there is some."""

import os
import shutil
import tempfile
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
