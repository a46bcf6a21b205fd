"""The typed, frozen configuration of a run: every key, its unit, its bounds and what a resume may do with it."""

from __future__ import annotations

from typing import Any, Final, Literal

from pydantic import ValidationInfo, field_validator, model_validator

from hai.config.data import AugmentConfig, DataConfig, SourceConfig
from hai.config.model import LossConfig, LossPhase, LossWeights, ModelConfig, PairsConfig
from hai.config.section import Section, fixed, free, raisable, refuse_login

__all__ = [
    "AugmentConfig",
    "CheckpointConfig",
    "DataConfig",
    "LoggingConfig",
    "LossConfig",
    "LossPhase",
    "LossWeights",
    "ModelConfig",
    "OptimConfig",
    "PairsConfig",
    "RunConfig",
    "ScaleConfig",
    "SourceConfig",
    "TrainConfig",
    "WandbConfig",
]


class OptimConfig(Section):
    """The optimizer and its schedule."""

    name: Literal["adamw", "sgd"] = fixed("adamw", "Optimizer; sgd has Nesterov momentum 0.9.")
    learning_rate: float = fixed(1e-4, "Peak learning rate, of the head.", gt=0, le=10)
    backbone_lr_scale: float = fixed(1.0, "Learning rate of the backbone, as a multiple of the head's.", ge=0, le=10)
    layer_decay: float | None = fixed(
        None, "Learning rate of each backbone layer, as a multiple of the next one's; null: all alike.", gt=0, le=1
    )
    weight_decay: float = fixed(0.01, "Decoupled weight decay.", ge=0, le=1)
    decay_norm_and_bias: bool = fixed(False, "Also decay normalisation weights and biases.")
    betas: list[float] = fixed([0.9, 0.999], "AdamW's averaging rates.", min_length=2, max_length=2)
    schedule: Literal["cosine", "linear", "constant"] = fixed("cosine", "From the peak to the minimum.")
    warmup_epochs: float = fixed(0.0, "Linear warm-up, epochs; cut to the run's length.", ge=0)
    warmup_start_learning_rate: float = fixed(0.0, "Learning rate of the first step of the warm-up.", ge=0)
    min_learning_rate: float = fixed(0.0, "Learning rate of the last step.", ge=0)

    @field_validator("betas")
    @classmethod
    def _rates(cls, value: list[float]) -> list[float]:
        if not all(0 <= beta < 1 for beta in value):
            raise ValueError("must be two numbers, 0 <= beta < 1")
        return value

    @field_validator("warmup_start_learning_rate", "min_learning_rate")
    @classmethod
    def _below_peak(cls, value: float, info: ValidationInfo) -> float:
        peak = info.data.get("learning_rate")
        if peak is not None and value > peak:
            raise ValueError(f"must not exceed learning_rate = {peak}")
        return value


