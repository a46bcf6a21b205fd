"""Raw data sets as they come: what is recognised, who belongs together, what is named as odd."""

import json
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from hai.config.schema import DataConfig
from hai.data.index import split_data
from hai.data.layouts import RawSet, is_layout, list_raw
from hai.data.manifest import build_manifest, load_manifest, save_manifest
from hai.data.pack import build_pack
from hai.data.tiers import task_of
from hai.errors import DataError
from hai.types import SPLITS


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def save(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def by_name(found: RawSet) -> dict:
    return {file.path.relative_to(found.root).as_posix(): file for file in found.files}


def together(found: RawSet) -> set[frozenset[str]]:
    groups: dict[str, set[str]] = {}
    for file in found.files:
        groups.setdefault(file.group, set()).add(file.path.stem)
    return {frozenset(names) for names in groups.values()}


REAL = "original_sequences/youtube/c23/videos"
FAKE = "manipulated_sequences/Deepfakes/c23/videos"


@pytest.fixture
def faceforensics(tmp_path: Path) -> Path:
    root = tmp_path / "ff"
    touch(root, *[f"{REAL}/{name}.mp4" for name in ("000", "003", "010", "020", "605", "606")])
    touch(root, *[f"{FAKE}/{name}.mp4" for name in ("000_003", "003_000", "010_020")])
    touch(root, "manipulated_sequences/FaceSwap/c23/videos/000_003.mp4")
    touch(root, "manipulated_sequences/Deepfakes/masks/videos/000_003.mp4", f"{FAKE}/notes.txt")
    return root


def test_faceforensics_joins_target_and_source_and_sequences_of_one_video(faceforensics):
    found = list_raw(faceforensics)
    assert found.layout == "faceforensics"
    assert together(found) == {
        frozenset({"000", "003", "000_003", "003_000"}),
        frozenset({"010", "020", "010_020"}),
        frozenset({"605", "606"}),
    }
    fake = by_name(found)[f"{FAKE}/003_000.mp4"]
    assert (fake.label, fake.source, fake.split, fake.kind) == (1, "Deepfakes", "", "video")
    assert fake.original == f"{REAL}/003.mp4"
    assert by_name(found)[f"{REAL}/000.mp4"].source == ""
    assert not [name for name in by_name(found) if "masks" in name]
    assert "1 files are neither videos nor images and were left out (1 .txt)" in found.problems
    assert any("train.json" in line for line in found.problems)


def test_official_splits_hold_and_what_they_cut_through_is_said(faceforensics, tmp_path):
    splits = tmp_path / "splits"
    save(splits / "train.json", [["000", "003"], ["605", "700"]])
    save(splits / "val.json", [["606", "701"]])
    save(splits / "test.json", [["010", "020"]])
    found = list_raw(faceforensics, split_files=splits)
    files = by_name(found)
    assert {name: file.split for name, file in files.items() if REAL in name} == {
        f"{REAL}/000.mp4": "train",
        f"{REAL}/003.mp4": "train",
        f"{REAL}/010.mp4": "test",
        f"{REAL}/020.mp4": "test",
        f"{REAL}/605.mp4": "train",
        f"{REAL}/606.mp4": "val",
    }
    assert files["manipulated_sequences/FaceSwap/c23/videos/000_003.mp4"].split == "train"
    assert len({(file.group, file.split) for file in found.files}) == len({file.group for file in found.files})
    assert any(
        "1 of 3 groups of people lie on both sides" in line and "605 (train, val)" in line for line in found.problems
    )
    assert any("names 2 videos that are not here: 700, 701" in line for line in found.problems)
    assert list_raw(faceforensics, split_files=splits / "val.json").files == found.files


def test_a_fake_whose_people_are_in_two_official_splits_is_named(faceforensics):
    save(faceforensics / "splits" / "train.json", [["000", "003"], ["010"]])
    save(faceforensics / "splits" / "test.json", [["020", "000"]])
    found = list_raw(faceforensics)
    assert by_name(found)[f"{FAKE}/010_020.mp4"].split == "train"
    assert any("010_020.mp4: train by its first person, test by the second" in line for line in found.problems)
    assert any("'000' is in train as well" in line for line in found.problems)
    assert any(line.startswith("2 files are in no official split") for line in found.problems)


def test_videos_in_no_list_go_with_their_people(faceforensics, tmp_path):
    touch(faceforensics, f"{REAL}/998.mp4", f"{FAKE}/000_998.mp4", f"{REAL}/999.mp4", f"{FAKE}/606_999.mp4")
    save(tmp_path / "splits" / "train.json", [["605", "003"]])
    save(tmp_path / "splits" / "test.json", [["606", "000"]])
    found = list_raw(faceforensics, split_files=tmp_path / "splits")
    files = {file.path.stem: file for file in found.files}
    assert (files["998"].split, files["998"].group) == ("", files["003"].group), (
        "605 and 606 are one video: they are cut"
    )
    assert files["000_998"].group == files["000"].group
    assert files["999"].group == files["605"].group
    by_group: dict[str, set[str]] = {}
    for file in found.files:
        by_group.setdefault(file.group, set()).add(file.split)
    assert all(len(splits - {""}) <= 1 for splits in by_group.values())


def test_copies_of_one_video_in_two_compressions_stay_together_and_keep_their_originals(faceforensics):
    touch(faceforensics, f"{REAL.replace('c23', 'c40')}/000.mp4", f"{FAKE.replace('c23', 'c40')}/000_003.mp4")
    files = by_name(list_raw(faceforensics))
    small, large = files[f"{FAKE.replace('c23', 'c40')}/000_003.mp4"], files[f"{FAKE}/000_003.mp4"]
    assert small.group == large.group
    assert small.original == f"{REAL.replace('c23', 'c40')}/000.mp4"


def test_actors_of_deepfakedetection_are_people_too(faceforensics):
    touch(faceforensics, "original_sequences/actors/c23/videos/01__walk.mp4")
    touch(faceforensics, "original_sequences/actors/c23/videos/02__walk.mp4")
    fake = "manipulated_sequences/DeepFakeDetection/c23/videos/01_02__walk__ABCD1234.mp4"
    touch(faceforensics, fake)
    found = list_raw(faceforensics)
    assert frozenset({"01__walk", "02__walk", "01_02__walk__ABCD1234"}) in together(found)
    assert by_name(found)[fake].original == "original_sequences/actors/c23/videos/01__walk.mp4"
    assert by_name(found)["original_sequences/actors/c23/videos/01__walk.mp4"].source == "actors"


def test_the_flat_form_of_mirrors_and_folders_of_frames_are_recognised(tmp_path):
    root = tmp_path / "wrapped" / "FaceForensics++_C23"
    touch(root, "original/000.mp4", "original/003.mp4", "Deepfakes/000_003.mp4", "csv/list.csv")
    found = list_raw(tmp_path)
    assert (found.layout, found.root) == ("faceforensics", root)
    assert together(found) == {frozenset({"000", "003", "000_003"})}

    crops = tmp_path / "crops"
    touch(crops, "original_sequences/youtube/c23/frames/000/0001.png")
    touch(crops, "manipulated_sequences/Deepfakes/c23/frames/000_003/0001.png")
    touch(crops, "manipulated_sequences/FaceSwap/c23/faces/003_000_17.jpg")
    found = list_raw(crops)
    assert len({file.group for file in found.files}) == 1
    fake = by_name(found)["manipulated_sequences/Deepfakes/c23/frames/000_003/0001.png"]
    assert (fake.kind, fake.original) == ("image", "original_sequences/youtube/c23/frames/000/0001.png")


def test_frames_of_videos_that_are_there_too_are_left_out(faceforensics):
    touch(faceforensics, "original_sequences/youtube/c23/frames/000/0001.png")
    found = list_raw(faceforensics)
    assert {file.kind for file in found.files} == {"video"}
    assert "1 images of videos that are here too were left out" in found.problems
    assert [file.path.name for file in list_raw(faceforensics, kind="image").files] == ["0001.png"]


def test_names_outside_the_scheme_stand_alone_and_are_named(faceforensics):
    touch(faceforensics, f"{FAKE}/mystery.mp4")
    found = list_raw(faceforensics)
    assert frozenset({"mystery"}) in together(found)
    assert any(line.startswith(f"{FAKE}/mystery.mp4: not named 071 (real) or 071_054") for line in found.problems)


@pytest.fixture
def celeb(tmp_path: Path) -> Path:
    root = tmp_path / "Celeb-DF-v2"
    touch(root, *[f"Celeb-real/{name}.mp4" for name in ("id0_0000", "id0_0001", "id1_0000", "id7_0000")])
    touch(
        root, "Celeb-synthesis/id0_id1_0000.mp4", "Celeb-synthesis/id0_id1_0001.mp4", "Celeb-synthesis/id7_id8_0000.mp4"
    )
    touch(root, "YouTube-real/00000.mp4", "YouTube-real/00001.mp4")
    lines = ["1 YouTube-real/00000.mp4", "1 Celeb-real/id0_0001.mp4", "0 Celeb-synthesis/id0_id1_0001.mp4", ""]
    save(root / "List_of_testing_videos.txt", "\n".join(lines))
    return root


def test_celeb_df_joins_id_pairs_and_reads_the_list_where_one_means_real(celeb):
    found = list_raw(celeb)
    files = by_name(found)
    assert found.layout == "celeb-df"
    assert {name for name, file in files.items() if file.split} == {
        "YouTube-real/00000.mp4",
        "Celeb-real/id0_0001.mp4",
        "Celeb-synthesis/id0_id1_0001.mp4",
    }
    assert {file.split for file in found.files} == {"", "test"}
    assert files["Celeb-synthesis/id0_id1_0000.mp4"].original == "Celeb-real/id0_0000.mp4"
    assert files["Celeb-real/id0_0000.mp4"].source == "Celeb-real"
    assert frozenset({"id0_0000", "id1_0000", "id0_id1_0000"}) in together(found)
    assert frozenset({"id7_0000", "id7_id8_0000"}) in together(found)
    assert frozenset({"00001"}) in together(found)
    assert any(
        "1 of 4 groups of people lie on both sides of the given split: id0 (test)" in line for line in found.problems
    )


def test_celeb_df_names_wrong_labels_lost_videos_and_odd_lines(celeb):
    save(celeb / "List_of_testing_videos.txt", "0 Celeb-real/id0_0001.mp4\n1 Celeb-real/id9_0000.mp4\nrubbish\n")
    problems = list_raw(celeb).problems
    assert any("id0_0001.mp4: List_of_testing_videos.txt says fake, its folder real" in line for line in problems)
    assert any("names 1 videos that are not here: id9_0000" in line for line in problems)
    assert any("List_of_testing_videos.txt:3: 'rubbish'; must be 0 or 1 and a path" in line for line in problems)
    (celeb / "List_of_testing_videos.txt").unlink()
    assert any("List_of_testing_videos.txt is not here" in line for line in list_raw(celeb).problems)


def dfdc(root: Path, parts: int) -> None:
    for part in range(parts):
        folder = root / f"dfdc_train_part_{part}" if parts > 1 else root
        names = {
            f"real{part}.mp4": {"label": "REAL", "split": "train"},
            f"other{part}.mp4": {"label": "REAL", "split": "train"},
            f"fake{part}.mp4": {"label": "FAKE", "split": "train", "original": f"real{part}.mp4"},
        }
        touch(folder, *names)
        save(folder / "metadata.json", names)


def test_dfdc_joins_fakes_to_their_original(tmp_path):
    dfdc(tmp_path, 1)
    found = list_raw(tmp_path)
    assert found.layout == "dfdc"
    assert together(found) == {frozenset({"real0", "fake0"}), frozenset({"other0"})}
    assert by_name(found)["fake0.mp4"].original == "real0.mp4"
    assert {file.split for file in found.files} == {""}
    assert not found.problems


def test_dfdc_with_enough_parts_keeps_parts_together_since_actors_are_not_named(tmp_path):
    dfdc(tmp_path, 10)
    found = list_raw(tmp_path)
    assert len({file.group for file in found.files}) == 10
    assert by_name(found)["dfdc_train_part_3/fake3.mp4"].original == "dfdc_train_part_3/real3.mp4"
    dfdc(tmp_path / "few", 2)
    assert len({file.group for file in list_raw(tmp_path / "few").files}) == 4


def test_dfdc_names_what_metadata_and_folder_do_not_share(tmp_path):
    dfdc(tmp_path, 1)
    (tmp_path / "other0.mp4").unlink()
    touch(tmp_path, "stranger.mp4")
    entries = json.loads((tmp_path / "metadata.json").read_text(encoding="utf-8"))
    save(tmp_path / "metadata.json", {**entries, "odd.mp4": {"label": "MAYBE"}})
    found = list_raw(tmp_path)
    assert [file.path.name for file in found.files] == ["fake0.mp4", "real0.mp4"]
    assert any("stranger.mp4: not in metadata.json" in line for line in found.problems)
    assert any("names 1 videos that are not here: other0" in line for line in found.problems)
    assert any("'odd.mp4': label = 'MAYBE'; must be REAL or FAKE" in line for line in found.problems)
    (tmp_path / "metadata.json").write_text('{"real0.mp4": {"label": "REAL"', encoding="utf-8")
    with pytest.raises(DataError, match=r"metadata\.json: cannot be read as JSON"):
        list_raw(tmp_path)


def test_dfdc_keeps_a_division_that_metadata_give(tmp_path):
    for split in ("train", "validation", "test"):
        touch(tmp_path, f"{split}/{split}.mp4")
        save(tmp_path / split / "metadata.json", {f"{split}.mp4": {"label": "REAL", "split": split}})
    assert {file.split for file in list_raw(tmp_path).files} == {"train", "val", "test"}


def test_generic_folders_read_manipulations_people_and_equal_names(tmp_path):
    touch(tmp_path, "real/000.mp4", "real/001.mp4", "real/talk.mov", "real/photo.jpg", "real/clip7/01.png")
    touch(
        tmp_path,
        "fake/Deepfakes/000_001.mp4",
        "fake/neuraltextures/001_000.mp4",
        "fake/mine/talk.mp4",
        "fake/photo.jpg",
    )
    touch(tmp_path, "fake/Face2Face/clip7/01.png")
    found = list_raw(tmp_path)
    files = by_name(found)
    assert found.layout == "generic"
    assert {name: file.source for name, file in files.items() if file.label} == {
        "fake/Deepfakes/000_001.mp4": "Deepfakes",
        "fake/neuraltextures/001_000.mp4": "NeuralTextures",
        "fake/mine/talk.mp4": "mine",
        "fake/photo.jpg": "",
        "fake/Face2Face/clip7/01.png": "Face2Face",
    }
    assert frozenset({"000", "001", "000_001", "001_000"}) in together(found)
    assert files["fake/neuraltextures/001_000.mp4"].original == "real/001.mp4"
    assert files["fake/Face2Face/clip7/01.png"].original == "real/clip7/01.png"
    assert files["fake/photo.jpg"].group != files["real/photo.jpg"].group
    assert files["fake/mine/talk.mp4"].group == files["real/talk.mov"].group == "talk"
    assert files["fake/Face2Face/clip7/01.png"].group == files["real/clip7/01.png"].group == "clip7"
    assert not found.problems


@pytest.mark.parametrize(
    ("real", "fake"),
    [
        ("talk.mp4", "MyGAN/talk.mp4"),
        ("talk.mp4", "MyGAN/v2/talk.mp4"),
        ("youtube/talk.mp4", "MyGAN/talk.mp4"),
        ("00001.mp4", "Deepfakes/00001.mp4"),
        ("id0_0000.mp4", "Deepfakes/id0_0000.mp4"),
        ("actorA/001.mp4", "Deepfakes/actorA/001.mp4"),
        ("000_001.mp4", "Deepfakes/000_001.mp4"),
        ("talk/1.jpg", "MyGAN/talk/1.jpg"),
    ],
)
def test_a_video_and_its_fake_are_in_one_group_whatever_folder_the_fake_lies_in(tmp_path, real, fake):
    touch(tmp_path, f"real/{real}", f"fake/{fake}", "real/other.mp4", "fake/MyGAN/another.mp4")
    files = by_name(list_raw(tmp_path))
    assert files[f"fake/{fake}"].group == files[f"real/{real}"].group
    assert len({file.group for file in files.values()}) == 3
    if real != "000_001.mp4":
        assert files[f"fake/{fake}"].original == f"real/{real}"


def test_many_folders_in_real_are_people_and_few_are_sources(tmp_path):
    people = [f"p{i}" for i in range(9)]
    videos = [f"real/{person}/{i}.mp4" for person in people for i in (1, 2)]
    touch(tmp_path, *videos, "fake/p3/9.mp4", "fake/Deepfakes/p4/9.mp4", "fake/MyGAN/p5/1.mp4", "fake/MyGAN/8.mp4")
    found = list_raw(tmp_path)
    files = by_name(found)
    assert {name: file.group for name, file in files.items()} == {
        **{video: video.split("/")[1] for video in videos},
        "fake/p3/9.mp4": "p3",
        "fake/Deepfakes/p4/9.mp4": "p4",
        "fake/MyGAN/p5/1.mp4": "p5",
        "fake/MyGAN/8.mp4": "MyGAN/8",
    }
    assert {file.source for file in found.files if not file.label} == {""}
    assert files["fake/MyGAN/p5/1.mp4"].source == "MyGAN"
    assert not found.problems
    assert by_name(list_raw(tmp_path, folders="sources"))["real/p3/1.mp4"].source == "p3"


def test_few_folders_in_real_are_sources_unless_the_user_says_people(tmp_path):
    touch(tmp_path, "real/alice/1.mp4", "real/alice/2.mp4", "real/bob/1.mp4", "fake/MyGAN/1.mp4")
    found = list_raw(tmp_path)
    assert {file.source for file in found.files} == {"alice", "bob", "MyGAN"}
    assert together(found) == {frozenset({"1"}), frozenset({"2"})}  # the fake may be of either video 1
    assert [line for line in found.problems if "2 folders ('alice', 'bob') count as sources" in line]
    assert "--folders people" in found.problems[0]
    known = list_raw(tmp_path, folders="people")
    assert {name: file.group for name, file in by_name(known).items()} == {
        "real/alice/1.mp4": "alice",
        "real/alice/2.mp4": "alice",
        "real/bob/1.mp4": "bob",
        "fake/MyGAN/1.mp4": "MyGAN/1",
    }
    assert not known.problems


def test_generic_splits_come_from_folders_or_from_official_files(tmp_path):
    touch(tmp_path, "train/real/a.mp4", "val/fake/b.mp4")
    assert {file.split for file in list_raw(tmp_path).files} == {"train", "val"}
    other = tmp_path / "ff"
    touch(other, "real/000.mp4", "fake/Deepfakes/000_001.mp4")
    save(tmp_path / "splits" / "test.json", [["000", "001"]])
    assert {file.split for file in list_raw(other, split_files=tmp_path / "splits").files} == {"test"}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], r"in no known layout \(found: nothing\)"),
        (["clips/a.mp4", "more/b.mp4"], r"in no known layout \(found: clips, more\)"),
        (["real/notes.txt"], "holds no videos or images"),
        (
            ["a/real/x.mp4", "b/Celeb-real/id0_0000.mp4"],
            r"several data sets; name one of them: a \(generic\), b \(celeb-df\)",
        ),
    ],
)
def test_what_is_no_data_set_is_refused(tmp_path, names, message):
    touch(tmp_path, *names)
    with pytest.raises(DataError, match=message):
        list_raw(tmp_path)


