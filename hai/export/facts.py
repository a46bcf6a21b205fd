"""What every export says about its model: how images go in, what numbers come out, where the weights come from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import hai
from hai.models.backbone import IMAGENET_MEAN, IMAGENET_STD
from hai.models.hugging_face import is_local
from hai.models.scorer import is_frozen
from hai.types import LABELS, Record

if TYPE_CHECKING:
    from hai.checkpoint.format import Checkpoint
    from hai.config.schema import ModelConfig, RunConfig
    from hai.trained import Trained

__all__ = [
    "Origin",
    "keeps_backbone_outside",
    "model_facts",
    "needs_repository",
    "origin_of",
    "served_crop_settings",
    "shown_model",
    "trained_checkpoint",
]

_BRANCH: Final = "efficientnet_b4"
"""timm's name of the backbone of the two-branch detectors."""


class Origin(NamedTuple):
    """Published weights that training began with.

    Args:
        repo: OWNER/NAME on the Hugging Face Hub; "" where they came from a file.
        license: identifier of their terms; "" where it is not known here.
    """

    repo: str
    license: str


def trained_checkpoint(checkpoint: Checkpoint) -> Record:
    """Return {step, sha256} of the checkpoint as training wrote it, also of one that was exported before."""
    exported: Record = checkpoint.meta.get("exported", {"step": checkpoint.step, "sha256": checkpoint.sha256})
    return exported


def keeps_backbone_outside(config: RunConfig) -> bool:
    """Say whether a checkpoint holds only what learned, and the backbone's published weights are needed beside it."""
    return _learned_partly(config) and config.model.pretrained is not False


def needs_repository(config: RunConfig) -> bool:
    """Say whether a checkpoint loads only where the repository or the folder of its backbone is."""
    return _learned_partly(config) or config.model.trust_remote_code


def _learned_partly(config: RunConfig) -> bool:
    model = config.model
    return config.task == "ranker" and (
        is_frozen(model) or model.train_blocks is not None or model.lora_rank is not None
    )


def shown_model(model: ModelConfig) -> str:
    """Name a model without the folders that a local one lies in: `hf:./vit`."""
    kind, _, name = model.name.partition(":")
    return f"hf:./{Path(name).name}" if kind == "hf" and is_local(name) else model.name


def served_crop_settings(checkpoint: Checkpoint) -> Record | None:
    """Say how the training images were cut out, with the name alone of the face detector's model file."""
    settings: Record | None = checkpoint.meta.get("crop_settings")
    if settings is None or not settings.get("detector_model"):
        return settings
    return settings | {"detector_model": Path(settings["detector_model"]).name}


def model_facts(trained: Trained) -> Record:
    """Describe a model for programs that know nothing of this package, as JSON."""
    config = trained.config
    facts: Record = {
        "hai": hai.__version__,
        "task": config.task,
        "model": shown_model(config.model),
        "checkpoint": trained_checkpoint(trained.checkpoint),
        "image": {
            "colors": "RGB",
            "size": config.data.image_size,
            "geometry": config.data.geometry,
            "mean": list(IMAGENET_MEAN),
            "std": list(IMAGENET_STD),
        },
        "crop_settings": served_crop_settings(trained.checkpoint),
    }
    if config.task == "ranker":
        scale = trained.checkpoint.meta.get("fitted", {})
        return facts | {"tiers": list(config.data.tiers) if scale.get("thresholds") else [], "scale": scale}
    fitted = trained.calibration
    return facts | {
        "labels": list(LABELS),
        "temperature": fitted.temperature,
        "threshold": fitted.threshold,
        "threshold_interval": [fitted.threshold_low, fitted.threshold_high],
    }


def origin_of(model: ModelConfig) -> Origin | None:
    """Name the published weights that training began with; None: none, the weights were random.

    The hub is asked for the terms of `hf:` repositories; without it they are not known.
    """
    kind, _, name = model.name.partition(":")
    if kind == "compact" or model.pretrained is False:
        return None
    if isinstance(model.pretrained, str) or (kind == "hf" and is_local(name)):
        return Origin("", "")
    if kind == "hf":
        return Origin(name, _license_on_hub(name))
    import timm

    published: Any = timm.get_pretrained_cfg(_BRANCH if kind.startswith("dual_branch") else name)
    repo = published.hf_hub_id or ""
    if repo == "timm/":
        repo = f"timm/{published.architecture}.{published.tag}"
    return Origin(repo, published.license or _license_on_hub(repo))


def _license_on_hub(repo: str) -> str:
    """Read the licence that a repository's page names; "" when it cannot be had."""
    from huggingface_hub import model_info

    try:
        card = model_info(repo, timeout=10).card_data
    except Exception:  # offline, gated or renamed: what the hub's client raises depends on its version
        return ""
    found = card.get("license") if card is not None else None
    return found if isinstance(found, str) else ""
