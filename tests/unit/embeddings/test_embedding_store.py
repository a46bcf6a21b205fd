"""The embedding store: rows come back as they went in, or count as missing; nothing is lost."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import re
import shutil
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save

from hai.embeddings import EmbeddingKey, EmbeddingStore
from hai.embeddings import store as module
from hai.errors import DataError, StorageError

WIDTH = 5
KEY = EmbeddingKey("hf:facebook/dinov2-large@abc", 756, "pad", "cls", "float32", "float32")
BUCKET = "memory://bucket/kept"


def hashes(*numbers: int) -> NDArray[np.uint8]:
    digests = b"".join(hashlib.sha256(b"%d" % number).digest() for number in numbers)
    return np.frombuffer(digests, dtype=np.uint8).reshape(-1, 32)


def rows_of(*numbers: int) -> NDArray[np.float32]:
    return np.stack([np.linspace(number, number + 0.3, WIDTH, dtype=np.float32) for number in numbers])


def add(store: EmbeddingStore, *numbers: int, **options: Any) -> None:
    store.add(hashes(*numbers), rows_of(*numbers), **options)


def holds(store: EmbeddingStore, *numbers: int) -> bool:
    if store.missing(hashes(*numbers)).any():
        return False
    assert np.array_equal(store.read(hashes(*numbers)), rows_of(*numbers))
    return True


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def refuse_lines(line: str) -> None:
    raise AssertionError(line)


def open_store(root: str | Path | None, key: EmbeddingKey = KEY, width: int = WIDTH, say: Any = refuse_lines) -> Any:
    return EmbeddingStore(None if root is None else str(root), key, width, say=say)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HAI_CACHE", str(tmp_path / "cache"))
    fsspec.filesystem("memory").store.clear()
    fsspec.filesystem("memory").pseudo_dirs[:] = [""]
    return tmp_path / "cache"


def test_rows_come_back_in_the_order_asked_for(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    assert store.missing(hashes(1, 2)).tolist() == [True, True]
    add(store, 3, 1)
    add(store, 2, 1)
    assert store.missing(hashes(1, 9, 2, 3, 1)).tolist() == [False, True, False, False, False]
    assert holds(store, 2, 1, 3, 1)
    assert holds(open_store(tmp_path), 3, 2, 1)
    assert store.read(hashes()).shape == (0, WIDTH)
    with pytest.raises(DataError, match=r"2 of 3 embeddings are missing; run `hai embed` or train again"):
        store.read(hashes(1, 8, 9))


def test_hashes_with_zero_bytes_are_told_apart(tmp_path: Path) -> None:
    sha256 = np.zeros((5, 32), dtype=np.uint8)
    for row, (place, value) in enumerate([(0, 0), (31, 1), (30, 1), (0, 1), (0, 255)]):
        sha256[row, place] = value
    store = open_store(tmp_path)
    store.add(sha256[1:], rows_of(1, 2, 3, 4))
    assert store.missing(sha256).tolist() == [True, False, False, False, False]
    assert np.array_equal(store.read(sha256[::-1][:4]), rows_of(4, 3, 2, 1))


def test_by_default_it_lies_in_the_cache_folder_and_says_what_it_is(own_cache: Path) -> None:
    store = open_store(None)
    add(store, 1)
    assert store.folder == own_cache / "embeddings" / KEY.folder
    record = json.loads((store.folder / "key.json").read_text(encoding="utf-8"))
    assert (record["revision"], record["image_size"], record["width"]) == (KEY.revision, 756, WIDTH)
    assert KEY.folder.startswith("hf-facebook-dinov2-large-abc-756-pad-cls-float32-")


def test_every_field_of_the_key_makes_another_folder() -> None:
    others = [("revision", "b"), ("image_size", 770), ("geometry", "resize"), ("features", "mean")]
    others += [("compute", "bfloat16"), ("storage", "float16")]
    keys = [EmbeddingKey(**{**vars(KEY), name: value}) for name, value in others]
    assert len({key.folder for key in [KEY, *keys]}) == 7
    odd = EmbeddingKey("../../ä b\n" * 30, 756, "pad", "cls", "float32", "float32").folder
    assert odd.isascii()
    assert len(odd) < 120
    assert "/" not in odd


def test_float16_takes_half_the_space_and_refuses_what_it_cannot_hold(tmp_path: Path) -> None:
    key = EmbeddingKey(**{**vars(KEY), "storage": "float16"})
    store = open_store(tmp_path, key)
    values = np.array([[0.1, -2.5, 65504.0, 1e-7, 0.0]], dtype=np.float32)
    store.add(hashes(1), values)
    assert store.read_stored(hashes(1)).dtype == np.float16
    read = store.read(hashes(1))
    assert read.dtype == np.float32
    assert np.array_equal(read, values.astype(np.float16).astype(np.float32))
    for bad in (1e6, np.nan):
        with pytest.raises(DataError, match="not finite in float16"):
            store.add(hashes(2), np.full((1, WIDTH), bad, dtype=np.float32))
    assert store.missing(hashes(1, 2)).tolist() == [False, True]


def tensors(**changes: Any) -> dict[str, Any]:
    return {"embedding": rows_of(1, 2), "sha256": hashes(1, 2).copy(), **changes}


FORGED = {
    "NaN": (tensors(embedding=np.full((2, WIDTH), np.nan, dtype=np.float32)), "not finite"),
    "wrong width": (tensors(embedding=np.zeros((2, WIDTH + 1), dtype=np.float32)), r"must be F32 \[n, 5\]"),
    "wrong format": (tensors(embedding=rows_of(1, 2).astype(np.float16)), r"must be F32 \[n, 5\]"),
    "one hash too few": (tensors(sha256=hashes(1).copy()), "sha256"),
    "short hashes": (tensors(sha256=np.zeros((2, 31), dtype=np.uint8)), "sha256"),
    "something else": ({"weight": np.zeros(3, dtype=np.float32)}, "holds weight; must hold embedding and sha256"),
    "more": (tensors(bias=np.zeros(3, dtype=np.float32)), "holds bias, embedding, sha256"),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_whole_file_with_wrong_content_is_refused(tmp_path: Path, name: str) -> None:
    content, reason = save(FORGED[name][0]), FORGED[name][1]
    add(open_store(tmp_path), 3)
    folder = tmp_path / KEY.folder
    path = folder / f"{hashlib.sha256(content).hexdigest()}.safetensors"
    path.write_bytes(content)
    check_refused(tmp_path, path, reason)


@pytest.mark.parametrize("damage", ["flipped row", "flipped hash", "flipped header", "cut", "empty", "renamed"])
def test_a_damaged_file_is_refused_moved_aside_and_written_again(tmp_path: Path, damage: str) -> None:
    store = open_store(tmp_path)
    add(store, 1, 2)
    (path,) = shards(store.folder)
    content = bytearray(path.read_bytes())
    if damage.startswith("flipped"):
        content[{"row": -70, "hash": -3, "header": 12}[damage.split()[1]]] ^= 1
        path.write_bytes(content)
    elif damage == "renamed":
        path = path.rename(path.with_name("foreign.safetensors"))
    else:
        path.write_bytes(content[: {"cut": -9, "empty": 0}[damage]])
    add(open_store(tmp_path, say=lambda line: None), 3)
    check_refused(tmp_path, path, "")


def check_refused(root: Path, path: Path, reason: str) -> None:
    lines: list[str] = []
    store = open_store(root, say=lines.append)
    assert store.missing(hashes(1, 2, 3)).tolist() == [True, True, False]
    assert not path.exists()
    assert (path.parent / "refused" / path.name).exists()
    lines_before = [line for line in lines if path.name in line]
    add(store, 1, 2)
    assert holds(store, 1, 2, 3)
    again = open_store(root)
    assert holds(again, 1, 2, 3)
    for line in lines_before:
        assert "\n" not in line
        assert line.endswith("; refused, its embeddings count as missing")
    if reason:
        assert re.search(reason, lines_before[0])


def test_damage_that_comes_later_is_never_read(tmp_path: Path) -> None:
    lines: list[str] = []
    store = open_store(tmp_path, say=lines.append)
    add(store, 1, 2)
    assert holds(store, 1, 2)
    (path,) = shards(store.folder)
    content = bytearray(path.read_bytes())
    content[-70] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="2 of 2 embeddings are missing"):
        store.read(hashes(1, 2))
    (line,) = lines
    assert path.name in line
    assert "damaged" in line


def _fill(root: Path, first: int, last: int) -> None:
    store = open_store(root)
    for number in range(first, last):
        add(store, number, number + 1)


def test_processes_add_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_fill, args=(tmp_path, first, first + 40)) for first in (0, 20, 40)]
    early = open_store(tmp_path)
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert holds(open_store(tmp_path), *range(81))
    assert holds(early, *range(81))
    assert not list((tmp_path / KEY.folder).glob(".tmp-*"))


def test_many_small_files_are_merged_and_open_stores_go_on(tmp_path: Path) -> None:
    early, store = open_store(tmp_path), open_store(tmp_path)
    for number in range(10):
        add(store, number)
    assert holds(early, *range(10))
    for number in range(10, 60):
        add(store, number)
        assert len(shards(store.folder)) <= 17
    assert np.array_equal(early.read(hashes(*range(10))), rows_of(*range(10)))
    assert holds(early, *range(60))
    assert holds(open_store(tmp_path), *range(60))


def test_large_files_stay_and_what_they_hold_is_not_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LARGE", 4096)
    store = open_store(tmp_path)
    add(store, *range(50))
    (large,) = shards(store.folder)
    for number in range(40, 90):
        add(store, number)
    assert large.exists()
    assert holds(open_store(tmp_path), *range(90))
    total = sum(path.stat().st_size for path in shards(store.folder))
    assert total < 90 * 52 + 1000 * len(shards(store.folder))


@pytest.mark.parametrize("call", range(8))
def test_a_crash_in_a_merge_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    store = open_store(tmp_path)
    for number in range(16):
        add(store, number)
    calls = 0

    def crashing(real: Any) -> Any:
        def function(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == call + 3:  # past the two of the new row itself
                raise KeyboardInterrupt
            return real(*arguments, **options)

        return function

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", crashing(os.replace))
        patch.setattr(os, "fsync", crashing(os.fsync))
        patch.setattr(Path, "unlink", crashing(Path.unlink))
        with pytest.raises(KeyboardInterrupt):
            add(store, 16)
    again = open_store(tmp_path)
    assert holds(again, *range(17))
    for number in range(17, 40):
        add(again, number)
    assert holds(again, *range(40))
    assert len(shards(store.folder)) <= 17


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(StorageError, match=r"cannot be written .*data\.embedding_cache"):
        add(open_store(tmp_path / "file"), 1)


def bucket_names() -> list[str]:
    found = fsspec.filesystem("memory").find("/bucket")
    return sorted(path.rpartition("/")[2] for path in found)


def test_machines_share_a_bucket(own_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    store = open_store(BUCKET)
    assert store.missing(hashes(1)).tolist() == [True]
    add(store, 1, 2, upload=False)
    assert bucket_names() == []
    add(store, 3)
    assert bucket_names() == sorted(["key.json", *(path.name for path in shards(store.folder))])
    monkeypatch.setenv("HAI_CACHE", str(tmp_path / "other machine"))
    other = open_store(BUCKET)
    assert holds(other, 1, 2, 3)
    assert other.folder.is_relative_to(tmp_path / "other machine")
    shutil.rmtree(other.folder)
    assert holds(open_store(BUCKET), 3, 1)
    add(other, 4)
    monkeypatch.setenv("HAI_CACHE", str(own_cache))
    assert store.missing(hashes(4)).tolist() == [False]
    assert holds(store, 1, 2, 3, 4)


def test_a_damaged_mirror_is_fetched_again_and_a_damaged_bucket_named(own_cache: Path) -> None:
    add(open_store(BUCKET), 1, 2)
    lines: list[str] = []
    store = open_store(BUCKET, say=lines.append)
    (path,) = shards(store.folder)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert holds(store, 1, 2)
    assert len(lines) == 1
    assert str(path) in lines.pop()

    shutil.rmtree(own_cache)
    memory = fsspec.filesystem("memory")
    (there,) = [name for name in memory.find("/bucket") if name.endswith(".safetensors")]
    memory.pipe_file(there, memory.cat_file(there)[:-1] + b"x")
    memory.pipe_file(there.rpartition("/")[0] + "/model.safetensors", b"of somebody else")
    store = open_store(BUCKET, say=lines.append)
    assert store.missing(hashes(1, 2)).all()
    assert sorted(line.split(": ")[1] for line in lines) == [
        "its content does not match its name",
        "its name is not the hash of its content; refused",
    ]
    assert bucket_names() == ["key.json", "model.safetensors"]
    add(store, 1, 2)
    assert bucket_names() == sorted(["key.json", "model.safetensors", path.name])
    assert holds(open_store(BUCKET, say=lines.append), 1, 2)


def test_a_mounted_drive_is_mirrored_and_damage_there_moved_aside(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hai.checkpoint.remote.is_mount", lambda folder: folder.is_relative_to(tmp_path / "drive"))
    add(open_store(tmp_path / "drive"), 1, 2)
    (path,) = shards(tmp_path / "drive" / KEY.folder)
    store = open_store(tmp_path / "drive")
    assert store.folder.is_relative_to(own_cache)
    shutil.rmtree(own_cache)
    assert holds(store, 1, 2)
    shutil.rmtree(own_cache)
    path.write_bytes(path.read_bytes()[:-1])
    lines: list[str] = []
    store = open_store(tmp_path / "drive", say=lines.append)
    assert store.missing(hashes(1, 2)).all()
    assert [str(path) in line for line in lines] == [True]
    assert (path.parent / "refused" / path.name).exists()
    add(store, 1, 2)
    assert path.exists()


def test_merged_files_leave_the_bucket_and_the_mirrors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    store = open_store(BUCKET)
    add(store, 0)
    own = os.environ["HAI_CACHE"]
    monkeypatch.setenv("HAI_CACHE", str(tmp_path / "other machine"))
    other = open_store(BUCKET)
    assert holds(other, 0)
    add(other, 100, upload=False)
    monkeypatch.setenv("HAI_CACHE", own)
    for number in range(1, 30):
        add(store, number)
    there = [name for name in bucket_names() if name != "key.json"]
    assert len(there) <= 17
    assert there == [path.name for path in shards(store.folder)]
    monkeypatch.setenv("HAI_CACHE", str(tmp_path / "other machine"))
    assert holds(other, *range(30), 100)
    assert len(shards(other.folder)) == len(there) + 1
    other.send()
    monkeypatch.setenv("HAI_CACHE", own)
    assert holds(store, *range(30), 100)


def test_a_storage_that_fails_delays_sending_only(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    store = open_store(BUCKET, say=lines.append)
    assert store.missing(hashes(1)).all()
    monkeypatch.setattr("hai.checkpoint.transfer._FIRST_PAUSE_S", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr("hai.checkpoint.remote.Bucket.put", _down)
        add(store, 1)
        (line,) = lines
        assert line.startswith(f"{BUCKET}/{KEY.folder}: ConnectionError: the network is down; new embeddings are in ")
        assert holds(store, 1)
    assert [name for name in bucket_names() if name != "key.json"] == []
    store.send()
    assert [name for name in bucket_names() if name != "key.json"] == [path.name for path in shards(store.folder)]
    with monkeypatch.context() as patch:
        patch.setattr("hai.checkpoint.remote.Bucket.names", _down)
        with pytest.raises(StorageError, match=r"^data.embedding_cache: memory://.*the network is down; run again"):
            store.missing(hashes(1))


def _down(*_: object) -> None:
    raise ConnectionError("the network is down")
