"""The decoded cache: equal tensors, sharing, damage and cuts at any moment, a full disk, when it is used."""

import errno
import logging
import os
import shutil
import subprocess
import sys
import textwrap
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from hai.config.schema import RunConfig
from hai.data import cache as module
from hai.data import dataset as dataset_module
from hai.data.cache import DecodedCache, open_cache
from hai.data.dataset import ImageDataset
from hai.data.manifest import Manifest, build_manifest, save_manifest
from hai.errors import DataError
from hai.paths import cache_folder

CPU = torch.device("cpu")
NUM_TRAIN = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for number in range(20):
        width, height = [(64, 64), (90, 50), (40, 72), (30, 20)][number % 4]
        path = root / ("train" if number < NUM_TRAIN else "val") / ["real", "fake"][number % 2] / f"{number:02}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    return root


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HAI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def config_of(folder: Path, **data: Any) -> RunConfig:
    values = {"image_size": 48, "cache_decoded": "on", "num_threads": 2, "sources": [{"path": str(folder)}], **data}
    augment = {"jpeg_probability": 0.5, "resize_probability": 0.5, "flip": 0.5}
    return RunConfig.model_validate({"seed": 3, "data": values, "augment": augment})


@pytest.fixture(scope="module")
def manifest(folder: Path) -> Manifest:
    return build_manifest(config_of(folder).data, seed=3)


def load(dataset: ImageDataset, *, training: bool = True) -> torch.Tensor:
    requests = [(epoch, np.arange(len(dataset))) for epoch in range(3)]
    with closing(dataset.batches(requests, device=CPU, training=training)) as batches:
        return torch.cat([batch["image"] for batch in batches])


class Decodings:
    """Counts calls of the real decoder."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        real = dataset_module.decode_image

        def counted(data: bytes, max_megapixels: float) -> NDArray[np.uint8]:
            self.count += 1
            return real(data, max_megapixels)

        monkeypatch.setattr(dataset_module, "decode_image", counted)


@pytest.fixture
def decodings(monkeypatch: pytest.MonkeyPatch) -> Decodings:
    return Decodings(monkeypatch)


def slots_of(root: Path) -> tuple[Path, Path]:
    (folder,) = (root / "decoded").iterdir()
    return folder / "pixels", folder / "index"


@pytest.mark.parametrize("geometry", ["resize", "pad", "crop"])
@pytest.mark.parametrize("training", [True, False])
def test_cached_tensors_equal_uncached_ones(
    folder: Path, manifest: Manifest, decodings: Decodings, geometry: str, training: bool
) -> None:
    config = config_of(folder, geometry=geometry)
    plain = load(
        ImageDataset(manifest, config_of(folder, geometry=geometry, cache_decoded="off"), "train"), training=training
    )
    assert decodings.count == 3 * NUM_TRAIN
    filled = load(ImageDataset(manifest, config, "train"), training=training)  # epochs 2 and 3 read what epoch 1 stored
    assert torch.equal(filled, plain)
    before = decodings.count
    assert before < 3 * NUM_TRAIN + 2 * NUM_TRAIN  # threads run ahead: a slot may be asked for while it is being filled
    again = load(ImageDataset(manifest, config, "train"), training=training)
    assert torch.equal(again, plain)
    assert decodings.count == before


def test_runs_with_the_same_images_share_it(
    folder: Path, manifest: Manifest, decodings: Decodings, own_cache: Path
) -> None:
    load(ImageDataset(manifest, config_of(folder), "train"))
    load(ImageDataset(manifest, config_of(folder), "val"), training=False)
    before = decodings.count
    relabelled = replace(manifest, label=1 - manifest.label, split=np.zeros_like(manifest.split))
    load(ImageDataset(relabelled, config_of(folder), "train"))
    assert decodings.count == before
    assert len(list((own_cache / "decoded").iterdir())) == 1


def test_other_sizes_and_images_have_their_own(folder: Path, manifest: Manifest, own_cache: Path) -> None:
    for data in (
        {},
        {"image_size": 64},
        {"geometry": "pad"},
        {"geometry": "crop"},
        {"geometry": "crop", "image_size": 64},
    ):
        ImageDataset(manifest, config_of(folder, **data), "train")
    assert len(list((own_cache / "decoded").iterdir())) == 4  # crops of any size are cut from the same whole images
    content = manifest.sha256.copy()
    content[0, 0] ^= 1
    ImageDataset(replace(manifest, sha256=content), config_of(folder), "train")
    assert len(list((own_cache / "decoded").iterdir())) == 5


def test_equal_images_share_a_slot(folder: Path, manifest: Manifest) -> None:
    content = manifest.sha256.copy()
    content[1] = content[0]
    twins = replace(manifest, sha256=content)
    cache = DecodedCache(twins, config_of(folder).data, cache_folder())
    image = np.full((48, 48, 3), 7, dtype=np.uint8)
    cache.write(0, image)
    assert np.array_equal(cache.read(1), image)  # type: ignore[arg-type]
    assert cache.read(2) is None


def test_a_damaged_slot_is_decoded_again_and_mended(
    folder: Path, manifest: Manifest, decodings: Decodings, own_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = load(ImageDataset(manifest, config_of(folder), "train"))
    pixels, _ = slots_of(own_cache)
    row = int(manifest.indices("train")[5])
    with open(pixels, "r+b") as file:
        file.seek(row * 48 * 48 * 3 + 1000)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 0x10]))
    decodings.count = 0
    config = config_of(folder, num_threads=1)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(load(ImageDataset(manifest, config, "train")), plain)
    assert decodings.count == 1
    assert len(caplog.records) == 1
    assert "damaged" in caplog.text
    caplog.clear()
    assert torch.equal(load(ImageDataset(manifest, config, "train")), plain)
    assert decodings.count == 1
    assert not caplog.records


@pytest.mark.parametrize("cut", ["pixels torn", "pixels lost", "index lost", "index torn", "file cut short"])
def test_whatever_a_kill_leaves_behind_is_decoded_again(
    folder: Path, manifest: Manifest, own_cache: Path, cut: str
) -> None:
    plain = load(ImageDataset(manifest, config_of(folder), "train"))
    pixels, index = slots_of(own_cache)
    size, (first, last) = 48 * 48 * 3, manifest.indices("train")[[0, -1]].tolist()
    content = bytearray((index if "index" in cut else pixels).read_bytes())
    if cut == "pixels torn":
        content[first * size + size // 2 : (first + 1) * size] = bytes(size - size // 2)
    elif cut == "pixels lost":
        content[first * size : (first + 1) * size] = bytes(size)
    elif cut == "index lost":
        content = bytearray(len(content))
    elif cut == "index torn":
        content[4 * first : 4 * first + 2] = bytes(2)
    else:
        del content[last * size + 100 :]
    (index if "index" in cut else pixels).write_bytes(content)
    assert torch.equal(load(ImageDataset(manifest, config_of(folder), "train")), plain)


def test_killed_and_concurrent_processes(folder: Path, manifest: Manifest, tmp_path: Path) -> None:
    """Two processes fill one cache and are killed on the way, again and again: what is there is right."""
    config = config_of(folder, geometry="crop")
    plain = load(ImageDataset(manifest, config_of(folder, geometry="crop", cache_decoded="off"), "train"))
    save_manifest(manifest, tmp_path / "manifest.parquet")
    (tmp_path / "data.json").write_text(config.data.model_dump_json(), encoding="utf-8")
    script = """
        import sys
        from pathlib import Path
        import numpy as np
        from hai.config.schema import DataConfig
        from hai.data.cache import open_cache
        from hai.data.images import decode_image
        from hai.data.manifest import load_manifest
        folder = Path(sys.argv[1])
        manifest = load_manifest(folder / "manifest.parquet")
        data = DataConfig.model_validate_json((folder / "data.json").read_text(encoding="utf-8"))
        cache = open_cache(manifest, data, num_uses=2)
        for row in np.random.default_rng(int(sys.argv[2])).permutation(len(manifest)).tolist():
            if cache.read(row) is None:
                cache.write(row, decode_image(manifest.read(row)))
            print(row, flush=True)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
    processes = [subprocess.Popen([*command, str(number)], stdout=subprocess.PIPE, text=True) for number in range(2)]
    for number, process in enumerate(processes):
        assert process.stdout is not None
        for _ in range(3 + 4 * number):
            assert process.stdout.readline()
        process.kill()
        process.stdout.close()
        process.wait()
    assert torch.equal(load(ImageDataset(manifest, config, "train")), plain)


