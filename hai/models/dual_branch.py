"""The two-branch detectors: pixels through EfficientNet-B4 and a transformer, frequencies through convolutions."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from hai.config.schema import ModelConfig
from hai.models.backbone import build_timm_network, load_timm_weights
from hai.models.compact import high_pass
from hai.models.fourier import polar_transform

__all__ = ["DualBranch", "DualBranchV2", "half_spectrum", "spectra"]

_WIDTH = 512


class SpatialBranch(nn.Module):
    """EfficientNet-B4, its map as tokens through four transformer layers, averaged: [B, 3, S, S] -> [B, 512].

    31,364,936 parameters at S = 224 (the position embedding has one vector per 32 x 32 pixels).
    """

    def __init__(self, config: ModelConfig, image_size: int) -> None:
        super().__init__()
        self.backbone = build_timm_network(
            "efficientnet_b4",
            config.pretrained is True,
            config.gradient_checkpointing,
            num_classes=0,
            global_pool="",
            drop_path_rate=config.drop_path,
        )
        num_tokens = (-(-image_size // 32)) ** 2
        self.projection = nn.Linear(1792, _WIDTH)
        self.position_embedding = nn.Parameter(0.02 * torch.randn(1, num_tokens, _WIDTH))
        self.dropout = nn.Dropout(0.1)
        self.layers = nn.Sequential(
            *(nn.TransformerEncoderLayer(_WIDTH, 8, 2048, 0.1, "gelu", batch_first=True) for _ in range(4))
        )
        self.output = nn.Sequential(nn.LayerNorm(_WIDTH), nn.Linear(_WIDTH, _WIDTH), nn.ReLU())

    def forward(self, image: Tensor) -> Tensor:
        """Return features [B, 512]."""
        tokens = self.projection(self.backbone(image).flatten(2).transpose(1, 2))
        tokens = self.layers(self.dropout(tokens + self.position_embedding))
        return cast(Tensor, self.output(tokens.mean(dim=1)))


def spectra(image: Tensor) -> Tensor:
    """Return log-amplitude and phase of each channel's centred 2-D Fourier transform, in fp32.

    Args:
        image: [B, C, H, W].

    Returns:
        [B, 2 C, H, W]: first the amplitudes, then the phases.
    """
    with torch.autocast(image.device.type, enabled=False):
        if torch.onnx.is_in_onnx_export():  # ONNX's own transform is 70 times less exact
            amplitude, phase = polar_transform(image.float())
            both = torch.cat([torch.log(amplitude + 1e-8), phase], dim=1)
            return cast(Tensor, torch.fft.fftshift(both, dim=(-2, -1)))
        transform = torch.fft.fftshift(torch.fft.fft2(image.float()), dim=(-2, -1))
        return torch.cat([torch.log(transform.abs() + 1e-8), transform.angle()], dim=1)


class FrequencyBranch(nn.Module):
    """Three convolutions over full spectra: [B, 3, S, S] -> [B, 512]; 6,796,032 parameters."""

    def __init__(self) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        for inputs, outputs in ((6, 64), (64, 128), (128, 256)):
            convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
            parts += [convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
        self.convolutions = nn.Sequential(*parts, nn.AdaptiveAvgPool2d(7), nn.Flatten())
        self.output = nn.Sequential(nn.Linear(256 * 49, _WIDTH), nn.ReLU(), nn.Dropout(0.3))

    def forward(self, image: Tensor) -> Tensor:
        """Return features [B, 512]."""
        return cast(Tensor, self.output(self.convolutions(spectra(image))))


class AttentionFusion(nn.Module):
    """Attention over one token, then a feed-forward layer: [B, 1024] -> [B, 1024]; 5,252,608 parameters.

    Over a sequence of length one the attention weight is 1 whatever query and key are, so their 2.1 million parameters
    never learn. They stay because checkpoints of this model have them.
    """

    def __init__(self) -> None:
        super().__init__()
        width = 2 * _WIDTH
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.norm_1 = nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, _WIDTH), nn.ReLU(), nn.Dropout(0.3), nn.Linear(_WIDTH, width)
        )
        self.norm_2 = nn.LayerNorm(width)

    def forward(self, features: Tensor) -> Tensor:
        """Return fused features [B, 1024]."""
        token = features.unsqueeze(1)
        attended = self.attention(token, token, token, need_weights=False)[0].squeeze(1)
        fused = self.norm_1(features + attended)
        return cast(Tensor, self.norm_2(fused + self.feed_forward(fused)))


class _TwoBranches(nn.Module):
    """What both detectors share: which parameters are the backbone's, and how to fill it."""

    spatial: SpatialBranch

    def backbone_names(self) -> set[str]:
        """Name the parameters of EfficientNet-B4."""
        return {name for name, _ in self.named_parameters() if name.startswith("spatial.backbone.")}

    def load_backbone(self, tensors: dict[str, Tensor], where: str) -> None:
        """Fill EfficientNet-B4 from the tensors of a timm checkpoint."""
        load_timm_weights(self.spatial.backbone, tensors, where)


