"""The demo data: paired, split by photograph, repeatable, and not to be told apart by anything but local texture."""

import csv
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from hai.data import demo
from hai.data.demo import build_demo
from hai.data.manipulate import METHODS, NUM_DRAWS, manipulate
from hai.errors import ConfigError, DataError

pytest.importorskip("skimage", reason="the photographs come with the extra `demo`")

Rows = list[dict[str, str]]


def rows_of(folder: Path) -> Rows:
    with open(folder / "labels.csv", encoding="utf-8", newline="") as table:
        return list(csv.DictReader(table))


def fewer_views(patch: pytest.MonkeyPatch, train: int, val: int, test: int) -> None:
    patch.setattr(demo, "_VIEWS", {"train": train, "val": val, "test": test})


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set with a third of the usual views."""
    with pytest.MonkeyPatch.context() as patch:
        fewer_views(patch, 4, 2, 4)
        return build_demo("detector", tmp_path_factory.mktemp("made") / "demo", seed=42)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """One view of one photograph's regions."""
    monkeypatch.setattr(demo, "_PHOTOS", [photo for photo in demo._PHOTOS if photo.name in ("coins", "chelsea")])
    fewer_views(monkeypatch, 1, 1, 1)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_real_image_has_its_fake_and_nothing_else_lies_there(built: Path) -> None:
    rows = rows_of(built)
    stems = defaultdict(set)
    for row in rows:
        split, label, name = row["path"].split("/")
        assert (split, label) == (row["split"], row["label"])
        assert name.startswith(row["group"])
        stems[label].add("_".join(name.removesuffix(".jpg").split("_")[:3]))
        with Image.open(built / row["path"]) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (128, 128))
    assert stems["real"] == stems["fake"]
    assert len(rows) == 2 * len(stems["real"])
    assert {row["path"] for row in rows} == {str(path.relative_to(built)) for path in built.rglob("*.jpg")}


def test_splits_share_no_photograph_and_every_split_has_many_regions(built: Path) -> None:
    photographs, regions = defaultdict(set), defaultdict(set)
    for row in rows_of(built):
        photographs[row["group"].rpartition("_")[0]].add(row["split"])
        regions[row["split"]].add(row["group"])
    assert all(len(splits) == 1 for splits in photographs.values())
    assert len(regions["train"]) >= 40
    assert min(len(regions["val"]), len(regions["test"])) >= 10


def test_all_manipulations_occur_about_equally_often(built: Path) -> None:
    counts = Counter(Path(row["path"]).stem.split("_")[-1] for row in rows_of(built) if row["label"] == "fake")
    assert set(counts) == set(METHODS)
    assert min(counts.values()) > 0.6 * max(counts.values())


def test_regions_of_a_photograph_do_not_overlap() -> None:
    numbers = np.arange(427 * 640).reshape(427, 640, 1)
    tiles = [tile.ravel() for tile in demo._tiles(numbers)]
    assert len(tiles) == 8
    assert len(np.unique(np.concatenate(tiles))) == sum(map(len, tiles)) == 427 * 640


def facts_of(folder: Path, rows: Rows) -> np.ndarray:
    """What a file tells without its pixels: bytes, size, quantisation tables, EXIF, and bytes for the quality."""
    facts = []
    for row in rows:
        size = (folder / row["path"]).stat().st_size
        with Image.open(folder / row["path"]) as image:
            tables = [sum(table) for table in image.quantization.values()]
            facts.append([size, np.log(size), size / tables[0], *image.size, *tables, len(image.getexif())])
    return np.array(facts)


def thumbnails_of(folder: Path, rows: Rows) -> np.ndarray:
    images = (Image.open(folder / row["path"]) for row in rows)
    return np.array([np.asarray(image.resize((8, 8), Image.Resampling.BOX)).ravel() / 255 for image in images])


