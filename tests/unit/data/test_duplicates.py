import numpy as np
import pytest
from PIL import Image

from hai.data.duplicates import SIDE, close_pairs, look_alike, perceptual_hash, thumbnail_hashes


def hashes_near_each_other(seed, size=300):
    rng = np.random.default_rng(seed)
    base = rng.integers(1, 2**63, 40, dtype=np.uint64)[rng.integers(0, 40, size)]
    for _ in range(2):
        base ^= np.uint64(1) << rng.integers(0, 64, size).astype(np.uint64)
    base[100:200] = base[:100]
    base[:7] = 0
    return base


@pytest.mark.parametrize("distance", [0, 3, 6, 9])
def test_pairs_apart_are_those_of_comparing_all_with_all(distance):
    hashes, side = hashes_near_each_other(distance), np.random.default_rng(9).integers(0, 3, 300)
    wanted = {
        (int(hashes[i]), int(side[i]), int(hashes[j]), int(side[j]))
        for i in range(300)
        for j in range(300)
        if side[i] < side[j] and hashes[i] and hashes[j] and (hashes[i] ^ hashes[j]).bit_count() <= distance
    }
    found = close_pairs(hashes, distance, side)
    ordered = [(i, j) if side[i] < side[j] else (j, i) for i, j in found.tolist()]
    named = [(int(hashes[i]), int(side[i]), int(hashes[j]), int(side[j])) for i, j in ordered]
    assert set(named) == wanted
    assert len(named) == len(wanted)  # one row stands for all that are equal in both
    assert len(wanted) > 10


@pytest.mark.parametrize("size", [0, 1, 2])
def test_few_rows_have_few_pairs(size):
    hashes = np.full(size, 5, dtype=np.uint64)
    assert len(close_pairs(hashes, 6)) == max(0, size - 1)
    assert len(close_pairs(hashes, 6, np.arange(size))) == max(0, size - 1)
    assert len(close_pairs(hashes, 6, np.zeros(size, dtype=int))) == 0
    assert len(close_pairs(np.zeros(size, dtype=np.uint64), 6)) == 0


def test_thumbnails_hash_as_images_do():
    pictures = [
        np.asarray(
            Image.fromarray(np.random.default_rng(k).integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((128, 96))
        )
        for k in range(50)
    ]
    grays = np.stack(
        [np.asarray(Image.fromarray(p).convert("L").resize((SIDE, SIDE), Image.Resampling.BILINEAR)) for p in pictures]
    )
    apart = np.bitwise_count(
        thumbnail_hashes(grays) ^ np.array([perceptual_hash(p) for p in pictures], dtype=np.uint64)
    )
    assert apart.max() <= 6
    assert np.median(apart) <= 2
    assert thumbnail_hashes(np.full((1, SIDE, SIDE), 77, dtype=np.uint8)).tolist() == [0]


def test_brightness_and_contrast_do_not_make_pictures_differ():
    rng = np.random.default_rng(0)
    one = rng.integers(60, 160, (SIDE, SIDE))
    grays = np.stack([one, one // 2 + 20, rng.integers(0, 256, (SIDE, SIDE)), np.full((SIDE, SIDE), 9)]).astype(
        np.uint8
    )
    pairs = np.array([[0, 1], [0, 2], [0, 3], [3, 3]])
    assert look_alike(grays, pairs, 0.95).tolist() == [True, False, False, False]
