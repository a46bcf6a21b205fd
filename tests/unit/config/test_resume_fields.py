"""Every config field, changed under a run: refused where it belongs to the run's identity, else let through."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from hai.checkpoint.records import CONFIG
from hai.checkpoint.remote import locate
from hai.config.compare import compare_configs
from hai.config.fields import config_fields
from hai.config.load import show_config
from hai.config.schema import RunConfig
from hai.errors import ConfigError
from hai.launch.train import _refuse_changes

BASE = {
    "storage": "/storage",
    "name": "run",
    "data": {"sources": [{"name": "one", "path": "a", "image_dir": "b"}, {"name": "two", "path": "c"}]},
    "loss": {"phases": [{"from_epoch": 2, "focal": 1.0}]},
    "train": {"max_steps": 500, "early_stopping_patience": 3},
}

FREE = """
name storage data.sources.N.path data.sources.N.image_dir data.cache_embeddings data.embedding_cache
data.max_bad_fraction data.num_threads data.cache_decoded model.gradient_checkpointing
train.micro_batch_size train.eval_batch_size train.channels_last train.compile
checkpoint.every_minutes checkpoint.every_epochs checkpoint.keep checkpoint.keep_every_epochs
scale.num_workers scale.use_gpu scale.cpus_per_worker scale.max_failures scale.launcher
logging.every_steps logging.tensorboard
logging.wandb.enabled logging.wandb.project logging.wandb.entity logging.wandb.mode logging.wandb.tags
"""

RAISABLE = "train.max_epochs train.max_steps train.early_stopping_patience"

FIXED = """
task seed
data.sources.N.name data.sources.N.weight data.sources.N.splits
data.image_size data.geometry data.sampling data.split_ratios data.tiers data.score_column
data.near_duplicate_distance data.embedding_precision data.max_megapixels
augment.flip augment.rotation_degrees augment.rotation_probability augment.brightness augment.contrast
augment.saturation augment.hue augment.jitter_probability augment.jpeg_probability augment.jpeg_quality
augment.noise_probability augment.noise_std augment.blur_probability augment.blur_sigma
augment.resize_probability augment.resize_scale
model.name model.features model.head model.num_heads model.normalize_features model.normalize_hidden
model.train_blocks model.lora_rank model.pretrained model.dropout model.drop_path model.freeze_backbone
model.unfreeze_after_epochs model.trust_remote_code
loss.cross_entropy loss.focal loss.soft_f1 loss.phases.N.cross_entropy loss.phases.N.focal loss.phases.N.soft_f1
loss.phases.N.from_epoch loss.focal_gamma loss.focal_alpha loss.label_smoothing loss.class_weights
pairs.loss pairs.ties pairs.margin pairs.gap_shares pairs.max_per_image
optim.name optim.learning_rate optim.backbone_lr_scale optim.layer_decay optim.weight_decay
optim.decay_norm_and_bias optim.betas optim.schedule optim.warmup_epochs optim.warmup_start_learning_rate
optim.min_learning_rate
train.global_batch_size train.gradient_clip_norm train.mixed_precision train.ema_decay
train.early_stopping_min_delta train.eval_every_epochs train.sync_batch_norm
"""

VALUES: dict[str, Any] = {  # where the schema alone does not say what another value may be
    "name": "other",
    "data.sources.N.splits": ["train"],
    "data.split_ratios": [0.7, 0.2, 0.1],
    "data.tiers": ["gold", "silver"],
    "augment.jpeg_quality": [50, 90],
    "augment.blur_sigma": [0.5, 1.0],
    "augment.resize_scale": [0.4, 0.9],
    "model.name": "compact",
    "model.pretrained": "weights.safetensors",
    "model.unfreeze_after_epochs": (3, {"model": {"freeze_backbone": True}}),
    "loss.class_weights": "balanced",
    "pairs.gap_shares": [0.5, 0.5],
    "optim.betas": [0.8, 0.99],
    "optim.learning_rate": 2e-4,
    "optim.warmup_start_learning_rate": 1e-6,
    "optim.min_learning_rate": 1e-6,
    "scale.num_workers": "1:4",
    "logging.wandb.tags": ["a"],
    "train.mixed_precision": "fp16",
}

CLASSES = {
    **dict.fromkeys(FREE.split(), "free"),
    **dict.fromkeys(RAISABLE.split(), "raisable"),
    **dict.fromkeys(FIXED.split(), "fixed"),
}


def leaves(model: type[BaseModel], prefix: str = "") -> list[tuple[str, Any]]:
    """List the fields that hold a value, dotted, `N` for the entries of a list, by the classes of the schema."""
    found: list[tuple[str, Any]] = []
    for name, field in model.model_fields.items():
        inner = [field.annotation, *getattr(field.annotation, "__args__", ())]
        sections = [kind for kind in inner if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if not sections:
            found.append((f"{prefix}{name}", field))
        for section in sections:
            found += leaves(section, f"{prefix}{name}." + ("N." if section is not field.annotation else ""))
    return found


FIELDS = dict(leaves(RunConfig))


def test_every_field_has_a_class_and_no_class_is_of_a_field_that_is_gone() -> None:
    assert len(CLASSES) == len(FREE.split()) + len(RAISABLE.split()) + len(FIXED.split())
    assert set(CLASSES) == set(FIELDS)
    assert len(FIELDS) > 100


def place_of(key: str) -> list[str | int]:
    return [0 if part == "N" else part for part in key.split(".")]


def put(values: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """Return a copy of nested values with another one at a place."""
    copy = RunConfig.model_validate(values).model_dump(mode="json")
    here: Any = copy
    *path, last = place_of(key)
    for part in path:
        here = here[part]
    here[last] = value
    return copy


def other_value(key: str, old: Any) -> Any:
    """Make up another value that the field takes, from its own schema; a new kind of field needs one in VALUES."""
    if key in VALUES:
        return VALUES[key][0] if isinstance(VALUES[key], tuple) else VALUES[key]
    node = config_fields()[key]
    for option in [node, *node.get("anyOf", [])]:
        if "enum" in option:
            return next(choice for choice in option["enum"] if choice != old)
        if option.get("type") == "boolean":
            return not old
        if option.get("type") == "string":
            return f"{old or ''}other"
        if option.get("type") in ("integer", "number"):
            whole = option["type"] == "integer"
            top = option.get("maximum", option.get("exclusiveMaximum", 10**6))
            for candidate in [old + 1 if old is not None else 2, (old or 0) + (top - (old or 0)) / 2, (old or 1) / 2]:
                number = int(candidate) if whole else candidate
                if number != old and number < top:
                    return number
    raise AssertionError(f"{key} takes {node}: no other value is known; put one into VALUES")


def value_at(config: RunConfig, key: str) -> Any:
    here: Any = config
    for part in place_of(key):
        here = here[part] if isinstance(part, int) else getattr(here, part)
    return here


def changed(key: str) -> tuple[RunConfig, RunConfig, Any, Any]:
    extra = VALUES[key][1] if isinstance(VALUES.get(key), tuple) else {}
    base = {**BASE, **extra}
    old = RunConfig.model_validate(base)
    before = value_at(old, key)
    new = RunConfig.model_validate(put(base, key, other_value(key, before)))
    after = value_at(new, key)
    assert before != after, key
    return old, new, before, after


def shown_name(key: str) -> str:
    """Name a field as messages do: sources by their names, the phases as a whole."""
    if key == "data.sources.N.name":
        return "data.sources.one"
    return re.sub(r"phases\.N\..*", "phases", key.replace("sources.N", "sources.one"))


def refusal(storage: Path, old: RunConfig, new: RunConfig) -> str | None:
    """Ask as `hai train` does, of a run folder that holds the old config."""
    folder = storage / "run"
    folder.mkdir(exist_ok=True)
    (folder / CONFIG).write_text(show_config(old), encoding="utf-8")
    try:
        _refuse_changes(locate(str(storage), "run"), new)
    except ConfigError as error:
        return str(error)
    return None


@pytest.mark.parametrize("key", FIELDS)
def test_a_changed_field_is_refused_exactly_if_it_belongs_to_the_run(key: str) -> None:
    old, new, before, after = changed(key)
    differences = {difference.field: difference for difference in compare_configs(old, new)}
    assert shown_name(key) in differences
    assert all(difference.allowed for difference in differences.values()) == (CLASSES[key] != "fixed")
    if ".N." not in key:
        assert len(differences) == 1
        assert (differences[key].old, differences[key].new) == (before, after)


@pytest.mark.parametrize("key", RAISABLE.split())
def test_a_limit_may_only_be_raised(key: str) -> None:
    old, _, before, _ = changed(key)
    for value, is_allowed in ((before - 1, False), (before, True), (before + 1, True), (None, True)):
        new = RunConfig.model_validate(put(BASE, key, value))
        assert all(difference.allowed for difference in compare_configs(old, new)) == is_allowed, value
        if value is None:
            assert not compare_configs(new, old)[0].allowed, "from no limit to one"


def all_changed(keys: list[str]) -> RunConfig:
    values = BASE
    for key in keys:
        values = put(values, key, other_value(key, value_at(RunConfig.model_validate(BASE), key)))
    return RunConfig.model_validate(values)


def test_all_refused_fields_are_printed_at_once_with_both_values(tmp_path: Path) -> None:
    old = RunConfig.model_validate(BASE)
    alone = ("pairs.ties", "model.unfreeze_after_epochs")  # valid with some values of other fields only
    keys = [key for key in FIXED.split() if key not in alone and not key.startswith(("loss.phases", "data.sources"))]
    keys += ["data.sources.N.weight", "data.sources.N.splits"]
    new = all_changed(keys)
    text = refusal(tmp_path, old, new)
    assert text is not None
    *lines, hint = text.split("\n")
    pairs = [(key, value_at(old, key), value_at(new, key)) for key in keys]
    assert set(lines) == {f"{shown_name(key)}: run run has {one}, given {two}" for key, one, two in pairs}
    assert hint == "a run keeps these; --name NAME starts another run, --restart begins this one anew"


def test_everything_else_may_change_at_once(tmp_path: Path) -> None:
    new = all_changed([*FREE.split(), *RAISABLE.split()])
    assert refusal(tmp_path, RunConfig.model_validate(BASE), new) is None


def test_a_source_that_comes_or_goes_is_refused_and_their_order_is_not(tmp_path: Path) -> None:
    old = RunConfig.model_validate(BASE)
    sources = old.data.sources
    turned = old.model_copy(update={"data": old.data.model_copy(update={"sources": sources[::-1]})})
    assert refusal(tmp_path, old, turned) is None
    fewer = old.model_copy(update={"data": old.data.model_copy(update={"sources": sources[:1]})})
    assert "data.sources.two: run run has " in str(refusal(tmp_path, old, fewer))
    assert "data.sources.two: run run has None, given " in str(refusal(tmp_path, fewer, old))
