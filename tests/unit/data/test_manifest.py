import csv
import hashlib
import os
import shutil
import sqlite3
import subprocess
import sys
import threading

import numpy as np
import pytest
from PIL import Image

from hai.config.schema import DataConfig, SourceConfig
from hai.data import content
from hai.data.content import check_images, stat_files
from hai.data.index import index_data, split_data
from hai.data.manifest import build_manifest, load_manifest, save_manifest
from hai.errors import DataError, StorageError
from hai.types import SPLITS


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HAI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def save_image(path, seed, size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, format="PNG")
    os.utime(path, ns=(0, 10**18 + seed))  # long ago: only settled files are remembered


def save_faces(folder, count=40):
    for k in range(count):
        save_image(folder / ("fake" if k % 2 else "real") / f"{k:03d}.png", k)
    return folder


def save_rows(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("path,label,group,split\n" + "".join(f"{row}\n" for row in rows), encoding="utf-8")
    return path


def config(*paths, splits=None, **options):
    sources = [SourceConfig(name=f"s{k}", path=str(path), splits=splits) for k, path in enumerate(paths)]
    return DataConfig(sources=sources, **options)


def split_names(manifest):
    return {path: SPLITS[k] for path, k in zip(manifest.path, manifest.split, strict=True)}


def test_columns(tmp_path):
    folder = save_faces(tmp_path / "d")
    save_image(folder / "fake" / "Deepfakes" / "v1" / "x.png", 99, size=(8, 12))
    manifest = build_manifest(config(folder), 0)
    assert len(manifest) == 41
    for i in range(41):
        data = (folder / manifest.path[i]).read_bytes()
        assert manifest.read(i) == data
        assert hashlib.sha256(data).digest() == manifest.sha256[i].tobytes()
        assert manifest.label[i] == manifest.path[i].startswith("fake")
        assert (manifest.offset[i], manifest.length[i]) == (0, len(data))
        assert os.path.isabs(manifest.file[i])
    i = manifest.path.index("fake/Deepfakes/v1/x.png")
    assert (manifest.source[i], manifest.group[i]) == ("s0/Deepfakes", "v1")
    assert (manifest.width[i], manifest.height[i]) == (12, 8)
    digests = [row.tobytes() for row in manifest.sha256]
    assert digests == sorted(digests)
    assert sorted(np.concatenate([manifest.indices(name) for name in SPLITS])) == list(range(41))
    assert sum(record["real"] + record["fake"] for record in manifest.table()) == 41


def test_identity_and_order_do_not_depend_on_paths(tmp_path):
    folder = save_faces(tmp_path / "d")
    first = build_manifest(config(folder), 3)
    for k, file in enumerate(sorted(folder.rglob("*.png"))):
        target = tmp_path / "moved" / file.parent.name / f"{977 * k % 1000}-{file.name}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    moved = build_manifest(config(tmp_path / "moved"), 3)
    assert moved.identity == first.identity
    assert np.array_equal(moved.sha256, first.sha256)
    assert np.array_equal(moved.split, first.split)
    assert build_manifest(config(folder), 4).identity != first.identity


@pytest.mark.parametrize("change", ["content", "label", "group", "split"])
def test_identity_depends_on_what_a_resume_must_not_change(tmp_path, change):
    save_faces(tmp_path)
    rows = [["real/000.png", "real", "g0", "train"], ["fake/001.png", "fake", "g1", "train"]]
    rows += [["real/002.png", "real", "g2", "val"], ["fake/003.png", "fake", "g3", "val"]]
    first = build_manifest(config(save_rows(tmp_path / "a.csv", *map(",".join, rows))), 0).identity
    column = {"content": 0, "label": 1, "group": 2, "split": 3}[change]
    rows[3][column] = {"content": "fake/005.png", "label": "real", "group": "h", "split": "test"}[change]
    assert build_manifest(config(save_rows(tmp_path / "b.csv", *map(",".join, rows))), 0).identity != first


def test_groups_stay_whole_and_belong_to_their_source(tmp_path):
    for name in ("a", "b"):
        for k in range(60):
            label = "fake" if k % 2 else "real"
            save_image(tmp_path / name / label / f"v{k // 4}" / f"{k}.png", k + 100 * (name == "b"))
    manifest = build_manifest(config(tmp_path / "a", tmp_path / "b"), 1)
    split_of = {}
    for group, split in zip(manifest.group, manifest.split, strict=True):
        assert split_of.setdefault(group, split) == split
    assert {group.split("/")[0] for group in split_of} == {"s0", "s1"}


def test_copies_of_an_image_go_to_one_split(tmp_path):
    folder = save_faces(tmp_path / "d", 60)
    for k in range(0, 60, 2):
        shutil.copy(folder / "real" / f"{k:03d}.png", folder / "real" / f"copy{k:03d}.png")
    manifest = build_manifest(config(folder), 0)
    by_content = {}
    for digest, split in zip(manifest.sha256, manifest.split, strict=True):
        assert by_content.setdefault(digest.tobytes(), split) == split
    assert manifest.warnings == ()


def test_given_splits_are_kept_and_leaks_between_them_are_said(tmp_path):
    save_faces(tmp_path, 8)
    shutil.copy(tmp_path / "real" / "000.png", tmp_path / "real" / "copy.png")
    rows = ["real/000.png,real,,train", "fake/001.png,fake,,train", "real/copy.png,real,,val", "fake/003.png,fake,,val"]
    manifest = build_manifest(config(save_rows(tmp_path / "a.csv", *rows)), 0)
    assert split_names(manifest) == {
        "real/000.png": "train",
        "fake/001.png": "train",
        "real/copy.png": "val",
        "fake/003.png": "val",
    }
    (line,) = manifest.warnings
    assert "1 images are in more than one split" in line
    assert "real/copy.png (val)" in line


def test_a_row_follows_its_group_before_a_copy_of_its_group(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2), ("d", 3)):
        save_image(tmp_path / f"{name}.png", seed)
    rows = ["a.png,fake,g1,train", "b.png,fake,g2,val", "c.png,fake,g2,", "d.png,real,g3,train"]
    manifest = build_manifest(config(save_rows(tmp_path / "t.csv", *rows)), 0)
    assert split_names(manifest) == {"a.png": "train", "b.png": "val", "c.png": "val", "d.png": "train"}
    assert "images are in more than one split" in manifest.warnings[0]


