"""Changes of known strength: what each does, and that it does the same everywhere."""

import io

import numpy as np
import pytest
from PIL import Image

from hai.data.disturb import DISTURBANCES, Disturbance, compress, disturb

KINDS = {change.kind for change in DISTURBANCES}


def picture(height: int = 60, width: int = 48) -> np.ndarray:
    coarse = np.random.default_rng(1).integers(40, 216, (8, 6, 3), dtype=np.uint8)
    fine = np.random.default_rng(2).integers(-12, 13, (height, width, 3))
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    return np.clip(smooth + fine, 0, 255).astype(np.uint8)


def shown(change: Disturbance) -> str:
    return f"{change.kind}-{change.level:g}"


@pytest.mark.parametrize("change", DISTURBANCES, ids=shown)
def test_changes_are_the_same_each_time_and_leave_the_image_alone(change):
    image = picture()
    before = image.copy()
    changed = disturb(image, change, key=2**63 + 5)
    assert np.array_equal(image, before)
    assert changed.dtype == np.uint8
    assert changed.shape == ((60, 48, 3) if change.kind != "resize" else changed.shape)
    assert changed.shape != image.shape or (changed != image).any()
    assert np.array_equal(changed, disturb(image, change, key=2**63 + 5))
    assert np.array_equal(changed, disturb(image, change, key=7)) == (change.kind != "noise")


@pytest.mark.parametrize("kind", ["jpeg", "blur", "noise"])
def test_each_level_is_stronger_than_the_one_before(kind):
    image = picture().astype(float)
    levels = [change for change in DISTURBANCES if change.kind == kind]
    errors = [float(np.abs(disturb(picture(), change, 0) - image).mean()) for change in levels]
    assert errors == sorted(errors)
    assert errors[0] > 0


def test_levels_mean_what_they_say():
    image = picture()
    assert disturb(image, Disturbance("resize", 0.5), 0).shape == (30, 24, 3)
    assert np.array_equal(disturb(image, Disturbance("brightness", 0.5), 0), np.floor(image * 0.5 + 0.5))
    noise = disturb(np.full((200, 200, 3), 128, dtype=np.uint8), Disturbance("noise", 10), 3).astype(float) - 128
    assert abs(noise.mean()) < 0.1
    assert noise.std() == pytest.approx(10, rel=0.02)
    point = np.zeros((31, 31, 3), dtype=np.uint8)
    point[15, 15] = 255
    spread = disturb(point, Disturbance("blur", 2), 0)[:, 15, 0].astype(float)
    assert spread[15] / spread[17] == pytest.approx(np.exp(0.5), rel=0.1), "two pixels off, sigma 2"
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=40, subsampling="4:2:0")
    assert np.array_equal(disturb(image, Disturbance("jpeg", 40), 0), np.asarray(Image.open(file)))
    assert np.array_equal(compress(image, 40), np.asarray(Image.open(file)))


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (2, 3)])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_tiny_images_survive(kind, shape):
    for change in DISTURBANCES:
        if change.kind == kind:
            assert disturb(picture(*shape), change, 0).size >= 3
