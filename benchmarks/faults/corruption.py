"""Checkpoints damaged in every way a disk, a drive or a person damages files: none may be loaded as if it were whole.

Four small checkpoints are copied, damaged one to three times, and the newest valid one is asked for. Which of them are
whole is known from a comparison with the originals, byte by byte, so a damage that changes nothing is none.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from hai.checkpoint.format import FILES, MANIFEST, checkpoint_name, load_checkpoint, step_of
from hai.checkpoint.store import RunFolder

__all__ = ["DAMAGES", "corrupt_checkpoints"]

_STEPS = (1, 2, 3, 4)
_ALL = (*FILES, MANIFEST)


def corrupt_checkpoints(count: int, seed: int, folder: Path) -> dict[str, int]:
    """Damage sets of checkpoints and look for the newest valid one of each.

    Args:
        count: sets of checkpoints.
        seed: of the damages.
        folder: an empty folder to work in.

    Returns:
        `tried` sets, `damages` done to them, `refused` checkpoints; and what must be 0: `silent` loads of anything
        but what was saved, `older` ones loaded or none although a newer one is whole, and `unnamed` damaged ones.
    """
    whole = _save_originals(folder / "originals")
    saved = {step: load_checkpoint(whole / checkpoint_name(step)) for step in _STEPS}
    draw = random.Random(seed)
    counts = dict.fromkeys(("tried", "damages", "refused", "silent", "older", "unnamed"), 0)
    for trial in range(count):
        run = folder / str(trial)
        checkpoints = run / "checkpoints"
        shutil.copytree(whole, checkpoints)
        for _ in range(draw.randint(1, 3)):
            draw.choice(DAMAGES)(checkpoints, draw)
            counts["damages"] += 1
        names = [path.name for path in checkpoints.iterdir() if step_of(path.name) is not None]
        intact = {name for name in names if _is_same(checkpoints / name, whole / name)}
        newest = max((step_of(name) or 0 for name in intact), default=0)
        found, refusals = RunFolder(str(folder), run.name, report=lambda line: None).newest_valid()
        counts["tried"] += 1
        counts["refused"] += len(refusals)
        if found is not None and (found.step not in saved or not _is_equal(found, saved[found.step])):
            counts["silent"] += 1
        counts["older"] += (found.step if found is not None else 0) != newest
        bad = {name for name in names if name not in intact and (step_of(name) or 0) > newest}
        counts["unnamed"] += len(bad ^ {refusal.name for refusal in refusals if refusal.name in refusal.reason})
        shutil.rmtree(run)
    return counts


def _save_originals(folder: Path) -> Path:
    run = RunFolder(str(folder), "run", keep=len(_STEPS))
    for step in _STEPS:
        generator = torch.Generator().manual_seed(step)
        model = {"weight": torch.randn(300, generator=generator), "count": torch.tensor(step)}
        state = {"moment": torch.zeros(200), "second": torch.rand(100, generator=generator)}
        assert run.save(model, state, {"best": None}, step=step, wait=True)
    return run.checkpoints


def _is_same(folder: Path, original: Path) -> bool:
    return all(
        (folder / name).is_file() and (original / name).is_file()
        and (folder / name).read_bytes() == (original / name).read_bytes()
        for name in _ALL
    )  # fmt: skip


def _is_equal(one: object, other: object) -> bool:
    for part in ("model", "state"):
        mine, theirs = getattr(one, part), getattr(other, part)
        if mine.keys() != theirs.keys() or not all(torch.equal(mine[name], theirs[name]) for name in mine):
            return False
    return getattr(one, "meta") == getattr(other, "meta")  # noqa: B009


def _folder(checkpoints: Path, draw: random.Random) -> Path:
    """Choose a checkpoint, more often a new one, as those are what a crash damages."""
    folders = sorted(path for path in checkpoints.iterdir() if path.is_dir())
    return max(draw.choices(folders, k=2)) if folders else checkpoints / checkpoint_name(1)


def _file(checkpoints: Path, draw: random.Random) -> Path | None:
    path = _folder(checkpoints, draw) / draw.choice(_ALL)
    return path if path.is_file() else None


def _changing(change: Callable[[bytearray, random.Random], bytes]) -> Callable[[Path, random.Random], None]:
    def damage(checkpoints: Path, draw: random.Random) -> None:
        path = _file(checkpoints, draw)
        if path is not None and path.stat().st_size:
            path.write_bytes(change(bytearray(path.read_bytes()), draw))

    return damage


def _flip(content: bytearray, draw: random.Random) -> bytes:
    for _ in range(draw.randint(1, 3)):
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    return bytes(content)


def _cut(content: bytearray, draw: random.Random) -> bytes:
    return bytes(content[: draw.randrange(len(content))])


def _zero(content: bytearray, draw: random.Random) -> bytes:
    start = draw.randrange(len(content))
    size = min(draw.choice((16, 512, 4096)), len(content) - start)
    content[start : start + size] = bytes(size)
    return bytes(content)


def _append(content: bytearray, draw: random.Random) -> bytes:
    return bytes(content) + draw.choice((b"\n", b" ", b"\0" * 512, draw.randbytes(9), bytes(content)))


def _shuffle(content: bytearray, draw: random.Random) -> bytes:
    middle = draw.randrange(len(content))
    return bytes(content[middle:] + content[:middle])


def _swap(checkpoints: Path, draw: random.Random) -> None:
    one, other = _file(checkpoints, draw), _file(checkpoints, draw)
    if one is not None and other is not None:
        mine, theirs = one.read_bytes(), other.read_bytes()
        one.write_bytes(theirs)
        other.write_bytes(mine)


def _swap_same(checkpoints: Path, draw: random.Random) -> None:
    """Exchange a file between two checkpoints: each is a good file, in the wrong place."""
    name = draw.choice(_ALL)
    one, other = _folder(checkpoints, draw) / name, _folder(checkpoints, draw) / name
    if one.is_file() and other.is_file():
        mine, theirs = one.read_bytes(), other.read_bytes()
        one.write_bytes(theirs)
        other.write_bytes(mine)


def _lose(checkpoints: Path, draw: random.Random) -> None:
    path = _file(checkpoints, draw)
    if path is not None:
        path.unlink()


def _duplicate(checkpoints: Path, draw: random.Random) -> None:
    """Leave a second copy beside a file, as drives do, or lay it over another checkpoint's."""
    path = _file(checkpoints, draw)
    if path is not None:
        target = path.with_name(f"{path.stem} (1){path.suffix}")
        if draw.random() < 0.5:
            target = _folder(checkpoints, draw) / path.name
        if target.parent.is_dir() and target != path:
            shutil.copyfile(path, target)


