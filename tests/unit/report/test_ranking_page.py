import io
import re

import numpy as np
import pytest
from PIL import Image
from web_page import Page

from hai.rank_results import RankScores, summarise_ranking
from hai.report import ReportData, build_report
from hai.report.ranking import METRICS
from hai.score_scale import Scale

TIERS = ("S", "A", "B", "C")
NONE = np.zeros((0, 3), dtype=np.int64)


def jpeg(key: int) -> bytes:
    buffer = io.BytesIO()
    coarse = np.random.default_rng(key).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((200, 150), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def scores_of(count: int = 40, **changes: object) -> RankScores:
    """Tiers in turn, scores that follow them; image 3 (tier C) scores like an S, image 4 (tier S) like a C."""
    tier = np.arange(count) % 4
    score = 3.0 - 2.0 * tier + np.linspace(0, 0.5, count)
    score[3:5] = (4.5, -4.0)[: max(0, count - 3)]
    columns: dict[str, object] = {
        "path": [f"{i:03d}.jpg" for i in range(count)],
        "tier": tier,
        "tiers": TIERS,
        "score": score,
        "spread": np.full(count, 0.1),
        "group": [f"g{i // 2}" for i in range(count)],
        "source": ["a"] * count,
        "image_id": None,
        "human": None,
        "comparisons": NONE,
        "scale": Scale(temperature=1.0, center=0.0, thresholds=(2.0, 0.0, -2.0)),
        "read": jpeg,
    }
    return RankScores(**(columns | changes))  # type: ignore[arg-type]


def page_of(scores: RankScores | None, **changes: object) -> tuple[Page, str]:
    summary = None if scores is None else summarise_ranking(scores, 0)
    options = {"split": "test", "summary": summary, "scores": scores} | changes
    run = ReportData(name="my run", title="Evaluation", status="evaluated", task="ranker", **options)  # type: ignore[arg-type]
    html = build_report(run)
    return Page(html), html


HISTORY = [{"step": 10, "train/loss": 0.7}, {"step": 20, "train/loss": 0.5, "val/pair_accuracy": 0.8, "val/srcc": None}]


def test_page_is_one_file_without_scripts_or_requests() -> None:
    page, html = page_of(scores_of(), history=HISTORY, trained_on=scores_of())
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "iframe", "object", "embed", "base", "form"}
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), f"{tag} {name}"
            if name in ("src", "srcset", "data", "action") or (name.endswith("href") and value):
                assert str(value).startswith(("data:image/jpeg;base64,", "#")), f"{tag} {name} = {value}"
    assert not re.search(r"url\((?!#)", html)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids)) > 0
    assert sum(tag == "svg" for tag, _ in page.tags) == 5, "loss, validation, tiers, gaps, reliability"


def test_numbers_are_those_of_the_summary() -> None:
    scores = scores_of(source=["phone", "web"] * 20, human=np.linspace(0, 1, 40))
    summary = summarise_ranking(scores, 0)
    page, _ = page_of(scores)
    accuracy = summary["metrics"]["pair_accuracy"]
    assert accuracy["value"] == pytest.approx(summary["num_correct"] / summary["num_pairs"])
    for text in (
        f"Pair accuracy on test images {accuracy['value']:.3f} 95 % interval {accuracy['low']:.3f}-",
        f"40 images in 20 independent groups: {summary['num_correct']:,} of {summary['num_pairs']:,} pairs",
        "S (10) 9 90.0 % 0 0.0 % 0 0.0 % 1 10.0 %",
        "C (10) 1 10.0 % 0 0.0 % 0 0.0 % 9 90.0 %",
    ):
        assert text in page.text, text
    for name, metric in summary["metrics"].items():
        title = METRICS[name][0] if name in METRICS else f"Pair accuracy, {name[-1]} tiers apart"
        interval = f"{metric['low']:.3f}-{metric['high']:.3f}"
        assert f"{title.replace('1 tiers', 'one tier')} {metric['value']:.3f} {interval}" in page.text, name
    rows = re.findall(r"(phone|web) (\d+) (\d+) (\d+) (\d\.\d{3})", page.text)
    assert [row[:4] for row in rows] == [
        (part["source"], str(part["n"]), str(part["num_groups"]), str(part["num_pairs"]))
        for part in summary["per_source"]
    ]
    assert [row[4] for row in rows] == [f"{p['metrics']['pair_accuracy']['value']:.3f}" for p in summary["per_source"]]


def test_everything_that_people_wrote_is_escaped() -> None:
    evil = '<script>alert(1)</script><img src="x" onerror="alert(2)">\'"&$a_b$'
    scores = scores_of(path=[evil] * 40, source=["a", evil] * 20, tiers=("S", evil, "B", "C"))
    page, html = page_of(scores, facts=[(evil, evil)], threshold_note=evil, notes=[evil], trained_on=scores)
    assert "<script" not in html
    assert '<img src="x"' not in html
    assert evil in "".join(page.words)
    assert evil in page.shown()


