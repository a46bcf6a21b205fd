"""Preprocessing: what is written, what is kept when it goes on, and what is refused."""

import csv
import json
import os
import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import simplejpeg
import torch
from videos import face_photo, numbered, save_video, wall, with_face

from hai.config import load_config
from hai.data.images import decode_image
from hai.data.layouts import RawFile, RawSet, list_raw
from hai.data.manifest import build_manifest
from hai.errors import ConfigError, DataError, StorageError
from hai.faces import contact, preprocess
from hai.faces.boxes import Face, square_around
from hai.faces.contact import draw_contact_sheet
from hai.faces.crops import Crop, Harvest, crop_file
from hai.faces.division import plan_splits
from hai.faces.journal import FileRecord, append_record, load_records
from hai.faces.preprocess import Request, run_preprocessing
from hai.faces.settings import CropSettings, build_settings, load_settings

SETTINGS = CropSettings(frames=4, image_size=96)
PIXELS = simplejpeg.encode_jpeg(np.zeros((8, 8, 3), dtype=np.uint8))


@pytest.fixture
def described(monkeypatch):
    """Describe the detector without its weights, for tests that use none."""
    monkeypatch.setattr(preprocess, "describe_detector", lambda name, *_: {"name": name})


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Two threads on small pictures are slower than one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def in_this_process(jobs, settings, stop):
    for job in jobs:
        if stop():
            return
        yield job, crop_file(job.path, job.kind, settings)


def run(raw, output, settings=SETTINGS, cropper=in_this_process, stop=lambda: False, **more):
    said = []
    request = Request(raw, output, settings, **more)
    return run_preprocessing(request, cropper, say=said.append, stop=stop), said


@pytest.fixture(scope="module")
def made(raw, tmp_path_factory):
    output = tmp_path_factory.mktemp("made") / "crops"
    result, _ = run(raw, output)
    return output, result


