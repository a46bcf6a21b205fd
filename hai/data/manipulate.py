"""Local manipulations of photographs: a soft-edged part redrawn the way face manipulation redraws a face.

Each leaves traces that detectors of faces read too: texture of a lower resolution than its surroundings, camera grain
that is missing or resampled, the grid of an upsampling network, a blended seam.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["METHODS", "NUM_DRAWS", "manipulate"]

Floats = NDArray[np.float32]
Draws = NDArray[np.float64]

NUM_DRAWS: Final = 48
"""Random numbers that one manipulation needs."""

_NOISE: Final = 10.0 / 255
"""Largest deviation of the noise that a redrawn part may get, where the image's own grain has 2 to 5 levels."""


def manipulate(image: Floats, method: str, noise: Floats, draws: Draws) -> Floats:
    """Redraw a soft-edged ellipse of an image.

    Args:
        image: RGB [S, S, 3], 0-1.
        method: one of METHODS.
        noise: standard normal [S, S].
        draws: [NUM_DRAWS] numbers in [0, 1); with `noise` all the randomness there is.

    Returns:
        RGB [S, S, 3], 0-1.
    """
    redrawn = METHODS[method](image, noise, draws[6:])
    return np.clip(image + _ellipse(image.shape[0], draws[:6]) * (redrawn - image), 0.0, 1.0)


def _swap(image: Floats, noise: Floats, draws: Draws) -> Floats:
    """Redraw the part moved, zoomed, in a slightly wrong tone and at a lower resolution, as an autoencoder swap does.

    Source: the self-blended images of Shiohara and Yamasaki, Detecting deepfakes with self-blended images, CVPR 2022.
    """
    corners = (_lattice(2) - 0.5) * (0.92 + 0.16 * draws[0]) + 0.5 + 0.08 * (draws[1:3] - 0.5)
    tone = 1.0 + 0.12 * (draws[3:6] - 0.5)
    moved = _warp(image * tone.astype(np.float32), corners)
    return _decode(moved, 0.4 + 0.18 * draws[6], 2.0 * draws[7], noise * draws[8])


def _reenact(image: Floats, noise: Floats, draws: Draws) -> Floats:
    """Bend the part and redraw it through a transposed convolution, whose uneven overlap leaves a grid.

    Source: Odena, Dumoulin and Olah, Deconvolution and checkerboard artifacts, Distill 2016.
    """
    bent = _warp(image, _lattice(4) + 0.06 * (draws[4:36].reshape(4, 4, 2) - 0.5))
    redrawn = _decode(bent, 0.5 + 0.2 * draws[0], 2.0 * draws[1], noise * draws[2])
    sign = 1.0 - 2.0 * (np.arange(image.shape[0]) % 2)
    grid = (sign[:, None] + sign[None, :]) / 2 * (0.03 + 0.04 * draws[3])
    return np.asarray(redrawn * (1.0 + grid[..., None]), dtype=np.float32)


def _retouch(image: Floats, noise: Floats, draws: Draws) -> Floats:
    """Smooth the texture and keep the edges, as beauty filters do, under a coarse grain.

    Source: the fast guided filter, with the image as its own guide; He and Sun, arXiv 1505.00996.
    """
    size, small = image.shape[0], image.shape[0] // 5
    threshold = np.float32(0.12 + 0.1 * draws[0]) ** 2
    channels = []
    for channel in np.moveaxis(image, -1, 0):
        mean = _resize(channel, small)
        variance = np.maximum(_resize(channel * channel, small) - mean * mean, 0.0)
        share = variance / (variance + threshold)
        channels.append(_resize(share, size) * channel + _resize((1.0 - share) * mean, size))
    grain = _resize(noise[: size // 2, : size // 2], size) * np.float32(0.6 * _NOISE * draws[1])
    return np.asarray(np.stack(channels, axis=-1) + grain[..., None], dtype=np.float32)


METHODS: Final[dict[str, Callable[[Floats, Floats, Draws], Floats]]] = {
    "swap": _swap,
    "reenact": _reenact,
    "retouch": _retouch,
}
"""How a part may be redrawn: (image, noise, draws) to the image that the part is taken from."""


def _decode(image: Floats, scale: float, sharpness: float, noise: Floats) -> Floats:
    """Redraw an image from a lower resolution, as the decoder of a generator does.

    Args:
        image: [S, S, 3].
        scale: share of the resolution that is left.
        sharpness: strength of the unsharp mask at that resolution.
        noise: [S, S], of deviation up to 1; its corner is added at that resolution.
    """
    size, small = image.shape[0], round(image.shape[0] * scale)
    grain = noise[:small, :small] * np.float32(_NOISE)
    channels = []
    for channel in np.moveaxis(image, -1, 0):
        low = _resize(channel, small)
        detail = low - _resize(_resize(low, small // 2), small)
        channels.append(_resize(low + np.float32(sharpness) * detail + grain, size))
    return np.stack(channels, axis=-1)


def _resize(channel: NDArray[np.floating[Any]], size: int) -> Floats:
    """Resize [H, W] to [size, size], bicubic and antialiased."""
    picture = Image.fromarray(channel.astype(np.float32, copy=False))
    return np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC))


def _lattice(points: int) -> NDArray[np.float64]:
    """Lay a regular lattice over the image: x and y of its points, shares of the image, [points, points, 2]."""
    return np.stack(np.meshgrid(*[np.linspace(0.0, 1.0, points)] * 2), axis=-1)


def _warp(image: Floats, lattice: NDArray[np.float64]) -> Floats:
    """Move the points of a lattice, [n, n, 2] as shares inside the image, onto those of the regular one; bilinear."""
    size, cells = image.shape[0], lattice.shape[0] - 1
    edges = [size * i // cells for i in range(cells + 1)]
    points = np.clip(lattice, 0.0, 1.0) * size
    mesh = [
        (
            (edges[j], edges[i], edges[j + 1], edges[i + 1]),
            tuple(np.concatenate([points[i, j], points[i + 1, j], points[i + 1, j + 1], points[i, j + 1]]).tolist()),
        )
        for i in range(cells)
        for j in range(cells)
    ]
    pictures = (Image.fromarray(np.ascontiguousarray(channel)) for channel in np.moveaxis(image, -1, 0))
    moved = (
        picture.transform((size, size), Image.Transform.MESH, mesh, Image.Resampling.BILINEAR) for picture in pictures
    )
    return np.stack([np.asarray(picture) for picture in moved], axis=-1)


def _ellipse(size: int, draws: Draws) -> Floats:
    """Draw a soft ellipse over a fifth to two fifths of the image, [S, S, 1], 0-1."""
    y, x = (np.mgrid[:size, :size] + 0.5) / size - 0.5
    y, x = y - 0.2 * (draws[1] - 0.5), x - 0.2 * (draws[2] - 0.5)
    sine, cosine = np.sin(np.pi * draws[0]), np.cos(np.pi * draws[0])
    along, across = (x * cosine + y * sine) / (0.3 + 0.12 * draws[3]), (y * cosine - x * sine) / (0.24 + 0.1 * draws[4])
    ramp = np.clip((1.0 - np.hypot(along, across)) / (0.1 + 0.2 * draws[5]) + 0.5, 0.0, 1.0)
    return np.asarray(ramp * ramp * (3.0 - 2.0 * ramp), dtype=np.float32)[..., None]
