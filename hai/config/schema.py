"""The typed, frozen configuration: every key, its unit, its bounds and what it does to a run that already exists.

Each field is declared with one of three words, which say what a resume may do with it:

- `fixed`: part of the run's identity; a resume with another value is refused, field by field;
- `raisable`: may only grow (or become null, "no limit") on a resume;
- `free`: where and how the run is carried out; may change at any time.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

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
    "RunConfig",
    "ScaleConfig",
    "SourceConfig",
    "TrainConfig",
    "WandbConfig",
]

Split = Literal["train", "val", "test"]
Probability = Annotated[float, Field(ge=0.0, le=1.0)]


def _field(resume: str, default: Any, text: str, bounds: dict[str, Any]) -> Any:
    extra: dict[str, Any] = {"resume": resume}
    if isinstance(default, type):
        return Field(default_factory=default, description=text, json_schema_extra=extra, **bounds)
    return Field(default, description=text, json_schema_extra=extra, **bounds)  # pydantic copies lists per instance


def _check_range(value: list[float], floor: float, ceiling: float) -> list[float]:
    low, high = value
    if not floor <= low <= high <= ceiling:
        raise ValueError(f"must be two numbers, {floor:g} <= low <= high <= {ceiling:g}")
    return value


def fixed(default: Any, text: str, **bounds: Any) -> Any:
    """Declare a field that belongs to the run's identity."""
    return _field("fixed", default, text, bounds)


def raisable(default: Any, text: str, **bounds: Any) -> Any:
    """Declare a limit that a resume may raise, never lower."""
    return _field("raise", default, text, bounds)


def free(default: Any, text: str, **bounds: Any) -> Any:
    """Declare a field that a resume may change."""
    return _field("free", default, text, bounds)


