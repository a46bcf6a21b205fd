"""What these tests compute on: the first GPU, or they skip; HAI_TEST_DEVICE=cpu shows that most of them run at all."""

import os
from collections.abc import Iterator

import pytest
import torch

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when a program first multiplies on a GPU


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The device under test."""
    found = torch.device(os.environ.get("HAI_TEST_DEVICE", "cuda:0"))
    if found.type == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("no GPU")
        torch.cuda.set_device(found)
    return found


@pytest.fixture
def gpu(device: torch.device) -> torch.device:
    """The device under test, a GPU: what is tested does not exist elsewhere."""
    if device.type != "cuda":
        pytest.skip("only on a GPU")
    return device


@pytest.fixture
def same_bits(device: torch.device) -> Iterator[torch.device]:
    """The device under test, whose kernels add in a fixed order meanwhile."""
    torch.use_deterministic_algorithms(True)
    yield device
    torch.use_deterministic_algorithms(False)