class TrainConfig(Section):
    """How to train."""

    max_epochs: int | None = raisable(10, "Epochs to train; null: no limit of this kind.", ge=1)
    max_steps: int | None = raisable(
        None, "Optimizer steps to train; the earlier of the two limits ends the run.", ge=1
    )
    global_batch_size: int = fixed(32, "Examples per optimizer step over all workers.", ge=1)
    micro_batch_size: int | None = free(
        None,
        "Largest number of examples one worker forwards at once; null: its whole share of the global batch. It halves "
        "by itself when memory runs out.",
        ge=1,
    )
    gradient_clip_norm: float | None = fixed(1.0, "Largest norm of the gradient; null: no clipping.", gt=0)
    mixed_precision: bool | Literal["bf16", "fp16"] = fixed(
        True, "true: bf16 where the card has it, else fp16 with loss scaling, fp32 on CPUs and old cards."
    )
    ema_decay: float | None = fixed(
        None, "Decay of the averaged weights, which are then served; null: none.", gt=0, lt=1
    )
    early_stopping_patience: int | None = raisable(
        None, "Evaluations without improvement before the run ends; null: never.", ge=1
    )
    early_stopping_min_delta: float = fixed(0.0, "Smallest change that counts as an improvement.", ge=0)
    eval_every_epochs: float = fixed(1.0, "Epochs between evaluations; fractions allowed.", gt=0)
    eval_batch_size: int | None = free(None, "Examples per worker in one evaluation step; null: as in training.", ge=1)
    sync_batch_norm: bool = fixed(True, "BatchNorm statistics over all workers, on GPUs; else rank 0's count.")
    channels_last: bool = free(True, "Memory format that convolutions prefer.")
    compile: bool = free(False, "torch.compile: minutes of start-up for faster steps.")

    @field_validator("max_steps")
    @classmethod
    def _some_limit(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is None and info.data.get("max_epochs", 1) is None:
            raise ValueError("max_epochs is null too; set at least one of them")
        return value


class CheckpointConfig(Section):
    """When to save and what to keep."""

    every_minutes: float | None = free(10.0, "Minutes between checkpoints; null: only at evaluations.", gt=0)
    every_epochs: float | None = free(None, "Also save every so many epochs.", gt=0)
    keep: int = free(2, "Newest checkpoints to keep; the best one stays besides.", ge=1)
    keep_every_epochs: int | None = free(None, "Keep for good the checkpoint of every so many epochs.", ge=1)


class ScaleConfig(Section):
    """On what to run."""

    num_workers: int | str | None = free(
        None,
        "Worker processes, one GPU each; MIN:MAX is elastic; null: one per GPU of the machine or cluster, else one.",
    )
    use_gpu: bool | None = free(None, "null: where there is one.")
    cpus_per_worker: int | None = free(None, "null: the CPUs shared out evenly.", ge=1)
    max_failures: int = free(3, "Worker failures to recover from in one launch; -1: any number.", ge=-1)
    launcher: Literal["ray", "in_process"] = free("ray", "in_process: no Ray, for debugging and torchrun.")

    @field_validator("num_workers")
    @classmethod
    def _number_or_range(cls, value: int | str | None) -> int | str | None:
        if value is None:
            return None
        low, _, high = (value if isinstance(value, str) else f"{value}:{value}").partition(":")
        if not (low.isdecimal() and high.isdecimal() and 1 <= int(low) <= int(high)):
            raise ValueError("must be a number >= 1 or MIN:MAX with 1 <= MIN <= MAX")
        return value


class WandbConfig(Section):
    """Weights & Biases, optional; trouble there never stops a run."""

    enabled: bool = free(False, "Send metrics to Weights & Biases.")
    project: str = free("hai", "Project there.")
    entity: str | None = free(None, "Team or user there.")
    mode: Literal["online", "offline"] = free("online", "offline: keep locally, for `wandb sync`.")
    tags: list[str] = free([], "Tags of the run.")


class LoggingConfig(Section):
    """What to report."""

    every_steps: int = free(10, "Steps between two records of training metrics.", ge=1)
    tensorboard: bool = free(True, "Write TensorBoard events into the run folder.")
    wandb: WandbConfig = free(WandbConfig, "Weights & Biases.")


class RunConfig(Section):
    """One training run."""

    task: Literal["detector", "ranker"] = fixed("detector", "What to train.")
    name: str | None = free(
        None,
        "Name of the run; with the storage it identifies the run. Default: the config file's name.",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
    )
    storage: str | None = free(None, "Folder or URL that holds the runs; default: HAI_STORAGE, else runs/.")
    seed: int = fixed(42, "Seed of everything random.", ge=0, lt=2**63)
    data: DataConfig = fixed(DataConfig, "What to learn from.")
    augment: AugmentConfig = fixed(AugmentConfig, "Random changes to training images.")
    model: ModelConfig = fixed(ModelConfig, "Which network.")
    loss: LossConfig = fixed(LossConfig, "The detector's objective.")
    pairs: PairsConfig = fixed(PairsConfig, "The ranker's objective.")
    optim: OptimConfig = fixed(OptimConfig, "The optimizer and its schedule.")
    train: TrainConfig = fixed(TrainConfig, "How to train.")
    checkpoint: CheckpointConfig = free(CheckpointConfig, "When to save and what to keep.")
    scale: ScaleConfig = free(ScaleConfig, "On what to run.")
    logging: LoggingConfig = free(LoggingConfig, "What to report.")

    @field_validator("storage")
    @classmethod
    def _no_login(cls, value: str | None) -> str | None:
        return refuse_login(value)

    @model_validator(mode="before")
    @classmethod
    def _fill_in_task_defaults(cls, values: Any) -> Any:
        """Put a task's own defaults where the config says nothing."""
        if not isinstance(values, dict):
            return values
        filled = dict(values)
        for section, defaults in _TASK_DEFAULTS.get(str(values.get("task")), {}).items():
            given = filled.get(section, {})
            if isinstance(given, dict):
                filled[section] = {**defaults, **given}
        return filled


_TASK_DEFAULTS: Final[dict[str, dict[str, dict[str, Any]]]] = {
    "ranker": {
        "data": {"image_size": 756},
        "model": {"name": "hf:facebook/dinov2-large", "freeze_backbone": True},
    }
}
"""Defaults that differ from the fields' own."""