def test_missing_folders_and_unreadable_split_files_are_refused(tmp_path):
    with pytest.raises(DataError, match="there is no such folder"):
        list_raw(tmp_path / "nowhere")
    touch(tmp_path, "real/a.mp4")
    with pytest.raises(DataError, match="is not a folder"):
        list_raw(tmp_path / "real" / "a.mp4")
    with pytest.raises(DataError, match=r"no split files; must be a folder with train\.json"):
        list_raw(tmp_path, split_files=tmp_path)
    save(tmp_path / "train.json", {"000": "train"})
    with pytest.raises(DataError, match="must be a list of pairs of names"):
        list_raw(tmp_path, split_files=tmp_path)
    save(tmp_path / "train.json", "[[")
    with pytest.raises(DataError, match="cannot be read as JSON"):
        list_raw(tmp_path, split_files=tmp_path)
    touch(tmp_path / "ff", f"{REAL}/000.mp4")
    save(tmp_path / "ff" / "train.json", "[[")
    with pytest.raises(DataError, match="cannot be read as JSON"):
        list_raw(tmp_path / "ff")


def test_a_train_json_of_something_else_beside_real_and_fake_is_named_and_left_out(tmp_path):
    touch(tmp_path, "real/a.mp4", "fake/MyGAN/a.mp4")
    save(tmp_path / "train.json", {"images": [], "annotations": []})
    found = list_raw(tmp_path)
    assert {file.split for file in found.files} == {""}
    assert [line for line in found.problems if "train.json" in line] == [
        f'{tmp_path / "train.json"}: must be a list of pairs of names, such as [["071", "054"]]; '
        "it was left out as no list of splits"
    ]


