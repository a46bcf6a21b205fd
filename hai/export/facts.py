"""What every export says about its model: how images go in, what numbers come out, where the weights come from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import hai
from hai.models.backbone import IMAGENET_MEAN, IMAGENET_STD
from hai.types import LABELS, Record

if TYPE_CHECKING:
    from hai.config.schema import ModelConfig, RunConfig
    from hai.trained import Trained

__all__ = ["Origin", "keeps_backbone_outside", "model_facts", "origin_of", "trained_checkpoint"]

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


def trained_checkpoint(trained: Trained) -> Record:
    """Return {step, sha256} of the checkpoint as training wrote it, also of one that was exported before."""
    own = {"step": trained.checkpoint.step, "sha256": trained.checkpoint.sha256}
    exported: Record = trained.checkpoint.meta.get("exported", own)
    return exported


def keeps_backbone_outside(config: RunConfig) -> bool:
    """Say whether a checkpoint holds only what learned, and the backbone's published weights are needed beside it."""
    model = config.model
    partly = model.freeze_backbone or model.train_blocks is not None or model.lora_rank is not None
    return config.task == "ranker" and partly and model.pretrained is not False


def model_facts(trained: Trained) -> Record:
    """Describe a model for programs that know nothing of this package, as JSON."""
    config = trained.config
    facts: Record = {
        "hai": hai.__version__,
        "task": config.task,
        "model": config.model.name,
        "checkpoint": trained_checkpoint(trained),
        "image": {
            "colors": "RGB",
            "size": config.data.image_size,
            "geometry": config.data.geometry,
            "mean": list(IMAGENET_MEAN),
            "std": list(IMAGENET_STD),
        },
        "crop_settings": trained.checkpoint.meta.get("crop_settings"),
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
    if isinstance(model.pretrained, str) or (kind == "hf" and Path(name).is_dir()):
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