def test_a_full_disk_ends_the_filling_not_the_run(
    folder: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plain = load(ImageDataset(manifest, config_of(folder, cache_decoded="off"), "train"))
    calls = []

    def full(*_: object) -> int:
        calls.append(1)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module.os, "pwrite", full)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(load(ImageDataset(manifest, config_of(folder, num_threads=1), "train")), plain)
    assert len(calls) == 1
    assert [record.message for record in caplog.records if "No space left" in record.message]


def test_where_the_cache_cannot_be(
    folder: Path, manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    monkeypatch.setenv("HAI_CACHE", str(tmp_path / "file" / "below"))
    with pytest.raises(DataError, match=r"data\.cache_decoded: .*below = .*; set HAI_CACHE"):
        open_cache(manifest, config_of(folder).data, num_uses=2)
    assert open_cache(manifest, config_of(folder, cache_decoded="auto").data, num_uses=2) is None
    assert "not cached" in caplog.text


def test_auto_wants_room_and_more_than_one_epoch(
    folder: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    data = config_of(folder, cache_decoded="auto").data
    total = len(manifest) * 48 * 48 * 3

    def free(value: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=value))

    free(2 * total)
    assert open_cache(manifest, data, num_uses=1) is None
    assert not own_cache.exists()
    cache = open_cache(manifest, data, num_uses=1.5)
    assert cache is not None
    free(2 * total - 2)
    assert open_cache(manifest, data, num_uses=2) is None
    for row in range(len(manifest)):
        cache.write(row, np.ones((48, 48, 3), dtype=np.uint8))
    free(0)
    assert open_cache(manifest, data, num_uses=2) is not None  # it takes nothing more
    assert open_cache(manifest, config_of(folder, cache_decoded="off").data, num_uses=2) is None


@pytest.mark.parametrize(
    ("train", "split", "expected"),
    [
        ({"max_epochs": 1}, "train", 1),
        ({"max_epochs": 5}, "train", 5),
        ({"max_epochs": 5, "max_steps": 2, "global_batch_size": 8}, "train", 1),
        ({"max_epochs": None, "max_steps": 4, "global_batch_size": 8}, "train", 2),
        ({"max_epochs": 4, "eval_every_epochs": 0.5}, "val", 8),
        ({"max_epochs": 50}, "test", 1),
    ],
)
def test_how_often_an_image_is_used(
    folder: Path, manifest: Manifest, train: dict[str, Any], split: str, expected: float
) -> None:
    config = RunConfig.model_validate({**config_of(folder, cache_decoded="off").model_dump(), "train": train})
    assert ImageDataset(manifest, config, split)._num_uses() == expected