def test_real_and_fake_are_no_known_data_set_whatever_lies_in_them(tmp_path):
    touch(tmp_path, "real/a.jpg", "fake/b.jpg")
    dfdc(tmp_path / "fake", 1)
    assert not is_layout(tmp_path)
    assert list_raw(tmp_path).layout == "generic"
    dfdc(tmp_path / "parts", 2)
    assert is_layout(tmp_path / "parts")


def test_people_who_are_all_swapped_among_each_other_are_said_to_stay_in_one_split(tmp_path):
    touch(tmp_path, *[f"Celeb-synthesis/id{i}_id{i + 1}_0000.mp4" for i in range(30)])
    problems = list_raw(tmp_path).problems
    assert any("group 'id0' holds 30 of 30 files to be divided" in line for line in problems)
    assert any(line.startswith("the real videos of 30 fakes are not here") for line in problems)


def image(seed: int) -> bytes:
    picture = np.random.default_rng(seed).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    return simplejpeg.encode_jpeg(picture, quality=90)


def indexed(root: Path) -> dict:
    data = DataConfig(sources=[{"name": "set", "path": str(root)}])
    manifest = build_manifest(data, 42, require=())
    columns = zip(manifest.path, manifest.label.tolist(), manifest.source, manifest.group, strict=True)
    return {path: rest for path, *rest in columns}


