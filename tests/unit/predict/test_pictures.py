"""What a model is shown of a file: crops as preprocessing makes them, the middle where there is no face."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from trained_run import save_image
from videos import face_photo, numbered, save_video, wall, with_face

from hai.data.images import decode_image
from hai.faces.crops import crop_file
from hai.faces.settings import PREPROCESS, CropSettings, as_record
from hai.predict import pictures
from hai.predict.aggregate import aggregate
from hai.predict.files import is_ready_crop
from hai.predict.pictures import Job, Pictures, View, load_pictures

SETTINGS = CropSettings(frames=4, image_size=96)
CUT = View(96, "resize", 40.0, SETTINGS)
PLAIN = View(32, "resize", 40.0)


def look(view: View, path: Path, **options: object) -> Pictures:
    return load_pictures(view, Job(0, path, **options))  # type: ignore[arg-type]


def test_an_image_is_one_picture_fitted_once(tmp_path: Path) -> None:
    path = save_image(tmp_path / "a.png", 1, size=(50, 40))
    found = look(PLAIN, path)
    assert found.pixels.shape == (1, 32, 32, 3)
    assert (found.num_faces, found.error, found.num_read) == (0, "", 1)
    for other in (path.read_bytes(), np.array(Image.open(path))):
        assert np.array_equal(load_pictures(PLAIN, Job(0, other)).pixels, found.pixels)


def test_frames_of_a_video_are_spread_evenly(tmp_path: Path) -> None:
    path = save_video(tmp_path / "a.mp4", numbered(40))
    found = look(View(16, "resize", 40.0), path, frames=4)
    assert found.pixels.shape == (4, 16, 16, 3)
    gray = found.pixels[:, 8:, 8:].mean(axis=(1, 2, 3)) / 4
    assert np.abs(gray - [5, 15, 25, 35]).max() < 1
    assert len(look(PLAIN, path, frames=100).pixels) == 40


def test_unusable_files_say_why(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"")
    (tmp_path / "b.jpg").write_bytes(b"no image")
    assert look(PLAIN, tmp_path / "a.mp4").error == "the file is empty"
    assert "not an image" in look(PLAIN, tmp_path / "b.jpg").error
    assert "cannot be read" in look(PLAIN, tmp_path / "absent.png").error
    assert len(look(PLAIN, tmp_path / "b.jpg").pixels) == 0


def test_a_detector_that_fails_costs_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("shapes\n differ")

    monkeypatch.setattr(pictures, "crop_pictures", fail)
    found = look(CUT, save_image(tmp_path / "a.png", 1))
    assert (len(found.pixels), found.error) == (0, "cannot be looked at (RuntimeError: shapes differ)")


def test_pictures_are_the_crops_that_training_saw(raw: Path) -> None:
    path = raw / "real/person1.mp4"
    crops = crop_file(path, "video", SETTINGS).crops
    assert len(crops) == 4
    found = look(CUT, path, frames=4)
    assert (found.num_faces, found.num_read) == (4, 4)
    assert np.array_equal(found.pixels, np.stack([decode_image(crop.data) for crop in crops]))
    assert found.reading > 0
    assert found.looking > 0


def test_the_middle_square_stands_in_for_a_face(raw: Path, tmp_path: Path) -> None:
    found = look(CUT, raw / "fake/FaceSwap/nobody.mp4", frames=4)
    assert (len(found.pixels), found.num_faces, found.error) == (4, 0, "")
    Image.fromarray(wall()[:, 40:280]).save(tmp_path / "middle.png")
    middle = look(View(96, "resize", 40.0), tmp_path / "middle.png").pixels[0]
    assert np.abs(found.pixels[0].astype(int) - middle).mean() < 3


def test_a_ready_crop_stays_as_it_is(raw: Path, tmp_path: Path) -> None:
    image = with_face(wall(480, 640), face_photo(), 200, 100)
    Image.fromarray(image).save(tmp_path / "frame.png")
    assert look(CUT, tmp_path / "frame.png").num_faces == 1
    (crop,) = crop_file(tmp_path / "frame.png", "image", SETTINGS).crops
    (tmp_path / "crop.jpg").write_bytes(crop.data)
    again = look(CUT, tmp_path / "crop.jpg")
    assert np.array_equal(again.pixels[0], decode_image(crop.data))
    assert again.num_faces == 1
    assert look(CUT, tmp_path / "frame.png", is_ready=True).num_faces == 0


def test_crops_of_preprocessing_are_known_by_their_place(tmp_path: Path) -> None:
    inside = save_image(tmp_path / "crops/train/real/a.png", 1)
    outside = save_image(tmp_path / "other/train/real/a.png", 1)
    (tmp_path / "crops" / PREPROCESS).write_text(json.dumps({"settings": as_record(SETTINGS)}), encoding="utf-8")
    assert is_ready_crop(inside)
    assert not is_ready_crop(outside)
    for name in ("test/clip.mp4", "test/a.png", "a.png", "train/real/clip.mp4", "train/real/more/a.png"):
        assert not is_ready_crop(tmp_path / "crops" / name), f"{name} was put there by somebody else"


def test_image_of_pillow_is_its_file(tmp_path: Path) -> None:
    from hai.data.images import rgb_pixels

    rng = np.random.default_rng(3)
    gray = Image.fromarray(rng.integers(0, 256, (20, 30), dtype=np.uint8))
    clear = Image.fromarray(rng.integers(0, 256, (20, 30, 4), dtype=np.uint8), "RGBA")
    for image in (gray, clear, gray.convert("P"), gray.convert("CMYK").convert("RGB")):
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        with Image.open(io.BytesIO(buffer.getvalue())) as opened:
            assert np.array_equal(rgb_pixels(opened), decode_image(buffer.getvalue()))
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    gray.convert("RGB").save(buffer, "JPEG", exif=exif)
    with Image.open(io.BytesIO(buffer.getvalue())) as opened:
        assert rgb_pixels(opened).shape == (30, 20, 3)
        assert np.array_equal(rgb_pixels(opened), decode_image(buffer.getvalue()))


@pytest.mark.parametrize(("how", "value"), [("mean", 3.0), ("median", 2.5), ("topk", 7.5), ("max", 8.0)])
def test_aggregates(how: str, value: float) -> None:
    assert aggregate(
        np.array([8.0, 0.0, 3.0, 1.0, 7.0, 2.0, 1.0, 2.0]) if how == "topk" else np.array([1.0, 2, 3, 8, 1, 3]), how
    ) == (value)


def test_topk_of_few_frames_is_the_highest() -> None:
    assert aggregate(np.array([1.0, 5.0, 2.0]), "topk") == 5.0