def test_a_group_in_two_splits_is_refused_by_name(tmp_path):
    save_faces(tmp_path, 8)
    rows = ["real/000.png,real,id 7,train", "fake/001.png,fake,id 7,val", "real/002.png,real,x,val"]
    with pytest.raises(DataError, match="source s0: group 'id 7' is in train and val"):
        build_manifest(config(save_rows(tmp_path / "a.csv", *rows)), 0)


def test_contradicting_labels_are_refused(tmp_path):
    folder = save_faces(tmp_path / "d", 8)
    shutil.copy(folder / "real" / "000.png", folder / "fake" / "same.png")
    with pytest.raises(DataError) as caught:
        build_manifest(config(folder), 0)
    assert "fake/same.png = fake" in str(caught.value)
    assert "real/000.png = real" in str(caught.value)


def test_bad_rows_of_all_sources_are_in_one_error_and_long_lists_in_a_file(tmp_path, cache):
    save_faces(tmp_path, 4)
    first = save_rows(tmp_path / "a.csv", "real/000.png,dog,,", "gone.png,real,,")
    second = save_rows(tmp_path / "b.csv", *[f"gone{k}.png,fake,," for k in range(60)])
    with pytest.raises(DataError) as caught:
        build_manifest(config(first, second, tmp_path / "nowhere"), 0)
    lines = str(caught.value).split("\n")
    assert len(lines) == 51
    assert lines[0].startswith(f"{first}:2: label = 'dog'")
    assert lines[1].startswith(f"{first}:3: path = 'gone.png'")
    assert lines[50].startswith("and 13 more; all 63 are listed in ")
    with open(lines[50].split(" listed in ")[1], encoding="utf-8") as file:
        listed = file.read().splitlines()
    assert len(listed) == 63
    assert listed[:50] == lines[:50]
    assert "nowhere" in listed[62]


def test_unreadable_images_are_problems_until_they_are_too_many(tmp_path):
    folder = save_faces(tmp_path / "d", 98)
    (folder / "real" / "empty.png").write_bytes(b"")
    (folder / "fake" / "page.jpg").write_text("<html>", encoding="utf-8")
    manifest = build_manifest(config(folder, max_bad_fraction=0.02), 0)
    assert len(manifest) == 98
    assert [tuple(problem) for problem in manifest.problems] == [
        ("fake/page.jpg", "not an image of a known kind, or its header is damaged"),
        ("real/empty.png", "the file is empty"),
    ]
    with pytest.raises(DataError) as caught:
        build_manifest(config(folder, max_bad_fraction=0.019), 0)
    lines = str(caught.value).split("\n")
    assert lines[1] == "real/empty.png: the file is empty"
    assert "2 of 100 images cannot be used, more than data.max_bad_fraction = 0.019" in lines[-1]