def save_images(root: Path, *names: str) -> None:
    for seed, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image(seed))


def test_crops_that_lie_as_a_known_data_set_are_indexed_with_their_people(tmp_path):
    crops = "original_sequences/youtube/c23/frames/003/1.jpg", "manipulated_sequences/FaceSwap/c23/frames/000_003/1.jpg"
    save_images(tmp_path, *crops)
    assert indexed(tmp_path) == {crops[0]: [0, "set", "000"], crops[1]: [1, "set/FaceSwap", "000"]}
    assert task_of(DataConfig(sources=[{"name": "set", "path": str(tmp_path)}])) == "detector"


def test_crops_of_celeb_df_that_its_list_does_not_name_are_never_divided_into_test(tmp_path):
    names = [f"Celeb-real/id{i}_0000/1.jpg" for i in range(20)]
    save_images(tmp_path, *names, "YouTube-real/00000/1.jpg")
    source = {"name": "set", "path": str(tmp_path)}

    def splits(**more: object) -> dict[str, str]:
        manifest = build_manifest(DataConfig(sources=[source | more]), 42, require=())
        return {path: SPLITS[k] for path, k in zip(manifest.path, manifest.split.tolist(), strict=True)}

    assert set(splits().values()) == {"train", "val", "test"}, "without the list a test split is drawn"
    save(tmp_path / "List_of_testing_videos.txt", "1 YouTube-real/00000.mp4\n")
    found = splits()
    assert [name for name, split in found.items() if split == "test"] == ["YouTube-real/00000/1.jpg"]
    assert {found[name] for name in names} == {"train", "val"}
    assert splits(splits=["test"]) == {"YouTube-real/00000/1.jpg": "test"}
    assert splits(splits=["val"]) == dict.fromkeys(names, "val")


