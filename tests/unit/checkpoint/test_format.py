import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from hai.checkpoint.format import (
    FILES,
    MANIFEST,
    META,
    MODEL,
    STATE,
    checkpoint_name,
    load_checkpoint,
    step_of,
    verify_checkpoint,
    write_checkpoint,
)
from hai.errors import CheckpointError


def tensors(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "head.weight": torch.randn(5, 3, generator=generator),
        "head.bias": torch.randn(3, generator=generator).to(torch.bfloat16),
        "norm.num_batches_tracked": torch.tensor(seed),
        "mask": torch.rand(7, generator=generator) > 0.5,
        "empty": torch.empty(0, 4),
        "double": torch.randn(2, generator=generator, dtype=torch.float64),
    }


def write(folder: Path, step: int, **options) -> str:
    return write_checkpoint(
        folder / checkpoint_name(step), tensors(step), {"moment": torch.full((9,), step / 3)}, {"step": step}, **options
    )


def equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]) for name in left
    )


def test_what_is_written_is_loaded_bit_for_bit(tmp_path):
    meta = {"step": 12, "best": {"metric": "val/f1", "value": 0.1 + 0.2, "step": 12}, "text": "얼굴"}
    sha256 = write_checkpoint(tmp_path / "step_00000012", tensors(1), {"m": torch.ones(2)}, meta)
    loaded = load_checkpoint(tmp_path / "step_00000012")
    assert (loaded.step, loaded.sha256, loaded.meta) == (12, sha256, meta)
    assert equal(loaded.model, tensors(1))
    assert equal(loaded.state, {"m": torch.ones(2)})
    assert list(loaded.model) == sorted(loaded.model)
    assert load_checkpoint(tmp_path / "step_00000012", state=False).state == {}
    assert sorted(os.listdir(tmp_path / "step_00000012")) == sorted([*FILES, MANIFEST])
    assert os.listdir(tmp_path) == ["step_00000012"]


def test_weights_are_the_bytes_of_the_safetensors_library(tmp_path):
    model = tensors(3) | {"strided": torch.arange(12.0).reshape(3, 4).T, "tied": tensors(3)["head.weight"]}
    reordered = dict(reversed(model.items()))
    write_checkpoint(tmp_path / "step_00000001", reordered, {}, {"step": 1})
    written = (tmp_path / "step_00000001" / MODEL).read_bytes()
    assert written == save({name: tensor.contiguous() for name, tensor in model.items()})


@pytest.mark.parametrize("block", [16, 100, 1 << 20])
def test_any_memory_format_gives_the_same_bytes(tmp_path, monkeypatch, block):
    monkeypatch.setattr("hai.checkpoint.format._BLOCK", block)
    weight = torch.randn(6, 4, 3, 3)
    model = {
        "weight": weight.to(memory_format=torch.channels_last),
        "transposed": weight[0, 0].T,
        "scalar": weight.sum(),
    }
    write_checkpoint(tmp_path / checkpoint_name(1), model, {}, {"step": 1})
    plain = {name: tensor.contiguous() for name, tensor in model.items()}
    assert (tmp_path / checkpoint_name(1) / MODEL).read_bytes() == save(plain)


def test_equal_checkpoints_have_equal_hashes(tmp_path):
    assert write(tmp_path / "a", 5) == write(tmp_path / "b", 5) != write(tmp_path / "c", 6)


def test_names():
    assert checkpoint_name(1234) == "step_00001234"
    assert step_of("step_00001234") == 1234
    assert step_of("step_123456789") == 123456789
    assert [step_of(n) for n in ("step_1", "step_0123456789", ".tmp-step_00000001", "refused", "step_-0000001")] == [
        None
    ] * 5


def test_a_valid_step_is_never_rewritten(tmp_path):
    first = write(tmp_path, 7)
    before = os.stat(tmp_path / "step_00000007" / MODEL).st_ino
    again = write_checkpoint(tmp_path / "step_00000007", tensors(99), {}, {"step": 7})
    assert again == first
    assert os.stat(tmp_path / "step_00000007" / MODEL).st_ino == before


def test_an_invalid_step_is_set_aside_and_written(tmp_path):
    for _ in range(2):
        write(tmp_path, 7)
        os.truncate(tmp_path / "step_00000007" / STATE, 10)
        write(tmp_path, 7)
        assert equal(load_checkpoint(tmp_path / "step_00000007").model, tensors(7))
    assert sorted(os.listdir(tmp_path / "refused")) == ["step_00000007", "step_00000007-2"]


