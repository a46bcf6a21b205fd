import json
import re

import numpy as np
import pytest
from PIL import Image

from hai.cli import main
from hai.config.schema import DataConfig, SourceConfig
from hai.data.audit import _looked_at, audit_data
from hai.data.index import pack_data
from hai.report.audit import write_audit

LINE = re.compile(r"(label|source) separable by (.+): AUC ([01]\.\d\d)")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HAI_CACHE", str(tmp_path / "cache"))


def drawn(seed, size=72, level=0):
    """A smooth random picture."""
    coarse = np.random.default_rng(seed).integers(40, 200, (6, 6, 3)).astype(np.uint8) + np.uint8(level)
    return Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)


def save(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


def fill(folder, count=24, ending="jpg", size=72, level=0, seed=0, **options):
    for k in range(count):
        save(folder / f"{seed}_{k:03d}.{ending}", drawn(1000 * seed + k, size, level), **options)
    return folder


def table(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("path,label,group,split,source\n" + "".join(f"{row}\n" for row in rows), encoding="utf-8")
    return path


def audit(path, **options):
    task = options.pop("task", "detector")
    return audit_data(DataConfig(sources=[SourceConfig(path=str(path))]), task=task, **options)


def kinds(found):
    return {finding.kind for finding in found.findings}


def of_kind(found, kind):
    return [finding.text for finding in found.findings if finding.kind == kind]


def facts(found, target="label"):
    matches = [LINE.fullmatch(line) for line in found.lines]
    return {match[2] for match in matches if match and match[1] == target}


def test_a_clean_set_is_clean(tmp_path):
    for split, count in (("train", 24), ("val", 12), ("test", 12)):
        for number, label in enumerate(("real", "fake")):
            fill(tmp_path / split / label, count, seed=10 * len(split) + number + 7 * count)
    found = audit(tmp_path)
    assert found.lines == []
    assert len(found.tests) == 11
    assert all(test.separation.low <= test.separation.value <= test.separation.high for test in found.tests)


@pytest.mark.parametrize(
    ("fact", "options"),
    [
        ("JPEG quantisation tables", {"quality": 74}),
        ("chroma subsampling", {"quality": 75, "subsampling": 0}),
        ("coding", {"quality": 75, "progressive": True}),
        ("format", {"ending": "png"}),
        ("dimensions", {"size": 74}),
        ("other metadata", {"comment": b"hello"}),
        ("8x8 thumbnail", {"level": 40}),
    ],
)
def test_each_shortcut_is_named(tmp_path, fact, options):
    fill(tmp_path / "real", seed=1)
    fill(tmp_path / "fake", seed=2, **options)
    found = audit(tmp_path)
    assert fact in facts(found)
    (test,) = [test for test in found.tests if test.target == "label" and test.fact == fact]
    assert test.separation.low > 0.9
    measured = {test.fact for test in found.tests}
    assert ("bytes per pixel" in measured) == (fact == "dimensions")  # else it says what the file size says
    others = {"JPEG quantisation tables", "chroma subsampling", "dimensions", "8x8 thumbnail"} - {fact}
    assert not facts(found) & others or fact == "format"


def test_exif_is_a_shortcut(tmp_path):
    exif = Image.Exif()
    exif[0x0110] = "Phone 7"
    fill(tmp_path / "real", seed=1, exif=exif)
    fill(tmp_path / "fake", seed=2)
    assert facts(audit(tmp_path)) == {"EXIF"} | ({"file size"} & facts(audit(tmp_path)))


def test_facts_that_tell_only_together_are_named_with_the_strongest(tmp_path):
    rng = np.random.default_rng(0)
    for k in range(400):
        label = k % 2
        # four facts, each a little likelier for fakes
        votes = rng.random(4) < (0.62 if label else 0.38)
        options = {
            "quality": 80 if votes[0] else 75,
            "progressive": bool(votes[1]),
            "subsampling": 0 if votes[2] else 2,
        }
        options |= {"comment": b"x"} if votes[3] else {}
        save(tmp_path / ("real", "fake")[label] / f"{k}.jpg", drawn(k, 24), **options)
    found = audit(tmp_path)
    (line,) = [line for line in found.lines if line.startswith("label separable")]
    assert re.fullmatch(r"label separable by all file facts together, most by [\w ]+: AUC 0\.\d\d", line)


def test_an_auc_below_one_is_not_shown_as_one(tmp_path):
    fill(tmp_path / "real", 120, seed=1)
    fill(tmp_path / "fake", 119, seed=2, size=74)
    fill(tmp_path / "fake", 1, seed=3)
    (line,) = [line for line in audit(tmp_path).lines if "dimensions" in line]
    assert line == "label separable by dimensions: AUC 0.99"


def test_sources_are_told_apart_within_a_label(tmp_path):
    rows = []
    for source, size in (("old", 64), ("new", 80)):
        for number, label in enumerate(("real", "fake")):
            fill(tmp_path / source / label, 20, size=size, seed=len(source) * 10 + number + size)
            rows += [f"{p.relative_to(tmp_path)},{label},,,{source}" for p in (tmp_path / source / label).iterdir()]
    found = audit(table(tmp_path / "labels.csv", *rows))
    assert "dimensions" in facts(found, "source")
    assert "dimensions" not in facts(found, "label")
    (test,) = [test for test in found.tests if test.target == "source" and test.fact == "dimensions"]
    assert test.separation.value == 1.0
    assert "data/old" in test.between
    assert test.among in ("real", "fake")


def test_sources_of_one_label_each_are_named_but_manipulations_are_none(tmp_path):
    fill(tmp_path / "a", 12, seed=1)
    fill(tmp_path / "b", 12, seed=2)
    files = {name: [f"{name}/{p.name}" for p in (tmp_path / name).iterdir()] for name in "ab"}
    rows = [f"{p},real,,,camera" for p in files["a"]] + [f"{p},fake,,,gan" for p in files["b"]]
    (line,) = of_kind(audit(table(tmp_path / "labels.csv", *rows)), "pure sources")
    assert "data/camera: real" in line
    rows = [f"{p},real,,," for p in files["a"]] + [f"{p},fake,,,Deepfakes" for p in files["b"]]
    assert not of_kind(audit(table(tmp_path / "labels.csv", *rows)), "pure sources")


def test_copies_are_counted_by_split(tmp_path):
    rows = []
    for k in range(30):
        label, split = ("real", "fake")[k % 2], ("train", "val", "test")[k // 10]
        save(tmp_path / f"{k}.png", drawn(k))
        rows.append(f"{k}.png,{label},,{split},")
    for name, of, split in (("c0", 0, "val"), ("c1", 0, "test"), ("c2", 2, "test"), ("c3", 4, "train")):
        (tmp_path / f"{name}.png").write_bytes((tmp_path / f"{of}.png").read_bytes())
        rows.append(f"{name}.png,real,,{split},")
    (tmp_path / "wrong.png").write_bytes((tmp_path / "6.png").read_bytes())
    rows.append("wrong.png,fake,,train,")
    found = audit(table(tmp_path / "labels.csv", *rows))
    lines = of_kind(found, "duplicates")
    assert [line.split(",")[0] for line in lines] == [
        "1 of 11 val images has a copy in train",
        "2 of 12 test images have a copy in train",
        "1 of 12 test images has a copy in val",
    ]
    assert "0.png (train) and c0.png (val)" in lines[0]
    assert of_kind(found, "contradiction") == [
        "1 image has more than one label, such as 6.png (real) and wrong.png (fake)"
    ]
    assert of_kind(found, "repeated")[0].startswith("2 files repeat another of the same split")
    assert not of_kind(found, "near-duplicates")  # equal files are no near-duplicates besides


def test_near_duplicates_are_found_across_splits_only(tmp_path):
    rows = []
    for k in range(20):
        save(tmp_path / f"{k}.png", drawn(k, 96))
        rows.append(f"{k}.png,{('real', 'fake')[k % 2]},,{'train' if k < 10 else 'test'},")
    save(tmp_path / "small.jpg", drawn(3, 96).resize((64, 64)), quality=60)
    save(tmp_path / "bright.jpg", drawn(4, 96).point(lambda v: min(255, int(v * 1.1))), quality=90)
    save(tmp_path / "cropped.jpg", drawn(15, 96).crop((1, 1, 95, 95)), quality=90)
    save(tmp_path / "mirrored.jpg", drawn(5, 96).transpose(Image.Transpose.FLIP_LEFT_RIGHT), quality=90)
    (tmp_path / "copy.png").write_bytes((tmp_path / "3.png").read_bytes())  # as a copy it hides no near-duplicate
    rows += ["small.jpg,fake,,test,", "bright.jpg,real,,test,", "cropped.jpg,fake,,test,", "mirrored.jpg,real,,test,"]
    rows += ["copy.png,fake,,test,"]
    found = audit(table(tmp_path / "labels.csv", *rows))
    (line,) = of_kind(found, "near-duplicates")
    assert line.startswith("3 of 15 test images have a near-duplicate in train, such as ")
    (finding,) = [finding for finding in found.findings if finding.kind == "near-duplicates"]
    assert sorted(map(tuple, finding.examples)) == [
        ("3.png", "small.jpg"),
        ("4.png", "bright.jpg"),
        ("5.png", "mirrored.jpg"),
    ]


def test_what_training_refuses_is_a_finding(tmp_path):
    rows = []
    for k in range(24):
        save(tmp_path / f"{k}.png", drawn(k))
        rows.append(f"{k}.png,{('real', 'fake')[k % 2]},g{k // 2},train,")
    rows[1] = "1.png,fake,g0,val,"
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture")
    rows += ["broken.jpg,real,,train,", "gone.png,real,,train,", "0.png,cat,,train,"]  # the last is wrong twice
    found = audit(table(tmp_path / "labels.csv", *rows))
    (line,) = of_kind(found, "divided group")
    assert "group 'g0' is in train and val" in line
    assert len(of_kind(found, "unusable row")) == 3
    assert any("gone.png" in line for line in of_kind(found, "unusable row"))
    (line,) = of_kind(found, "unreadable")
    assert line.startswith("broken.jpg: ")
    assert found.num_rows == 27
    assert len(found.manifest) == 24


@pytest.mark.parametrize("name", ["gesicht_\udcfc.png", "m\udcfcller/a.png"])
def test_a_name_that_is_not_utf8_is_a_finding(tmp_path, name):
    for number, label in enumerate(("real", "fake")):
        fill(tmp_path / label, 12, seed=number + 1)
    try:
        save(tmp_path / "fake" / name, drawn(1))
    except OSError:
        pytest.skip("the file system holds no such names")
    found = audit(tmp_path)
    (line,) = of_kind(found, "unusable row")
    assert line.endswith("the name is not UTF-8; rename the file")
    assert len(found.manifest) == 24
    assert found.num_rows == 25
    write_audit(found, str(tmp_path), tmp_path / "out")


def test_many_bad_rows_are_cut_short_but_kept(tmp_path):
    save(tmp_path / "a.png", drawn(1))
    found = audit(table(tmp_path / "labels.csv", "a.png,real,,,", *(f"gone{k}.png,real,,," for k in range(50))))
    lines = of_kind(found, "unusable row")
    assert len(lines) == 21
    assert lines[-1].startswith("30 more")
    kept = [name for finding in found.findings if finding.kind == "unusable row" for name in finding.examples]
    assert len(kept) == 50


def test_imbalance_few_groups_tiny_and_odd_files(tmp_path):
    fill(tmp_path / "train" / "real", 30, seed=1)
    fill(tmp_path / "train" / "fake", 5, seed=2)
    fill(tmp_path / "val" / "real" / "video1", 6, seed=3)
    save(tmp_path / "train" / "real" / "speck.png", drawn(99).resize((20, 30)))
    save(tmp_path / "train" / "real" / "liar.jpg", drawn(98), format="PNG")
    save(tmp_path / "train" / "real" / "new\nline.jpg", drawn(97).convert("L"))
    found = audit(tmp_path)
    assert of_kind(found, "imbalance") == [
        "only 13 % of train images are fake (5 of 38); accuracy says little there",
        "val holds no fake images",
    ]
    assert "1 of real" in of_kind(found, "few groups")[0]
    assert of_kind(found, "tiny") == [
        "1 image is smaller than 64 pixels on a side (1 real), the smallest train/real/speck.png with 20x30"
    ]
    assert "1 odd file, another format than the name says (1 real), such as train/real/liar.jpg" in found.lines
    assert "1 odd file, gray (1 real), such as train/real/new\\nline.jpg" in found.lines
    assert not any("\n" in line for line in found.lines)


def test_faces_that_were_tiny_before_they_were_enlarged(real_data, tmp_path):
    files = sorted((real_data / "faces" / "real").glob("*.jpg"))[:40]
    for k, file in enumerate(files):
        with Image.open(file) as image:
            size = 40 if k < 20 else 150
            save(tmp_path / "real" / file.name, image.resize((size, size)).resize((224, 224), Image.Resampling.BICUBIC))
    (finding,) = [finding for finding in audit(tmp_path).findings if finding.kind == "no detail"]
    assert {name for (name,) in finding.examples} <= {f"real/{file.name}" for file in files[:20]}
    assert len(finding.examples) >= 18
    assert finding.text.startswith(
        f"{len(finding.examples)} of 40 images looked at closely show no more than 64 pixels"
    )


def test_a_set_without_a_usable_image_is_refused(tmp_path, capsys):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.jpg").write_bytes(b"nothing")
    with pytest.raises(SystemExit) as ended:
        main(["data", "audit", str(tmp_path), "--output", str(tmp_path / "out")])
    assert ended.value.code == 2
    assert "real/a.jpg" in capsys.readouterr().err


def test_a_sample_is_of_whole_groups_and_said_to_be_one(tmp_path):
    for number, label in enumerate(("real", "fake")):
        for video in range(10):
            fill(tmp_path / label / f"v{video}", 4, seed=20 * number + video)
    found = audit(tmp_path, most=40)
    assert 30 <= len(found.looks.rows) <= 40
    groups = [found.manifest.group[row] + str(found.manifest.label[row]) for row in found.looks.rows.tolist()]
    assert {groups.count(group) for group in groups} <= {4, 8}
    assert any("were looked at" in note for note in found.notes)
    assert len(found.manifest) == 80


def test_a_pack_and_a_folder_give_the_same_findings(tmp_path):
    fill(tmp_path / "d" / "real", seed=1)
    fill(tmp_path / "d" / "fake", seed=2, quality=60)
    data = DataConfig(sources=[SourceConfig(path=str(tmp_path / "d"))])
    pack_data(data, tmp_path / "pack", 42)
    assert audit(tmp_path / "pack").lines == audit(tmp_path / "d").lines
    assert audit(tmp_path / "pack").manifest.identity == audit(tmp_path / "d").manifest.identity


def test_tiers_and_comparisons(small_art, tmp_path):
    found = audit(small_art, task="ranker")
    assert {test.target for test in found.tests} == {"label"}
    assert found.tests[0].between == "S, A, B and C"
    for k in range(12):
        save(tmp_path / f"{k}.png", drawn(k))
    rows = "".join(f"{k}.png,{k + 1}.png,left\n" for k in range(0, 12, 2))
    (tmp_path / "comparisons.csv").write_text("left,right,preference\n" + rows, encoding="utf-8")
    compared = audit(tmp_path / "comparisons.csv", task="ranker")
    assert compared.tests == []
    assert not kinds(compared) & {"imbalance", "duplicates"}


def test_the_verb_prints_one_line_each_and_writes_json_and_page(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    fill(tmp_path / "set" / "real", seed=1)
    fill(tmp_path / "set" / "fake", seed=2, size=90)
    with pytest.raises(SystemExit) as ended:
        main(["data", "audit", "set"])
    assert not ended.value.code
    lines = capsys.readouterr().out.split("\n")
    assert "warning: label separable by dimensions: AUC 1.00" in lines
    assert "wrote audit/set/audit.json" in lines
    record = json.loads((tmp_path / "audit/set/audit.json").read_text())
    (found,) = [r for r in record["separability"] if (r["target"], r["fact"]) == ("label", "dimensions")]
    assert found["auc"] == 1.0
    assert found["warning"]
    assert record["findings"][0]["text"].startswith("label separable by")
    assert [f"warning: {finding['text']}" for finding in record["findings"]] == [
        line for line in lines if line.startswith("warning: ")
    ]
    assert (tmp_path / "audit/set/report.html").stat().st_size > 10_000


def test_the_faces_are_known_by_their_framing(real_data, tmp_path):
    found = audit(real_data / "faces")
    assert found.lines[0] == "label separable by 8x8 thumbnail: AUC 0.99"
    assert facts(found) == {"8x8 thumbnail", "file size"}
    assert not kinds(found) & {"duplicates", "near-duplicates", "divided group", "unreadable"}


def test_copies_planted_among_real_faces_are_found(real_data, tmp_path):
    source = sorted((real_data / "faces" / "real").glob("*.jpg"))[:120]
    for k, file in enumerate(source):
        split = "train" if k < 80 else "test"
        (tmp_path / split / "real").mkdir(parents=True, exist_ok=True)
        (tmp_path / split / "real" / file.name).write_bytes(file.read_bytes())
    planted = set()
    for k, file in enumerate(source[:20]):
        with Image.open(file) as image:
            changed = image.resize((220, 220)) if k % 2 else image.crop((3, 3, 297, 297))
            changed.save(tmp_path / "test" / "real" / f"planted{k}.jpg", quality=70)
            planted.add(f"test/real/planted{k}.jpg")
    found = audit(tmp_path)
    (finding,) = [finding for finding in found.findings if finding.kind == "near-duplicates"]
    assert {names[1] for names in finding.examples} == planted
    assert all(names[0].startswith("train/") for names in finding.examples)


def test_an_oddity_of_one_file_counts_once(tmp_path):
    image = drawn(1).convert("P")
    save(tmp_path / "real" / "a.png", image, transparency=0)
    data = (tmp_path / "real" / "a.png").read_bytes()
    at = data.index(b"tRNS") - 4
    end = at + 12 + int.from_bytes(data[at : at + 4], "big")
    (tmp_path / "real" / "a.png").write_bytes(data[:end] + data[at:end] + data[end:])
    (line,) = [line for line in of_kind(audit(tmp_path), "odd files") if "transparency" in line]
    assert line == "1 odd file, transparency (1 real), such as real/a.png"


def test_a_giant_group_does_not_end_the_sample(tmp_path):
    for number, label in enumerate(("real", "fake")):
        fill(tmp_path / label / f"giant_{label}", 90, seed=50 + number, size=72 + 8 * number)
        fill(tmp_path / label, 20, seed=60 + number, size=72 + 8 * number)
    found = audit(tmp_path, most=100)
    counts = np.bincount(found.manifest.label[found.looks.rows], minlength=2)
    assert counts.sum() == 100
    assert counts.min() > 30
    assert "dimensions" in facts(found)
    (note,) = [note for note in found.notes if "were looked at" in note]
    assert "groups of more than 16 a part" in note


@pytest.mark.parametrize("sizes", [[210_000] + [1] * 40_000, [210_000], [210_000, 210_000], [90_000] * 3 + [3] * 9])
def test_every_image_is_as_likely_to_be_looked_at(sizes):
    unit = np.repeat(np.arange(len(sizes)), sizes)
    for seed in range(5):
        rows = _looked_at(unit, 200_000, seed)
        assert len(rows) == len(np.unique(rows)) == 200_000
        assert (np.diff(rows) > 0).all()
        share = np.bincount(unit[rows], minlength=len(sizes))[0] / sizes[0]
        assert share == pytest.approx(200_000 / len(unit), abs=0.01)
