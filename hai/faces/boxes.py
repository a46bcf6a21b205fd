"""Boxes of faces: what a detector returns, and the square that is cut out around one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hai.data.images import fit_image

__all__ = ["Face", "cut_face", "square_around"]


@dataclass(frozen=True)
class Face:
    """A face in an image."""

    box: tuple[float, float, float, float]
    """Left, top, right, bottom, pixels; may reach beyond the image."""
    score: float
    """How sure the detector is, 0-1; not comparable between detectors."""
    detector: str

    @property
    def centre(self) -> tuple[float, float]:
        """Return x and y of the middle."""
        left, top, right, bottom = self.box
        return (left + right) / 2, (top + bottom) / 2

    @property
    def side(self) -> float:
        """Return the longer side, pixels."""
        left, top, right, bottom = self.box
        return max(right - left, bottom - top)


def square_around(face: Face, width: int, height: int, margin: float) -> tuple[int, int, int]:
    """Lay a square around a face, inside the image: moved inward at an edge, smaller where it would not fit.

    Nothing is padded and nothing squeezed, so that neither tells one class from the other.

    Args:
        face: its centre and longer side count.
        width: of the image, pixels.
        height: of the image, pixels.
        margin: added on each side, as a share of the longer side.

    Returns:
        Left, top and side, pixels.
    """
    side = max(1, min(round(face.side * (1 + 2 * margin)), width, height))
    x, y = face.centre
    left = min(max(round(x - side / 2), 0), width - side)
    top = min(max(round(y - side / 2), 0), height - side)
    return left, top, side


def cut_face(image: NDArray[np.uint8], face: Face, margin: float, size: int) -> NDArray[np.uint8]:
    """Cut the square around a face out of an image and scale it once.

    Args:
        image: RGB, [H, W, 3].
        face: where it is.
        margin: as of square_around.
        size: height and width of the result, pixels; 0 keeps the pixels as they are.

    Returns:
        uint8 [size, size, 3], a copy.
    """
    left, top, side = square_around(face, image.shape[1], image.shape[0], margin)
    part = image[top : top + side, left : left + side].copy()
    return fit_image(part, size, "resize") if size else part
