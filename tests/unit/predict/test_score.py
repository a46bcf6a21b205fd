"""Many files on their way: batches across files, several devices, memory that runs out, processes that die."""

from __future__ import annotations

import multiprocessing
import os
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from trained_run import save_image, save_run
from videos import numbered, save_video

from hai.faces.pool import CRASHED
from hai.predict import end_process
from hai.predict import score as score_module
from hai.predict.ahead import read_ahead
from hai.predict.files import Row
from hai.predict.lanes import Lanes
from hai.predict.pictures import Job, Pictures, View
from hai.predict.score import score_rows
from hai.trained import Trained, load_trained

CPU = torch.device("cpu")
VIEW = View(32, "resize", 40.0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return load_trained(str(save_run(tmp_path_factory.mktemp("runs"), temperature=0.25)), CPU)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """30 images and 3 videos, with batches of 16 none of which holds whole videos only."""
    root = tmp_path_factory.mktemp("files")
    paths = [save_image(root / f"{key}.png", key) for key in range(30)]
    clips = [save_video(root / f"{key}.mp4", numbered(20)[key:]) for key in range(3)]
    return [*paths[:7], clips[0], *paths[7:20], *clips[1:], *paths[20:]]


def scored(files: list[Path], trained: Trained, **options: object) -> list[float]:
    rows = [Row(path.name, path) for path in files]
    score_rows(rows, [trained], VIEW, frames=7, in_processes=False, **options)  # type: ignore[arg-type]
    assert all(not row.error for row in rows)
    assert [row.num_frames for row in rows] == [7 if path.suffix == ".mp4" else 1 for path in files]
    return [row.logits[0] for row in rows]


def test_files_keep_their_own_logits_in_shared_batches(files: list[Path], trained: Trained) -> None:
    together = scored(files, trained)
    alone = [scored([path], trained)[0] for path in files[5:10]]
    assert together[5:10] == pytest.approx(alone, abs=1e-5)
    assert len(set(together)) == len(files)


def test_all_devices_work_and_agree(files: list[Path], trained: Trained) -> None:
    one, three = scored(files, trained, devices=[CPU]), scored(files, trained, devices=[CPU, CPU, CPU])
    assert three == pytest.approx(one, abs=1e-5)


def test_a_video_is_the_aggregate_of_its_frames(files: list[Path], trained: Trained) -> None:
    clip = [path for path in files if path.suffix == ".mp4"][:1]
    means, most = scored(clip, trained), scored(clip, trained, how="max")
    assert most[0] > means[0]


def test_flipped_pictures_are_averaged(tmp_path: Path, trained: Trained) -> None:
    files = [save_image(tmp_path / f"{key}.png", key, size=(VIEW.size, VIEW.size)) for key in range(5)]
    mirrored = [tmp_path / f"mirrored_{path.name}" for path in files]
    for path, mirror in zip(files, mirrored, strict=True):
        with Image.open(path) as image:
            ImageOps.mirror(image).save(mirror)
    plain, other = (np.array(scored(paths, trained)) for paths in (files, mirrored))
    assert np.abs(plain - other).min() > 1e-3, "noise is not symmetric"
    assert scored(files, trained, flip=True) == pytest.approx((plain + other) / 2, abs=1e-5)


def test_a_batch_that_does_not_fit_is_halved(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    class Small(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            sizes.append(len(image))
            if len(image) > 3:
                raise torch.OutOfMemoryError("out of memory")
            return torch.stack([torch.zeros(len(image)), image.mean(dim=(1, 2, 3))], dim=1)

    pixels = np.arange(10, dtype=np.uint8)[:, None, None, None] * np.ones((1, 32, 32, 3), np.uint8)
    with Lanes([replace(trained, model=Small())], [CPU]) as lanes:
        logits = lanes.submit(pixels).result().logits
    assert logits.shape == (1, 10)
    assert np.all(np.diff(logits[0]) > 0)
    assert max(sizes) == 10
    assert sizes.count(1) + sizes.count(2) + sizes.count(3) >= 4


def test_an_error_of_the_model_is_raised(files: list[Path], trained: Trained) -> None:
    class Broken(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            raise ValueError("no such thing")

    with pytest.raises(ValueError, match="no such thing"):
        scored(files, replace(trained, model=Broken()))


def test_what_cannot_be_reached_in_time_has_no_logits(files: list[Path], trained: Trained) -> None:
    rows = [Row(path.name, path) for path in files]
    score_rows(rows, [trained], VIEW, frames=7, seconds=-1.0)
    assert all(not row.logits and not row.error for row in rows)


def test_rows_without_a_file_are_passed_over(files: list[Path], trained: Trained) -> None:
    rows = [Row("gone", None, error="nowhere"), Row("here", files[0])]
    seen: list[tuple[int, int]] = []
    score_rows(rows, [trained], VIEW, frames=1, show=lambda done, total: seen.append((done, total)))
    assert (rows[0].error, rows[0].logits) == ("nowhere", [])
    assert len(rows[1].logits) == 1
    assert seen == [(1, 1)]


def test_threads_leave_torch_as_it_was(files: list[Path]) -> None:
    before = torch.get_num_threads()
    jobs = [Job(key, path, 4) for key, path in enumerate(files)]
    found = list(read_ahead(jobs, VIEW, in_processes=False, num_workers=2, stop=lambda: False))
    assert [job.key for job, _ in found] == list(range(len(files)))
    assert torch.get_num_threads() == before


def test_lanes_leave_torch_as_it_was_and_agree_however_many_threads_compute(trained: Trained) -> None:
    before = torch.get_num_threads()
    pixels = np.random.default_rng(0).integers(0, 256, (5, VIEW.size, VIEW.size, 3), dtype=np.uint8)
    cpu = torch.device("cpu")
    with Lanes([trained], [cpu]) as one, Lanes([trained], [cpu, cpu], num_threads=1) as two:
        expected = one.submit(pixels).result().logits
        found = [future.result().logits for future in [two.submit(pixels) for _ in range(4)]]
        (inside,) = {two._pool.submit(torch.get_num_threads).result() for _ in range(4)}
    assert inside == 1
    assert torch.get_num_threads() == before
    for logits in found:
        np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_abandoned_lanes_are_left_without_waiting_and_a_process_ends_without_them(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, may_end = threading.Event(), threading.Event()
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)

    class Stuck(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            begun.set()
            assert may_end.wait(60)
            return torch.zeros(len(image), 2)

    try:
        with Lanes([replace(trained, model=Stuck())], [CPU]) as lanes:
            running, queued = (lanes.submit(np.zeros((1, 32, 32, 3), np.uint8)) for _ in range(2))
            assert begun.wait(60)
            lanes.abandon()
        assert running.running()
        assert queued.cancelled()
        with pytest.raises(SystemExit):
            end_process(0)
        assert ended == [0]
    finally:
        may_end.set()
    lanes._pool.shutdown(wait=True)
    assert running.result().logits.shape == (1, 1)


def test_a_process_ends_as_usual_after_lanes_that_were_waited_for(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "_exit")
    with Lanes([trained], [CPU]) as lanes:
        lanes.submit(np.zeros((1, 32, 32, 3), np.uint8))
    with pytest.raises(SystemExit) as ended:
        end_process(3)
    assert ended.value.code == 3


def dies_at_three(view: View, job: Job) -> Pictures:
    if job.key == 3:
        assert multiprocessing.parent_process() is not None, "the command itself would end"
        os.abort()
    return Pictures(np.full((1, view.size, view.size, 3), job.key, np.uint8))


@pytest.mark.slow
def test_a_file_that_crashes_its_decoder_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    from hai.predict import ahead

    monkeypatch.setattr(ahead, "load_pictures", dies_at_three)
    jobs = (Job(key, Path(f"{key}.mp4")) for key in range(8))
    found = dict(read_ahead(jobs, View(2, "resize", 1.0), in_processes=True, num_workers=2, stop=lambda: False))
    assert sorted(job.key for job in found) == list(range(8))
    assert [job.key for job, pictures in found.items() if pictures.error == CRASHED] == [3]


@pytest.mark.slow
def test_a_lone_video_that_crashes_its_decoder_is_listed(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    from hai.predict import ahead

    monkeypatch.setattr(ahead, "load_pictures", dies_at_three)
    rows = [Row(name, Path(name)) for name in ("0.png", "1.png", "2.png", "3.mp4")]
    score_rows(rows, [trained], VIEW, frames=1)
    assert [row.error for row in rows] == ["", "", "", CRASHED]
    assert [len(row.logits) for row in rows] == [1, 1, 1, 0]


@pytest.mark.slow
def test_processes_and_threads_see_the_same(files: list[Path], trained: Trained) -> None:
    rows = [Row(path.name, path) for path in files]
    score_rows(rows, [trained], VIEW, frames=7, in_processes=True)
    assert [row.logits[0] for row in rows] == pytest.approx(scored(files, trained), abs=1e-6)


def test_both_kinds_are_measured_first() -> None:
    keys = list(range(10))
    ordered = score_module._both_kinds_first(keys, {7, 8, 9}, 2)
    assert ordered[:4] == [7, 8, 0, 1]
    assert sorted(ordered) == keys
