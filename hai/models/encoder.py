"""Networks that turn an image into features for the ranker, and what identifies their weights."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from hai.config.schema import ModelConfig
from hai.data.content import hash_files, stat_files
from hai.errors import ConfigError
from hai.models.backbone import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Renormalize,
    build_timm_network,
    check_patch,
    load_timm_weights,
)
from hai.models.compact import CompactTrunk
from hai.models.hugging_face import build_hf_encoder, describe_hf, load_hf_weights, vision_config
from hai.models.weights import copy_tensors, hub_folder, read_tensors

__all__ = ["Encoder", "backbone_revision", "build_encoder", "encode", "rounded_image_size"]


class Encoder(nn.Module):
    """An image network without its classifier; image float32 [B, 3, S, S] -> features [B, D].

    Args:
        network: gives tokens [B, N, C], a feature map or pooled features.
        features: which tokens count: the class token, the mean of the patch tokens, or both side by side.
        image_size: S, pixels.
        mean: of the images that the network takes, RGB, full range 1.
        std: their deviation.
        name: as the config has it, for messages.
    """

    def __init__(
        self,
        network: nn.Module,
        features: str,
        image_size: int,
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
        name: str = "compact",
    ) -> None:
        super().__init__()
        self.renormalize = Renormalize(mean, std)
        self.network = network
        self.features = features
        self.name = name
        self.patch = 0
        self.options: dict[str, Any] = {}
        self._image_size = image_size

    def forward(self, image: Tensor) -> Tensor:
        """Return features [B, D] of images [B, 3, S, S], normalised with ImageNet's mean and deviation."""
        hidden = self._hidden(self.renormalize(image))
        if hidden.ndim == 4:  # timm's windowed transformers put channels last
            axes = (1, 2) if hidden.shape[-1] == getattr(self.network, "num_features", 0) else (2, 3)
            return hidden.mean(dim=axes)
        if hidden.ndim == 2:
            return hidden
        patches = (self._image_size // self.patch) ** 2 if self.patch else hidden.shape[1]
        prefix = max(hidden.shape[1] - patches, 0)  # class token first, then register tokens
        mean = hidden[:, prefix:].mean(dim=1)
        if self.features == "mean_patch":
            return mean
        if prefix == 0:
            raise ConfigError(
                f"model.features = {self.features}; {self.name} has no class token; use model.features=mean_patch"
            )
        return hidden[:, 0] if self.features == "cls" else torch.cat([hidden[:, 0], mean], dim=1)

    def _hidden(self, image: Tensor) -> Tensor:
        if isinstance(self.network, CompactTrunk):
            return self.network.features(image)
        if self.name.startswith("timm:"):
            return cast(Tensor, cast(Any, self.network).forward_features(image))
        return cast(Tensor, self.network(pixel_values=image, **self.options).last_hidden_state)


def encode(encoder: nn.Module, image: Tensor) -> Tensor:
    """Return features float32 [B, D] without a graph; on CPUs image by image, so that they do not depend on the batch.

    Args:
        encoder: in evaluation mode.
        image: [B, 3, S, S], normalised.
    """
    parts = torch.split(image, 1) if image.device.type == "cpu" else (image,)
    with torch.no_grad():
        return torch.cat([encoder(part).float() for part in parts])


def build_encoder(
    config: ModelConfig, image_size: int, seed: int, *, architecture: dict[str, Any] | None = None
) -> Encoder:
    """Build the backbone of a ranker on the CPU, with its weights.

    Args:
        config: the model's section of the config.
        image_size: S, pixels, a multiple of the patch size.
        seed: of random weights; torch's own random state is left as it was.
        architecture: an `hf:` network's description kept by a checkpoint that holds all its weights: nothing is
            fetched.

    Raises:
        ConfigError: what the config asks for does not exist, does not fit together or cannot be reached.
    """
    kind, _, name = config.name.partition(":")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if kind == "timm":
            return _timm_encoder(name, config, image_size)
        if kind == "hf":
            return _hf_encoder(name, config, image_size, architecture)
        if kind != "compact":
            raise ConfigError(
                f"model.name = {config.name}; is a detector; a ranker takes compact, timm:NAME or hf:REPO, such as "
                "hf:facebook/dinov2-large"
            )
        encoder = Encoder(CompactTrunk(config), config.features, image_size)
    if isinstance(config.pretrained, str):
        where = f"model.pretrained = {config.pretrained}"
        copy_tensors(encoder.network, _own_tensors(config.pretrained), where, ignored=("classifier.",))
    return encoder


def _timm_encoder(name: str, config: ModelConfig, image_size: int) -> Encoder:
    import timm

    published = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    network = build_timm_network(
        name,
        config.pretrained is True,
        config.gradient_checkpointing,
        num_classes=0,
        drop_path_rate=config.drop_path,
        img_size=image_size if published is not None and published.fixed_input_size else None,
    )
    given = cast(Any, network).pretrained_cfg
    mean, std = tuple(given["mean"]), tuple(given["std"])
    encoder = Encoder(network, config.features, image_size, mean, std, f"timm:{name}")
    encoder.patch = _side(getattr(getattr(network, "patch_embed", None), "patch_size", 0))
    check_patch(encoder.name, image_size, encoder.patch or 1)
    if isinstance(config.pretrained, str):
        load_timm_weights(network, _own_tensors(config.pretrained), f"model.pretrained = {config.pretrained}")
    return encoder


def _hf_encoder(repo: str, config: ModelConfig, image_size: int, architecture: dict[str, Any] | None) -> Encoder:
    name, weights = f"hf:{repo}", config.pretrained is True and architecture is None
    described = describe_hf(repo, config, weights=weights, architecture=architecture)
    network, options = build_hf_encoder(name, described, config, image_size)
    encoder = Encoder(network, config.features, image_size, described.mean, described.std, name)
    encoder.options = options
    encoder.patch = _side(getattr(vision_config(described.config), "patch_size", 0))
    check_patch(name, image_size, encoder.patch or 1)
    if architecture is None and isinstance(config.pretrained, str):
        load_hf_weights(network, _own_tensors(config.pretrained), f"model.pretrained = {config.pretrained}")
    elif weights and described.folder is not None:
        load_hf_weights(network, read_tensors(described.folder), f"weights of {name}")
    return encoder


def _own_tensors(path: str) -> dict[str, Tensor]:
    """Read a network's weights; of a ranker's checkpoint those of its backbone."""
    tensors = read_tensors(path)
    inside = "encoder.network."
    backbone = {name.removeprefix(inside): value for name, value in tensors.items() if name.startswith(inside)}
    return backbone or tensors


def rounded_image_size(config: ModelConfig, image_size: int, architecture: dict[str, Any] | None = None) -> int:
    """Return the multiple of the backbone's patch size that lies nearest, the larger of two; weights are not loaded.

    Args:
        config: the model's section of the config.
        image_size: that is asked for, pixels.
        architecture: an `hf:` network's description kept by a checkpoint; the repository is then left alone.

    Raises:
        ConfigError: the backbone is unknown, or cannot be reached.
    """
    kind, _, name = config.name.partition(":")
    patch = 0
    if kind == "hf":
        described = describe_hf(name, config, weights=False, architecture=architecture)
        patch = _side(getattr(vision_config(described.config), "patch_size", 0))
    elif kind == "timm":
        with torch.device("meta"):
            network = build_timm_network(name, False, False, num_classes=0)
        patch = _side(getattr(getattr(network, "patch_embed", None), "patch_size", 0))
    return image_size if not patch else max(1, (2 * image_size + patch) // (2 * patch)) * patch


def _side(patch: Any) -> int:
    return int(patch if isinstance(patch, int) else max(patch or (0,)))


def backbone_revision(config: ModelConfig, seed: int) -> str:
    """Identify the backbone's weights in a line of text, without building it.

    Published weights are named by their commit on the hub, local ones by the hash of their content, random ones by the
    seed and the version of torch that draws them.

    Raises:
        ConfigError: they cannot be had.
    """
    kind, _, name = config.name.partition(":")
    parts = [config.name if not (kind == "hf" and Path(name).is_dir()) else "hf"]
    if kind == "hf":
        folder = describe_hf(name, config, weights=config.pretrained is True).folder
        assert folder is not None
        parts.append(_content(folder, config.pretrained is True))
    if config.pretrained is True and kind == "timm":
        import timm

        published = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
        repo = published.hf_hub_id if published is not None else None
        if repo:
            parts.append(_content(hub_folder(repo, weights=True, config=False), True))
    elif isinstance(config.pretrained, str):
        parts.append(_content(Path(config.pretrained), True))
    elif config.pretrained is False or kind == "compact":
        parts.append(f"random {seed} torch {torch.__version__.partition('+')[0]}")
    return ", ".join(parts)


def _content(path: Path, weights: bool) -> str:
    """Hash a safetensors file, or a folder's description and weights; a hub's folder is named by its commit."""
    if path.parent.name == "snapshots":
        return path.name
    if path.is_file():
        files = [str(path)]
    else:
        files = sorted(str(file) for file in (path.glob("*.safetensors") if weights else ()))
        files += [str(file) for file in (path / "config.json", path / "preprocessor_config.json") if file.is_file()]
    if not files or not path.exists():
        raise ConfigError(f"model.pretrained = {path}; no such file or folder of safetensors weights")
    return hashlib.sha256(hash_files(files, stat_files(files)).sha256.tobytes()).hexdigest()[:20]
