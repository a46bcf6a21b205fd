"""Embeddings are computed once, a durable piece at a time, and read back bit for bit in the order of the examples."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from hai.config.schema import RunConfig
from hai.data.dataset import ImageDataset
from hai.data.manifest import Manifest, build_manifest
from hai.distributed import Workers
from hai.embeddings import EmbeddedDataset, EmbeddingKey, EmbeddingStore, compute_embeddings
from hai.embeddings import compute as module
from hai.errors import DataError
from hai.types import Batch

CPU = torch.device("cpu")
WIDTH, SIZE = 7, 32
KEY = EmbeddingKey("random", SIZE, "resize", "cls", "float32", "float32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 training and 8 validation pictures; two of the training pictures are the same."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for number in range(32):
        path = root / ("train" if number < 24 else "val") / ["real", "fake"][number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 36, 3), dtype=np.uint8)).save(path)
    (root / "train/real/02.png").write_bytes((root / "train/real/00.png").read_bytes())
    return root


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAI_CACHE", str(tmp_path / "cache"))


def config_of(folder: Path, **data: Any) -> RunConfig:
    values = {"image_size": SIZE, "num_threads": 2, "sources": [{"path": str(folder)}], **data}
    return RunConfig.model_validate({"seed": 3, "data": values})


@pytest.fixture(scope="module")
def manifest(folder: Path) -> Manifest:
    return build_manifest(config_of(folder).data, seed=3)


def training(folder: Path, manifest: Manifest) -> ImageDataset:
    return ImageDataset(manifest, config_of(folder), "train")


class Encoder:
    """A random projection, one image at a time; counts the images."""

    def __init__(self, dataset: ImageDataset, before: Callable[[int], None] = lambda count: None) -> None:
        self.dataset, self.before, self.count = dataset, before, 0
        self.matrix = torch.randn(3 * SIZE * SIZE, WIDTH, generator=torch.Generator().manual_seed(0))

    def __call__(self, batch: Batch) -> Tensor:
        images = self.dataset.prepare(batch, epoch=0, training=False)["image"]
        self.count += len(images)
        self.before(self.count)
        return torch.cat([image.reshape(1, -1) @ self.matrix for image in images])


def open_store(say: Callable[[str], None] = lambda line: None, **fields: Any) -> EmbeddingStore:
    return EmbeddingStore(None, replace(KEY, **fields), WIDTH, say=say)


def compute(store: EmbeddingStore, dataset: ImageDataset, encoder: Encoder, **options: Any) -> tuple[bool, list[str]]:
    lines: list[str] = []
    done = compute_embeddings(store, dataset, encoder, Workers(), say=lines.append, **options)
    return done, lines


@pytest.mark.parametrize("storage", ["float32", "float16"])
def test_the_data_set_gives_what_the_encoder_gave(folder: Path, manifest: Manifest, storage: str) -> None:
    images, store = training(folder, manifest), open_store(storage=storage)
    encoder = Encoder(images)
    embedded = EmbeddedDataset(manifest, config_of(folder), "train", open_store(storage=storage))
    done, lines = compute(store, images, encoder)
    assert done
    assert (encoder.count, len(images)) == (23, 24)
    assert lines[0].startswith("features: 0 of 23 images are kept in ")
    assert lines[-1].startswith("features: encoded 23 of 23 images, ")
    requests = [(0, np.array([5, 3, 3])), (1, np.arange(24))]
    with (
        closing(images.batches(requests, device=CPU, training=False)) as loaded,
        closing(embedded.batches(requests, device=CPU, training=True)) as kept,
    ):
        pairs = list(zip(loaded, kept, strict=True))
    for image, batch in pairs:
        assert torch.equal(batch["index"], image["index"])
        assert torch.equal(batch["label"], image["label"])
        expected = Encoder(images)(image).to(getattr(torch, storage)).float()
        assert torch.equal(batch["embedding"], expected)
        assert embedded.prepare(batch, epoch=0, training=True) is batch
    assert len(pairs) == 2
    assert len(embedded) == 24
    assert all(np.array_equal(a, b) for a, b in zip(embedded.strata(), images.strata(), strict=True))

    again = Encoder(images)
    done, lines = compute(open_store(storage=storage), images, again)
    assert (done, again.count) == (True, 0)
    (line,) = lines
    assert line.startswith("features: 23 of 23 images are kept in ")


def test_memory_that_runs_out_halves_what_is_encoded_at_once(folder: Path, manifest: Manifest) -> None:
    class Hungry(Encoder):
        sizes: list[int] = []  # noqa: RUF012

        def __call__(self, batch: Batch) -> Tensor:
            self.sizes.append(len(batch["index"]))
            if len(batch["index"]) > most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return super().__call__(batch)

    images, store, most = training(folder, manifest), open_store(), 1
    hungry = Hungry(images)
    assert compute(store, images, hungry)[0]
    assert hungry.sizes == [4, 2, *[1] * 23]
    plain, other = Encoder(images), open_store(revision="other")
    compute(other, images, plain)
    sha256 = manifest.sha256[images.rows]
    assert np.array_equal(store.read(sha256), other.read(sha256))
    most = 0
    with pytest.raises(torch.OutOfMemoryError):
        compute(open_store(revision="third"), images, hungry)


def test_strata_follow_the_config_and_nothing_is_read_before_a_batch(folder: Path, manifest: Manifest) -> None:
    config = config_of(folder, sampling="balanced", cache_decoded="on")
    embedded = EmbeddedDataset(manifest, config, "train", open_store())
    expected = ImageDataset(manifest, config_of(folder, sampling="balanced"), "train").strata()
    assert all(np.array_equal(a, b) for a, b in zip(embedded.strata(), expected, strict=True))
    assert len(expected[1]) == 2
    batches = embedded.batches([(0, np.arange(4))], device=CPU, training=False)
    with pytest.raises(DataError, match="24 of 24 embeddings are missing"):
        next(batches)
    batches.close()


def _killed(folder: Path, manifest: Manifest) -> None:
    torch.set_num_threads(1)
    images = training(folder, manifest)

    def kill(count: int) -> None:
        if count > 16:
            os.kill(os.getpid(), signal.SIGKILL)

    compute(open_store(), images, Encoder(images, kill), round_rows=8)


def test_a_kill_costs_what_was_not_yet_kept(folder: Path, manifest: Manifest) -> None:
    process = multiprocessing.get_context("fork").Process(target=_killed, args=(folder, manifest))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    images = training(folder, manifest)
    encoder = Encoder(images)
    done, lines = compute(open_store(), images, encoder, round_rows=8)
    assert (done, encoder.count) == (True, 23 - 16)
    assert lines[0].startswith("features: 16 of 23 images are kept in ")
    whole = open_store().read(manifest.sha256[images.rows])
    with closing(images.batches([(0, np.arange(24))], device=CPU, training=False)) as batches:
        assert np.array_equal(whole, Encoder(images)(next(batches)).numpy())


def test_a_stop_keeps_what_is_done(folder: Path, manifest: Manifest) -> None:
    images = training(folder, manifest)
    encoder = Encoder(images)
    asked = iter([False, False, False, True])
    done, _ = compute(open_store(), images, encoder, stop=lambda: next(asked))
    assert not done
    assert 0 < encoder.count < 23
    rest = Encoder(images)
    assert compute(open_store(), images, rest)[0]
    assert encoder.count + rest.count == 23


def test_rounds_end_with_the_time(folder: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ROUND_S", 1e-6)
    monkeypatch.setattr(module, "_SAY_EVERY_S", 0.0)
    images = training(folder, manifest)
    done, lines = compute(open_store(), images, Encoder(images))
    assert done
    assert [line.split(" images")[0] for line in lines[1:]] == [
        f"features: encoded {count} of 23" for count in (4, 8, 12, 16, 20, 23)
    ]
    assert " left" in lines[1]


def test_an_image_that_is_gone_is_named_and_the_others_are_kept(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    manifest = build_manifest(config_of(copy).data, seed=3)
    images = training(copy, manifest)
    lost = manifest.path[images.rows[13]]
    (copy / lost).unlink()
    with pytest.raises(DataError, match=lost):
        compute(open_store(), images, Encoder(images))
    kept = ~open_store().missing(manifest.sha256[images.rows])
    assert 8 <= kept.sum() < 24


@pytest.mark.parametrize(("storage", "value"), [("float32", float("nan")), ("float16", 1e6)])
def test_an_embedding_that_is_not_finite_names_its_image(
    folder: Path, manifest: Manifest, storage: str, value: float
) -> None:
    images = training(folder, manifest)
    bad = int(images.rows[10])

    def encode(batch: Batch) -> Tensor:
        rows = torch.ones(len(batch["index"]), WIDTH)
        rows[batch["index"] == bad, 2] = value
        return rows

    with pytest.raises(DataError, match=rf"^{manifest.path[bad]}: its embedding is not finite in {storage}"):
        compute_embeddings(open_store(storage=storage), images, encode, Workers(), say=lambda line: None)


def test_a_damaged_file_is_computed_again(folder: Path, manifest: Manifest) -> None:
    images = training(folder, manifest)
    compute(open_store(), images, Encoder(images), round_rows=8)
    path = sorted(open_store().folder.glob("*.safetensors"))[0]
    path.write_bytes(path.read_bytes()[:-1])
    lines: list[str] = []
    encoder = Encoder(images)
    assert compute(open_store(lines.append), images, encoder)[0]
    assert 0 < encoder.count <= 8
    assert path.name in lines[0]
    assert not open_store().missing(manifest.sha256[images.rows]).any()
