"""The ring loader and the data set: order, laziness, buffers, errors, threads that end, sampling, equal tensors."""

import gc
import itertools
import os
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from hai.config.schema import RunConfig
from hai.data.augment import MEAN, STD
from hai.data.dataset import ImageDataset
from hai.data.images import decode_image, fit_image
from hai.data.loader import RING, RingLoader, _Crew
from hai.data.manifest import Manifest, build_manifest
from hai.errors import DataError
from hai.order import Order

CPU = torch.device("cpu")
RECIPE = {
    "flip": 0.5, "rotation_degrees": 10, "brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.05,
    "jpeg_probability": 0.5, "noise_probability": 0.3, "blur_probability": 0.3, "resize_probability": 0.5,
}  # fmt: skip


def loader_threads() -> int:
    return sum(thread.name == "hai-loader" for thread in threading.enumerate())


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    yield
    deadline = time.monotonic() + 5
    while loader_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert loader_threads() == 0


class Numbered:
    """A job whose images are filled with its number plus their place; the first images take longest."""

    def __init__(self, number: int, size: int = 11, fail_at: int | None = None) -> None:
        self.number, self.size, self.fail_at = number, size, fail_at

    def __len__(self) -> int:
        return self.size

    def load(self, start: int, stop: int, out: NDArray[np.uint8]) -> None:
        if start == 0:
            time.sleep(0.005)
        if self.fail_at is not None and start <= self.fail_at < stop:
            raise DataError(f"image {self.fail_at} of {self.number}")
        assert out.shape == (stop - start, 4, 4, 3)
        out[:] = (self.number * 10 + np.arange(start, stop))[:, None, None, None] % 256


def ring(jobs: Any, num_threads: int = 3) -> RingLoader[Numbered]:
    return RingLoader(jobs, size=4, device=CPU, num_threads=num_threads)


@pytest.mark.parametrize("num_threads", [0, 1, 2, 5])
def test_batches_come_in_order(num_threads: int) -> None:
    jobs = [Numbered(number, size=1 + number % 7) for number in range(30)]
    seen = list(ring(jobs, num_threads))
    assert [job for job, _ in seen] == jobs
    for job, image in seen:
        assert image.shape == (len(job), 3, 4, 4)
        assert image[:, 0, 0, 0].tolist() == [(job.number * 10 + place) % 256 for place in range(len(job))]


def test_a_kept_batch_is_never_overwritten() -> None:
    loader = ring([Numbered(number) for number in range(20)])
    views = [image[2:3] for _, image in loader]
    assert [int(view.max()) for view in views] == [(number * 10 + 2) % 256 for number in range(20)]


def test_buffers_are_used_again() -> None:
    places = {image.data_ptr() for _, image in ring([Numbered(number) for number in range(200)])}
    assert len(places) <= RING + 1


def test_jobs_are_pulled_lazily_in_the_consumer_s_thread() -> None:
    pulled: list[int] = []

    def jobs() -> Iterator[Numbered]:
        for number in itertools.count():
            assert threading.current_thread() is threading.main_thread()
            pulled.append(number)
            yield Numbered(number)

    loader = ring(jobs())
    assert pulled == []
    for used in range(1, 10):
        next(loader)
        time.sleep(0.002)
        assert len(pulled) == used + RING - 1
    loader.close()


@pytest.mark.parametrize("num_threads", [0, 1, 4])
def test_an_error_comes_when_its_batch_does(num_threads: int) -> None:
    jobs = [Numbered(number, fail_at=8 if number == 5 else None) for number in range(20)]
    loader = ring(jobs, num_threads)
    assert [job.number for job, _ in itertools.islice(loader, 5)] == [0, 1, 2, 3, 4]
    with pytest.raises(DataError, match="image 8 of 5"):
        next(loader)
    assert loader_threads() == 0
    with pytest.raises(StopIteration):
        next(loader)


def test_an_error_of_the_jobs_comes_after_the_batches_before_it() -> None:
    def jobs() -> Iterator[Numbered]:
        yield from (Numbered(number) for number in range(3))
        raise DataError("no more")

    loader = ring(jobs())
    assert len(list(itertools.islice(loader, 3))) == 3
    with pytest.raises(DataError, match="no more"):
        next(loader)


def test_threads_end_with_close_exhaustion_and_garbage() -> None:
    endless = (Numbered(number) for number in itertools.count())
    with closing(ring(endless)) as loader:
        next(loader)
        assert loader_threads() == 3
    assert loader_threads() == 0
    with pytest.raises(StopIteration):
        next(loader)
    assert len(list(ring([Numbered(0)]))) == 1
    assert loader_threads() == 0
    for count in (2, 1000):
        loader = ring(Numbered(number) for number in range(count))
        next(loader)
        gone = weakref.ref(loader)
        del loader
        assert gone() is None
        assert loader_threads() == 0


def test_threads_end_when_the_loader_is_part_of_a_cycle() -> None:
    for _ in range(20):
        loader = ring(Numbered(number) for number in itertools.count())
        next(loader)
        loader.itself = loader  # type: ignore[attr-defined]
        del loader
    gc.collect()