class DualBranch(_TwoBranches):
    """The training guide's detector, 43,676,490 parameters at S = 224: [B, 3, S, S] -> logits [B, 2].

    Kept as users know it, with its faults: the fusion's queries and keys never learn, and the frequency branch, on
    spectra that are not normalised, costs more than EfficientNet-B4. `DualBranchV2` mends both.
    """

    def __init__(self, config: ModelConfig, image_size: int) -> None:
        super().__init__()
        self.spatial = SpatialBranch(config, image_size)
        self.frequency = FrequencyBranch()
        self.fusion = AttentionFusion()
        self.classifier = _classifier(2 * _WIDTH, config.dropout)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits [B, 2]."""
        features = torch.cat([self.spatial(image), self.frequency(image)], dim=1)
        return cast(Tensor, self.classifier(self.fusion(features)))


def half_spectrum(image: Tensor) -> Tensor:
    """Return the standardised log-amplitude spectrum of the image's grey high-pass residual, in fp32.

    A real image's spectrum is symmetric, so half of the plane says all. Each sample is brought to mean 0 and deviation
    1, which takes exposure and contrast out; a black image gives zeros.

    Args:
        image: [B, C, H, W].

    Returns:
        [B, 1, H, W // 2 + 1], vertical frequency 0 in the middle row, horizontal frequency 0 in the first column.
    """
    with torch.autocast(image.device.type, enabled=False):
        residual = high_pass(image.float().mean(dim=1, keepdim=True))
        if torch.onnx.is_in_onnx_export():  # as in spectra
            height, width = residual.shape[-2:]
            amplitude, _ = polar_transform(residual, width // 2 + 1)
            amplitude = torch.fft.fftshift(amplitude, dim=-2) / (height * width) ** 0.5
        else:
            amplitude = torch.fft.fftshift(torch.fft.rfft2(residual, norm="ortho"), dim=-2).abs()
        logarithm = torch.log(amplitude + 1e-4)
        variance, mean = torch.var_mean(logarithm, dim=(-2, -1), correction=0, keepdim=True)
        return (logarithm - mean) * torch.rsqrt(variance + 1e-6)


class SpectrumBranch(nn.Module):
    """Four strided convolutions over half a spectrum: [B, 3, S, S] -> [B, 512], 0.20 GFLOP at S = 224.

    Pooling keeps a coarse grid, since where in the spectrum a peak lies tells what made it.
    """

    def __init__(self) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        for inputs, outputs in ((1, 32), (32, 64), (64, 128), (128, 256)):
            convolution = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
            parts += [convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
        self.convolutions = nn.Sequential(*parts, nn.AdaptiveAvgPool2d((7, 4)), nn.Flatten())
        self.output = nn.Sequential(nn.Linear(256 * 28, _WIDTH), nn.ReLU(), nn.Dropout(0.3))

    def forward(self, image: Tensor) -> Tensor:
        """Return features [B, 512]."""
        return cast(Tensor, self.output(self.convolutions(half_spectrum(image))))


class GatedFusion(nn.Module):
    """Mix two feature vectors, each normalised, in proportions a gate chooses per feature: 2 x [B, 512] -> [B, 512].

    Source: Arevalo et al., Gated Multimodal Units for Information Fusion, 2017, with normalisation for its tanh.
    """

    def __init__(self) -> None:
        super().__init__()
        self.norm_spatial = nn.LayerNorm(_WIDTH)
        self.norm_frequency = nn.LayerNorm(_WIDTH)
        self.gate = nn.Linear(2 * _WIDTH, _WIDTH)

    def forward(self, spatial: Tensor, frequency: Tensor) -> Tensor:
        """Return fused features [B, 512]."""
        spatial, frequency = self.norm_spatial(spatial), self.norm_frequency(frequency)
        share = torch.sigmoid(self.gate(torch.cat([spatial, frequency], dim=1)))
        return share * spatial + (1 - share) * frequency


class DualBranchV2(_TwoBranches):
    """Two branches, a gate, and a classifier per branch: every parameter learns, and each branch can be judged alone.

    In training it returns [B, 3, 2], the logits of the fused features (which count), of the spatial and of the
    frequency branch (`hai.losses` weighs them); in evaluation the fused logits [B, 2].
    """

    def __init__(self, config: ModelConfig, image_size: int) -> None:
        super().__init__()
        self.spatial = SpatialBranch(config, image_size)
        self.frequency = SpectrumBranch()
        self.fusion = GatedFusion()
        self.classifier = _classifier(_WIDTH, config.dropout)
        self.spatial_classifier = nn.Linear(_WIDTH, 2)
        self.frequency_classifier = nn.Linear(_WIDTH, 2)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits [B, 3, 2] in training, [B, 2] in evaluation."""
        spatial, frequency = self.spatial(image), self.frequency(image)
        fused: Tensor = self.classifier(self.fusion(spatial, frequency))
        if not self.training:
            return fused
        return torch.stack([fused, self.spatial_classifier(spatial), self.frequency_classifier(frequency)], dim=1)


def _classifier(inputs: int, dropout: float | None) -> nn.Sequential:
    rate = 0.5 if dropout is None else dropout
    return nn.Sequential(nn.Linear(inputs, 256), nn.ReLU(), nn.Dropout(rate), nn.Linear(256, 2))
