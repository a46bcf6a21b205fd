"""A checkpoint as a folder of its own: weights and config without optimizer state, paths or logs of the run."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hai.checkpoint.format import MANIFEST, Checkpoint, write_checkpoint
from hai.checkpoint.records import CONFIG, load_json, save_json, save_text
from hai.config.load import show_config
from hai.config.schema import CheckpointConfig, LoggingConfig, RunConfig, ScaleConfig
from hai.errors import ConfigError, StorageError
from hai.export.facts import (
    keeps_backbone_outside,
    model_facts,
    needs_repository,
    served_crop_settings,
    shown_model,
    trained_checkpoint,
)
from hai.models.hugging_face import without_folders
from hai.types import Record

if TYPE_CHECKING:
    from hai.trained import Trained

__all__ = ["FACTS", "check_folder", "edited_text", "served_config", "served_meta", "write_folder"]

FACTS: Final = "config.json"
"""What other programs read; hai itself reads run.yaml and state.json."""

_WRITTEN: Final = "written"
"""What FACTS says of texts besides: their hashes, which tell whether people have changed them."""

_TRAINING_ONLY: Final = (
    "evaluations",
    "evaluations_without_improvement",
    "memory",
    "micro_batch_size",
    "rollbacks",
    "scaler",
    "sums",
    "torch_threads",
    "world_size",
)


def check_folder(target: Path) -> None:
    """Refuse a target that exists and is not an earlier export."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    try:
        if "hai" in json.loads((target / FACTS).read_text(encoding="utf-8")) and (target / MANIFEST).is_file():
            return
    except (OSError, ValueError):
        pass
    raise ConfigError(f"--output = {target}; exists and is no export of hai; name a new folder")


def write_folder(trained: Trained, target: Path, texts: Mapping[str, str] | None = None) -> int:
    """Write the folder, whole or not at all; an earlier export in its place is replaced.

    It is a checkpoint folder with its run.yaml inside, so every verb takes it as REF. What others have put into the
    earlier export stays: a licence, pictures, the `.git` of a clone.

    Args:
        trained: on the CPU.
        target: the folder.
        texts: more files by name.

    Returns:
        Its size, bytes.

    Raises:
        StorageError: the disk refuses; an earlier export is as it was.
    """
    try:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".hai-") as room:
            folder = Path(room) / "export"
            size = _write(trained, target, folder, texts or {})
            _keep_others(target, folder)
            _replace(target, folder, Path(room) / "old")
    except OSError as error:
        raise StorageError(
            f"--output = {target}; cannot be written ({error.strerror or error}), what was there is as it was; name "
            "another folder, of a mount point or a busy one a folder inside it"
        ) from None
    return size


def _write(trained: Trained, target: Path, folder: Path, texts: Mapping[str, str]) -> int:
    """Write what hai has to say into a new folder that will be the target; returns its size, bytes."""
    write_checkpoint(folder, trained.model.state_dict(), {}, served_meta(trained.checkpoint))
    save_text(folder / CONFIG, show_config(served_config(trained.config)))
    ours = {name: _hash(text) for name, text in texts.items() if text != edited_text(target, name)}
    save_json(folder / FACTS, model_facts(trained) | ({_WRITTEN: ours} if ours else {}))
    for name, text in texts.items():
        save_text(folder / name, text)
    return sum(path.stat().st_size for path in folder.iterdir())


def _keep_others(target: Path, folder: Path) -> None:
    """Put what hai did not write from an earlier export into the new one; the earlier one stays whole meanwhile."""
    ours = (load_json(target / FACTS) or {}).get(_WRITTEN, {})
    for path in target.iterdir() if target.exists() else ():
        copy = folder / path.name
        if copy.exists() or (path.name in ours and edited_text(target, path.name) is None):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.copytree(path, copy, symlinks=True, copy_function=_link)
        else:
            _link(path, copy)


def _link(source: str | Path, copy: str | Path) -> None:
    """Give a file a second place on its disk; copy it where the disk cannot, and a link as the link that it is."""
    with contextlib.suppress(OSError):
        if not os.path.islink(source):
            os.link(source, copy)
            return
    shutil.copy2(source, copy, follow_symlinks=False)


def _replace(target: Path, folder: Path, old: Path) -> None:
    if target.exists():
        os.rename(target, old)
    try:
        os.rename(folder, target)
    except BaseException:
        if old.exists() and not target.exists():
            os.rename(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def edited_text(target: Path, name: str) -> str | None:
    """Return a text of an earlier export that somebody has changed since; None: there is none, or it is as written."""
    written = (load_json(target / FACTS) or {}).get(_WRITTEN, {})
    try:
        text = (target / name).read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    return text if written.get(name) != _hash(text) else None


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def served_meta(checkpoint: Checkpoint) -> Record:
    """Keep what serving needs of a state.json: nothing of training, no folder of this machine."""
    kept = {key: value for key, value in checkpoint.meta.items() if key not in _TRAINING_ONLY}
    if "architecture" in kept:
        kept["architecture"] = without_folders(kept["architecture"])
    if "crop_settings" in kept:
        kept["crop_settings"] = served_crop_settings(checkpoint)
    return kept | {"exported": trained_checkpoint(checkpoint)}


def served_config(config: RunConfig) -> RunConfig:
    """Keep what serving and a reader need: sources and weights by name alone, no storage, no machine's settings."""
    data, model = config.data, config.model
    if isinstance(model.pretrained, str) and not keeps_backbone_outside(config):
        model = model.model_copy(update={"pretrained": Path(model.pretrained).name})
    if not needs_repository(config):
        model = model.model_copy(update={"name": shown_model(model)})
    sources = [source.model_copy(update={"path": source.name, "image_dir": None}) for source in data.sources]
    return config.model_copy(
        update={
            "storage": None,
            "data": data.model_copy(update={"sources": sources, "embedding_cache": None, "num_threads": None}),
            "model": model,
            "checkpoint": CheckpointConfig(),
            "scale": ScaleConfig(),
            "logging": LoggingConfig(),
        }
    )