class Section(BaseModel):
    """Base of every part of the config: frozen, strict about names, lenient about nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


class SourceConfig(Section):
    """One source of labelled images."""

    name: str = fixed("data", "Name of the source in tables, metrics and weights.", min_length=1)
    path: str = free(
        ...,
        "A folder with real/ and fake/ (also under train/ val/ test/), a CSV, a pack, or a zip of any of these; "
        "local or a URL. Relative paths start at the working directory.",
        min_length=1,
    )
    image_dir: str | None = free(None, "Folder that the CSV's paths start from; default: the CSV's own folder.")
    weight: float = fixed(1.0, "Share of the source in an epoch under `data.sampling: weighted`.", gt=0)
    splits: list[Split] | None = fixed(
        None,
        "Splits this source contributes to; rows of other splits are left out, rows without a split are divided over "
        "these. [val] makes a validation source that is never trained on.",
    )


class DataConfig(Section):
    """What to learn from."""

    sources: list[SourceConfig] = fixed([], "The sources, at least one for training.")
    image_size: int = fixed(224, "Height and width of the model's input, pixels.", ge=32, le=2048)
    geometry: Literal["resize", "pad", "crop"] = fixed(
        "resize",
        "How an image becomes square: `resize` squashes it, `pad` keeps its aspect and pads with black, `crop` takes a "
        "square at native resolution (random in training, central otherwise; smaller images are enlarged first).",
    )
    sampling: Literal["proportional", "balanced", "weighted"] = fixed(
        "proportional",
        "`proportional`: every training example once an epoch. `balanced`: classes equally often and, within a class, "
        "sources equally often. `weighted`: classes equally often, sources by their `weight`.",
    )
    split_ratios: list[float] = fixed(
        [0.8, 0.1, 0.1], "Shares of train, val and test for rows without a split.", min_length=3, max_length=3
    )
    max_bad_fraction: float = free(
        0.01, "Largest share of unreadable images; above it the run stops before training.", ge=0, le=1
    )
    max_megapixels: float = fixed(40.0, "Larger images are refused as decompression bombs, megapixels.", gt=0, le=1000)
    num_threads: int | None = free(
        None, "Decoding threads per worker; null: the worker's CPUs. Changes speed only.", ge=1, le=256
    )
    cache_decoded: Literal["auto", "on", "off"] = free(
        "auto", "Keep decoded images on local disk after epoch 1; auto: when they fit in half of the free space."
    )

    @field_validator("sources")
    @classmethod
    def _names_differ(cls, value: list[SourceConfig]) -> list[SourceConfig]:
        names = [source.name for source in value]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"name {repeated[0]!r} is used twice; every source needs a name of its own")
        return value

    @field_validator("split_ratios")
    @classmethod
    def _ratios_sum_to_one(cls, value: list[float]) -> list[float]:
        if min(value) < 0 or abs(sum(value) - 1.0) > 1e-6:
            raise ValueError("must be three shares >= 0 that sum to 1")
        return value


class AugmentConfig(Section):
    """Random changes to training images; each draw is a function of (seed, epoch, example)."""

    flip: Probability = fixed(0.0, "Probability of a horizontal flip.")
    rotation_degrees: float = fixed(0.0, "Largest rotation, degrees, uniform in +-this.", ge=0, le=180)
    rotation_probability: Probability = fixed(1.0, "Probability of a rotation.")
    brightness: float = fixed(0.0, "Brightness factor, uniform in 1 +- this.", ge=0, le=1)
    contrast: float = fixed(0.0, "Contrast factor, uniform in 1 +- this.", ge=0, le=1)
    saturation: float = fixed(0.0, "Saturation factor, uniform in 1 +- this.", ge=0, le=1)
    hue: float = fixed(0.0, "Hue shift, uniform in +-this, turns.", ge=0, le=0.5)
    jitter_probability: Probability = fixed(1.0, "Probability of the four colour changes together.")
    jpeg_probability: Probability = fixed(0.0, "Probability of a JPEG compression.")
    jpeg_quality: list[int] = fixed([60, 100], "Lowest and highest JPEG quality, uniform.", min_length=2, max_length=2)
    noise_probability: Probability = fixed(0.0, "Probability of Gaussian noise.")
    noise_std: float = fixed(0.02, "Standard deviation of the noise, in units of the full range 0-1.", ge=0, le=1)
    blur_probability: Probability = fixed(0.0, "Probability of a Gaussian blur.")
    blur_sigma: list[float] = fixed(
        [0.3, 1.5], "Smallest and largest blur, pixels, uniform.", min_length=2, max_length=2
    )
    resize_probability: Probability = fixed(0.0, "Probability of resizing down and back up.")
    resize_scale: list[float] = fixed(
        [0.5, 1.0], "Smallest and largest scale of that resize, uniform.", min_length=2, max_length=2
    )

    @field_validator("jpeg_quality")
    @classmethod
    def _quality_range(cls, value: list[int]) -> list[int]:
        _check_range([float(number) for number in value], 1, 100)
        return value

    @field_validator("blur_sigma")
    @classmethod
    def _sigma_range(cls, value: list[float]) -> list[float]:
        return _check_range(value, 0.01, 5)

    @field_validator("resize_scale")
    @classmethod
    def _scale_range(cls, value: list[float]) -> list[float]:
        return _check_range(value, 0.05, 1)


class ModelConfig(Section):
    """Which network."""

    name: str = fixed(
        "dual_branch",
        "`dual_branch` (the 43.7 M-parameter model of EfficientNet-B4 and a frequency branch), `dual_branch_v2`, "
        "`compact` (0.2 M parameters, learns from scratch on a CPU), `timm:NAME` or `hf:REPO`.",
        pattern=r"^(dual_branch|dual_branch_v2|compact|timm:.+|hf:.+)$",
    )
    pretrained: bool | str = fixed(
        True, "true: the backbone's published weights; false: random weights; a path: a safetensors file or folder."
    )
    dropout: float | None = fixed(None, "Dropout before the classifier; null: the model's own.", ge=0, lt=1)
    drop_path: float | None = fixed(None, "Stochastic depth of the backbone; null: the model's own.", ge=0, lt=1)
    freeze_backbone: bool = fixed(False, "Train the head only; the backbone's BatchNorm statistics stay too.")
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
        None, "Largest number of examples one worker forwards at once; null: its whole share of the global batch.", ge=1
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

    task: Literal["detector"] = fixed("detector", "What to train.")
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
    loss: LossConfig = fixed(LossConfig, "The objective.")
    optim: OptimConfig = fixed(OptimConfig, "The optimizer and its schedule.")
    train: TrainConfig = fixed(TrainConfig, "How to train.")
    checkpoint: CheckpointConfig = free(CheckpointConfig, "When to save and what to keep.")
    scale: ScaleConfig = free(ScaleConfig, "On what to run.")
    logging: LoggingConfig = free(LoggingConfig, "What to report.")
