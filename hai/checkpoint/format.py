"""The checkpoint on disk: a folder that is whole or refused.

```
step_00001234/
  model.safetensors   the weights to serve
  state.safetensors   everything else that is a tensor: raw weights, optimizer
  state.json          the rest: step, epoch position, early stopping, best, threshold, ...
  MANIFEST.json       written last: size and sha256 of each file, and of itself
```

A folder is written under a temporary name, synced file by file, and renamed once it is complete, so a crash at any
moment leaves the old checkpoints or the new one. What is read is what was hashed: bytes are read once, compared with
the manifest, then parsed. Only safetensors and JSON are read, so a checkpoint cannot run code.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import struct
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors
from torch import Tensor

import hai
from hai.checkpoint.files import TEMPORARY, Written, hash_file, holds_blocks, sync_folder, write_file
from hai.errors import CheckpointError
from hai.types import Record

__all__ = [
    "FILES",
    "MANIFEST",
    "META",
    "MODEL",
    "REFUSED",
    "STATE",
    "Checkpoint",
    "Manifest",
    "checkpoint_name",
    "load_checkpoint",
    "load_manifest",
    "parse_manifest",
    "refuse",
    "step_of",
    "verify_checkpoint",
    "write_checkpoint",
]

MODEL: Final = "model.safetensors"
STATE: Final = "state.safetensors"
META: Final = "state.json"
MANIFEST: Final = "MANIFEST.json"
FILES: Final = (MODEL, STATE, META)
"""What a manifest lists, in the order of writing."""

REFUSED: Final = "refused"
"""Folder beside the checkpoints that damaged ones are moved to."""

_FORMAT: Final = 1
_BLOCK: Final = 1 << 20
_MAX_MANIFEST_BYTES: Final = 1 << 16
_NAME: Final = re.compile(r"step_(\d{8,18})")
_DTYPES: Final = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.uint16: "U16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.uint32: "U32",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.uint64: "U64",
}
"""In the order of the safetensors library, which lays wide types first so that every tensor is aligned."""


@dataclass(frozen=True)
class Manifest:
    """What MANIFEST.json says, once its own checksum has been confirmed."""

    step: int
    permanent: bool
    files: dict[str, tuple[str, int]]
    """File name -> (sha256, bytes)."""
    crc32: dict[str, int]
    """File name -> CRC-32, a check that is ten times cheaper; manifests of older versions list none."""
    sha256: str
    """Hash of MANIFEST.json; as it holds the other hashes, it names the checkpoint's whole content."""


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint in memory, tensors on the CPU."""

    path: Path
    step: int
    sha256: str
    model: dict[str, Tensor]
    state: dict[str, Tensor]
    meta: Record


def checkpoint_name(step: int) -> str:
    """Name the folder of a step."""
    return f"step_{step:08d}"


def step_of(name: str) -> int | None:
    """Read the step from a folder name; None when it is not a checkpoint's name."""
    match = _NAME.fullmatch(name)
    return int(match[1]) if match and checkpoint_name(int(match[1])) == name else None


