"""What happens to pictures on their way: compression, blur, noise, resizing, other light, each in known strength."""

from __future__ import annotations

import io
import math
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hai.data.images import decode_image, resize_image

__all__ = ["DISTURBANCES", "Disturbance", "compress", "disturb"]


class Disturbance(NamedTuple):
    """A kind of change and how strong it is."""

    kind: str
    level: float


_LEVELS: Final = {
    "jpeg": (90, 80, 70, 60, 50, 40, 30),
    "blur": (0.5, 1, 2, 3),
    "noise": (2, 5, 10, 20),
    "resize": (0.75, 0.5, 0.35, 0.25),
    "brightness": (0.5, 0.75, 1.25, 1.5),
}

DISTURBANCES: Final = tuple(Disturbance(kind, level) for kind, levels in _LEVELS.items() for level in levels)
"""All of them, the weakest of a kind first, brightness from dark to bright.

`jpeg`: quality; `blur`: sigma of a Gaussian, pixels of the file; `noise`: deviation of normal noise, levels of 255;
`resize`: height and width of the copy as shares of the file's; `brightness`: factor of all levels.
"""


def disturb(image: NDArray[np.uint8], change: Disturbance, key: int) -> NDArray[np.uint8]:
    """Change an image as if its file had come another way.

    Args:
        image: uint8 [H, W, 3], stays as it is.
        change: kind and level.
        key: of the noise, 64 bits; equal keys and sizes give equal noise, on every machine.

    Returns:
        uint8 [H, W, 3], smaller for `resize`.
    """
    kind, level = change
    if kind == "jpeg":
        return compress(image, int(level))
    if kind == "resize":
        height, width = image.shape[:2]
        return resize_image(image, max(1, round(height * level)), max(1, round(width * level)))
    if kind == "brightness":
        return _whole(image.astype(np.float32) * np.float32(level))
    return _on_tensor(image, kind, level, key)


def compress(image: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    """Write an image [H, W, 3] as a JPEG with 4:2:0 chroma, and read it again."""
    file = io.BytesIO()
    # Pillow, not simplejpeg, whose coarse DCT below quality 96 is up to 11 levels off what other encoders write.
    Image.fromarray(image).save(file, "JPEG", quality=quality, subsampling="4:2:0")
    return decode_image(file.getvalue(), math.inf)


def _on_tensor(image: NDArray[np.uint8], kind: str, level: float, key: int) -> NDArray[np.uint8]:
    import torch

    from hai.data.augment import add_noise, blur

    value = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None].contiguous()
    if kind == "blur":
        radius = min(math.ceil(3 * level), min(image.shape[:2]) - 1)
        value = blur(value, torch.tensor([level]), radius=radius)
    else:
        signed = (key + (1 << 63)) % (1 << 64) - (1 << 63)
        value = add_noise(value, torch.tensor([signed]), std=level)
    return _whole(value[0].permute(1, 2, 0).numpy())


def _whole(value: NDArray[Any]) -> NDArray[np.uint8]:
    """Round to levels, as a file holds them."""
    return np.ascontiguousarray(np.clip(value + np.float32(0.5), 0, 255).astype(np.uint8))
