"""Random changes to training images and the normalisation of every image.

Every number drawn is a function of (seed, epoch, manifest index, draw[, pixel]), so an example looks the same whatever
batch, worker, thread or cache it comes through. The changes, always in this order:

| where  | change      | drawn                                                                      |
|--------|-------------|----------------------------------------------------------------------------|
| thread | crop        | offset uniform in [0, 1)^2 (geometry `crop` only)                          |
| thread | resize      | scale uniform in `resize_scale`: down by it and back up, bilinear          |
| thread | JPEG        | quality uniform among the whole numbers of `jpeg_quality`, chroma 4:2:0    |
| device | flip        | left to right                                                              |
| device | rotation    | angle uniform in +-`rotation_degrees`, bilinear, black outside             |
| device | brightness  | factor uniform in 1 +- `brightness`                                        |
| device | contrast    | factor uniform in 1 +- `contrast`, around the mean grey of the image       |
| device | saturation  | factor uniform in 1 +- `saturation`, around the grey of the pixel          |
| device | hue         | shift uniform in +-`hue` turns of the HSV circle                           |
| device | blur        | Gaussian, sigma uniform in `blur_sigma`, mirrored at the border            |
| device | noise       | normal, standard deviation 255 x `noise_std`, each channel of each pixel   |

The four colour changes come together, with `jitter_probability`; the others each have their own probability. On the
device values are float32 on the scale 0-255 and are clamped to it by every change that could leave it. Only elementwise
operations and exact sums are used: nothing depends on the size of a batch or on an example's place in it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from hai.config.schema import AugmentConfig
from hai.data import device_draws, draws
from hai.data.disturb import compress
from hai.data.images import fit_image

__all__ = [
    "MEAN",
    "STD",
    "Change",
    "Draw",
    "ExampleChanges",
    "apply_changes",
    "augment",
    "change_example",
    "changes_by_example",
    "degrade",
    "degrades",
    "draw_changes",
    "draw_in_threads",
    "normalise",
]

MEAN = (0.485, 0.456, 0.406)
"""Mean of ImageNet's R, G and B on the scale 0-1: what published backbones expect."""

STD = (0.229, 0.224, 0.225)
"""Their standard deviation."""


class Draw(IntEnum):
    """What a random number is for: the fourth key after seed, epoch and example. Renumbering changes every run."""

    CROP_Y = 0
    CROP_X = 1
    RESIZE = 2
    RESIZE_SCALE = 3
    JPEG = 4
    JPEG_QUALITY = 5
    FLIP = 6
    ROTATION = 7
    ROTATION_ANGLE = 8
    JITTER = 9
    BRIGHTNESS = 10
    CONTRAST = 11
    SATURATION = 12
    HUE = 13
    BLUR = 14
    BLUR_SIGMA = 15
    NOISE = 16
    NOISE_PIXELS = 17


_IN_THREADS = np.array([draw for draw in Draw if draw <= Draw.JPEG_QUALITY], dtype=np.int64)


def draw_in_threads(index: NDArray[np.int64], *, seed: int, epoch: int) -> NDArray[np.float64]:
    """Draw all that the loader's threads need for a batch, [B, 6], columns CROP_Y to JPEG_QUALITY, in [0, 1)."""
    return draws.uniform(seed, epoch, index[:, None], _IN_THREADS)