def write_checkpoint(
    folder: Path,
    model: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    meta: Record,
    *,
    permanent: bool = False,
    confirm: Callable[[], None] | None = None,
) -> str:
    """Write a checkpoint so that `folder` is either absent or whole, whenever the machine stops.

    A valid checkpoint that is already there stays as it is: the same step is never written twice. A damaged one is
    moved to `refused/` beside it.

    Args:
        folder: final place, `.../step_00001234`.
        model: the weights to serve; CPU tensors.
        state: all other tensors; CPU tensors.
        meta: JSON object with an integer `step`.
        permanent: mark the checkpoint as one that pruning leaves alone.
        confirm: called just before the rename; raises to give the checkpoint up.

    Returns:
        sha256 of MANIFEST.json.

    Raises:
        OSError: the disk is full or failing; nothing half-written is left.
        CheckpointError: the disk gives back other bytes than it was given.
    """
    if os.path.lexists(folder):
        try:
            return verify_checkpoint(folder)
        except CheckpointError:
            refuse(folder)
    temporary = folder.parent / f"{TEMPORARY}{folder.name}-{uuid.uuid4().hex[:12]}"
    os.makedirs(folder.parent, exist_ok=True)
    os.mkdir(temporary)
    try:
        contents: dict[str, Callable[[], Iterable[bytes | memoryview]]] = {
            MODEL: lambda: _tensor_blocks(model),
            STATE: lambda: _tensor_blocks(state),
            META: lambda: [_to_json(meta)],
        }
        written = {name: write_file(temporary / name, blocks()) for name, blocks in contents.items()}
        content = _manifest_bytes(int(meta["step"]), permanent, written)
        contents[MANIFEST] = lambda: [content]
        sha256 = write_file(temporary / MANIFEST, [content]).sha256
        for name, blocks in contents.items():
            if not holds_blocks(temporary / name, blocks()):
                raise CheckpointError(f"{folder / name}: what was read back differs from what was written")
        sync_folder(temporary)
        if confirm is not None:
            confirm()
        os.rename(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(folder.parent)
    return sha256


def verify_checkpoint(folder: Path) -> str:
    """Compare every file of a checkpoint with its manifest, in little memory.

    Returns:
        sha256 of MANIFEST.json.

    Raises:
        CheckpointError: naming the file and the reason.
    """
    manifest = load_manifest(folder)
    for name, (sha256, size) in manifest.files.items():
        found = _size_of(folder / name)
        if found != size:
            raise CheckpointError(f"{folder / name}: bytes = {found}; the manifest says {size}")
        try:
            actual = hash_file(folder / name)
        except OSError as error:
            raise CheckpointError(f"{folder / name}: {error.strerror or error}") from error
        _compare(folder / name, actual, sha256)
    return manifest.sha256


def load_checkpoint(folder: Path, *, state: bool = True) -> Checkpoint:
    """Load a checkpoint; the bytes that are parsed are the bytes that were hashed.

    Args:
        folder: a checkpoint folder.
        state: also load `state.safetensors`; serving needs the model and state.json only.

    Raises:
        CheckpointError: naming the file and the reason.
    """
    manifest = load_manifest(folder)
    meta = _parse_json(folder / META, _read_verified(folder, META, manifest))
    if meta.get("step") != manifest.step:
        raise CheckpointError(f"{folder / META}: step = {meta.get('step')}; the manifest says {manifest.step}")
    return Checkpoint(
        path=folder,
        step=manifest.step,
        sha256=manifest.sha256,
        model=_load_tensors(folder, MODEL, manifest),
        state=_load_tensors(folder, STATE, manifest) if state else {},
        meta=meta,
    )


def load_manifest(folder: Path) -> Manifest:
    """Read MANIFEST.json and check it against its own checksum."""
    path = folder / MANIFEST
    size = _size_of(path)
    if size > _MAX_MANIFEST_BYTES:
        raise CheckpointError(f"{path}: bytes = {size}; a manifest has at most {_MAX_MANIFEST_BYTES}")
    try:
        return parse_manifest(path.read_bytes(), str(path))
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from error


def parse_manifest(content: bytes, where: str) -> Manifest:
    """Check the bytes of a MANIFEST.json that came from `where`, a path or URL for messages."""
    record = _parse_json(where, content)
    if record.get("format") != _FORMAT:
        raise CheckpointError(f"{where}: format = {record.get('format')!r}; this version of hai reads {_FORMAT}")
    body = {key: value for key, value in record.items() if key != "checksum"}
    if _seal(body) != content:
        raise CheckpointError(f"{where}: its content does not match its checksum")
    try:
        files = {name: (str(record["files"][name]["sha256"]), int(record["files"][name]["bytes"])) for name in FILES}
        crc32 = {name: int(record["files"][name]["crc32"]) for name in FILES if "crc32" in record["files"][name]}
        step, permanent = int(record["step"]), bool(record["permanent"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{where}: {error!r}; a manifest lists {', '.join(FILES)}") from error
    return Manifest(step, permanent, files, crc32, hashlib.sha256(content).hexdigest())


def refuse(folder: Path) -> Path:
    """Move a damaged checkpoint to `refused/` beside it, under a name that is free.

    Returns:
        Where it is now.
    """
    refused = folder.parent / REFUSED
    os.makedirs(refused, exist_ok=True)
    number = 1
    while os.path.lexists(target := refused / (folder.name if number == 1 else f"{folder.name}-{number}")):
        number += 1
    os.rename(folder, target)
    return target


def _tensor_blocks(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """Serialise tensors as the safetensors library does, without a second copy of them and without holding the GIL."""
    ranks = {dtype: rank for rank, dtype in enumerate(_DTYPES)}
    ordered = sorted(tensors.items(), key=lambda item: (-ranks[item[1].dtype], item[0]))
    header: dict[str, Any] = {}
    offset = 0
    for name, tensor in ordered:
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    yield struct.pack("<Q", len(text)) + text
    for _, tensor in ordered:
        for part in _contiguous_parts(tensor.detach()):
            data = part.reshape(-1).view(torch.uint8).numpy().data
            for start in range(0, len(data), _BLOCK):
                yield data[start : start + _BLOCK]


def _contiguous_parts(tensor: Tensor) -> Iterator[Tensor]:
    """Cut a tensor into contiguous ones, in order; one in another memory format is copied a piece at a time."""
    if tensor.numel() == 0:
        return
    if tensor.is_contiguous():
        yield tensor
        return
    rows = max(1, _BLOCK // (tensor[0].numel() * tensor.element_size()))
    for start in range(0, len(tensor), rows):
        yield tensor[start : start + rows].contiguous()


def _load_tensors(folder: Path, name: str, manifest: Manifest) -> dict[str, Tensor]:
    content = _read_verified(folder, name, manifest)
    try:
        return dict(sorted(parse_tensors(content).items()))
    except (SafetensorError, ValueError, KeyError, RuntimeError, AssertionError) as error:
        raise CheckpointError(f"{folder / name}: {error}; not a safetensors file") from error


def _read_verified(folder: Path, name: str, manifest: Manifest) -> bytes:
    path, (sha256, size) = folder / name, manifest.files[name]
    found = _size_of(path)
    if found != size:
        raise CheckpointError(f"{path}: bytes = {found}; the manifest says {size}")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from error
    _compare(path, hashlib.sha256(content).hexdigest(), sha256)
    return content


def _compare(path: Path, actual: str, expected: str) -> None:
    if actual != expected:
        raise CheckpointError(f"{path}: sha256 = {actual[:12]}...; the manifest says {expected[:12]}...: damaged")


def _size_of(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(f"{path}: missing") from error
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from error


def _manifest_bytes(step: int, permanent: bool, written: dict[str, Written]) -> bytes:
    files = {name: {"sha256": file.sha256, "bytes": file.size, "crc32": file.crc32} for name, file in written.items()}
    return _seal({"format": _FORMAT, "hai": hai.__version__, "step": step, "permanent": permanent, "files": files})


def _seal(body: Record) -> bytes:
    """Serialise a manifest with a checksum over the rest of it; every single byte of the result matters."""
    checksum = hashlib.sha256(_to_json(body)).hexdigest()
    return _to_json({**body, "checksum": checksum})


def _to_json(record: Record) -> bytes:
    return (json.dumps(record, indent=1, sort_keys=True, ensure_ascii=True) + "\n").encode()


def _parse_json(where: str | Path, content: bytes) -> Record:
    try:
        record = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where}: {error}; not JSON") from error
    if not isinstance(record, dict):
        raise CheckpointError(f"{where}: a {type(record).__name__}; must be a JSON object")
    return record