def table(output):
    with open(output / "labels.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_file_is_accounted_for(raw, made):
    output, result = made
    summary = result["summary"]
    assert summary["files"] == 13
    assert (summary["videos"], summary["images"]) == (12, 1)
    assert sorted(summary["unusable"]) == ["fake/Deepfakes/empty.mp4", "real/broken.mp4"]
    assert summary["unusable"]["fake/Deepfakes/empty.mp4"] == "the file is empty"
    assert summary["without_face"] == ["fake/FaceSwap/nobody.mp4"]
    assert summary["files_with_faces"] == 10
    assert (summary["frames"], summary["frames_with_faces"]) == (41, 37)
    assert summary["crops"] == len(table(output)) == 37
    assert sum(part["crops"] for part in summary["by_split"].values()) == 37
    by_source = {(part["label"], part["source"]): part["files"] for part in summary["by_source"]}
    assert by_source == {("real", ""): 6, ("fake", "Deepfakes"): 5, ("fake", "FaceSwap"): 2}


def test_crops_lie_where_the_table_and_the_folders_say(made):
    output, _ = made
    rows = table(output)
    on_disk = {path.relative_to(output).as_posix() for path in output.glob("*/*/*.jpg")}
    assert on_disk == {row["path"] for row in rows}
    for row in rows:
        assert row["path"].startswith(f"{row['split']}/{row['label']}/")
        assert decode_image((output / row["path"]).read_bytes()).shape == (96, 96, 3)
    assert {row["source"] for row in rows if row["label"] == "fake"} == {"Deepfakes", "FaceSwap"}


def test_the_contact_sheet_has_a_row_for_each_video_and_one_for_what_has_no_face(made):
    sheet = decode_image((made[0] / "contact_sheet.jpg").read_bytes())
    assert sheet.shape == (11 * 116 + 4, 210 + 8 * 116 + 4, 3)  # 9 videos, the image, the wall
    tiles = [[sheet[10 + 116 * row : 110 + 116 * row, 216 + 116 * column : 316 + 116 * column] for column in range(8)]
             for row in range(11)]  # fmt: skip
    assert [sum(tile.std() > 5 for tile in row) for row in tiles] == [4] * 9 + [1, 1]


def test_rows_name_their_video(made):
    for row in table(made[0]):
        assert row["video"].startswith(f"{row['label']}/")
    assert len({row["video"] for row in table(made[0])}) == 10


def test_no_video_is_on_both_sides(made):
    splits = {}
    for row in table(made[0]):
        splits.setdefault(row["group"], set()).add(row["split"])
    assert all(len(found) == 1 for found in splits.values())
    assert Counter(split for found in splits.values() for split in found)["val"] >= 1


def test_the_crop_shows_the_face_in_every_frame(raw, made):
    output, _ = made
    face = face_photo().astype(np.float64)
    records = load_records(output / "files.jsonl")
    lefts = []
    for crop in records["real/person0.mp4"].crops:
        image = decode_image((output / crop.path).read_bytes()).astype(np.float64)
        assert abs(image.mean() - face[40:160, 30:130].mean()) < 30
        lefts.append(crop.box[0])
    frames = [crop.frame for crop in records["real/person0.mp4"].crops]
    assert frames == [1, 3, 5, 7]
    assert lefts[-1] - lefts[0] == pytest.approx(18, abs=6)  # it moves 3 pixels a frame


def test_training_reads_the_crops_with_their_groups_and_splits(made, tmp_path):
    output, _ = made
    config = load_config("configs/detector/quick.yaml", [f"data.sources=[{{name: crops, path: '{output}'}}]"])
    manifest = build_manifest(config.data, 42, require=("train", "val"))
    assert len(manifest) == 37
    assert not manifest.problems
    assert set(manifest.source) == {"crops", "crops/Deepfakes", "crops/FaceSwap"}


def test_the_settings_come_back_from_the_file(made):
    assert load_settings(made[0] / "preprocess.json") == SETTINGS
    head = json.loads((made[0] / "preprocess.json").read_text(encoding="utf-8"))
    assert head["status"] == "finished"
    assert head["detectors"][0]["version"]
    assert set(head["detectors"][0]["sha256"]) == {"pnet", "rnet", "onet"}


def test_a_finished_output_is_left_as_it_is(raw, made, tmp_path):
    output = shutil.copytree(made[0], tmp_path / "crops")
    times = {path: path.stat().st_mtime_ns for path in output.glob("*/*/*.jpg")}
    asked = []

    def cropper(jobs, settings, stop):
        jobs = list(jobs)
        asked.extend(job.name for job in jobs)
        yield from in_this_process(jobs, settings, stop)

    run(raw, output, cropper=cropper)
    assert asked == ["fake/Deepfakes/empty.mp4", "real/broken.mp4"]  # perhaps they can be read now
    assert times == {path: path.stat().st_mtime_ns for path in output.glob("*/*/*.jpg")}
    assert contents(output) == contents(made[0])


@pytest.mark.parametrize("after", [1, 7])
def test_what_was_stopped_goes_on_to_the_same_end(raw, made, tmp_path, after):
    output, seen = tmp_path / "crops", []

    def backwards(jobs, settings, stop):
        for result in in_this_process(list(jobs)[::-1], settings, stop):
            seen.append(result[0].name)
            yield result

    result, _ = run(raw, output, cropper=backwards, stop=lambda: len(seen) >= after)
    assert result is None
    assert json.loads((output / "preprocess.json").read_text(encoding="utf-8"))["status"] == "running"
    with open(output / "files.jsonl", "ab") as file:
        file.write(b'{"path": "real/person')  # a kill tore the last line
    broken = {"fake/Deepfakes/empty.mp4", "real/broken.mp4"}
    first = set(seen) - broken
    seen.clear()
    run(raw, output, cropper=backwards)
    assert not first & set(seen)
    assert contents(output) == contents(made[0])


def test_lost_crops_and_changed_videos_are_made_again(raw, made, tmp_path):
    output, data = shutil.copytree(made[0], tmp_path / "crops"), shutil.copytree(raw, tmp_path / "raw")
    records = load_records(output / "files.jsonl")
    lost = output / records["real/person1.mp4"].crops[0].path
    lost.unlink()
    cut = output / records["real/person2.mp4"].crops[0].path
    cut.write_bytes(cut.read_bytes()[:100])
    shutil.copy(raw / "real/person3.mp4", data / "fake/FaceSwap/swap0.mp4")
    head = json.loads((output / "preprocess.json").read_text(encoding="utf-8"))
    (output / "preprocess.json").write_text(json.dumps(head | {"input": str(data)}), encoding="utf-8")
    asked = []

    def cropper(jobs, settings, stop):
        jobs = list(jobs)
        asked.extend(job.name for job in jobs)
        yield from in_this_process(jobs, settings, stop)

    run(data, output, cropper=cropper)
    changed = {"real/person1.mp4", "real/person2.mp4", "fake/FaceSwap/swap0.mp4"}
    assert set(asked) == changed | {"fake/Deepfakes/empty.mp4", "real/broken.mp4"}
    assert lost.exists()
    assert decode_image(cut.read_bytes()).shape == (96, 96, 3)


def test_other_settings_are_refused_field_by_field(raw, made, tmp_path):
    output = shutil.copytree(made[0], tmp_path / "crops")
    before = contents(output)
    with pytest.raises(ConfigError) as error:
        run(raw, output, replace(SETTINGS, margin=0.3, image_size=128), split_ratio=0.5)
    assert str(error.value).splitlines() == [
        f"image_size = 128; {output} was begun with 96",
        f"margin = 0.3; {output} was begun with 0.2",
        f"split_ratio = 0.5; {output} was begun with 0.8",
        "name another --output, or repeat the command as it was",
    ]
    assert contents(output) == before


def test_more_data_join_without_moving_what_is_there(raw, made, tmp_path):
    output, data = shutil.copytree(made[0], tmp_path / "crops"), shutil.copytree(raw, tmp_path / "raw")
    before = {row["path"]: row["split"] for row in table(output)}
    for number in range(4, 8):
        shutil.copy(raw / f"real/person{number - 4}.mp4", data / f"real/person{number}.mp4")
    run(data, output)
    after = {row["path"]: row["split"] for row in table(output)}
    assert before.items() <= after.items()
    assert len(after) == len(before) + 16


def test_everybody_can_be_cut_out(tmp_path, raw):
    face = face_photo()
    two = [with_face(with_face(wall(), face, 0, 20), face[:, ::-1], 160, 30) for _ in range(6)]
    path = save_video(tmp_path / "two.mp4", two)
    everybody = crop_file(path, "video", replace(SETTINGS, faces="all"))
    assert Counter(crop.face for crop in everybody.crops) == {0: 4, 1: 4}
    assert len({crop.box[0] < 120 for crop in everybody.crops if crop.face == 0}) == 1
    assert len(crop_file(path, "video", SETTINGS).crops) == 4


def test_a_face_in_one_frame_of_many_is_not_believed(tmp_path, raw):
    once = [with_face(wall(), face_photo(), 60, 20) if at == 3 else wall() for at in range(8)]
    harvest = crop_file(save_video(tmp_path / "once.mp4", once), "video", replace(SETTINGS, frames=8))
    assert (harvest.num_frames, harvest.num_found, harvest.crops) == (8, 0, [])


def test_png_keeps_every_pixel(raw):
    settings = replace(SETTINGS, image_size=0, format="png", margin=0.0)
    (crop,) = crop_file(raw / "real/사진 1.png", "image", settings).crops
    image, photo = decode_image(crop.data), decode_image((raw / "real/사진 1.png").read_bytes())
    left, top, side = square_around(Face(crop.box, crop.score, crop.detector), photo.shape[1], photo.shape[0], 0.0)
    np.testing.assert_array_equal(image, photo[top : top + side, left : left + side])


def test_official_splits_hold_and_a_divided_group_is_refused(raw, tmp_path, made):
    data = tmp_path / "raw"
    shutil.copytree(raw / "real", data / "train/real")
    shutil.copytree(raw / "fake", data / "test/fake")
    output = tmp_path / "crops"
    run(data, output)
    assert {(row["label"], row["split"]) for row in table(output)} == {("real", "train"), ("fake", "test")}
    shutil.move(data / "train/real/person0.mp4", data / "test/person0.mp4")
    (data / "test/real").mkdir()
    shutil.move(data / "test/person0.mp4", data / "test/real/person0.mp4")
    shutil.copy(data / "test/real/person0.mp4", data / "train/real/person9.mp4")
    records = load_records(output / "files.jsonl")
    record = records["train/real/person1.mp4"]
    append_record(output / "files.jsonl", replace(record, split="val"))
    with pytest.raises(DataError, match="would be in train and val"):
        run(data, output)


def test_a_machine_without_the_data_ends_the_work(raw, tmp_path):
    def elsewhere(jobs, settings, stop):
        for job in jobs:
            yield job, Harvest(error="there is no such file", is_missing=True)

    with pytest.raises(StorageError, match="a machine of the cluster does not see"):
        run(raw, tmp_path / "crops", cropper=elsewhere)
    assert not load_records(tmp_path / "crops/files.jsonl")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"detector": "haar"}, "--detector = haar; must be one of mtcnn, retinaface, mediapipe"),
        ({"fallback_detector": "mtcnn"}, "--fallback-detector = mtcnn; must be another one"),
        ({"frames": 0}, "--frames = 0; must be between 1 and"),
        ({"margin": -0.1}, "--face-margin = -0.1; must be between 0 and 2"),
        ({"image_size": 7}, "--image-size = 7; must be between 32 and 2048, or 0"),
        ({"frames": 10_000, "image_size": 2048}, "--frames = 10000 of --image-size = 2048; must fit into 2 GiB"),
        ({"detector_model": "x.tflite"}, "--detector-model = x.tflite; only mediapipe takes one"),
        ({"detector": "mediapipe"}, "--detector-model is missing; mediapipe needs a model file"),
    ],
)
def test_wrong_settings_are_named(given, message):
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        build_settings(**given)


