"""A small convolutional network that learns from scratch on a CPU."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hai.config.schema import ModelConfig
from hai.errors import ConfigError
from hai.models.freeze import statistics_kept
from hai.models.weights import copy_tensors

__all__ = ["Compact", "CompactTrunk", "high_pass"]

_WIDTHS = (24, 48, 96, 192)
_RESIDUAL_GAIN = 8.0  # the residual of a photograph deviates about a fourteenth as much as its pixels


def high_pass(image: Tensor) -> Tensor:
    """Subtract from each pixel the mean of its 3x3 neighbourhood (of what lies inside the image).

    What remains is noise, edges and the traces of upsampling; the scene, which a small training set would only tempt
    the model to memorise, is gone.

    Args:
        image: [B, C, H, W].

    Returns:
        [B, C, H, W].
    """
    return image - F.avg_pool2d(image, 3, stride=1, padding=1, count_include_pad=False)


class Block(nn.Sequential):
    """3x3 convolution with stride 2, batch normalisation, ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        )


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return the contexts of a checkpointed forward and of its repetition, which must not count for the statistics."""
    return nullcontext(), statistics_kept(block)


class CompactTrunk(nn.Module):
    """Four strided blocks on RGB and its high-pass residual, pooled to mean and deviation.

    Takes images [B, 3, H, W] of any size from 32 and returns features [B, 384]. Costs 0.12 GMAC an image of 224 x 224.
    """

    width = 2 * _WIDTHS[-1]

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(a, b) for a, b in zip((6, *_WIDTHS), _WIDTHS, strict=False))
        self.gradient_checkpointing = config.gradient_checkpointing
        if config.drop_path is not None:
            raise ConfigError(f"model.drop_path = {config.drop_path}; compact has no stochastic depth; set it to null")

    def features(self, image: Tensor) -> Tensor:
        """Return features [B, 384] of images [B, 3, H, W]."""
        x = torch.cat([image, _RESIDUAL_GAIN * high_pass(image)], dim=1)
        for block in self.blocks:
            if self.gradient_checkpointing and self.training:
                x = cast(Tensor, checkpoint(block, x, use_reentrant=False, context_fn=partial(_contexts, block)))
            else:
                x = block(x)
        variance, mean = torch.var_mean(x.float(), dim=(2, 3), correction=0)
        return torch.cat([mean, (variance + 1e-6).sqrt()], dim=1)


class Compact(CompactTrunk):
    """The detector on that trunk, 220,514 parameters: images [B, 3, H, W] -> logits [B, 2]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.dropout = nn.Dropout(0.2 if config.dropout is None else config.dropout)
        self.classifier = nn.Linear(self.width, 2)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits [B, 2] of images [B, 3, H, W]."""
        return cast(Tensor, self.classifier(self.dropout(self.features(image))))

    def backbone_names(self) -> set[str]:
        """Name the parameters of the convolutional blocks."""
        return {name for name, _ in self.named_parameters() if name.startswith("blocks.")}

    def load_backbone(self, tensors: dict[str, Tensor], where: str) -> None:
        """Fill the whole model; its blocks were never published apart."""
        copy_tensors(self, tensors, where)