def test_a_thread_ends_when_it_was_stopped_from_within_its_own_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A collection of garbage in the thread itself, after it has looked for work and before it waits."""
    crew, wait = _Crew(), threading.Condition.wait

    def collect_first(condition: threading.Condition, timeout: float | None = None) -> bool:
        if threading.current_thread() is thread and not crew._stopping:
            crew.stop()
        return wait(condition, timeout)

    monkeypatch.setattr(threading.Condition, "wait", collect_first)
    thread = threading.Thread(target=crew.work, daemon=True)
    thread.start()
    thread.join(5)
    assert not thread.is_alive()


def test_it_runs_in_a_thread_of_its_own() -> None:
    numbers: list[int] = []
    thread = threading.Thread(target=lambda: numbers.extend(job.number for job, _ in ring(map(Numbered, range(9)))))
    thread.start()
    thread.join(20)
    assert numbers == list(range(9))


# ---------------------------------------------------------------- the data set


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty pictures of two sources and two classes, most of them JPEGs, of several sizes."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for number in range(40):
        width, height = [(64, 64), (90, 50), (40, 72), (130, 100)][number % 4]
        coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        where = root / ("a" if number < 28 else "b") / ["train", "train", "train", "val"][number // 2 % 4]
        path = where / ["real", "fake"][number % 2] / f"{number:02}.{'png' if number % 9 == 0 else 'jpg'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    return root


def config_of(folder: Path, **sections: dict[str, Any]) -> RunConfig:
    sources = [{"name": name, "path": str(folder / name), "weight": weight} for name, weight in (("a", 3), ("b", 1))]
    data = {"image_size": 64, "cache_decoded": "off", "sources": sources, **sections.pop("data", {})}
    return RunConfig.model_validate({"seed": 3, "data": data, **sections})


@pytest.fixture(scope="module")
def manifest(folder: Path) -> Manifest:
    return build_manifest(config_of(folder).data, seed=3)


REQUESTS = [(epoch, np.random.default_rng(epoch).permutation(28)[: 6 + epoch]) for epoch in range(6)]


def load(dataset: ImageDataset, *, training: bool = True) -> list[dict[str, torch.Tensor]]:
    with closing(dataset.batches(iter(REQUESTS), device=CPU, training=training)) as batches:
        return [
            dataset.prepare(batch, epoch=epoch, training=training)
            for (epoch, _), batch in zip(REQUESTS, batches, strict=True)
        ]


def same(left: list[dict[str, torch.Tensor]], right: list[dict[str, torch.Tensor]]) -> bool:
    return all(
        torch.equal(one[name], other[name])
        for one, other in zip(left, right, strict=True)
        for name in ("image", "index")
    )


def test_a_batch_is_what_was_asked_for(folder: Path, manifest: Manifest) -> None:
    dataset = ImageDataset(manifest, config_of(folder), "train")
    assert len(dataset) == 30
    for (_, positions), batch in zip(REQUESTS, load(dataset, training=False), strict=True):
        rows = manifest.indices("train")[positions]
        assert np.array_equal(batch["index"].numpy(), rows)
        assert batch["label"].tolist() == manifest.label[rows].tolist() == dataset.labels[positions].tolist()
        assert batch["image"].dtype == torch.float32
        for image, row in zip(batch["image"], rows.tolist(), strict=True):
            pixels = fit_image(decode_image(manifest.read(row)), 64, "resize").astype(np.float64) / 255
            expected = (pixels - MEAN) / STD
            assert np.abs(image.permute(1, 2, 0).numpy() - expected).max() < 1e-6


@pytest.mark.parametrize("geometry", ["resize", "pad", "crop"])
def test_threads_and_neighbours_do_not_matter(folder: Path, manifest: Manifest, geometry: str) -> None:
    def dataset(num_threads: int) -> ImageDataset:
        data = {"num_threads": num_threads, "geometry": geometry}
        return ImageDataset(manifest, config_of(folder, data=data, augment=RECIPE), "train")

    first = load(dataset(1))
    assert not same(first, load(dataset(1), training=False))
    for num_threads in (2, 4):
        assert same(load(dataset(num_threads)), first)
    alone = dataset(2)
    (epoch, positions), batch = REQUESTS[3], first[3]
    requests = [(epoch, positions[place : place + 1]) for place in range(len(positions))]
    with closing(alone.batches(requests, device=CPU, training=True)) as batches:
        for place, one in enumerate(batches):
            prepared = alone.prepare(one, epoch=epoch, training=True)
            assert torch.equal(prepared["image"][0], batch["image"][place])


def test_epoch_and_seed_change_the_pictures(folder: Path, manifest: Manifest) -> None:
    def pictures(seed: int, epoch: int) -> torch.Tensor:
        config = config_of(folder, data={"geometry": "crop", "image_size": 32}).model_copy(update={"seed": seed})
        dataset = ImageDataset(manifest, config, "train")
        with closing(dataset.batches([(epoch, np.arange(30))], device=CPU, training=True)) as batches:
            return next(batches)["image"]

    first = pictures(1, 0)
    for other in (pictures(1, 1), pictures(2, 0)):
        assert int((first != other).flatten(1).any(dim=1).sum()) >= 28


def test_evaluation_draws_nothing(folder: Path, manifest: Manifest) -> None:
    config = config_of(folder, data={"geometry": "crop", "image_size": 32}, augment=RECIPE)
    dataset = ImageDataset(manifest, config, "val")
    with closing(dataset.batches([(0, np.arange(5)), (9, np.arange(5))], device=CPU, training=False)) as batches:
        first, later = (dataset.prepare(batch, epoch=0, training=False) for batch in batches)
    assert torch.equal(first["image"], later["image"])


def test_a_prepared_batch_can_be_learnt_from_after_an_evaluation(folder: Path, manifest: Manifest) -> None:
    """What evaluation made in inference mode must not leak into training."""
    dataset = ImageDataset(manifest, config_of(folder, augment=RECIPE), "train")
    with torch.inference_mode():
        load(dataset)
    convolution = torch.nn.Conv2d(3, 2, 3)
    convolution(load(dataset)[0]["image"]).sum().backward()
    assert convolution.weight.grad is not None


def test_files_that_changed_or_went_are_named(folder: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        for path in sorted((folder / name).rglob("*.*")):
            copy = tmp_path / path.relative_to(folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    manifest = build_manifest(config_of(tmp_path).data, seed=3)
    rows = manifest.indices("train")
    changed = Path(manifest.file[rows[4]])
    content = bytearray(changed.read_bytes())
    content[-3] ^= 1
    changed.write_bytes(content)
    os.remove(manifest.file[rows[7]])
    dataset = ImageDataset(manifest, config_of(tmp_path), "train")
    for positions, row, text in ((np.arange(6), rows[4], "changed since"), (np.arange(5, 9), rows[7], "read")):
        with (
            closing(dataset.batches([(0, np.array([0])), (0, positions)], device=CPU, training=True)) as batches,
            pytest.raises(DataError, match=text) as caught,
        ):
            list(batches)
        assert manifest.path[row] in str(caught.value)
        assert "\n" not in str(caught.value)


def shares_of(dataset: ImageDataset) -> dict[tuple[int, str], float]:
    codes, shares = dataset.strata()
    assert set(codes.tolist()) == set(range(len(shares)))
    assert shares.sum() == pytest.approx(1)
    found: dict[tuple[int, str], float] = {}
    for code, row, label in zip(codes.tolist(), dataset.rows.tolist(), dataset.labels.tolist(), strict=True):
        cell = (label, dataset.manifest.source[row])
        assert found.setdefault(cell, shares[code]) == shares[code]
    return found


def test_strata(folder: Path, manifest: Manifest) -> None:
    def strata(sampling: str) -> dict[tuple[int, str], float]:
        return shares_of(ImageDataset(manifest, config_of(folder, data={"sampling": sampling}), "train"))

    assert set(strata("proportional").values()) == {1.0}
    assert strata("balanced") == pytest.approx({(0, "a"): 0.25, (1, "a"): 0.25, (0, "b"): 0.25, (1, "b"): 0.25})
    assert strata("weighted") == pytest.approx({(0, "a"): 0.375, (1, "a"): 0.375, (0, "b"): 0.125, (1, "b"): 0.125})


def test_strata_of_parts_of_a_source(folder: Path, manifest: Manifest) -> None:
    """Source a: `a/original` is real, `a/x` and `a/y` are fake; a weighs 3, b weighs 1."""
    import dataclasses

    def part(row: int) -> str:
        if manifest.source[row] == "b":
            return "b"
        return "a/original" if manifest.label[row] == 0 else ["a/x", "a/y"][row % 2]

    parts = dataclasses.replace(manifest, source=[part(row) for row in range(len(manifest))])
    weighted = shares_of(ImageDataset(parts, config_of(folder, data={"sampling": "weighted"}), "train"))
    assert weighted == pytest.approx(
        {(0, "a/original"): 0.375, (0, "b"): 0.125, (1, "a/x"): 0.1875, (1, "a/y"): 0.1875, (1, "b"): 0.125}
    )
    balanced = shares_of(ImageDataset(parts, config_of(folder, data={"sampling": "balanced"}), "train"))
    assert balanced == pytest.approx(
        {(0, "a/original"): 0.25, (0, "b"): 0.25, (1, "a/x"): 0.125, (1, "a/y"): 0.125, (1, "b"): 0.25}
    ), "a source holds the same share of both classes, or it would tell the label"


def test_balanced_order_over_the_strata(folder: Path, manifest: Manifest) -> None:
    dataset = ImageDataset(manifest, config_of(folder, data={"sampling": "balanced"}), "train")
    order = Order(*dataset.strata(), batch_size=8, seed=1)
    positions = np.concatenate([request.positions for request in order.requests(0, 30, rank=0, world_size=1)])
    assert dataset.labels[positions].mean() == pytest.approx(0.5, abs=0.03)
