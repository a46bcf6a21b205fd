"""Workers of separate machines end up with equal embeddings, errors reach all of them, a bucket serves the next one."""

from __future__ import annotations

import json
import os
import shutil
import socket
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing
from PIL import Image
from torch import Tensor

from hai.config.schema import RunConfig
from hai.data.dataset import ImageDataset
from hai.data.manifest import Manifest, build_manifest
from hai.distributed import Workers
from hai.embeddings import EmbeddingKey, EmbeddingStore, compute_embeddings
from hai.types import Batch

torch.set_num_threads(1)  # as the workers, or sums differ in the last bit
WIDTH, SIZE = 6, 32
KEY = EmbeddingKey("random", SIZE, "resize", "cls", "float32", "float16")


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    root = tmp_path / "pictures"
    rng = np.random.default_rng(0)
    for number in range(32):
        path = root / ("train" if number < 28 else "val") / ["real", "fake"][number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 36, 3), dtype=np.uint8)).save(path)
    return build_manifest(config_of(root).data, seed=3)


def config_of(root: Path) -> RunConfig:
    data = {"image_size": SIZE, "num_threads": 1, "sources": [{"path": str(root)}]}
    return RunConfig.model_validate({"seed": 3, "data": data})


def training(manifest: Manifest, tmp_path: Path) -> ImageDataset:
    return ImageDataset(manifest, config_of(tmp_path / "pictures"), "train")


class Encoder:
    def __init__(self, dataset: ImageDataset, bad: int = -1) -> None:
        self.dataset, self.bad, self.count = dataset, bad, 0
        self.matrix = torch.randn(3 * SIZE * SIZE, WIDTH, generator=torch.Generator().manual_seed(0))

    def __call__(self, batch: Batch) -> Tensor:
        images = self.dataset.prepare(batch, epoch=0, training=False)["image"]
        self.count += len(images)
        rows = torch.cat([image.reshape(1, -1) @ self.matrix for image in images])
        rows[batch["index"] == self.bad] = torch.nan
        return rows


def store_of(root: str | None, lines: list[str] | None = None) -> EmbeddingStore:
    return EmbeddingStore(root, KEY, WIDTH, say=[].append if lines is None else lines.append)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.safetensors"))


def _work(rank: int, world_size: int, port: int, manifest: Manifest, tmp_path: Path, case: str) -> None:
    """Compute as one of several machines, each with a cache folder of its own, and write down how it went."""
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ["HAI_CACHE"] = str(tmp_path / f"cache{rank}")
    limit = timedelta(seconds=60)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size, timeout=limit)
    workers = Workers.join(rank, world_size, torch.device("cpu"))
    images = training(manifest, tmp_path)
    store = store_of(None if case != "bucket" else os.environ["BUCKET"])
    encoder = Encoder(images, bad=int(images.rows[9]) if case == "error" else -1)
    lines: list[str] = []
    outcome: Any = None
    try:
        stop = (lambda: encoder.count >= 8) if case == "stop" else (lambda: False)
        outcome = compute_embeddings(store, images, encoder, workers, say=lines.append, stop=stop, round_rows=4)
    except Exception as error:
        outcome = f"{type(error).__name__}: {error}"
    record = {"outcome": outcome, "count": encoder.count, "lines": lines, "names": names_in(store.folder)}
    (tmp_path / f"{rank}.json").write_text(json.dumps(record), encoding="utf-8")
    dist.destroy_process_group()


def work(manifest: Manifest, tmp_path: Path, case: str = "", world_size: int = 2) -> list[dict[str, Any]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = (world_size, port, manifest, tmp_path, case)
    torch.multiprocessing.start_processes(_work, arguments, nprocs=world_size, start_method="fork")
    return [json.loads((tmp_path / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(world_size)]


def check_complete(manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world_size: int = 2) -> None:
    images = training(manifest, tmp_path)
    (batch,) = images.batches([(0, np.arange(len(images)))], device=torch.device("cpu"), training=False)
    expected = Encoder(images)(batch).half().numpy()
    for rank in range(world_size):
        monkeypatch.setenv("HAI_CACHE", str(tmp_path / f"cache{rank}"))
        assert np.array_equal(store_of(None).read_stored(manifest.sha256[images.rows]), expected)


def test_machines_share_the_work_and_end_up_equal(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = work(manifest, tmp_path)
    assert (first["outcome"], second["outcome"]) == (True, True)
    assert (first["count"], second["count"]) == (14, 14)
    assert first["names"] == second["names"]
    assert len(first["names"]) == 4
    assert first["lines"][-1].startswith("features: encoded 28 of 28 images")
    assert second["lines"] == []
    check_complete(manifest, tmp_path, monkeypatch)

    path = tmp_path / "cache1" / "embeddings" / KEY.folder / second["names"][0]
    path.write_bytes(path.read_bytes()[:-1])
    first, second = work(manifest, tmp_path)
    assert first["count"] + second["count"] == 8
    check_complete(manifest, tmp_path, monkeypatch)
    assert [record["count"] for record in work(manifest, tmp_path)] == [0, 0]


def test_an_error_of_one_worker_ends_all_and_costs_nothing_that_was_done(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = work(manifest, tmp_path, "error", world_size=3)
    bad = manifest.path[training(manifest, tmp_path).rows[9]]
    for record in records:
        assert record["outcome"].startswith(f"DataError: {bad}: its embedding is not finite in float16; ")
    done = work(manifest, tmp_path, world_size=3)
    assert [record["outcome"] for record in done] == [True] * 3
    assert sum(record["count"] for record in done) <= 28 - 8
    check_complete(manifest, tmp_path, monkeypatch, 3)


def test_the_first_worker_stops_all(manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = work(manifest, tmp_path, "stop")
    assert [record["outcome"] for record in stopped] == [False, False]
    rest = work(manifest, tmp_path)
    assert sum(record["count"] for record in [*stopped, *rest]) == 28
    check_complete(manifest, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:botocore")
def test_a_bucket_serves_the_next_machine(
    s3: Any, manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "s3://bucket/some features"
    monkeypatch.setenv("HAI_CACHE", str(tmp_path / "cache"))
    images, lines = training(manifest, tmp_path), []
    hashes = manifest.sha256[images.rows]

    def compute() -> int:
        encoder, store = Encoder(images), store_of(url, lines)
        assert compute_embeddings(store, images, encoder, Workers(), say=lambda line: None, round_rows=8)
        assert not store.missing(hashes).any()
        return encoder.count

    assert compute() == 28
    kept = store_of(url).read_stored(hashes)
    found = [item["Key"] for item in s3.list_objects_v2(Bucket="bucket")["Contents"]]
    root = f"some features/{KEY.folder}"
    assert found == [*(f"{root}/{name}" for name in names_in(store_of(url).folder)), f"{root}/key.json"]
    shutil.rmtree(tmp_path / "cache")
    assert compute() == 0
    assert np.array_equal(store_of(url).read_stored(hashes), kept)
    assert lines == []

    shutil.rmtree(tmp_path / "cache")
    s3.put_object(Bucket="bucket", Key=found[0], Body=b"rot")
    assert 0 < compute() <= 8
    (line,) = lines
    assert line.startswith(f"s3://bucket/{found[0]}: its content does not match its name")
    again = [item["Key"] for item in s3.list_objects_v2(Bucket="bucket")["Contents"]]
    assert again == found
