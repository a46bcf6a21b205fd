"""Random changes: each against torchvision, their distributions, and that an example's company never matters."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from hai.config.schema import AugmentConfig
from hai.data import augment as module
from hai.data.augment import MEAN, STD, augment, degrade, draw_in_threads, normalise

ALL = AugmentConfig(
    flip=0.5, rotation_degrees=15, rotation_probability=0.7, brightness=0.3, contrast=0.3, saturation=0.3, hue=0.1,
    jitter_probability=0.8, noise_probability=0.5, noise_std=0.05, blur_probability=0.5,
)  # fmt: skip
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


def pictures(count: int, size: int = 48) -> Tensor:
    """Smooth pictures with texture, among them grey, black and saturated areas: uint8 [count, 3, size, size]."""
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand(count, 3, 6, 6, generator=generator) * 300 - 20
    fine = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic")
    picture = (fine + 20 * torch.randn(count, 3, size, size, generator=generator)).clamp(0, 255)
    picture[0] = picture[0, :1]
    picture[-1, :, : size // 3] = 0
    return picture.to(torch.uint8).contiguous(memory_format=torch.channels_last)


def unit(picture: Tensor) -> Tensor:
    return picture.float().contiguous() / 255


@pytest.mark.parametrize(
    ("change", "reference", "parameters"),
    [
        (module.adjust_brightness, tv.adjust_brightness, [0.0, 0.7, 1.3, 2.0]),
        (module.adjust_contrast, tv.adjust_contrast, [0.0, 0.7, 1.3, 2.0]),
        (module.adjust_saturation, tv.adjust_saturation, [0.0, 0.7, 1.3, 2.0]),
        (module.shift_hue, tv.adjust_hue, [-0.5, -0.05, 0.2, 0.5]),
        (
            lambda value, degrees: module.rotate(value, module.turn(degrees)),
            lambda image, degrees: tv.rotate(image, degrees, interpolation=InterpolationMode.BILINEAR),
            [-15.0, 3.7, 90.0, 180.0],
        ),
        (
            lambda value, sigma: module.blur(value, sigma, radius=5),
            lambda image, sigma: tv.gaussian_blur(image, [11, 11], [sigma, sigma]),
            [0.3, 0.8, 1.1, 1.5],
        ),
    ],
    ids=["brightness", "contrast", "saturation", "hue", "rotation", "blur"],
)
def test_change_is_torchvision_s(change, reference, parameters) -> None:  # type: ignore[no-untyped-def]
    original = pictures(4)
    changed = change(unit(original) * 255, torch.tensor(parameters)[:, None, None, None])
    for one, before, parameter in zip(changed, original, parameters, strict=True):
        expected = reference(unit(before), parameter) * 255
        assert float((one - expected).abs().max()) < 0.01
    assert float((changed - original.float()).abs().amax(dim=(1, 2, 3))[1:].min()) > 1  # the first picture is grey


def test_normalise_is_to_tensor_and_normalize() -> None:
    picture = pictures(3)
    expected = tv.normalize(unit(picture), list(MEAN), list(STD))
    before = picture.clone()
    assert torch.allclose(normalise(picture), expected, atol=1e-6)
    assert torch.equal(picture, before)


@pytest.mark.parametrize("device", DEVICES)
def test_nothing_configured_changes_nothing(device: str) -> None:
    picture = pictures(3).to(device)
    value = augment(picture, torch.arange(3, device=device), AugmentConfig(), seed=1, epoch=0)
    assert torch.equal(value, picture.float())
    assert value.is_contiguous()


@pytest.mark.parametrize("size", [32, 47, 48])
def test_company_and_place_do_not_matter(size: int) -> None:
    picture, index = pictures(32, size), torch.arange(32) * 977
    together = normalise(augment(picture, index, ALL, seed=5, epoch=2))
    assert (together != normalise(picture)).flatten(1).any(dim=1).sum() >= 30
    for i in range(32):
        alone = normalise(augment(picture[i : i + 1], index[i : i + 1], ALL, seed=5, epoch=2))
        assert torch.equal(alone[0], together[i])
    order = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    shuffled = normalise(augment(picture[order][:13].contiguous(), index[order][:13], ALL, seed=5, epoch=2))
    assert torch.equal(shuffled, together[order[:13]])


def test_number_of_torch_threads_does_not_matter() -> None:
    picture, index = pictures(4, 160), torch.arange(4)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = augment(picture, index, ALL, seed=5, epoch=2)
        torch.set_num_threads(3)
        assert torch.equal(augment(picture, index, ALL, seed=5, epoch=2), one)
    finally:
        torch.set_num_threads(before)


def test_masks_and_rows_give_the_same() -> None:
    """The way of GPUs (the whole batch and a mask) changes no bit against the way of CPUs (row by row)."""
    picture, index = pictures(16), torch.arange(16)
    rows = augment(picture, index, ALL, seed=5, epoch=2)
    assert augment(picture.to("meta"), index.to("meta"), ALL, seed=5, epoch=2).shape == rows.shape
    value = picture.float().contiguous()
    for chosen, change, parameters in module.draw_changes(index, ALL, seed=5, epoch=2):
        value = torch.where(chosen, change(value.clone(), *parameters), value)
    assert torch.equal(value, rows)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_gpu_is_cpu() -> None:
    picture, index = pictures(32), torch.arange(32)
    cpu = augment(picture, index, ALL, seed=5, epoch=2)
    gpu = augment(picture.cuda(), index.cuda(), ALL, seed=5, epoch=2).cpu()
    assert float((cpu - gpu).abs().max()) < 0.02


@pytest.mark.parametrize("changed", ["seed", "epoch", "example"])
def test_every_key_changes_the_picture(changed: str) -> None:
    picture = pictures(1).expand(64, -1, -1, -1)
    index = torch.arange(64)
    keys = {"seed": 1, "epoch": 0}
    first = augment(picture, index, ALL, **keys)
    if changed == "example":
        index = index + 64
    else:
        keys[changed] += 1
    second = augment(picture, index, ALL, **keys)
    same = (first == second).flatten(1).all(dim=1)
    assert same.sum() <= 6  # unchanged in both: 0.5 x 0.3 x 0.2 x 0.5 x 0.5 each


def test_input_stays_as_it_was() -> None:
    picture = pictures(8)
    before = picture.clone()
    augment(picture, torch.arange(8), ALL, seed=1, epoch=0)
    assert torch.equal(picture, before)


def test_frequency_of_flips() -> None:
    count = 4000
    picture = torch.zeros(count, 3, 32, 32, dtype=torch.uint8)
    picture[..., :16] = 200
    value = augment(picture, torch.arange(count), AugmentConfig(flip=0.3), seed=2, epoch=0)
    flipped = value[:, 0, 0, 0] == 0
    assert torch.equal(value[flipped][0], picture[0].float().flip(-1))
    assert float(flipped.float().mean()) == pytest.approx(0.3, abs=0.03)


def test_noise_is_normal_and_unlike_in_every_pixel() -> None:
    picture = torch.full((6, 3, 64, 64), 128, dtype=torch.uint8)
    config = AugmentConfig(noise_probability=1, noise_std=0.04)
    noise = (augment(picture, torch.arange(6), config, seed=2, epoch=0) - 128) / 255
    assert abs(float(noise.mean())) < 0.001
    assert float(noise.std()) == pytest.approx(0.04, rel=0.02)
    assert float((noise**4).mean() / noise.var() ** 2) == pytest.approx(3, abs=0.15)
    flat = noise.transpose(0, 1).flatten(1)  # one row a channel
    assert float(torch.corrcoef(flat).fill_diagonal_(0).abs().max()) < 0.04
    assert float(torch.corrcoef(noise.flatten(1)).fill_diagonal_(0).abs().max()) < 0.05


def test_jitter_factors_are_uniform_in_their_range() -> None:
    picture = torch.full((3000, 3, 32, 32), 100, dtype=torch.uint8)[:, :, :1, :1].expand(-1, -1, 32, 32)
    config = AugmentConfig(brightness=0.4)
    factor = augment(picture, torch.arange(3000), config, seed=2, epoch=0)[:, 0, 0, 0] / 100
    counts = torch.histc(factor, bins=10, min=0.6, max=1.4)
    assert counts.sum() == 3000
    assert counts.min() > 240
    assert counts.max() < 360


def test_rotation_angles_stay_in_their_range() -> None:
    drawn = module.device_draws.uniform(1, 0, torch.arange(5000), int(module.Draw.ROTATION_ANGLE))
    angle = module._around(0.0, 10.0, drawn)
    assert -10 <= float(angle.min()) < -9.9
    assert 9.9 < float(angle.max()) <= 10


def test_compression_is_a_jpeg_of_the_drawn_quality() -> None:
    picture = np.ascontiguousarray(pictures(3, 64)[1].permute(1, 2, 0).numpy())
    config = AugmentConfig(jpeg_probability=1, jpeg_quality=[60, 100])
    drawn = draw_in_threads(np.arange(300), seed=1, epoch=0)
    candidates = {}
    for quality in range(60, 101):
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "JPEG", quality=quality, subsampling="4:2:0")
        candidates[hash(np.asarray(Image.open(file)).tobytes())] = quality
    seen = [candidates[hash(degrade(picture, config, row).tobytes())] for row in drawn]  # KeyError: not Pillow's JPEG
    assert min(seen) == 60
    assert max(seen) == 100
    assert len(set(seen)) > 35


def test_resize_goes_down_and_back_up() -> None:
    picture = np.ascontiguousarray(pictures(3, 64)[1].permute(1, 2, 0).numpy())
    config = AugmentConfig(resize_probability=0.5, resize_scale=[0.5, 0.5])
    small = Image.fromarray(picture).resize((32, 32), Image.Resampling.BILINEAR)
    expected = np.asarray(small.resize((64, 64), Image.Resampling.BILINEAR)).astype(int)
    results = [degrade(picture, config, row) for row in draw_in_threads(np.arange(200), seed=1, epoch=0)]
    changed = [result for result in results if result is not picture]
    assert 70 < len(changed) < 130
    assert all(np.abs(result.astype(int) - expected).max() <= 2 for result in changed)


def test_draws_in_threads_are_numbered_as_documented() -> None:
    index = np.array([3, 9])
    drawn = draw_in_threads(index, seed=4, epoch=7)
    for draw in module.Draw:
        if draw <= module.Draw.JPEG_QUALITY:
            assert np.array_equal(drawn[:, draw], module.draws.uniform(4, 7, index, int(draw)))