def test_sources_contribute_the_splits_they_are_asked_for(tmp_path):
    first, second = save_faces(tmp_path / "a", 40), tmp_path / "b"
    for k in range(20):
        save_image(second / ("train" if k < 10 else "val") / ("fake" if k % 2 else "real") / f"{k}.png", 1000 + k)
    data = DataConfig(
        sources=[
            SourceConfig(name="a", path=str(first), splits=["train"]),
            SourceConfig(name="b", path=str(second), splits=["val"]),
        ]
    )
    table = {(record["source"], record["split"]): record for record in build_manifest(data, 0).table()}
    assert table[("a", "train")]["real"] == 20
    assert table[("b", "val")] == {"source": "b", "split": "val", "real": 5, "fake": 5, "groups": 10}
    assert len(table) == 2


def test_given_splits_do_not_need_a_share(tmp_path):
    save_faces(tmp_path, 8)
    rows = [f"{'fake' if k % 2 else 'real'}/{k:03d}.png,{k % 2},,{SPLITS[k // 2 % 3]}" for k in range(6)]
    manifest = build_manifest(config(save_rows(tmp_path / "a.csv", *rows), split_ratios=[0.5, 0.5, 0.0]), 0)
    assert len(manifest.indices("test")) == 2


def test_missing_splits_and_classes_are_refused_where_they_are_needed(tmp_path):
    save_faces(tmp_path, 8)
    rows = ["real/000.png,real,,train", "real/002.png,real,,test"]
    data = config(save_rows(tmp_path / "a.csv", *rows))
    with pytest.raises(DataError) as caught:
        build_manifest(data, 0)
    assert "no fake examples in train (train 1, val 0, test 1)" in str(caught.value)
    assert "no val examples" in str(caught.value)
    assert len(build_manifest(data, 0, require=("test",))) == 2
    with pytest.raises(DataError, match=r"data.sources: empty"):
        build_manifest(DataConfig(), 0)


def test_read_notices_that_a_file_has_changed_or_gone(tmp_path):
    folder = save_faces(tmp_path / "d", 12)
    manifest = build_manifest(config(folder), 0)
    with open(manifest.file[0], "ab") as file:
        file.write(b"more")
    with pytest.raises(DataError, match="has changed since it was indexed"):
        manifest.read(0)
    os.remove(manifest.file[1])
    with pytest.raises(DataError) as caught:
        manifest.read(1)
    assert manifest.path[1] in str(caught.value)


def test_save_and_load(tmp_path):
    folder = save_faces(tmp_path / "d", 120)
    (folder / "real" / "bad.png").write_bytes(b"x")
    (folder / "real" / "notes.txt").write_bytes(b"x")
    manifest = index_data(config(folder), 0, tmp_path / "out" / "m.parquet")
    again = load_manifest(tmp_path / "out" / "m.parquet")
    for name in ("path", "file", "source", "group", "problems", "warnings", "identity"):
        assert getattr(again, name) == getattr(manifest, name), name
    for name in ("offset", "length", "sha256", "label", "split", "width", "height"):
        assert np.array_equal(getattr(again, name), getattr(manifest, name)), name
        assert getattr(again, name).dtype == getattr(manifest, name).dtype, name
    assert again.read(5) == manifest.read(5)
    assert len(manifest.problems) == len(manifest.warnings) == 1
    path = tmp_path / "out" / "m.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    for broken in (path, tmp_path / "none.parquet"):
        with pytest.raises(DataError, match="not a manifest, or damaged"):
            load_manifest(broken)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot be written"):
        save_manifest(manifest, tmp_path / "file" / "m.parquet")


def test_split_data_writes_a_csv_that_means_the_same(tmp_path):
    save_faces(tmp_path / "d")
    manifest = split_data(config(tmp_path / "d"), 5, tmp_path / "split.csv")
    again = build_manifest(config(tmp_path / "split.csv"), 6)
    assert again.identity == manifest.identity
    with pytest.raises(DataError, match="at or above the images' folder"):
        split_data(config(tmp_path / "d"), 5, tmp_path / "elsewhere" / "split.csv")


def test_faces(real_data):
    manifest = build_manifest(config(real_data / "faces"), 0)
    with open(real_data / "faces" / "labels.csv", encoding="utf-8") as file:
        expected = {row["path"]: (row["label"], row["group"], row["split"]) for row in csv.DictReader(file)}
    assert manifest.problems == ()
    assert len(manifest) == len(expected) == 1289
    for i in range(0, len(manifest), 97):
        label, group, split = expected[manifest.path[i]]
        assert (("real", "fake")[manifest.label[i]], manifest.group[i], SPLITS[manifest.split[i]]) == (
            label,
            group,
            split,
        )
    assert set(manifest.width.tolist()) == {300}