def _edit_manifest(checkpoints: Path, draw: random.Random) -> None:
    """Change a manifest as a person would: JSON as it should be, half of the time with a checksum that fits."""
    path = _folder(checkpoints, draw) / MANIFEST
    try:
        record = json.loads(path.read_bytes())
        file = record["files"][draw.choice(FILES)]
    except (OSError, ValueError, KeyError, TypeError):
        return
    change = draw.choice(("step", "format", "bytes", "sha256"))
    if change in record:
        record[change] += 1
    elif change == "bytes":
        file["bytes"] += draw.choice((-1, 1))
    else:
        file["sha256"] = hashlib.sha256(draw.randbytes(8)).hexdigest()
    if draw.random() < 0.5:
        body = {key: value for key, value in record.items() if key != "checksum"}
        record["checksum"] = hashlib.sha256(_to_json(body)).hexdigest()
    path.write_bytes(_to_json(record))


def _to_json(record: object) -> bytes:
    return (json.dumps(record, indent=1, sort_keys=True) + "\n").encode()


def _rename(checkpoints: Path, draw: random.Random) -> None:
    source = _folder(checkpoints, draw)
    name = draw.choice((checkpoint_name(draw.randint(1, 9)), f"{source.name} (1)", "step_5", "refused"))
    if source.is_dir() and not (checkpoints / name).exists():
        os.rename(source, checkpoints / name)


def _exchange(checkpoints: Path, draw: random.Random) -> None:
    one, other = _folder(checkpoints, draw), _folder(checkpoints, draw)
    if one.is_dir() and one != other:
        aside = checkpoints / "aside"
        os.rename(one, aside)
        os.rename(other, one)
        os.rename(aside, other)


def _empty(checkpoints: Path, draw: random.Random) -> None:
    """Leave an empty folder, a file, or a link to another checkpoint in a checkpoint's place."""
    folder, other = _folder(checkpoints, draw), _folder(checkpoints, draw)
    if folder.is_symlink() or not folder.is_dir() or other == folder:
        return
    shutil.rmtree(folder)
    kind = draw.randrange(3)
    if kind == 0:
        folder.mkdir()
    elif kind == 1:
        folder.write_bytes(b"")
    else:
        folder.symlink_to(other.name)


def _folder_for_file(checkpoints: Path, draw: random.Random) -> None:
    path = _file(checkpoints, draw)
    if path is not None:
        path.unlink()
        path.mkdir()


DAMAGES: tuple[Callable[[Path, random.Random], None], ...] = (
    _changing(_flip),
    _changing(_flip),
    _changing(_cut),
    _changing(_zero),
    _changing(_append),
    _changing(_shuffle),
    _swap,
    _swap_same,
    _lose,
    _duplicate,
    _edit_manifest,
    _rename,
    _exchange,
    _empty,
    _folder_for_file,
)