def test_confirm_can_give_the_checkpoint_up(tmp_path):
    def lost() -> None:
        raise CheckpointError("no longer the owner")

    with pytest.raises(CheckpointError, match="no longer"):
        write(tmp_path, 3, confirm=lost)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("file", [*FILES, MANIFEST])
def test_a_missing_file_is_named(tmp_path, file):
    write(tmp_path, 1)
    (tmp_path / "step_00000001" / file).unlink()
    for read in (verify_checkpoint, load_checkpoint):
        with pytest.raises(CheckpointError, match=f"{file}: missing"):
            read(tmp_path / "step_00000001")


@pytest.mark.parametrize("file", [*FILES, MANIFEST])
def test_every_flipped_bit_and_every_cut_is_found(tmp_path, file):
    write(tmp_path, 1)
    path = tmp_path / "step_00000001" / file
    whole = path.read_bytes()
    draw = random.Random(file)
    for _ in range(60):
        place = draw.randrange(len(whole))
        if draw.random() < 0.8:
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << draw.randrange(8)]) + whole[place + 1 :])
        else:
            path.write_bytes(whole[:place])
        with pytest.raises(CheckpointError, match=file):
            verify_checkpoint(path.parent)
        with pytest.raises(CheckpointError, match=file):
            load_checkpoint(path.parent)
    path.write_bytes(whole)
    verify_checkpoint(path.parent)


def test_files_of_another_checkpoint_are_found(tmp_path):
    write(tmp_path, 1)
    write(tmp_path, 2)
    os.replace(tmp_path / "step_00000002" / STATE, tmp_path / "step_00000001" / STATE)
    with pytest.raises(CheckpointError, match=r"state\.safetensors: sha256"):
        load_checkpoint(tmp_path / "step_00000001")


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"null", b"{", b"[" * 50_000, b"\xff\xfe", b'{"format": 1}', b'{"format": 2}', b"{}" + b" " * 70_000],
)
def test_a_manifest_that_is_none_is_refused(tmp_path, content):
    write(tmp_path, 1)
    (tmp_path / "step_00000001" / MANIFEST).write_bytes(content)
    with pytest.raises(CheckpointError, match=MANIFEST):
        load_checkpoint(tmp_path / "step_00000001")


def test_a_manifest_cannot_point_elsewhere(tmp_path):
    from hai.checkpoint.format import _seal

    write(tmp_path, 1)
    path = tmp_path / "step_00000001" / MANIFEST
    record = json.loads(path.read_text(encoding="utf-8"))
    record.pop("checksum")
    record["files"]["../../secret"] = record["files"].pop(MODEL)
    path.write_bytes(_seal(record))
    with pytest.raises(CheckpointError, match=r"lists model\.safetensors"):
        load_checkpoint(path.parent)


CALLS = ("open", "write", "fsync", "rename", "mkdir", "close", "stat", "unlink", "rmdir", "replace")


def die_in_call(limit: int, action: Callable[[], object]) -> int:
    """Run an action in a process that dies in its call number `limit` to the file system, half-way if it is a write."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    count = 0

    def counted(name: str, real: Callable[..., object]) -> Callable[..., object]:
        def call(*args, **kwargs):
            nonlocal count
            count += 1
            if count == limit:
                if name == "write":
                    real(args[0], args[1][: len(args[1]) // 2])
                os._exit(9)
            return real(*args, **kwargs)

        return call

    try:
        for name in CALLS:
            setattr(os, name, counted(name, getattr(os, name)))
        action()
        os._exit(0)
    finally:
        os._exit(1)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("damaged", [False, True])
def test_a_crash_in_any_call_leaves_the_old_or_the_new(tmp_path, damaged):
    outcomes: list[str] = []
    while "finished" not in outcomes:
        folder = tmp_path / str(len(outcomes))
        write(folder, 1)
        if damaged:
            write(folder, 2)
            os.truncate(folder / "step_00000002" / META, 3)
        status = die_in_call(len(outcomes) + 1, lambda folder=folder: write(folder, 2))
        assert status in (0, 9)
        assert equal(load_checkpoint(folder / "step_00000001").model, tensors(1))
        try:
            new = load_checkpoint(folder / "step_00000002")
            assert equal(new.model, tensors(2))
            assert equal(new.state, {"moment": torch.full((9,), 2 / 3)})
            outcomes.append("finished" if status == 0 else "new")
        except CheckpointError:
            assert status == 9
            outcomes.append("old")
    assert outcomes.count("old") >= 20  # four files: open, writes, fsync, close; two folders
    assert outcomes.count("new") >= 1