def test_odd_names_are_written_and_come_back(raw, tmp_path):
    data, output = tmp_path / "raw", tmp_path / "crops"
    (data / "real").mkdir(parents=True)
    for name in (b"\xff\xfe.mp4", b'a,b "c"\n.mp4', ("긴" * 60 + ".mp4").encode()):
        shutil.copy(raw / "real/person0.mp4", os.fsencode(data / "real") + b"/" + name)
    result, _ = run(data, output)
    assert result["summary"]["crops"] == 12
    rows = table(output)
    assert len({row["video"] for row in rows}) == 3
    assert all((output / row["path"]).is_file() for row in rows)
    before = contents(output)
    assert "going on: 3 files are done" in run(data, output)[1]
    assert contents(output) == before


def test_wrong_folders_are_named(tmp_path):
    (tmp_path / "in/real").mkdir(parents=True)
    (tmp_path / "file").touch()
    for folder, message in (
        (tmp_path / "in/out", "lies in --input"),
        (tmp_path / "in", "lies in --input"),
        (tmp_path / "file", "is a file"),
    ):
        with pytest.raises(ConfigError, match=message):
            run(tmp_path / "in", folder)
    with pytest.raises(ConfigError, match="there is no such folder"):
        run(tmp_path / "none", tmp_path / "out")
    (tmp_path / "full/train/real").mkdir(parents=True)
    (tmp_path / "full/train/real/a.jpg").touch()
    save_video(tmp_path / "in/real/a.mp4", [wall()] * 2)
    with pytest.raises(ConfigError, match="holds images that are not ours"):
        run(tmp_path / "in", tmp_path / "full")


