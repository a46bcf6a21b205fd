"""The detectors: one constructor for all of them, and what training needs to know of their parts."""

from __future__ import annotations

from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from hai.config.schema import ModelConfig
from hai.models.backbone import build_timm
from hai.models.compact import Compact
from hai.models.dual_branch import DualBranch, DualBranchV2
from hai.models.freeze import set_frozen, statistics_kept, train_mode
from hai.models.hugging_face import build_hf
from hai.models.weights import copy_tensors, read_tensors

__all__ = ["architecture_of", "backbone_parameters", "build_model", "set_frozen", "statistics_kept", "train_mode"]


class _Detector(Protocol):
    """What every detector offers besides `forward`."""

    def backbone_names(self) -> set[str]:
        """Name the parameters of the backbone."""

    def load_backbone(self, tensors: dict[str, Tensor], where: str) -> None:
        """Fill the backbone from weights that were published for it."""


def build_model(
    config: ModelConfig, image_size: int, seed: int, *, architecture: dict[str, Any] | None = None
) -> nn.Module:
    """Build a detector in training mode on the CPU: image float32 [B, 3, S, S] -> logits [B, 2] of real and fake.

    Images come normalised with ImageNet's mean and deviation; a network that was trained on others converts them
    itself. `dual_branch_v2` returns [B, 3, 2] in training, the logits that count first. `compact` has no published
    weights: `pretrained: true` leaves it random.

    Args:
        config: the model's section of the config.
        image_size: S, pixels.
        seed: of the random weights; torch's own random state is left as it was.
        architecture: what `architecture_of` said when the checkpoint to load was made: `hf:REPO` is then built without
            its repository, with random weights. Whoever loads a checkpoint also sets `pretrained` to false.

    Raises:
        ConfigError: what the config asks for does not exist, does not fit together or cannot be reached.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = _build(config, image_size, architecture)
    if isinstance(config.pretrained, str):
        _load_path(model, config.pretrained)
    return model


def _build(config: ModelConfig, image_size: int, architecture: dict[str, Any] | None) -> nn.Module:
    kind, _, name = config.name.partition(":")
    if kind == "timm":
        return build_timm(name, config, image_size)
    if kind == "hf":
        return build_hf(name, config, image_size, architecture).train()
    if kind == "compact":
        return Compact(config)
    return (DualBranch if kind == "dual_branch" else DualBranchV2)(config, image_size)


def _load_path(model: nn.Module, path: str) -> None:
    tensors = read_tensors(path)
    own = model.state_dict().keys()
    where = f"model.pretrained = {path}"
    if 2 * len(own & tensors.keys()) >= len(own):  # a checkpoint of this very detector
        copy_tensors(model, tensors, where)
    else:
        cast(_Detector, model).load_backbone(tensors, where)


def backbone_parameters(model: nn.Module) -> set[str]:
    """Name the parameters of the backbone, for freezing and learning-rate groups."""
    return cast(_Detector, model).backbone_names()


def architecture_of(model: nn.Module) -> dict[str, Any] | None:
    """Return what a checkpoint must keep, as JSON, so that the model can be built without network; None: nothing."""
    return getattr(model, "architecture", None)
