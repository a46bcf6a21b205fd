import csv
import random

import numpy as np
import pytest
from PIL import Image

from hai.config.schema import DataConfig, SourceConfig
from hai.data.duplicates import close_pairs, perceptual_hash
from hai.data.index import pack_data, split_data
from hai.data.manifest import build_manifest, load_manifest, save_manifest
from hai.data.splits import linked
from hai.data.tiers import task_of
from hai.errors import DataError
from hai.types import SPLITS

HEADER = "image_id,filename,tier,group,split,score"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HAI_CACHE", str(tmp_path / "cache"))


def save_image(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, format="PNG")


def save_art(folder, count=40, split=""):
    for k in range(count):
        save_image(folder / "images" / f"{k}.png", k)
    return save_csv(folder, [f"i{k},{k}.png,{'SABC'[k % 4]},,{split},{k / 2}" for k in range(count)])


def save_csv(folder, lines, header=HEADER, name="metadata.csv"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return folder


def save_comparisons(folder, count, pairs, splits=None):
    for k in range(count):
        save_image(folder / "images" / f"{k}.png", k)
    ends = [f"{a}.png,{b}.png,{p}" for a, b, p in pairs]
    if splits:
        ends = [f"{end},{split}" for end, split in zip(ends, splits, strict=True)]
    return save_csv(folder, ends, "left,right,preference" + (",split" if splits else ""), "comparisons.csv")


def config(*paths, **options):
    sources = [SourceConfig(name=f"s{k}", path=str(path)) for k, path in enumerate(paths)]
    return DataConfig(sources=sources, **options)


def ranked(*paths, seed=0, require=(), **options):
    return build_manifest(config(*paths, **options), seed, task="ranker", require=require)


def facts(manifest):
    return sorted(zip(manifest.path, manifest.label.tolist(), manifest.split.tolist(), strict=True))


def test_columns_and_stratified_split(tmp_path):
    manifest = ranked(save_art(tmp_path), score_column="score", require=("train", "val"))
    assert manifest.labels == ("S", "A", "B", "C")
    assert manifest.image_id == [f"i{path[:-4]}" for path in manifest.path]
    assert manifest.score.tolist() == [int(path[:-4]) / 2 for path in manifest.path]
    assert manifest.label.tolist() == [int(path[:-4]) % 4 for path in manifest.path]
    for split, count in (("train", 8), ("val", 1), ("test", 1)):
        assert np.bincount(manifest.label[manifest.indices(split)]).tolist() == [count] * 4
    assert [record["S"] for record in manifest.table()] == [8, 1, 1]
    lines = (tmp_path / "metadata.csv").read_text(encoding="utf-8").splitlines()[1:]
    random.Random(1).shuffle(lines)
    save_csv(tmp_path, lines)
    shuffled = ranked(tmp_path)
    assert facts(shuffled) == facts(manifest)
    assert shuffled.identity == manifest.identity
    assert shuffled.score is None


def test_all_faults_are_listed(tmp_path):
    save_art(tmp_path, 3)
    rows = ["a,0.png,D,,,1", "b,gone.png,S,,,1", ",1.png,,,,1", "a,0.png,A,,nope,x"]
    save_csv(tmp_path, rows)
    with pytest.raises(DataError) as caught:
        ranked(tmp_path, score_column="score")
    table = tmp_path / "metadata.csv"
    assert sorted(str(caught.value).split("\n")) == sorted(
        [
            f"{table}:2: tier = 'D'; must be one of S, A, B, C (data.tiers)",
            f"{table}:3: filename = 'gone.png'; there is no such file in {tmp_path / 'images'}",
            f"{table}:4: image_id is empty",
            f"{table}:4: tier is empty",
            f"{table}:5: split = 'nope'; must be train, val, test or empty",
            f"{table}:5: image_id = 'a'; already in line 2, each may occur once",
            f"{table}:5: filename = '0.png'; already in line 2, each may occur once",
            f"{table}:5: score = 'x'; must be a number or empty (data.score_column)",
        ]
    )


def test_one_image_in_two_tiers_is_refused_with_both_lines(tmp_path):
    save_art(tmp_path, 2)
    save_image(tmp_path / "images" / "1.png", 0)
    with pytest.raises(DataError, match=r"metadata\.csv:2: 0\.png = S, .*metadata\.csv:3: 1\.png = A; the same image"):
        ranked(tmp_path)


def test_folders_per_tier(tmp_path):
    for k in range(8):
        save_image(tmp_path / "d" / "train" / "sabc"[k % 4] / f"{k}.png", k)
    manifest = ranked(tmp_path / "d")
    assert np.bincount(manifest.label).tolist() == [2, 2, 2, 2]
    assert not manifest.split.any()
    save_image(tmp_path / "d" / "train" / "Z" / "9.png", 9)
    with pytest.raises(DataError, match=r"tier = 'Z'; must be one of S, A, B, C"):
        ranked(tmp_path / "d")


def test_near_duplicates_stay_together_or_are_named(tmp_path):
    save_art(tmp_path, 40)
    for k in range(20):
        with Image.open(tmp_path / "images" / f"{k}.png") as image:
            image.resize((80, 80)).save(tmp_path / "images" / f"{k + 20}.png")
    by_path = {path: split for path, _, split in facts(ranked(tmp_path, split_ratios=[0.5, 0.25, 0.25]))}
    assert all(by_path[f"{k}.png"] == by_path[f"{k + 20}.png"] for k in range(20))
    rows = ["a,0.png,S,,train,1", "b,20.png,S,,val,1", "c,3.png,A,,,1"]
    (warning,) = ranked(save_csv(tmp_path, rows)).warnings
    assert warning.startswith("1 sets of near-duplicates are in more than one split, such as ")


@pytest.mark.parametrize("distance", [0, 1, 4, 16])
def test_close_pairs_against_all_pairs(distance):
    rng = np.random.default_rng(distance)
    hashes = rng.integers(1, 2**63, 400, dtype=np.uint64)
    flips = np.bitwise_or.reduce(np.uint64(1) << rng.integers(0, 63, (4, 300)).astype(np.uint64), axis=0)
    hashes = np.concatenate([hashes, hashes[:300] ^ flips, hashes[:20], np.zeros(5, np.uint64)])
    near = np.bitwise_count(hashes[:, None] ^ hashes[None]) <= distance
    near &= (hashes != 0)[:, None] & (hashes != 0)[None]
    assert np.array_equal(
        linked(len(hashes), close_pairs(hashes, distance)), linked(len(hashes), np.argwhere(np.triu(near, 1)))
    )


def test_perceptual_hash_survives_small_changes_only():
    image = np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)
    hashed = perceptual_hash(image)
    assert (hashed ^ perceptual_hash(image.repeat(2, 0).repeat(2, 1))).bit_count() == 0
    assert (hashed ^ perceptual_hash(image[::-1].copy())).bit_count() > 16
    assert perceptual_hash(np.full((9, 7, 3), 80, np.uint8)) == 0