@pytest.mark.parametrize("detector", ["retinaface", "mediapipe"])
def test_a_detector_that_is_not_installed_says_how_to_have_it(detector):
    from hai.faces.detectors import build_detector, describe_detector

    for call in (
        lambda: describe_detector(detector),
        lambda: build_detector(detector, min_face=32, min_score=0.5),
    ):
        with pytest.raises(ConfigError, match=rf"is not installed; run: pip install 'hai\[{detector}\]'"):
            call()


def test_a_split_ratio_of_0_makes_all_that_no_list_names_validation(tmp_path):
    names = ["Celeb-real/id0_0000", "Celeb-real/id0_0001", "Celeb-real/id1_0000", "Celeb-synthesis/id0_id1_0000"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.mp4").touch()
    (tmp_path / "List_of_testing_videos.txt").write_text("1 Celeb-real/id0_0001.mp4\n", encoding="utf-8")
    splits = plan_splits(list_raw(tmp_path), {}, share=0.0, seed=42)
    assert splits == {f"{name}.mp4": "test" if name == names[1] else "val" for name in names}


def found_in_all(jobs, settings, stop):
    """Find a face in every file, without looking; how many crops it gives is in the file."""
    for job in jobs:
        data, number = job.path.read_bytes(), int(job.path.read_bytes()[:1])
        crops = [Crop(at, 0, (0.0, 0.0, 9.0, 9.0), 1.0, "mtcnn", PIXELS + data) for at in range(number)]
        yield job, Harvest(number, number, crops)


def files_of(root, **contents):
    """Write files; names are relative to the root, without .mp4, / written as __."""
    for name, content in contents.items():
        path = root / f"{name.replace('__', '/')}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


@pytest.mark.parametrize(
    ("content", "gone", "refused"),
    [(b"22", False, True), (b"2", False, True), (b"1", False, False), (b"2", True, False), (b"22", True, True)],
)
def test_another_input_must_not_have_other_files_under_the_same_names(tmp_path, described, content, gone, refused):
    first = files_of(tmp_path / "first", real__a=b"1", real__b=b"2")
    output = tmp_path / "crops"
    run(first, output, cropper=found_in_all)
    before = contents(output)
    second = files_of(tmp_path / "second", real__a=content, real__c=b"3")
    if gone:
        shutil.rmtree(first)
    if refused:
        with pytest.raises(ConfigError, match=r"holds other files under the same names \(real/a\.mp4\) than .*/first"):
            run(second, output, cropper=found_in_all)
        assert contents(output) == before
    else:
        result, _ = run(second, output, cropper=found_in_all)
        assert result["summary"]["crops"] == 6


def test_crops_of_what_a_file_was_before_do_not_stay(tmp_path, described):
    data, output = files_of(tmp_path / "raw", real__a=b"3", real__b=b"2"), tmp_path / "crops"
    run(data, output, cropper=found_in_all)
    files_of(data, real__a=b"1 ")
    run(data, output, cropper=found_in_all)
    on_disk = {path.relative_to(output).as_posix() for path in output.glob("*/*/*.jpg")}
    assert on_disk == {row["path"] for row in table(output)}
    assert len(on_disk) == 3


@pytest.mark.parametrize("text", ["{}", "[]", "7", '{"detectors": 1}', '{"detectors": [], "settings": {}}', "{"])
def test_a_damaged_description_is_named(tmp_path, described, text):
    data, output = files_of(tmp_path / "raw", real__a=b"1"), tmp_path / "crops"
    output.mkdir()
    (output / "preprocess.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"preprocess\.json: is damaged; remove"):
        run(data, output, cropper=found_in_all)


def listed(monkeypatch, root, groups):
    """Let the listing say in which group each file is."""
    files = [
        RawFile(root / name, label=0, source="", group=group, split="", original="", kind="video")
        for name, group in groups.items()
    ]
    monkeypatch.setattr(preprocess, "list_raw", lambda *_, **__: RawSet("generic", root, files, []))


def test_groups_join_when_data_do(tmp_path, described, monkeypatch):
    data = files_of(tmp_path / "raw", real__a=b"1", real__b=b"1", real__c=b"1", real__d=b"1")
    output = tmp_path / "crops"
    listed(monkeypatch, data, {"real/a.mp4": "id5", "real/b.mp4": "id5", "real/c.mp4": "id7"})
    run(data, output, cropper=found_in_all, split_ratio=1.0)
    listed(monkeypatch, data, {"real/a.mp4": "id1", "real/d.mp4": "id1"})  # b and c are not there now
    run(data, output, cropper=found_in_all, split_ratio=1.0)
    groups = {row["video"]: row["group"] for row in table(output)}
    assert groups == {"real/a.mp4": "id1", "real/b.mp4": "id1", "real/c.mp4": "id7", "real/d.mp4": "id1"}
    before = contents(output)
    listed(monkeypatch, data, {"real/a.mp4": "id1", "real/c.mp4": "id7", "real/d.mp4": "id1"})
    run(data, output, cropper=found_in_all, split_ratio=1.0)
    assert contents(output) == before


def test_data_that_join_what_was_divided_are_refused(tmp_path, described, monkeypatch):
    data = files_of(tmp_path / "raw", real__a=b"1", real__b=b"1", real__c=b"1")
    output = tmp_path / "crops"
    listed(monkeypatch, data, {"real/a.mp4": "id5", "real/b.mp4": "id5"})
    run(data, output, cropper=found_in_all, split_ratio=1.0)
    record = load_records(output / "files.jsonl")["real/b.mp4"]
    append_record(output / "files.jsonl", replace(record, split="val"))
    listed(monkeypatch, data, {"real/a.mp4": "id1", "real/c.mp4": "id1"})
    with pytest.raises(DataError, match="group 'id1' would be in train and val"):
        run(data, output, cropper=found_in_all, split_ratio=1.0)


def test_long_names_of_long_letters_fit(tmp_path, described):
    name = "\U00020000" * 60
    data, output = files_of(tmp_path / "raw", **{f"real__{name}": b"2"}), tmp_path / "crops"
    result, _ = run(data, output, cropper=found_in_all)
    assert result["summary"]["crops"] == 2


def test_a_sheet_that_cannot_be_drawn_leaves_the_summary(tmp_path, described, monkeypatch):
    data, output = files_of(tmp_path / "raw", real__a=b"2"), tmp_path / "crops"

    def fails(*_):
        raise MemoryError

    monkeypatch.setattr(preprocess, "draw_contact_sheet", fails)
    with pytest.raises(MemoryError):
        run(data, output, cropper=found_in_all)
    assert json.loads((output / "preprocess.json").read_text(encoding="utf-8"))["summary"]["crops"] == 2


def test_the_sheet_shows_an_early_frame_of_what_has_no_face(tmp_path, monkeypatch):
    save_video(tmp_path / "real/a.mp4", numbered(40))
    record = FileRecord("real/a.mp4", 1, "video", 0, "", "a", "a", "train", 8, 0, "")
    sheet = decode_image(draw_contact_sheet([record], tmp_path, tmp_path))
    assert sheet[60:80, 280:310].mean() == pytest.approx(4 * 2, abs=3)  # of 5 frames each the middle, of 40

    def breaks(*_):
        raise RuntimeError("a decoder's own")
        yield

    monkeypatch.setattr(contact, "read_frames", breaks)
    assert decode_image(draw_contact_sheet([record], tmp_path, tmp_path)).shape[0] == 120


@pytest.mark.parametrize("kind", ["video", "image"])
def test_what_is_no_regular_file_holds_nobody_up(tmp_path, raw, kind):
    os.mkfifo(tmp_path / "pipe.mp4")
    assert crop_file(tmp_path / "pipe.mp4", kind, SETTINGS) == Harvest(error="is no regular file")
