"""How images are decoded where a peer leaves that to its user: the fastest way of torchvision."""

import torch
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2 import functional

from benchmarks.peers.contestant import SIZE


def decoded(content: bytes) -> torch.Tensor:
    """Return uint8 [3, 224, 224] of a JPEG file's bytes."""
    return resized(decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8), mode=ImageReadMode.RGB))


def resized(image: torch.Tensor) -> torch.Tensor:
    """Resize uint8 [3, H, W] to [3, 224, 224], bilinear, antialiased."""
    return functional.resize(image, [SIZE, SIZE], antialias=True)