def degrade(image: NDArray[np.uint8], config: AugmentConfig, drawn: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Resize an image down and up and compress it, where it drew so.

    Args:
        image: [S, S, 3].
        config: probabilities and ranges.
        drawn: its row of `draw_in_threads`.

    Returns:
        [S, S, 3], the image itself if nothing was drawn.
    """
    size = len(image)
    if drawn[Draw.RESIZE] < config.resize_probability:
        least, most = config.resize_scale
        smaller = max(1, round(size * (least + drawn[Draw.RESIZE_SCALE] * (most - least))))
        image = fit_image(fit_image(image, smaller, "resize"), size, "resize")
    if drawn[Draw.JPEG] < config.jpeg_probability:
        low, high = config.jpeg_quality
        quality = low + int(drawn[Draw.JPEG_QUALITY] * (high - low + 1))
        image = compress(image, quality)
    return image


def degrades(drawn: NDArray[np.float64], config: AugmentConfig) -> NDArray[np.bool_]:
    """Tell for rows [N, 6] of `draw_in_threads` which images `degrade` changes, [N]."""
    resized: NDArray[np.bool_] = drawn[:, Draw.RESIZE] < config.resize_probability
    return resized | (drawn[:, Draw.JPEG] < config.jpeg_probability)


class Change(NamedTuple):
    """One kind of change to the images of a batch."""

    chosen: Tensor
    """Which examples drew it, bool [B, 1, 1, 1]."""
    change: Callable[..., Tensor]
    """Takes float32 [B, 3, H, W] on the scale 0-255, which it may work on in place, and the parameters."""
    parameters: tuple[Tensor, ...] = ()
    """What each example drew for it, [B, 1, 1, 1] each."""


def augment(image: Tensor, index: Tensor, config: AugmentConfig, *, seed: int, epoch: int) -> Tensor:
    """Change a batch on its device, each example as it drew.

    Args:
        image: uint8 [B, 3, H, W]; stays as it is.
        index: manifest index of each example, int64 [B].
        config: probabilities and ranges.
        seed: seed of the run.
        epoch: epoch of the batch.

    Returns:
        float32 [B, 3, H, W] on the scale 0-255, contiguous.
    """
    return apply_changes(image, draw_changes(index, config, seed=seed, epoch=epoch))


def draw_changes(index: Tensor, config: AugmentConfig, *, seed: int, epoch: int) -> list[Change]:
    """Draw the changes to a batch, in their order, without those that the config rules out; arguments of `augment`."""
    index = index[:, None, None, None]
    drawn = device_draws.uniform(seed, epoch, index, torch.arange(len(Draw), device=index.device).view(-1, 1, 1, 1, 1))
    changes = []
    if config.flip:
        changes.append(Change(drawn[Draw.FLIP] < config.flip, _flip))
    if config.rotation_probability and config.rotation_degrees:
        angle = _around(0.0, config.rotation_degrees, drawn[Draw.ROTATION_ANGLE])
        changes.append(Change(drawn[Draw.ROTATION] < config.rotation_probability, rotate, (turn(angle),)))
    jittered = drawn[Draw.JITTER] < config.jitter_probability
    for change, centre, spread, draw in (
        (adjust_brightness, 1.0, config.brightness, Draw.BRIGHTNESS),
        (adjust_contrast, 1.0, config.contrast, Draw.CONTRAST),
        (adjust_saturation, 1.0, config.saturation, Draw.SATURATION),
        (shift_hue, 0.0, config.hue, Draw.HUE),
    ):
        if config.jitter_probability and spread:
            changes.append(Change(jittered, change, (_around(centre, spread, drawn[draw]),)))
    if config.blur_probability:
        least, most = config.blur_sigma
        sigma = least + drawn[Draw.BLUR_SIGMA] * (most - least)
        change = functools.partial(blur, radius=math.ceil(3 * most))
        changes.append(Change(drawn[Draw.BLUR] < config.blur_probability, change, (sigma,)))
    if config.noise_probability and config.noise_std:
        keys = device_draws.hash_keys(seed, epoch, index, int(Draw.NOISE_PIXELS))
        change = functools.partial(add_noise, std=255 * config.noise_std)
        changes.append(Change(drawn[Draw.NOISE] < config.noise_probability, change, (keys,)))
    return changes


def apply_changes(image: Tensor, changes: Sequence[Change]) -> Tensor:
    """Apply changes to uint8 [B, 3, H, W], which stays as it is; returns float32 on the scale 0-255, contiguous.

    On CPUs example after example, which keeps each in the cache and leaves the others alone; elsewhere to the whole
    batch with masks, because asking the device which examples they are would wait for it.
    """
    value = _as_float(image)
    if value.device.type != "cpu":
        for chosen, change, parameters in changes:
            value = torch.where(chosen, change(value.clone(), *parameters), value)
        return value
    for row, own in enumerate(changes_by_example(changes, len(value))):
        part = value[row : row + 1]
        changed = change_example(part, own)
        if changed is not part:
            part.copy_(changed)
    return value


ExampleChanges = list[tuple[Callable[..., Tensor], tuple[Tensor, ...]]]
"""The changes that one example drew, with parameters of shape [1, 1, 1, 1]."""


def changes_by_example(changes: Sequence[Change], count: int) -> list[ExampleChanges]:
    """List for each of `count` examples on a CPU the changes that it drew."""
    own: list[ExampleChanges] = [[] for _ in range(count)]
    for chosen, change, parameters in changes:
        rows = [parameter.chunk(max(count, 1)) for parameter in parameters]
        for row in chosen.flatten().nonzero().flatten().tolist():
            own[row].append((change, tuple(parameter[row] for parameter in rows)))
    return own


def change_example(value: Tensor, changes: ExampleChanges) -> Tensor:
    """Apply its changes to one example, float32 [1, 3, H, W], in place as far as they can."""
    for change, parameters in changes:
        value = change(value, *parameters)
    return value


def normalise(image: Tensor) -> Tensor:
    """Bring images on the scale 0-255 to ImageNet's mean 0 and standard deviation 1.

    Args:
        image: uint8 or float32 [B, 3, H, W]; a float32 tensor is changed in place.

    Returns:
        float32 [B, 3, H, W], equal to ToTensor and Normalize but for the last bits.
    """
    mean, std = _statistics(image.device)
    return _as_float(image).sub_(mean).div_(std)


def _as_float(image: Tensor) -> Tensor:
    """Convert to float32 plane after plane: cheaper to work on than interleaved colours, whatever the model prefers."""
    return image.to(torch.float32, memory_format=torch.contiguous_format)


@functools.cache
@torch.inference_mode(False)  # kept: also for computations with gradients
def _statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    mean, std = (torch.tensor(values, dtype=torch.float64)[:, None, None] * 255 for values in (MEAN, STD))
    return mean.float().to(device), std.float().to(device)


def _around(centre: float, spread: float, drawn: Tensor) -> Tensor:
    return centre + spread * (2 * drawn - 1)


def _flip(value: Tensor) -> Tensor:
    return value.flip(-1)


def turn(degrees: Tensor) -> Tensor:
    """Return angles as complex numbers of length 1, computed in double precision."""
    angle = degrees.double() * (math.pi / 180)
    return torch.polar(torch.ones_like(angle), angle).to(torch.complex64)


def rotate(value: Tensor, turned: Tensor) -> Tensor:
    """Rotate [B, 3, S, S] counter-clockwise around the centre by the angles of complex [B, 1, 1, 1]."""
    grid = _centred(value.shape[-1], value.device) * turned[..., 0]  # where to look
    return F.grid_sample(value, torch.view_as_real(grid), mode="bilinear", padding_mode="zeros", align_corners=False)


@functools.lru_cache(maxsize=8)
@torch.inference_mode(False)
def _centred(size: int, device: torch.device) -> Tensor:
    """Return the centres of S x S pixels between -1 and 1 as x + iy, complex [S, S]."""
    line = (torch.arange(size, device=device, dtype=torch.float32) * 2 + (1 - size)) / size
    return torch.complex(*torch.meshgrid(line, line, indexing="xy"))


def adjust_brightness(value: Tensor, factor: Tensor) -> Tensor:
    """Scale [B, 3, H, W] by factor [B, 1, 1, 1], in place."""
    return value.mul_(factor).clamp_(0, 255)


def adjust_contrast(value: Tensor, factor: Tensor) -> Tensor:
    """Move [B, 3, H, W] away from the mean grey of its image by factor [B, 1, 1, 1], in place."""
    levels = _grey(value, 256).round_()  # whole numbers, whose sum is exact in any order
    mean = levels.sum(dim=(1, 2, 3), keepdim=True, dtype=torch.float64) / (256 * levels[0].numel())
    return value.mul_(factor).add_(mean.float() * (1 - factor)).clamp_(0, 255)


def adjust_saturation(value: Tensor, factor: Tensor) -> Tensor:
    """Move [B, 3, H, W] away from the grey of each pixel by factor [B, 1, 1, 1], in place."""
    return value.lerp_(_grey(value), 1 - factor).clamp_(0, 255)


def shift_hue(value: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue of [B, 3, H, W] by turns [B, 1, 1, 1] of the HSV circle.

    Source: Smith, Color gamut transform pairs, SIGGRAPH 1978. With h in [0, 6) the way back is
    least + chroma x clamp(w, 0, 1), where w = |h - 3| - 1 for R, 2 - |h - 2| for G and 2 - |h - 4| for B.
    """
    red, green, blue = value.chunk(3, dim=1)
    most, least = value.amax(1, keepdim=True), value.amin(1, keepdim=True)
    chroma = most - least
    not_red, not_green = (most - red).sign_(), (most - green).sign_()  # 0 or 1, where lerp is exact
    sextant = (blue - red).add_(chroma, alpha=2).lerp_((red - green).add_(chroma, alpha=4), not_green)
    sextant = (green - blue).lerp_(sextant, not_red)
    hue = sextant.div_(chroma.clamp(min=1e-6)).add_(turns, alpha=6)  # grey pixels: any hue gives them back
    hue.sub_((hue / 6).floor_(), alpha=6)
    centres, signs, offsets = _hue_way_back(value.device)
    weight = (hue - centres).abs_().mul_(signs).add_(offsets).clamp_(0, 1)
    return torch.addcmul(least, weight, chroma)


@functools.cache
@torch.inference_mode(False)
def _hue_way_back(device: torch.device) -> Tensor:
    table = torch.tensor([[3.0, 2.0, 4.0], [1.0, -1.0, -1.0], [-1.0, 2.0, 2.0]])
    return table[:, :, None, None].to(device)


def blur(value: Tensor, sigma: Tensor, *, radius: int) -> Tensor:
    """Blur [B, 3, H, W] with Gaussians of sigma [B, 1, 1, 1] pixels, cut off at radius; H and W exceed the radius."""
    taps = [torch.exp(-(distance**2) / (2 * sigma * sigma)) for distance in range(radius + 1)]
    total = taps[0]
    for tap in taps[1:]:
        total = total + 2 * tap
    weights = [tap / total for tap in taps]
    for axis, pad in ((3, (radius, radius, 0, 0)), (2, (0, 0, radius, radius))):
        size = value.shape[axis]
        padded = F.pad(value, pad, mode="reflect")
        value = value * weights[0]
        for distance in range(1, radius + 1):
            pair = padded.narrow(axis, radius - distance, size) + padded.narrow(axis, radius + distance, size)
            value += pair.mul_(weights[distance])
    return value


def add_noise(value: Tensor, keys: Tensor, *, std: float) -> Tensor:
    """Add normal noise to [B, 3, H, W], in place; each value is a function of keys [B, 1, 1, 1] and its place."""
    count, channels, height, width = value.shape
    noise = device_draws.normal(keys.flatten(), height * width * channels).view(count, height, width, channels)
    return value.add_(noise.mul_(std).permute(0, 3, 1, 2)).clamp_(0, 255)


def _grey(value: Tensor, scale: float = 1) -> Tensor:
    """Weigh R, G and B as ITU-R BT.601 does, on a scale so many times as large: [B, 1, H, W]."""
    red, green, blue = value.chunk(3, dim=1)
    return (red * (0.2989 * scale)).add_(green, alpha=0.587 * scale).add_(blue, alpha=0.114 * scale)
