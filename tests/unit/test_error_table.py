"""Errors by what is known of the images: ranges, intervals, faces' sizes."""

import io

import numpy as np
import pytest
from PIL import Image

from hai.config.load import config_from_yaml_text
from hai.data.manifest import build_manifest
from hai.error_table import ImageFacts, error_rate, error_table, image_facts
from hai.faces.journal import CropRecord, FileRecord, append_record
from hai.report.plots import wilson
from hai.results import Scores


def scores_of(label, probability, source=None, group=None):
    count = len(label)
    return Scores(
        path=[f"{i}.jpg" for i in range(count)],
        label=np.array(label),
        probability_fake=np.array(probability, dtype=float),
        group=group or [""] * count,
        source=source or ["a"] * count,
        read=lambda row: b"",
    )


def facts_of(count, **given):
    none = np.full(count, np.nan)
    return ImageFacts(**{"brightness": none, "size": none, "size_is_of_face": False, "quality": none} | given)


def test_each_fact_divides_all_images_and_counts_both_kinds_of_error():
    rng = np.random.default_rng(5)
    label, probability = rng.integers(0, 2, 200), rng.random(200)
    brightness, quality = 100 * rng.random(200), np.where(rng.random(200) < 0.3, np.nan, 75.0)
    scores = scores_of(label, probability, source=["x", "y", "y", "z"] * 50)
    table = error_table(scores, 0.4, facts_of(200, brightness=brightness, quality=quality, size=np.full(200, 224.0)))
    called = probability >= 0.4
    facts = [record["fact"] for record in table]
    assert list(dict.fromkeys(facts)) == ["brightness", "JPEG quality", "source"], "the size is always the same"
    for fact in set(facts):
        rows = [record for record in table if record["fact"] == fact]
        assert sum(record["n"] for record in rows) == 200
        assert sum(record["num_false_alarms"] for record in rows) == (called & (label == 0)).sum()
        assert sum(record["num_missed"] for record in rows) == (~called & (label == 1)).sum()
        for record in rows:
            assert record["num_real"] + record["num_fake"] == record["n"]
            wrong = record["num_false_alarms"] + record["num_missed"]
            assert record["error"]["value"] == pytest.approx(wrong / record["n"])
            assert 0 <= record["error"]["low"] < record["error"]["value"] < record["error"]["high"] <= 1
    assert [record["n"] for record in table[:4]] == pytest.approx([50] * 4, abs=5)
    assert [(record["range"], record["n"]) for record in table[4:6]] == [
        ("75", int((quality == 75).sum())),
        ("no JPEG", int(np.isnan(quality).sum())),
    ]
    assert [(record["range"], record["n"]) for record in table[6:]] == [("x", 50), ("y", 100), ("z", 50)]


def test_equal_values_stay_together_in_ranges_that_do_not_overlap():
    size = np.repeat([64.0, 80.0, 224.0, 512.0, 700.0], [1, 60, 80, 58, 1])
    table = error_table(scores_of([0, 1] * 100, [0.5] * 200), 0.5, facts_of(200, size=size))
    assert [(record["range"], record["n"]) for record in table] == [
        ("64 px", 1),
        ("80 px", 60),
        ("224 px", 80),
        ("512 to 700 px", 59),
    ]


@pytest.mark.parametrize(
    ("values", "counts", "ranges"),
    [
        ([75, 95], [160, 40], [("75", 160), ("95", 40)]),
        ([75, 95], [40, 160], [("75", 40), ("95", 160)]),
        ([75, 80, 95], [120, 30, 50], [("75", 120), ("80", 30), ("95", 50)]),
    ],
)
def test_the_smallest_value_has_a_range_however_common_it_is(values, counts, ranges):
    quality = np.repeat(np.array(values, dtype=float), counts)
    table = error_table(scores_of([0, 1] * 100, [0.5] * 200), 0.5, facts_of(200, quality=quality))
    assert [(record["range"], record["n"]) for record in table] == ranges


def test_the_interval_is_wilsons_for_single_images_and_wider_for_groups():
    rng = np.random.default_rng(0)
    for share in (0.1, 0.5, 0.97):
        wrong = rng.random(400) < share
        value, low, high = error_rate(wrong, [""] * 400)
        expected = wilson(np.array([wrong.mean()]), np.array([400.0]))
        assert (value, low, high) == pytest.approx((wrong.mean(), expected[0][0], expected[1][0]), abs=2e-3)
    by_group = np.repeat(rng.random(40) < 0.3, 10)
    alone = error_rate(by_group, [""] * 400)
    together = error_rate(by_group, [f"g{i // 10}" for i in range(400)])
    assert together[2] - together[1] > 2.5 * (alone[2] - alone[1]), "400 images are worth 40"
    expected = wilson(np.array([by_group.mean()]), np.array([40.0]))
    assert together[1:] == pytest.approx((expected[0][0], expected[1][0]), abs=0.01)


def test_no_error_at_all_is_not_a_certain_zero():
    assert error_rate(np.zeros(50, dtype=bool), [f"g{i % 5}" for i in range(50)])[2] > 0.3, "five groups say little"
    assert error_rate(np.zeros(50, dtype=bool), [""] * 50)[2] == pytest.approx(0.0714, abs=1e-3)
    assert error_rate(np.ones(50, dtype=bool), [""] * 50)[1] == pytest.approx(1 - 0.0714, abs=1e-3)
    assert error_rate(np.array([True]), [""])[0] == 1


@pytest.mark.parametrize("is_preprocessed", [False, True])
def test_facts_come_from_the_files_and_from_what_preprocess_noted(tmp_path, is_preprocessed):
    for number, (level, quality, side) in enumerate([(0, None, 50), (102, 60, 70), (255, 95, 90)]):
        path = tmp_path / "test" / ("fake" if number else "real") / f"{number}.{'jpg' if quality else 'png'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        image = Image.new("RGB", (side, side + 9), (level, level, level))
        image.save(buffer, "JPEG" if quality else "PNG", **({"quality": quality} if quality else {}))
        path.write_bytes(buffer.getvalue())
        crop = CropRecord(path.relative_to(tmp_path).as_posix(), 0, 0, (5.0, 5.0, 35.0 + number, 45.0), 1.0, "m", 9)
        if is_preprocessed and number:
            found = FileRecord(f"{number}", 1, "image", 1, "", "", "", "test", 1, 1, "", [crop])
            append_record(tmp_path / "files.jsonl", found)
    if is_preprocessed:
        with open(tmp_path / "files.jsonl", "ab") as file:
            file.write(b'{"path": "torn')
        whole = (tmp_path / "files.jsonl").read_bytes()
    config = config_from_yaml_text(f"task: detector\ndata: {{sources: [{{path: {tmp_path}}}]}}", "x", [])
    manifest = build_manifest(config.data, 1, require=())
    order = np.array([manifest.path.index(name) for name in ("test/fake/2.jpg", "test/real/0.png", "test/fake/1.jpg")])
    facts = image_facts(manifest, order, 40.0)
    assert facts.brightness == pytest.approx([100, 0, 40], abs=1)
    assert facts.quality == pytest.approx([95, np.nan, 60], abs=2, nan_ok=True)
    assert facts.size_is_of_face is is_preprocessed
    assert facts.size == pytest.approx([40, np.nan, 40] if is_preprocessed else [90, 50, 70], nan_ok=True)
    if is_preprocessed:
        assert (tmp_path / "files.jsonl").read_bytes() == whole, "its writer may still be at work"
