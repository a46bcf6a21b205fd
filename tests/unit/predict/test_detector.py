"""Scoring from Python: three lines, and the scores of the command."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from ranked_run import save_ranker
from trained_run import save_image, save_run
from videos import numbered, save_video

import hai
from hai.errors import ConfigError, DataError
from hai.predict import Detector, load_detector, run_prediction
from hai.score_scale import Scale


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(tmp_path_factory.mktemp("runs"), threshold=0.505, temperature=0.25)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("files")
    for key in range(5):
        save_image(root / f"{key}.png", key)
    save_video(root / "clip.mp4", numbered(20))
    return root


def test_files_pixels_and_pillow_images_have_the_scores_of_the_command(run: Path, folder: Path, tmp_path: Path) -> None:
    assert run_prediction([str(run)], [str(folder)], str(tmp_path / "out.csv"), frames=5) == 0
    with open(tmp_path / "out.csv", encoding="utf-8", newline="") as file:
        rows = {row["filename"]: row for row in csv.DictReader(file)}
    model = hai.load(run)
    assert isinstance(model, Detector)
    files = [folder / name for name in rows]
    found = model.predict(files, frames=5)
    for one, row in zip(found, rows.values(), strict=True):
        assert one.probability_fake == pytest.approx(float(row["probability_fake"]), abs=1e-5)
        assert (one.prediction, one.num_frames, one.num_faces) == (row["prediction"], int(row["num_frames"]), 0)
    picture = folder / "2.png"
    with Image.open(picture) as opened:
        pixels = np.array(opened)
        reversed_twice = pixels[:, :, ::-1].copy()[:, :, ::-1]
        mixed = model([str(picture), picture.read_bytes(), pixels, reversed_twice, opened, picture])
    assert mixed == pytest.approx(np.full(6, float(rows["2.png"]["probability_fake"])), abs=1e-5)


def test_one_image_needs_no_list(run: Path, folder: Path) -> None:
    model = load_detector(run)
    assert model(folder / "1.png") == model([folder / "1.png"])
    assert model(np.zeros((9, 9, 3), np.uint8)).shape == (1,)
    assert model([]).shape == (0,)
    assert model(np.array([str(folder / "1.png"), str(folder / "2.png")])).shape == (2,)
    with pytest.raises(
        DataError, match=r"^image 0: pixels are uint8 \[9, 9\]; must be uint8 \[height, width, 3\], RGB$"
    ):
        model(np.zeros((9, 9), np.uint8))


def test_wrong_options_are_named(run: Path, folder: Path) -> None:
    model = load_detector(run)
    with pytest.raises(ConfigError) as caught:
        model([folder / "1.png"], faces="some", aggregate="sum", frames=0)
    assert str(caught.value).split("\n") == [
        "faces = some; must be auto, always or never",
        "aggregate = sum; must be one of mean, median, topk, max",
        "frames = 0; must be at least 1",
    ]


def test_unusable_images_are_named(run: Path, folder: Path, tmp_path: Path) -> None:
    model = load_detector(run)
    (tmp_path / "bad.jpg").write_bytes(b"nothing")
    images = [folder / "1.png", tmp_path / "bad.jpg", np.zeros((4, 4), np.uint8), b""]
    with pytest.raises(DataError) as caught:
        model(images)
    lines = str(caught.value).split("\n")
    assert [line.split(":")[0] for line in lines] == [str(tmp_path / "bad.jpg"), "image 2", "image 3"]
    assert "must be uint8 [height, width, 3]" in lines[1]
    found = model.predict(images)
    assert [bool(one.error) for one in found] == [False, True, True, True]
    assert np.isnan(found[1].probability_fake)


def test_rankers_load_too_and_are_no_detectors(tmp_path: Path) -> None:
    from hai.ranking import Ranker

    ranker = save_ranker(tmp_path, "ranker", Scale())
    assert isinstance(hai.load(ranker), Ranker)
    with pytest.raises(ConfigError, match="not a detector"):
        load_detector(ranker)


def test_photographs_of_phones_are_not_refused(run: Path) -> None:
    from hai.predict.run import view_for
    from hai.trained import load_trained

    assert view_for(load_trained(str(run), torch.device("cpu")), "auto").max_megapixels == 120