def test_disagreements_and_doubtful_labels_show_the_planted_images() -> None:
    page, _ = page_of(scores_of(), trained_on=scores_of(30))
    assert "004.jpg" in page.shown()
    pairs = page.text[page.text.index("Biggest disagreements") : page.text.index("Doubtful labels")]
    assert "S , score -4.000 004.jpg C , score 4.500 003.jpg P(left beats right) 0.000" in pairs
    assert pairs.count("P(left beats right)") == 1, "each image once: every other wrong pair has one of the two"
    doubts = page.text[page.text.index("Doubtful labels") :]
    assert "2 of 40 test images" in doubts
    assert "2 of 30 training images Scores of regressions" in doubts
    assert "is C , scores like S strength 0.998, score 4.500 003.jpg" in doubts
    assert "is S , scores like C strength 0.998, score -4.000 004.jpg" in doubts


def test_galleries_are_limited() -> None:
    scores = scores_of(200)
    page, _ = page_of(scores_of(200, score=-scores.score))
    assert page.text.count("P(left beats right)") == 12 + 1, "12 pairs and the text on reliability"
    assert page.text.count("scores like") == 12
    assert len(page.shown()) == 12 + 24 + 12


def test_training_images_are_said_to_be_known() -> None:
    page, _ = page_of(scores_of(), split="training")
    assert "The model has learned these labels" in page.text
    page, _ = page_of(scores_of(), split="validation")
    assert "The model has not learned from these images" in page.text


def test_everything_in_order() -> None:
    tier = np.arange(40) % 4
    page, _ = page_of(scores_of(score=3.0 - 2.0 * tier))
    assert "None: every pair is in the right order." in page.text
    assert "0 of 40 test images" in page.text
    assert "put 100 in the right order" in page.text


def test_one_tier_has_no_pairs() -> None:
    page, _ = page_of(scores_of(8, tier=np.zeros(8, dtype=np.int64)))
    assert "Pair accuracy on test images n/a" in page.text
    for absent in ("Of 100 pairs", "Biggest disagreements", "Accuracy by distance", "Reliability"):
        assert absent not in page.text
    assert "nan" not in page.text.lower().split()
    assert "S (8)" in page.text
    assert "A (0) 0 0.0 %" in page.text


@pytest.mark.filterwarnings("error")
def test_two_images() -> None:
    page, _ = page_of(scores_of(2, score=np.array([1.0, 2.5])))
    assert "2 images in 1 independent groups: 0 of 1 pairs" in page.text
    assert page.text.count("P(left beats right) 0.182") == 1


def test_lost_pictures_leave_gaps() -> None:
    page, _ = page_of(scores_of(4, read=lambda row: b"no image"))
    assert page.shown() == []
    assert "no picture" in page.text


def test_comparisons_have_no_tiers() -> None:
    comparisons = np.array([[0, 1, 1], [1, 2, -1], [3, 0, 1], [2, 3, 0], [2, 3, -1]])
    scores = scores_of(
        4, tiers=(), tier=np.zeros(4, dtype=np.int64), score=np.array([3.0, 2.0, 1.0, 0.0]), comparisons=comparisons,
        scale=Scale(temperature=1.0, center=0.0, thresholds=()),
    )  # fmt: skip
    summary = summarise_ranking(scores, 0)
    assert (summary["num_pairs"], summary["num_ties"], summary["num_correct"]) == (4, 1, 1)
    page, _ = page_of(scores)
    assert "that people compared, the scores put 25 in the right order" in page.text
    assert "against the comparison" in page.text
    assert page.text.count("P(left beats right) 0.047") == 1, "image 3 beats image 0 by its label"
    for absent in ("Scores and tiers", "Doubtful labels", "Accuracy by distance"):
        assert absent not in page.text


def test_model_that_knows_no_tiers_calls_none() -> None:
    scores = scores_of(scale=Scale(temperature=1.0, center=0.0, thresholds=()))
    assert summarise_ranking(scores, 0)["confusion_matrix"] == []
    page, _ = page_of(scores)
    assert "Scores of each tier" in page.text
    assert "Accuracy by distance" in page.text
    for absent in ("called S", "Doubtful labels", "Tier accuracy"):
        assert absent not in page.text


def test_training_page_without_predictions() -> None:
    best = {"metric": "pair_accuracy", "value": 0.8, "step": 20}
    page, _ = page_of(None, history=HISTORY, best=best, config="seed: 42")
    assert "The best checkpoint, by validation Pair accuracy (0.800), is of step 20." in page.text
    for absent in ("Scores and tiers", "All metrics", "Doubtful labels", "From best to worst", "Sources"):
        assert absent not in page.text
