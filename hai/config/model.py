"""The config's sections on what is learned: the network and the two objectives."""

from __future__ import annotations

from typing import Literal

from pydantic import ValidationInfo, field_validator

from hai.config.section import Section, fixed, free

__all__ = ["LossConfig", "LossPhase", "LossWeights", "ModelConfig", "PairsConfig"]


class ModelConfig(Section):
    """Which network."""

    name: str = fixed(
        "dual_branch",
        "`dual_branch` (the 43.7 M-parameter model of EfficientNet-B4 and a frequency branch), `dual_branch_v2`, "
        "`compact` (0.2 M parameters, learns from scratch on a CPU), `timm:NAME` or `hf:REPO`.",
        pattern=r"^(dual_branch|dual_branch_v2|compact|timm:.+|hf:.+)$",
    )
    features: Literal["cls", "mean_patch", "cls_and_mean_patch"] = fixed(
        "cls",
        "Ranker: what the head sees of a vision transformer: the class token, the mean of the patch tokens, or both. "
        "Convolutional networks give their pooled features.",
    )
    head: Literal["linear", "mlp"] = fixed(
        "mlp", "Ranker: `mlp` has 674,177 parameters on 1,024 features; `linear` one layer."
    )
    num_heads: int = fixed(
        1,
        "Ranker: heads trained side by side on different draws of the images; their spread is the uncertainty.",
        ge=1,
        le=64,
    )
    normalize_features: bool = fixed(True, "Ranker: scale the features to length 1 before the head.")
    normalize_hidden: bool = fixed(True, "Ranker: scale the mlp's 256 hidden features to length 1.")
    train_blocks: int | None = fixed(
        None,
        "Ranker, with freeze_backbone = false: only the last so many blocks of the backbone learn; null: all of them, "
        "or none beside LoRA.",
        ge=0,
    )
    lora_rank: int | None = fixed(
        None, "Ranker, with freeze_backbone = false: rank of low-rank adapters in the attention layers.", ge=1, le=256
    )
    pretrained: bool | str = fixed(
        True, "true: the backbone's published weights; false: random weights; a path: a safetensors file or folder."
    )
    dropout: float | None = fixed(None, "Dropout before the classifier; null: the model's own.", ge=0, lt=1)
    drop_path: float | None = fixed(None, "Stochastic depth of the backbone; null: the model's own.", ge=0, lt=1)
    freeze_backbone: bool = fixed(
        False, "Train the head only; the backbone's BatchNorm statistics stay too. The ranker's default is true."
    )
    unfreeze_after_epochs: int | None = fixed(None, "Unfreeze the backbone after this many epochs; null: never.", ge=1)
    gradient_checkpointing: bool = free(False, "Recompute activations in the backward pass: less memory, more time.")
    trust_remote_code: bool = fixed(False, "Allow a Hugging Face repository to run its own Python code.")

    @field_validator("unfreeze_after_epochs")
    @classmethod
    def _frozen_before(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("freeze_backbone") is False:
            raise ValueError("has no effect with freeze_backbone = false; set that to true or this to null")
        return value


class LossWeights(Section):
    """Weights of the parts of the objective."""

    cross_entropy: float = fixed(0.0, "Weight of the cross-entropy.", ge=0)
    focal: float = fixed(0.0, "Weight of the focal loss.", ge=0)
    soft_f1: float = fixed(0.0, "Weight of the differentiable macro-F1 loss.", ge=0)

    @field_validator("soft_f1")
    @classmethod
    def _some_weight(cls, value: float, info: ValidationInfo) -> float:
        if value == info.data.get("cross_entropy") == info.data.get("focal") == 0:
            raise ValueError("cross_entropy and focal are 0 too; at least one weight must be > 0")
        return value


class LossPhase(LossWeights):
    """Loss weights from one epoch on."""

    from_epoch: int = fixed(..., "First epoch of the phase, counted from 0.", ge=0)


class LossConfig(LossWeights):
    """The objective, a weighted sum over the global batch."""

    cross_entropy: float = fixed(1.0, "Weight of the cross-entropy.", ge=0)
    phases: list[LossPhase] = fixed([], "Later weights: the last phase whose `from_epoch` has come is in force.")
    focal_gamma: float = fixed(2.0, "Exponent of the focal loss.", ge=0, le=10)
    focal_alpha: float | None = fixed(
        None,
        "Focal weight of the class fake; real gets 1 - alpha. The widespread 0.25 weighs fakes three times LESS than "
        "real images; null weighs both alike.",
        gt=0,
        lt=1,
    )
    label_smoothing: float = fixed(0.0, "Share of the target spread over both classes, cross-entropy only.", ge=0, lt=1)
    class_weights: list[float] | Literal["balanced"] | None = fixed(
        None,
        "Weights of real and fake in cross-entropy and focal; `balanced`: inverse frequency in the training split.",
    )

    @field_validator("phases")
    @classmethod
    def _phases_in_order(cls, value: list[LossPhase]) -> list[LossPhase]:
        starts = [phase.from_epoch for phase in value]
        if starts != sorted(set(starts)):
            raise ValueError(f"from_epoch = {starts}; must increase from phase to phase")
        return value

    @field_validator("class_weights")
    @classmethod
    def _two_weights(cls, value: list[float] | str | None) -> list[float] | str | None:
        if isinstance(value, list) and (len(value) != 2 or min(value) <= 0):
            raise ValueError("must be two numbers > 0, of real and of fake")
        return value


class PairsConfig(Section):
    """The ranker's objective, over all valid pairs of the global batch; each image is forwarded once."""

    loss: Literal["bradley_terry", "margin", "coral"] = fixed(
        "bradley_terry",
        "`bradley_terry`: logistic loss of score differences; `margin`: hinge loss of score differences; `coral`: "
        "ordinal regression of the tier.",
    )
    ties: bool = fixed(
        False,
        "Bradley-Terry only: pairs of one tier, and comparisons called a tie, count as draws (Rao-Kupper); otherwise "
        "they are left out.",
    )
    margin: float = fixed(1.0, "Score difference that the margin loss asks for.", gt=0, le=100)
    gap_shares: list[float] | None = fixed(
        None,
        "Shares of the loss of pairs whose tiers differ by 1, 2, ...; null: every valid pair counts the same.",
    )
    max_per_image: int | None = fixed(
        None, "Most pairs per step that an image takes part in, drawn anew in every epoch; null: no limit.", ge=1
    )

    @field_validator("gap_shares")
    @classmethod
    def _shares_sum_to_one(cls, value: list[float] | None) -> list[float] | None:
        if value is not None and (not value or min(value) < 0 or abs(sum(value) - 1.0) > 1e-6):
            raise ValueError("must be shares >= 0 that sum to 1")
        return value

    @field_validator("ties")
    @classmethod
    def _ties_have_a_model(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("loss", "bradley_terry") != "bradley_terry":
            raise ValueError(f"loss = {info.data['loss']} has no draws; use loss = bradley_terry or set this to false")
        return value
