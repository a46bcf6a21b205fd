"""Images on their way to the GPU: draws and changes equal the CPU's, no buffer is overwritten before it is copied."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hai.checkpoint.buffers import Buffers
from hai.config.schema import AugmentConfig
from hai.data import device_draws
from hai.data.augment import augment, normalise
from hai.data.loader import RING, RingLoader

CPU = torch.device("cpu")
CHANGES: list[dict[str, float]] = [
    {"flip": 1.0},
    {"rotation_probability": 1.0, "rotation_degrees": 15},
    {"jitter_probability": 1.0, "brightness": 0.3},
    {"jitter_probability": 1.0, "contrast": 0.3},
    {"jitter_probability": 1.0, "saturation": 0.3},
    {"jitter_probability": 1.0, "hue": 0.1},
    {"blur_probability": 1.0},
    {"noise_probability": 1.0},
    {
        "flip": 0.5, "rotation_degrees": 10, "brightness": 0.15, "contrast": 0.15, "saturation": 0.15, "hue": 0.05,
        "blur_probability": 0.5, "noise_probability": 0.5,
    },
]  # fmt: skip


def pictures(count: int, size: int) -> torch.Tensor:
    """Make smooth pictures uint8 [B, 3, S, S], in memory as the loader leaves them."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 9, 9, generator=generator) * 255
    fine = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 255)
    return fine.to(torch.uint8).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("fields", CHANGES, ids=lambda fields: ", ".join(fields))
def test_changes_equal_those_of_the_cpu(device: torch.device, fields: dict[str, float]) -> None:
    config, image, index = AugmentConfig(**fields), pictures(16, 96), torch.arange(100, 116)
    expected = augment(image, index, config, seed=5, epoch=3)
    found = augment(image.to(device), index.to(device), config, seed=5, epoch=3)
    assert found.device.type == device.type
    torch.testing.assert_close(found.cpu() / 255, expected / 255, rtol=0, atol=1e-5)
    torch.testing.assert_close(normalise(found).cpu(), normalise(expected), rtol=0, atol=1e-4)


def test_draws_equal_those_of_the_cpu_bit_for_bit(device: torch.device) -> None:
    index = torch.arange(64) * 7919 - 100
    for draw in (
        lambda key: device_draws.hash_keys(2**62, 4, key),
        lambda key: device_draws.uniform(42, 4, key[:, None], torch.arange(18, device=key.device)),
        lambda key: device_draws.normal(key, 1001),
    ):
        assert torch.equal(draw(index.to(device)).cpu(), draw(index))


class _Numbered:
    """A batch whose pixels all are its number."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __len__(self) -> int:
        return 8

    def load(self, start: int, stop: int, out: NDArray[np.uint8]) -> None:
        out[:] = self.number


def test_no_buffer_is_filled_again_before_it_is_copied(device: torch.device) -> None:
    total, seen = 8 * RING, []
    loader = RingLoader(map(_Numbered, range(total)), size=128, device=device, num_threads=2)
    for job, image in loader:
        if device.type == "cuda":
            torch.cuda._sleep(20_000_000)  # copies queue up behind this
        seen.append((job.number, image.float().amin(), image.float().amax()))
    assert [(number, int(low), int(high)) for number, low, high in seen] == [(n, n, n) for n in range(total)]


def test_a_saved_copy_does_not_see_what_training_does_next(device: torch.device) -> None:
    weight = torch.randn(64, 32, 3, 3).to(device, memory_format=torch.channels_last)
    count, buffers = torch.zeros((), dtype=torch.int64, device=device), Buffers()
    expected = weight.cpu().clone()
    for _ in range(2):  # the second time into the same memory
        copies = buffers.copy({"weight": weight, "count": count})
        kept = {name: value.clone() for name, value in copies.items()}
        weight.add_(1)
        count.add_(1)
        assert all(torch.equal(copies[name], kept[name]) for name in kept)
        assert torch.equal(copies["weight"], expected)
        assert copies["weight"].device == CPU
        expected = weight.cpu().clone()