@pytest.mark.parametrize("features", [facts_of, thumbnails_of])
def test_neither_the_file_nor_a_thumbnail_tells_the_label(built: Path, features) -> None:
    rows = rows_of(built)
    x, label = features(built, rows), np.array([row["label"] == "fake" for row in rows])
    split, group = (np.array([row[key] for row in rows]) for key in ("split", "group"))
    train, test = split == "train", split == "test"
    for classifier in (
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
        HistGradientBoostingClassifier(max_iter=30),
    ):
        held_out = classifier.fit(x[train], label[train]).predict_proba(x[test])[:, 1]
        folds = cross_val_predict(classifier, x, label, groups=group, cv=GroupKFold(3), method="predict_proba")[:, 1]
        for auc in (roc_auc_score(label[test], held_out), roc_auc_score(label, folds)):
            assert max(auc, 1 - auc) < 0.65


@pytest.mark.parametrize("method", METHODS)
def test_a_manipulation_is_local_and_replaces_the_grain(method: str) -> None:
    rng = np.random.default_rng(3)
    image = np.clip(0.5 + 0.015 * rng.standard_normal((128, 128, 3)), 0, 1).astype(np.float32)
    before = image.copy()
    fake = manipulate(image, method, rng.standard_normal((128, 128)).astype(np.float32), rng.random(NUM_DRAWS))
    assert np.array_equal(image, before)
    assert fake.dtype == np.float32
    assert 0 <= fake.min() <= fake.max() <= 1
    changed = np.abs(fake - image).max(axis=2) > 0
    assert 0.15 < changed.mean() < 0.6
    assert not changed[[0, 0, -1, -1], [0, -1, 0, -1]].any()
    inside = np.s_[48:80, 48:80]
    grain = [np.diff(part[inside], axis=1).ravel() for part in (image, fake)]
    assert np.corrcoef(*grain)[0, 1] < 0.7
    assert abs(fake[inside].mean() - image[inside].mean()) < 0.05


@pytest.mark.usefixtures("tiny")
def test_equal_seeds_give_equal_files_and_other_seeds_others(tmp_path: Path) -> None:
    first, again, other = (
        files_of(build_demo("detector", tmp_path / name, seed=seed)) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert first == again
    assert not {data for name, data in first.items() if name.endswith(".jpg")} & set(other.values())


@pytest.mark.usefixtures("tiny")
def test_a_finished_set_is_left_as_it_is(tmp_path: Path) -> None:
    folder = build_demo("detector", tmp_path / "demo", seed=1)
    (folder / "README.md").write_text("mine", encoding="utf-8")
    calls: list[tuple[int, int]] = []
    assert build_demo("detector", folder, seed=1, progress=lambda *call: calls.append(call)) == folder
    assert (folder / "README.md").read_text(encoding="utf-8") == "mine"
    assert not calls


@pytest.mark.usefixtures("tiny")
def test_an_interrupted_call_leaves_nothing_behind(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        assert list(tmp_path.glob(".demo.*/train/fake/*.jpg"))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_demo("detector", tmp_path / "demo", progress=interrupt)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("tiny")
def test_progress_ends_with_all_images(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    folder = build_demo("detector", tmp_path / "demo", progress=lambda *call: calls.append(call))
    assert calls[-1] == (len(rows_of(folder)), len(rows_of(folder)))


@pytest.mark.usefixtures("tiny")
def test_what_is_wrong_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"task = 'ranker'.*detector"):
        build_demo("ranker", tmp_path / "demo")
    folder = build_demo("detector", tmp_path / "demo", seed=1)
    with pytest.raises(DataError, match=r"demo: holds the demo data .*'seed': 1.* not .*'seed': 2.*delete"):
        build_demo("detector", folder, seed=2)
    missing = rows_of(folder)[3]["path"]
    (folder / missing).unlink()
    with pytest.raises(DataError, match=rf"lacks 1 of its images, first {missing}"):
        build_demo("detector", folder, seed=1)
    (folder / "demo.json").unlink()
    with pytest.raises(DataError, match="is not empty and holds no demo data"):
        build_demo("detector", folder, seed=1)
    monkeypatch.setattr(demo, "_PHOTOS", [demo._Photo("skimage/data/none.png", "train", "")])
    with pytest.raises(DataError, match=r"skimage/data/none.png: .*hai\[demo\]"):
        build_demo("detector", tmp_path / "other")
