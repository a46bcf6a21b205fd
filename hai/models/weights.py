"""Weights that others trained: where they lie, how they are read, and that each tensor found its place."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from hai.errors import ConfigError

__all__ = ["copy_tensors", "hub_folder", "raise_mismatches", "read_tensors"]

_INDEX = "model.safetensors.index.json"
_WEIGHTS = ["model.safetensors", "model-*.safetensors", _INDEX]
_SHOWN = 10


def hub_folder(repo: str, *, weights: bool, config: bool, code: bool = False) -> Path:
    """Locate a repository of the Hugging Face Hub on this machine, downloading what the local cache lacks.

    A complete cached copy is used without asking the hub. Only safetensors weights are taken.

    Args:
        repo: OWNER/NAME.
        weights: its weights are needed.
        config: its `config.json` is needed.
        code: download its Python files too.

    Raises:
        ConfigError: the hub cannot be reached, or the repository has no such files.
    """
    from huggingface_hub import constants, get_session, snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    wanted = [*(_WEIGHTS if weights else []), *(["*.json"] if config else []), *(["*.py"] if code else [])]
    local = "a safetensors file or a folder that holds model.safetensors"
    mend = (
        f"set model.pretrained=false, or model.pretrained to the path of {local}"
        if weights and not config
        else (
            "give a local folder instead of the repository, model.name=hf:FOLDER with config.json"
            + (" and model.safetensors, or set model.pretrained=false or to a local path" if weights else "")
        )
    )
    try:
        folder = Path(snapshot_download(repo, allow_patterns=wanted, local_files_only=True))
        if _is_complete(folder, weights, config):
            return folder
    except HFValidationError as error:
        raise ConfigError(f"{repo!r} is neither a local folder nor a repository OWNER/NAME; {mend}") from error
    except LocalEntryNotFoundError:
        pass
    try:
        if constants.HF_HUB_OFFLINE:
            raise ConnectionError("HF_HUB_OFFLINE is set")
        get_session().head(constants.ENDPOINT, timeout=10)  # fails at once, where the download would retry for a minute
        folder = Path(snapshot_download(repo, allow_patterns=wanted))
    except (
        Exception
    ) as error:  # which HTTP library the hub's client uses, and so what it raises, depends on its version
        reason = str(error).strip().split("\n")[0]
        raise ConfigError(f"{repo} cannot be had from the Hugging Face Hub ({reason}); {mend}") from error
    if not _is_complete(folder, weights, config):
        needed = [*(["model.safetensors"] if weights else []), *(["config.json"] if config else [])]
        raise ConfigError(f"{repo} on the Hugging Face Hub lacks {' or '.join(needed)}; {mend}")
    return folder


def _is_complete(folder: Path, weights: bool, config: bool) -> bool:
    if config and not (folder / "config.json").is_file():
        return False
    if not weights or (folder / "model.safetensors").is_file():
        return True
    index = folder / _INDEX
    return index.is_file() and all((folder / name).is_file() for name in _shards(index))


def _shards(index: Path) -> list[str]:
    """Name the files of an index; they lie beside it.

    Raises:
        ConfigError: it is damaged, or names files elsewhere.
    """
    try:
        names: set[str] = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        if any(Path(name).name != name for name in names):
            raise ValueError("it names files in other folders")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{index}: not an index of safetensors files ({error}); download it again") from None
    return sorted(names)


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Read all tensors of a safetensors file, or of a folder with model.safetensors, whole or in shards.

    Raises:
        ConfigError: nothing of the kind is there, or a file is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    given = Path(path)
    where = f"model.pretrained = {path}"
    if given.is_dir():
        if (given / "model.safetensors").is_file():
            files = [given / "model.safetensors"]
        elif (given / _INDEX).is_file():
            files = [given / name for name in _shards(given / _INDEX)]
        else:
            raise ConfigError(f"{where}; the folder holds no model.safetensors; give one that does, or the file itself")
    elif given.is_file():
        files = [given]
    else:
        raise ConfigError(
            f"{where}; no such file or folder; give a safetensors file or a folder with model.safetensors"
        )
    tensors: dict[str, Tensor] = {}
    for file in files:
        try:
            tensors.update(load_file(file))
        except (SafetensorError, OSError) as error:
            raise ConfigError(f"{where}; {file.name} is not a readable safetensors file ({error})") from error
    return tensors


def copy_tensors(module: nn.Module, tensors: dict[str, Tensor], where: str, *, ignored: tuple[str, ...] = ()) -> None:
    """Copy tensors into a module, all or nothing.

    Args:
        module: gets the values, in its own number format.
        tensors: by the names of the module's state dict.
        where: what the tensors are, for messages.
        ignored: prefixes of names that may be missing, superfluous or of another shape; the module keeps its values.

    Raises:
        ConfigError: names every other tensor that is missing, unknown or of another shape.
    """
    own = {name: value for name, value in module.state_dict().items() if not name.startswith(ignored)}
    given = {name: value for name, value in tensors.items() if not name.startswith(ignored)}
    problems = [
        *(f"{name}: missing, the model has {_shape(own[name])}" for name in own.keys() - given.keys()),
        *(f"{name}: {_shape(given[name])}, the model has no such tensor" for name in given.keys() - own.keys()),
        *(
            f"{name}: {_shape(given[name])}, the model has {_shape(own[name])}"
            for name in own.keys() & given.keys()
            if own[name].shape != given[name].shape
        ),
    ]
    raise_mismatches(problems, where)
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(given[name])


def raise_mismatches(problems: list[str], where: str) -> None:
    """Raise one ConfigError that lists the tensors that do not fit, if there are any."""
    if not problems:
        return
    lines = sorted(problems)
    shown = lines[:_SHOWN] + ([f"... and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else [])
    listed = "\n".join(f"  {line}" for line in shown)
    raise ConfigError(
        f"{where}; {len(lines)} tensors do not fit the model; give weights of the same network:\n{listed}"
    )


def _shape(tensor: Tensor) -> str:
    return str(list(tensor.shape))