# content: what is remembered


def contents_of(folder, limit=40.0):
    files = sorted(str(path) for path in folder.rglob("*.png"))
    return check_images(files, stat_files(files), limit)


def test_unchanged_files_are_not_read_again(tmp_path, monkeypatch):
    folder = save_faces(tmp_path / "d")
    (folder / "real" / "bad.png").write_bytes(b"x")
    os.utime(folder / "real" / "bad.png", ns=(0, 0))
    first = contents_of(folder)
    read = []
    monkeypatch.setattr(content, "decode_image", lambda data, limit: read.append(1) or np.zeros((1, 1, 3), np.uint8))
    again = contents_of(folder)
    assert read == []
    assert np.array_equal(first.sha256, again.sha256)
    assert np.array_equal(first.width, again.width)
    assert first.error == again.error
    os.utime(folder / "real" / "000.png", ns=(1, 1))
    save_image(folder / "real" / "002.png", 77, size=(9, 9))
    contents_of(folder)
    assert len(read) == 2
    contents_of(folder)
    assert len(read) == 2
    contents_of(folder, limit=1.0)
    assert len(read) == 3  # only the refused file can have another verdict under another limit
    contents_of(folder, limit=1e-7)
    assert len(read) == 3 + len(first.error)


@pytest.mark.parametrize("damage", ["garbage", "middle", "record", "type"])
def test_a_damaged_memory_costs_time_only(tmp_path, cache, damage, caplog):
    folder = save_faces(tmp_path / "d", 400)
    first = contents_of(folder)
    memory = cache / "content.sqlite"
    data = bytearray(memory.read_bytes())
    if damage == "garbage":
        memory.write_bytes(b"garbage" * 1000)
    elif damage == "middle":
        data[4096 * 2 : 4096 * 6] = os.urandom(4096 * 4)
        memory.write_bytes(data)
    elif damage == "record":
        data[data.index(first.sha256[3].tobytes())] ^= 1
        memory.write_bytes(data)
    else:
        connection = sqlite3.connect(memory)
        connection.execute("UPDATE content_1 SET facts = 7")
        connection.commit()
        connection.close()
    for _ in range(2):
        again = contents_of(folder)
        assert np.array_equal(first.sha256, again.sha256)
        assert np.array_equal(first.height, again.height)
    if damage != "record":
        assert "rebuilt" in caplog.text
    caplog.clear()
    contents_of(folder)
    assert caplog.text == ""


def test_without_a_writable_cache_everything_still_works(tmp_path, monkeypatch, caplog):
    folder = save_faces(tmp_path / "d", 4)
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("HAI_CACHE", str(tmp_path / "file" / "cache"))
    assert contents_of(folder).error == [""] * 4
    assert "files are read again" in caplog.text


def test_processes_share_the_memory(tmp_path):
    folder = save_faces(tmp_path / "d", 300)
    code = (
        "import sys\nfrom pathlib import Path\nfrom hai.data.content import check_images, stat_files\n"
        "files = sorted(str(path) for path in Path(sys.argv[1]).rglob('*.png'))\n"
        "print(check_images(files, stat_files(files), 40.0).sha256.tobytes().hex())\n"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(3)
    ]
    outputs = [process.communicate() for process in processes]
    assert {out for out, _ in outputs} == {f"{contents_of(folder).sha256.tobytes().hex()}\n".encode()}
    assert [err for _, err in outputs] == [b""] * 3


def test_progress_counts_up_to_all(tmp_path):
    folder = save_faces(tmp_path / "d", 50)
    for _ in range(2):
        seen = []
        build_manifest(config(folder), 0, progress=lambda done, total, seen=seen: seen.append((done, total)))
        assert seen == sorted(seen)
        assert seen[-1] == (50, 50)


def test_an_interruption_keeps_what_was_measured(tmp_path, monkeypatch):
    folder = save_faces(tmp_path / "d", 64)
    seen, before = [], threading.active_count()

    def stop(done, total):
        seen.append(done)
        if done > 30:
            raise KeyboardInterrupt

    files = sorted(str(path) for path in folder.rglob("*.png"))
    with pytest.raises(KeyboardInterrupt):
        check_images(files, stat_files(files), 40.0, stop)
    check_images(files, stat_files(files), 40.0, lambda done, total: seen.append(done))
    assert seen[seen.index(max(seen[:-1])) :][0] >= 16
    assert threading.active_count() <= before