@pytest.mark.parametrize("name", ["Celeb-real/id0_0000.mp4", "real/000.mp4"])
def test_videos_instead_of_images_are_refused_with_the_way_to_crops(tmp_path, name):
    touch(tmp_path, name)
    with pytest.raises(DataError, match=r"holds no images.*videos become face crops with `hai preprocess`"):
        indexed(tmp_path)


def test_crops_in_real_and_fake_are_joined_where_folders_name_people(tmp_path):
    save_images(tmp_path, "real/003/1.jpg", "real/id0_0000/1.jpg", "fake/Deepfakes/000_003/1.jpg", "fake/x/1.jpg")
    assert {path: group for path, (_, _, group) in indexed(tmp_path).items()} == {
        "real/003/1.jpg": "000",
        "fake/Deepfakes/000_003/1.jpg": "000",
        "real/id0_0000/1.jpg": "id0",
        "fake/x/1.jpg": "x",
    }
    save_images(tmp_path / "plain", "real/332/1.jpg", "real/331/1.jpg", "fake/00012/1.jpg")
    assert sorted(group for _, _, group in indexed(tmp_path / "plain").values()) == ["00012", "331", "332"]


def test_crops_of_a_video_and_of_its_fake_are_in_one_group_whatever_folder_the_fake_lies_in(tmp_path):
    save_images(tmp_path, "real/talk/1.jpg", "fake/MyGAN/talk/1.jpg", "fake/MyGAN/other/1.jpg")
    save_images(tmp_path / "more", "real/00001/1.jpg", "fake/00001/1.jpg", "real/000/1.jpg", "fake/MyGAN/000_001/1.jpg")
    assert {path: group for path, (_, _, group) in indexed(tmp_path).items()} == {
        "real/talk/1.jpg": "talk",
        "fake/MyGAN/talk/1.jpg": "talk",
        "fake/MyGAN/other/1.jpg": "MyGAN/other",
    }
    found = {path: group for path, (_, _, group) in indexed(tmp_path / "more").items()}
    assert found["fake/00001/1.jpg"] == found["real/00001/1.jpg"]
    assert found["fake/MyGAN/000_001/1.jpg"] == found["real/000/1.jpg"] == "000"