def test_the_real_set_is_divided_by_scene(tmp_path, real_data):
    with open(real_data / "quality" / "metadata.csv", encoding="utf-8") as file:
        rows = [f"{row['image_id']},{row['filename']},{row['tier']},{row['group']},,1" for row in csv.DictReader(file)]
    table = save_csv(tmp_path, rows) / "metadata.csv"
    source = SourceConfig(name="q", path=str(table), image_dir=str(real_data / "quality" / "images"))
    manifest = build_manifest(DataConfig(sources=[source]), 42, task="ranker")
    groups = [{manifest.group[i] for i in manifest.indices(split)} for split in SPLITS]
    assert not (groups[0] & groups[1])
    assert not (groups[0] & groups[2])
    assert not (groups[1] & groups[2])
    assert 0.7 < len(manifest.indices("train")) / len(manifest) < 0.88


def test_comparisons_divide_by_what_they_connect(tmp_path):
    pairs = [(2 * k, 2 * k + 1, ("left", "right", "tie")[k % 3]) for k in range(20)]
    manifest = ranked(save_comparisons(tmp_path, 40, pairs), require=("train", "val"))
    assert manifest.labels == ("image",)
    assert manifest.warnings == ()
    assert len(manifest.comparisons) == 20
    assert (manifest.split[manifest.comparisons[:, 0]] == manifest.split[manifest.comparisons[:, 1]]).all()
    found = {(manifest.path[a], manifest.path[b], p) for a, b, p in manifest.comparisons.tolist()}
    assert found == {(f"{a}.png", f"{b}.png", {"left": 1, "right": -1, "tie": 0}[p]) for a, b, p in pairs}
    assert [record["comparisons"] for record in manifest.table()] == [16, 2, 2]
    swapped = [(a, b, "tie") for a, b, _ in pairs]
    assert ranked(save_comparisons(tmp_path, 40, swapped)).identity != manifest.identity


