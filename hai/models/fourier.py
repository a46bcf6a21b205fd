"""Fourier transforms of images as products with cosines and sines, for runtimes whose own are not exact enough."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["fourier_parts", "polar_transform"]


def polar_transform(image: Tensor, num_columns: int | None = None) -> tuple[Tensor, Tensor]:
    """Return amplitude and phase of `torch.fft.fft2(image)`; arguments as of `fourier_parts`."""
    real, imaginary = fourier_parts(image, num_columns)
    half_turn = math.pi * (real < 0).float()
    phase = torch.where(
        imaginary == 0, half_turn, torch.atan2(imaginary, real)
    )  # where ONNX, which has no atan2, gets -pi
    return (real.square() + imaginary.square()).sqrt(), phase


def fourier_parts(image: Tensor, num_columns: int | None = None) -> tuple[Tensor, Tensor]:
    """Return real and imaginary part of `torch.fft.fft2(image)`, without complex numbers.

    Where a real image's transform is real, the imaginary part is 0, not rounding error. Costs O(S^3) instead of
    O(S^2 log S), 45 million multiplications a channel at S = 224.

    Args:
        image: float32 [B, C, H, W].
        num_columns: only the first so many horizontal frequencies, K; None: all W.

    Returns:
        Twice float32 [B, C, H, K].
    """
    height, width = image.shape[-2:]
    mean = image.mean(dim=(-2, -1), keepdim=True)  # large, and its rounding errors would drown small amplitudes
    columns_cos, columns_sin = (table[:, :num_columns] for table in _tables(width, image.device))
    rows_cos, rows_sin = _tables(height, image.device)
    centred = image - mean
    cosines, sines = centred @ columns_cos, centred @ columns_sin
    real = rows_cos @ cosines - rows_sin @ sines
    imaginary = rows_sin @ cosines + rows_cos @ sines
    origin = torch.zeros(height, columns_cos.shape[1], device=image.device)
    origin[0, 0] = height * width
    return real + mean * origin, imaginary


def _tables(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return cos and -sin of 2 pi k n / size [size, size], exact where they are 0."""
    turns = torch.outer(torch.arange(size), torch.arange(size)) % size
    angle = turns.double() * (2 * math.pi / size)
    cosine, sine = torch.cos(angle), -torch.sin(angle)
    cosine = torch.where(4 * turns % (2 * size) == size, torch.zeros_like(cosine), cosine)
    sine = torch.where(2 * turns % size == 0, torch.zeros_like(sine), sine)
    return cosine.float().to(device), sine.float().to(device)