def test_folders_of_an_official_split_that_cuts_through_people_are_used_and_counted(tmp_path):
    celeb = ["train/real/id0_0000/1.jpg", "test/real/id0_0001/1.jpg", "train/fake/id0_id1_0000/1.jpg"]
    save_images(tmp_path / "celeb", *celeb, "val/real/id9_0000/1.jpg")
    ff = ["train/real/605/1.jpg", "val/real/606/1.jpg", "train/fake/Deepfakes/605_001/1.jpg"]
    save_images(tmp_path / "ff", *ff)
    data = DataConfig(sources=[{"name": "set", "path": str(tmp_path / "celeb")}])
    manifest = build_manifest(data, 42, require=())
    assert dict(zip(manifest.path, manifest.group, strict=True)) == {
        celeb[0]: "id0 (train)",
        celeb[1]: "id0 (test)",
        celeb[2]: "id0 (train)",
        "val/real/id9_0000/1.jpg": "id9",
    }
    assert [line for line in manifest.warnings if "both sides" in line] == [
        "source set: 1 of 2 groups of people lie on both sides of the given split: id0 (test, train); "
        "scores there are too good"
    ]
    assert {path: group for path, (_, _, group) in indexed(tmp_path / "ff").items()} == {
        ff[0]: "001 (train)",
        ff[1]: "001 (val)",
        ff[2]: "001 (train)",
    }
    save_images(tmp_path / "celeb", "test/real/id0_0000/2.jpg")
    with pytest.raises(DataError, match=r"group 'id0_0000' is in train and test"):
        indexed(tmp_path / "celeb")