def test_connected_comparisons_across_splits_are_left_out(tmp_path):
    pairs = [(k, (k + step) % 40, "left") for k in range(40) for step in (1, 2)]
    manifest = ranked(save_comparisons(tmp_path, 40, pairs))
    (note,) = manifest.warnings
    left_out = 80 - len(manifest.comparisons)
    assert left_out > 0
    assert f"{left_out} of 80 comparisons are between images of different splits" in note
    assert (manifest.split[manifest.comparisons[:, 0]] == manifest.split[manifest.comparisons[:, 1]]).all()


def test_given_splits_and_faults_of_comparisons(tmp_path):
    pairs = [(0, 1, "left"), (1, 0, "left"), (0, 2, "tie")]
    manifest = ranked(save_comparisons(tmp_path, 4, pairs, ["train", "train", "val"]))
    assert len(manifest.comparisons) == 3
    assert len(manifest) == 4
    assert "1 images are in more than one split" in manifest.warnings[0]
    save_comparisons(tmp_path, 4, [(0, 0, "left"), (0, 1, "better"), (1, 2, "tie")], ["train", "train", ""])
    with pytest.raises(DataError) as caught:
        ranked(tmp_path)
    assert [line.partition("comparisons.csv:")[2] for line in str(caught.value).split("\n")] == [
        "2: left and right are both '0.png'; an image cannot be compared with itself",
        "3: preference = 'better'; must be left, right or tie",
        "4: split is empty, other lines have one; fill all or none",
    ]


def test_kinds_do_not_mix(tmp_path):
    tiers, compared = save_art(tmp_path / "a", 4), save_comparisons(tmp_path / "b", 2, [(0, 1, "left")])
    with pytest.raises(DataError, match="s1 hold comparisons and s0 tiers"):
        ranked(tiers, compared)
    with pytest.raises(DataError, match="only tier S in train"):
        ranked(save_csv(tiers, ["a,0.png,S,,train,"]), require=("train",))
    assert task_of(config(tiers)) == task_of(config(compared)) == "ranker"


@pytest.mark.parametrize("kind", ["tiers", "comparisons"])
def test_saved_packed_and_split_data_mean_the_same(tmp_path, kind):
    folder = tmp_path / "d"
    if kind == "tiers":
        save_art(folder)
    else:
        save_comparisons(folder, 40, [(2 * k, 2 * k + 1, ("right", "tie")[k % 2]) for k in range(20)])
    data = config(folder, score_column="score" if kind == "tiers" else None)
    manifest = build_manifest(data, 3, task="ranker")
    save_manifest(manifest, tmp_path / "m.parquet")
    pack_data(data, tmp_path / "p", 3, task="ranker")
    split_data(data, 3, folder / "split.csv", task="ranker")
    others = [load_manifest(tmp_path / "m.parquet")]
    for path in (tmp_path / "p", folder / "split.csv"):
        moved = data.model_copy(update={"sources": [SourceConfig(name="s0", path=str(path))]})
        assert task_of(moved) == "ranker"
        others.append(build_manifest(moved, 9, task="ranker"))
    for other in others:
        assert other.identity == manifest.identity
        assert other.labels == manifest.labels
        assert np.array_equal(other.comparisons, manifest.comparisons)
        assert other.path == manifest.path
        assert kind == "comparisons" or np.array_equal(other.score, manifest.score)
    with pytest.raises(DataError, match=r"the pack holds .*, which is no data of the detector"):
        build_manifest(config(tmp_path / "p"), 0)
