import csv
import errno
import hashlib
import os
import shutil
import zipfile
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from trained_run import image_bytes, save_image, save_run

import hai
from hai.errors import CheckpointError, ConfigError, DataError, StorageError
from hai.faces.contact import CONTACT_SHEET
from hai.faces.crops import crop_file
from hai.faces.settings import PREPROCESS, CropSettings, with_model
from hai.predict import run_prediction


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(tmp_path_factory.mktemp("runs"), threshold=0.505, temperature=0.25)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 images, more than a batch."""
    root = tmp_path_factory.mktemp("images")
    for key in range(40):
        save_image(root / f"frame{key}.png", key, size=(30 + key, 50))
    return root


def table(path: Path, encoding: str = "utf-8") -> list[dict[str, str]]:
    with open(path, encoding=encoding, newline="") as file:
        return list(csv.DictReader(file))


def predict(run: Path, source: Path, tmp_path: Path, **options: object) -> list[dict[str, str]]:
    output = tmp_path / "out.csv"
    assert run_prediction([str(run)], [str(source)], str(output), **options) == 0  # type: ignore[arg-type]
    return table(output)


def test_one_row_per_file_in_natural_order(run: Path, folder: Path, tmp_path: Path) -> None:
    rows = predict(run, folder, tmp_path)
    assert [row["filename"] for row in rows] == [f"frame{key}.png" for key in range(40)]
    assert list(rows[0]) == ["filename", "probability_fake", "prediction", "num_frames", "num_faces", "error"]
    for row in rows:
        assert row["prediction"] == ("fake" if float(row["probability_fake"]) >= 0.505 else "real")
        assert (row["num_frames"], row["num_faces"], row["error"]) == ("1", "0", "")
    assert {row["prediction"] for row in rows} == {"real", "fake"}


def test_a_file_has_the_same_score_alone_and_in_a_batch(run: Path, folder: Path, tmp_path: Path) -> None:
    together = {row["filename"]: float(row["probability_fake"]) for row in predict(run, folder, tmp_path)}
    assert len(set(together.values())) > 30
    for name in ("frame0.png", "frame17.png", "frame39.png"):
        (alone,) = predict(run, folder / name, tmp_path)
        assert alone["filename"] == name
        assert float(alone["probability_fake"]) == pytest.approx(together[name], abs=1e-6)


def test_score_is_the_calibrated_probability_of_the_model(run: Path, folder: Path, tmp_path: Path) -> None:
    import torch

    from hai.config import load_config
    from hai.data.augment import normalise
    from hai.data.images import decode_image, fit_image
    from hai.models import build_model

    config = load_config(run / "run.yaml")
    model = build_model(config.model, 32, config.seed).eval()
    image = fit_image(decode_image((folder / "frame7.png").read_bytes()), 32, "resize")
    with torch.no_grad():
        logit = model(normalise(torch.from_numpy(image).permute(2, 0, 1)[None]))[0]
    expected = torch.sigmoid((logit[1] - logit[0]) / 0.25).item()
    (row,) = predict(run, folder / "frame7.png", tmp_path)
    assert float(row["probability_fake"]) == pytest.approx(expected, abs=1e-6)


def test_unusable_files_are_listed_and_change_no_other_score(run: Path, folder: Path, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    mixed = tmp_path / "mixed"
    shutil.copytree(folder, mixed)
    (mixed / "a.jpg").write_bytes(b"")
    (mixed / "frame5.png").write_bytes(b"no image")
    (mixed / "clip.MP4").write_bytes(b"video")
    (mixed / "notes.txt").write_text("not an image", encoding="utf-8")
    before = {row["filename"]: row for row in predict(run, folder, tmp_path)}
    capsys.readouterr()
    after = {row["filename"]: row for row in predict(run, mixed, tmp_path)}
    assert set(after) == set(before) | {"a.jpg", "clip.MP4"}
    errors = {name: row["error"] for name, row in after.items() if row["error"]}
    assert set(errors) == {"a.jpg", "clip.MP4", "frame5.png"}
    assert errors["a.jpg"] == "the file is empty"
    assert errors["clip.MP4"].startswith("cannot be opened as a video")
    for name, row in after.items():
        if row["error"]:
            assert (row["probability_fake"], row["prediction"], row["num_frames"]) == ("", "", "0")
        else:
            assert float(row["probability_fake"]) == pytest.approx(float(before[name]["probability_fake"]), abs=1e-6)
    told = capsys.readouterr()
    assert told.out.count("\n") == 1
    assert told.out.startswith("42 files: ")
    assert "3 unusable" in told.out
    assert "unusable: a.jpg: the file is empty" in told.err


def test_every_odd_file_is_scored_or_named(run: Path, real_data: Path, tmp_path: Path) -> None:
    rows = predict(run, real_data / "odd_inputs" / "files", tmp_path)
    files = [path.name for path in (real_data / "odd_inputs" / "files").iterdir() if path.suffix != ".rst"]
    assert sorted(row["filename"] for row in rows) == sorted(files)
    for row in rows:
        assert bool(row["error"]) != bool(row["probability_fake"])
    assert sum(not row["error"] for row in rows) > 30


def test_zip_is_unpacked_and_removed(
    run: Path,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HAI_CACHE", str(tmp_path / "cache"))
    archive = tmp_path / "images.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for name in ("frame10.png", "frame9.png"):
            file.write(folder / name, f"set/{name}")
        file.writestr("__MACOSX/set/._frame9.png", b"resource fork")
        file.writestr("set/more.dat", b"")
    rows = predict(run, archive, tmp_path)
    assert capsys.readouterr().err.startswith(f"note: {archive}: left out as neither images nor videos")
    assert [row["filename"] for row in rows] == ["set/frame9.png", "set/frame10.png"]
    direct = {row["filename"]: row["probability_fake"] for row in predict(run, folder, tmp_path)}
    assert rows[0]["probability_fake"] == direct["frame9.png"]
    assert [path for path in (tmp_path / "cache").rglob("*") if path.suffix == ".png"] == []


@pytest.mark.parametrize("trouble", [OSError(errno.EBUSY, "busy"), KeyboardInterrupt()])
def test_the_table_is_there_whatever_comes_of_the_removal(
    run: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: BaseException
) -> None:
    monkeypatch.setenv("HAI_CACHE", str(tmp_path / "cache"))
    archive = tmp_path / "images.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.write(folder / "frame9.png", "frame9.png")

    def remove(*_: object, **__: object) -> None:
        raise trouble

    monkeypatch.setattr(os, "rmdir", remove)
    with nullcontext() if isinstance(trouble, OSError) else pytest.raises(KeyboardInterrupt):
        predict(run, archive, tmp_path)
    (row,) = table(tmp_path / "out.csv")
    assert row["probability_fake"]


def test_zip_that_leaves_its_folder_is_refused(run: Path, tmp_path: Path) -> None:
    archive = tmp_path / "evil.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("../evil.png", image_bytes(1))
    with pytest.raises(DataError, match=r"leaves the folder"):
        predict(run, archive, tmp_path)
    assert not (tmp_path / "out.csv").exists()


def test_contest_tables(run: Path, folder: Path, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    mixed = tmp_path / "mixed"
    shutil.copytree(folder, mixed)
    (mixed / "broken.jpg").write_bytes(b"x")
    full = {row["filename"]: row for row in predict(run, mixed, tmp_path)}
    output = tmp_path / "out.csv"

    predict(run, mixed, tmp_path, format="dacon")
    assert output.read_bytes().startswith(b"\xef\xbb\xbffilename,prob\n")
    rows = table(output, "utf-8-sig")
    assert {row["filename"] for row in rows} == set(full)
    for row in rows:
        assert row["prob"] == (full[row["filename"]]["probability_fake"] or "0.5")

    rows = predict(run, mixed, tmp_path, format="aifactory")
    assert list(rows[0]) == ["filename", "label"]
    assert {row["label"] for row in rows} == {"0", "1"}
    for row in rows:
        if row["filename"] != "broken.jpg":
            assert row["label"] == str(int(full[row["filename"]]["prediction"] == "fake"))
    assert "unusable files have label" in capsys.readouterr().err


def test_logits_of_several_checkpoints_are_averaged(folder: Path, run: Path, tmp_path: Path) -> None:
    other = save_run(tmp_path / "runs", "other", seed=9, overrides=("data.image_size=40",), threshold=0.4)
    output = tmp_path / "out.csv"
    one, two = predict(run, folder, tmp_path), predict(other, folder, tmp_path)
    assert run_prediction([str(run), str(other)], [str(folder)], str(output)) == 0

    def logit(text: str) -> float:
        return float(np.log(float(text)) - np.log1p(-float(text)))

    threshold = 1 / (1 + np.exp(-(logit("0.505") + logit("0.4")) / 2))
    for a, b, mean in zip(one, two, table(output), strict=True):
        expected = (logit(a["probability_fake"]) + logit(b["probability_fake"])) / 2
        assert logit(mean["probability_fake"]) == pytest.approx(expected, abs=1e-4)
        assert mean["prediction"] == ("fake" if float(mean["probability_fake"]) >= threshold else "real")


def test_time_limit_leaves_a_whole_table(run: Path, folder: Path, tmp_path: Path) -> None:
    rows = predict(run, folder, tmp_path, time_limit="0.000001s")
    assert len(rows) == 40
    assert rows[-1]["error"] == "not reached within --time-limit = 0.000001s"


@pytest.mark.parametrize("format", ["dacon", "aifactory"])
@pytest.mark.parametrize("name", ["out.csv", "out"])
def test_the_full_table_lies_beside_that_of_a_contest(
    run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], format: str, name: str
) -> None:
    options = {"format": format, "time_limit": "0.000001s"}
    assert run_prediction([str(run)], [str(folder)], str(tmp_path / name), **options) == 0
    said = capsys.readouterr()
    beside = tmp_path / "out.full.csv"
    assert said.out.endswith(f" 40 unusable -> {tmp_path / name} (in full: {beside})\n")
    assert f"unusable: and 30 more, see {beside}\n" in said.err
    errors = {row["filename"]: row["error"] for row in table(beside)}
    assert len(errors) == 40
    assert set(errors.values()) == {"not reached within --time-limit = 0.000001s"}

    beside.unlink()
    beside.mkdir()
    assert run_prediction([str(run)], [str(folder)], str(tmp_path / name), **options) == 0
    assert f"note: {beside} cannot be written (Is a directory)\n" in capsys.readouterr().err
    assert len(table(tmp_path / name)) == 40


def test_files_without_a_face_stand_in_the_full_table(
    run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [str(folder / f"frame{key}.png") for key in range(4)]
    assert run_prediction([str(run)], images, str(tmp_path / "out.csv"), format="dacon", faces="always") == 0
    beside = tmp_path / "out.full.csv"
    names = f"frame0.png, frame1.png, frame2.png, ..., see num_faces in {beside}"
    assert f"note: no face in 4 files ({names}); the middle square was scored\n" in capsys.readouterr().err
    assert [row["num_faces"] for row in table(beside)] == ["0"] * 4


def test_all_wrong_arguments_are_named_at_once(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        run_prediction(
            [str(run), str(run)],
            [str(tmp_path / "absent"), str(tmp_path / "gone")],
            str(tmp_path),
            format="dacon",
            faces="some",
            aggregate="sum",
            sample=str(tmp_path / "sample.csv"),
            tta="flip",
            time_limit="soon",
        )
    lines = str(caught.value).split("\n")
    starts = ["--faces = some", "--aggregate = sum", "--checkpoint is given 2 times", "--tta = flip; --format dacon"]
    starts += [f"--input = {tmp_path / 'absent'}; no such", f"--input = {tmp_path / 'gone'}; no such"]
    starts += ["--sample = ", "--time-limit = soon", f"--output = {tmp_path}; is a folder"]
    assert len(lines) == len(starts)
    for line, start in zip(lines, starts, strict=True):
        assert line.startswith(start), line


def test_output_that_is_no_plain_file(run: Path, folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"--output = /dev/null; is no plain file; name one such as predictions\.csv"):
        run_prediction([str(run)], [str(folder)], "/dev/null")


def test_output_that_cannot_be_written(run: Path, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"--output = .*; the folder that it lies in cannot be written"):
        run_prediction([str(run)], [str(folder)], str(tmp_path / "file" / "out.csv"))


def test_empty_folder_and_absent_checkpoint(run: Path, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no image or video in it"):
        predict(run, tmp_path / "empty", tmp_path)
    with pytest.raises(CheckpointError, match="no such folder"):
        predict(tmp_path / "absent", folder, tmp_path)
    with pytest.raises(CheckpointError):
        predict(folder, folder, tmp_path)


def test_a_failure_leaves_the_old_table(run: Path, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.csv"
    output.write_text("old", encoding="utf-8")
    with pytest.raises(CheckpointError):
        run_prediction([str(tmp_path / "absent")], [str(folder)], str(output))
    assert output.read_text(encoding="utf-8") == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]


def test_a_table_that_cannot_be_written_is_kept_elsewhere(run: Path, folder: Path, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("HAI_CACHE", str(tmp_path / "cache"))
    output = tmp_path / "out.csv"
    real = os.replace

    def replace(source: Path, target: Path) -> None:
        if Path(target) == output:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(source, target)

    monkeypatch.setattr("os.replace", replace)
    with pytest.raises(StorageError, match=r"No space left on device\); the whole table is at .*out\.csv instead"):
        run_prediction([str(run)], [str(folder / "frame1.png")], str(output))
    (row,) = table(tmp_path / "cache" / "predict" / "out.csv")
    assert row["filename"] == "frame1.png"
    assert row["probability_fake"]


def test_same_name_in_two_inputs(run: Path, folder: Path, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    image = str(folder / "frame1.png")
    output = tmp_path / "out.csv"
    assert run_prediction([str(run)], [image, image], str(output)) == 0
    assert len(table(output)) == 2
    assert "name that occurs in more than one input: frame1.png" in capsys.readouterr().err
    with pytest.raises(DataError, match="needs one row per name"):
        run_prediction([str(run)], [image, image], str(output), format="aifactory")


def test_file_names_that_are_not_utf8(run: Path, tmp_path: Path) -> None:
    odd = tmp_path / "in"
    odd.mkdir()
    (odd / "\udce9t\udce9.png").write_bytes(image_bytes(1))
    (odd / "사진,1.png").write_bytes(image_bytes(2))
    rows = predict(run, odd, tmp_path)
    assert {row["filename"] for row in rows} == {"\\udce9t\\udce9.png", "사진,1.png"}
    assert all(not row["error"] for row in rows)


def test_crop_and_wide_images(tmp_path: Path) -> None:
    run = save_run(tmp_path / "runs", overrides=("data.geometry=crop",))
    save_image(tmp_path / "in" / "wide.png", 1, size=(400, 3))
    save_image(tmp_path / "in" / "dot.png", 1, size=(1, 1))
    rows = predict(run, tmp_path / "in", tmp_path)
    assert [row["prediction"] in ("real", "fake") for row in rows] == [True, True]


def test_a_sample_gives_names_and_order(run: Path, folder: Path, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    sample = tmp_path / "sample.csv"
    sample.write_bytes("\ufefffilename,prob\nframe9.png,0\nframe2.png,0\nabsent.mp4,0\nTEST/frame11.png,0\n".encode())
    full = {row["filename"]: row["probability_fake"] for row in predict(run, folder, tmp_path)}
    output = tmp_path / "out.csv"
    assert run_prediction([str(run)], [str(folder)], str(output), format="dacon", sample=str(sample)) == 0
    rows = table(output, "utf-8-sig")
    assert [row["filename"] for row in rows] == ["frame9.png", "frame2.png", "absent.mp4", "TEST/frame11.png"]
    found = [row["prob"] for row in rows]
    assert [float(prob) for prob in found] == pytest.approx(
        [float(full["frame9.png"]), float(full["frame2.png"]), 0.5, float(full["frame11.png"])], abs=1e-5
    )
    said = capsys.readouterr().err
    assert "37 files of the input are not in" in said
    assert "unusable: absent.mp4: is in the sample and not in the input" in said


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("name,prob\na,0\n", "no column filename; columns are name, prob"),
        ("filename\n", "it has no rows"),
        ("filename\na.png\na.png\n", "'a.png' occurs twice"),
        ("filename\nx.png\n", "names none of the files"),
        ("filename\nsame.png\n", "same.png could be a/same.png or b/same.png"),
    ],
)
def test_samples_that_cannot_be_used(run: Path, tmp_path: Path, text: str, reason: str) -> None:
    for name in ("a/same.png", "b/same.png", "a.png"):
        save_image(tmp_path / "in" / name, 1)
    (tmp_path / "sample.csv").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=reason):
        predict(run, tmp_path / "in", tmp_path, sample=str(tmp_path / "sample.csv"))


def test_faces_are_cut_as_in_training(raw: Path, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    settings = CropSettings(frames=4, image_size=96)
    trained = save_run(tmp_path / "runs", "cut", crop_settings=settings, temperature=0.25)
    source = tmp_path / "in"
    source.mkdir()
    for name in ("real/person1.mp4", "fake/FaceSwap/nobody.mp4", "real/broken.mp4"):
        shutil.copyfile(raw / name, source / Path(name).name)
    rows = {row["filename"]: row for row in predict(trained, source, tmp_path, frames=4)}
    counts = {name: (row["num_frames"], row["num_faces"]) for name, row in rows.items()}
    assert counts == {"broken.mp4": ("0", "0"), "nobody.mp4": ("4", "0"), "person1.mp4": ("4", "4")}
    assert "no face in 1 files (nobody.mp4); the middle square" in capsys.readouterr().err

    crops = tmp_path / "crops" / "train" / "real"
    crops.mkdir(parents=True)
    (tmp_path / "crops" / PREPROCESS).write_text("{}", encoding="utf-8")
    for crop in crop_file(source / "person1.mp4", "video", settings).crops:
        (crops / f"{crop.frame}.jpg").write_bytes(crop.data)
    (tmp_path / "crops" / CONTACT_SHEET).write_bytes(image_bytes(1, kind="JPEG"))
    ready = predict(trained, tmp_path / "crops", tmp_path)
    assert [row["num_faces"] for row in ready] == ["0"] * 4
    logits = [np.log(p / (1 - p)) for p in (float(row["probability_fake"]) for row in ready)]
    mean = 1 / (1 + np.exp(-np.mean(logits)))
    assert float(rows["person1.mp4"]["probability_fake"]) == pytest.approx(mean, abs=1e-5)

    never = {row["filename"]: row for row in predict(trained, source, tmp_path, frames=4, faces="never")}
    assert never["person1.mp4"]["num_faces"] == "0"
    assert never["person1.mp4"]["probability_fake"] != rows["person1.mp4"]["probability_fake"]
    plain = save_run(tmp_path / "runs", "plain")
    always = predict(plain, source / "person1.mp4", tmp_path, frames=4, faces="always")
    assert always[0]["num_faces"] == "4"
    for checkpoints in ([trained, plain], [plain, trained]):
        output = tmp_path / "both.csv"
        assert (
            run_prediction([str(run) for run in checkpoints], [str(source / "person1.mp4")], str(output), frames=4) == 0
        )
        assert table(output)[0]["num_faces"] == "4"


def test_a_detector_that_is_not_here_is_said_at_once(run: Path, folder: Path, tmp_path: Path) -> None:
    trained = save_run(tmp_path / "runs", crop_settings=mediapipe(tmp_path / "gone.tflite"))
    with pytest.raises(ConfigError, match=r"gone\.tflite; mediapipe's model is not there.*--faces never"):
        predict(trained, folder, tmp_path)
    assert len(predict(trained, folder, tmp_path, faces="never")) == 40
    with pytest.raises(ConfigError, match=r"--detector-model = x; mediapipe cuts no faces out here; leave it out"):
        predict(run, folder, tmp_path, detector_model="x")


def mediapipe(model: Path) -> CropSettings:
    sha256 = hashlib.sha256(b"a model").hexdigest()
    return CropSettings(detector="mediapipe", detector_model=str(model), detector_sha256=sha256)


def test_the_model_of_a_detector_may_have_moved_and_must_be_the_same(tmp_path: Path, folder: Path) -> None:
    moved, other = tmp_path / "moved.tflite", tmp_path / "other.tflite"
    moved.write_bytes(b"a model")
    other.write_bytes(b"another")
    assert with_model(mediapipe(moved), None) == mediapipe(moved)
    run = save_run(tmp_path / "runs", crop_settings=mediapipe(tmp_path / "gone.tflite"))
    with pytest.raises(ConfigError, match=r"other\.tflite; its sha256 begins .* \(gone\.tflite\) with .*; give"):
        predict(run, folder, tmp_path, detector_model=str(other))
    with pytest.raises(ConfigError, match=r"no.tflite; mediapipe's model is not there; or"):
        predict(run, folder, tmp_path, detector_model="no.tflite")
    reached = "mediapipe is not installed|moved.tflite; is no face detector"  # that model is none
    with pytest.raises(ConfigError, match=reached):
        predict(run, folder, tmp_path, detector_model=str(moved))
    with pytest.raises(ConfigError, match=reached):
        hai.load(run, "cpu", detector_model=moved)(next(folder.rglob("*.png")))