def test_videos_are_told_apart_within_groups_whatever_the_form_of_the_data(tmp_path):
    root = tmp_path / "crops"
    save_images(root, "real/003/1.jpg", "real/003/2.jpg", "fake/Deepfakes/000_003/1.jpg", "fake/x.jpg")
    manifest = build_manifest(DataConfig(sources=[{"name": "set", "path": str(root)}]), 42, require=())
    expected = {
        "real/003/1.jpg": "real/set/003",
        "real/003/2.jpg": "real/set/003",
        "fake/Deepfakes/000_003/1.jpg": "fake/set/Deepfakes/000_003",
        "fake/x.jpg": "",
    }
    assert dict(zip(manifest.path, manifest.video, strict=True)) == expected

    save_manifest(manifest, tmp_path / "manifest.parquet")
    assert load_manifest(tmp_path / "manifest.parquet").video == manifest.video
    build_pack(manifest, tmp_path / "pack")
    split_data(DataConfig(sources=[{"name": "set", "path": str(root)}]), 42, root / "all.csv")
    for form in (tmp_path / "pack", root / "all.csv"):
        again = build_manifest(DataConfig(sources=[{"name": "set", "path": str(form)}]), 42, require=())
        assert dict(zip(again.path, again.video, strict=True)) == expected
        assert again.identity == manifest.identity
        assert sorted(set(again.source)) == ["set", "set/Deepfakes"]

    several = DataConfig(sources=[{"name": name, "path": str(root)} for name in ("a", "b")])
    videos = build_manifest(several, 42, require=()).video
    assert {video for video in videos if video.startswith("b/")} == {"b/real/b/003", "b/fake/b/Deepfakes/000_003"}


def test_without_videos_groups_stand_for_them(tmp_path):
    save_images(tmp_path, "real/a/1.jpg", "fake/b/1.jpg")
    assert build_manifest(DataConfig(sources=[{"name": "set", "path": str(tmp_path)}]), 42, require=()).video is None
    save(tmp_path / "labels.csv", "path,label,group,video\nreal/a/1.jpg,real,g,v\nfake/b/1.jpg,fake,g,\n")
    manifest = build_manifest(DataConfig(sources=[{"name": "set", "path": str(tmp_path)}]), 42, require=())
    assert dict(zip(manifest.path, manifest.video, strict=True)) == {"real/a/1.jpg": "v", "fake/b/1.jpg": ""}
