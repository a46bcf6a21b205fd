"""The counter-based hash: published values, torch equal to numpy, distributions, independence of the keys."""

import numpy as np
import pytest
import torch

from hai.data import device_draws, draws


def splitmix64(value: int) -> int:
    """Java's SplittableRandom, written with Python's unbounded integers."""
    mask = (1 << 64) - 1
    value &= mask
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
    return value ^ (value >> 31)


def test_one_key_is_splitmix64() -> None:
    assert int(draws.hash_keys(0)) == 0xE220A8397B1DCDAF  # first output of splitmix64 with seed 0, as published
    assert int(draws.hash_keys(7)) == splitmix64(7 + 0x9E3779B97F4A7C15)


def test_one_integer_at_a_time() -> None:
    assert draws.hash_int(5, 2**62, 0, 17) == int(draws.hash_keys(5, 2**62, 0, 17))


def test_torch_gives_the_bits_of_numpy() -> None:
    index = np.array([0, 1, 5, 2**31, 2**40, -3], dtype=np.int64)
    number = np.arange(20, dtype=np.int64)
    expected = draws.hash_keys(2**62 + 1, 3, index[:, None], number)
    actual = device_draws.hash_keys(2**62 + 1, 3, torch.from_numpy(index)[:, None], torch.from_numpy(number))
    assert np.array_equal(actual.numpy().view(np.uint64), expected)


def test_torch_uniform_is_numpy_uniform_to_24_bits() -> None:
    index = np.arange(5000)
    expected = draws.uniform(9, 2, index)
    actual = device_draws.uniform(9, 2, torch.from_numpy(index)).numpy()
    assert actual.dtype == np.float32
    assert np.array_equal(actual, (np.floor(expected * 2**24) / 2**24).astype(np.float32))


@pytest.mark.parametrize("changed", range(4))
def test_every_key_matters(changed: int) -> None:
    keys = [1, 2, 3, 4]
    other = [*keys]
    other[changed] += 1
    same = draws.uniform(*keys, np.arange(1000)) == draws.uniform(*other, np.arange(1000))
    assert not same.any()


def test_order_of_keys_matters() -> None:
    assert draws.hash_keys(1, 2) != draws.hash_keys(2, 1)


def test_uniform_is_uniform_along_every_key() -> None:
    for numbers in (draws.uniform(1, 2, np.arange(100_000)), draws.uniform(np.arange(100_000), 2, 5)):
        counts, _ = np.histogram(numbers, bins=50, range=(0, 1))
        chi_squared = float(((counts - 2000) ** 2 / 2000).sum())
        assert 20 < chi_squared < 95  # 49 degrees of freedom: outside with probability 1e-4
        assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.015


def test_normal_numbers() -> None:
    keys = device_draws.hash_keys(1, torch.arange(8))
    numbers = device_draws.normal(keys, 50_000).double()
    assert numbers.shape == (8, 50_000)
    assert abs(float(numbers.mean())) < 0.007
    assert abs(float(numbers.var()) - 1) < 0.01
    assert abs(float((numbers**4).mean()) - 3) < 0.06
    assert float((numbers.abs() > 1.959964).double().mean()) == pytest.approx(0.05, abs=0.0015)
    assert 4.0 < float(numbers.abs().max()) < 4.4
    for lag in (1, 2, 3, 4):  # four numbers share a hash
        assert abs(float((numbers[:, :-lag] * numbers[:, lag:]).mean())) < 0.007
    assert abs(float((numbers[0] * numbers[1]).mean())) < 0.02


def test_normal_number_depends_on_its_key_and_place_only() -> None:
    keys = device_draws.hash_keys(1, torch.arange(33))
    numbers = device_draws.normal(keys, 999)
    assert torch.equal(device_draws.normal(keys[7:8], 999)[0], numbers[7])
    assert torch.equal(device_draws.normal(keys, 1001)[:, :999], numbers)


def test_permutation() -> None:
    order = draws.permutation(1000, 3, 1)
    assert np.array_equal(np.sort(order), np.arange(1000))
    assert np.array_equal(order, draws.permutation(1000, 3, 1))
    assert not np.array_equal(order, draws.permutation(1000, 3, 2))
