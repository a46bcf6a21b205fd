import io
import re

import numpy as np
from PIL import Image
from web_page import Page

from hai.report import ReportData, build_report
from hai.report.blocks import thumbnail
from hai.results import Scores, summarise


def jpeg(key: int) -> bytes:
    buffer = io.BytesIO()
    coarse = np.random.default_rng(key).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((300, 300), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def scores_of(count: int = 60, **changes: object) -> Scores:
    """40 % fakes; every tenth image is mistaken, the first of them the most."""
    label = (np.arange(count) % 5 >= 3).astype(np.int64)
    probability = np.where(label == 1, 0.9, 0.1) + np.linspace(0, 0.05, count)
    wrong = np.arange(count) % 10 == 3
    probability[wrong] = np.where(label[wrong] == 1, 0.2, 0.8)
    columns = {
        "path": [f"set/{i:03d}.jpg" for i in range(count)],
        "label": label,
        "probability_fake": probability,
        "group": [f"g{i // 2}" for i in range(count)],
        "source": ["a"] * count,
        "read": jpeg,
    }
    return Scores(**(columns | changes))  # type: ignore[arg-type]


def page_of(scores: Scores | None, threshold: float = 0.5, **changes: object) -> tuple[Page, str]:
    summary = None if scores is None else summarise(scores, threshold, seed=0)
    run = ReportData(name="my run", title="Evaluation", status="evaluated", scores=scores, summary=summary, **changes)  # type: ignore[arg-type]
    html = build_report(run)
    return Page(html), html


def test_images_that_were_scored_are_shown_at_any_size() -> None:
    large = io.BytesIO()
    Image.new("L", (6500, 6500), 90).save(large, "PNG", compress_level=1)
    assert 6500 * 6500 > 40e6
    shown = thumbnail(lambda _: large.getvalue(), 0)
    assert shown is not None
    assert shown.startswith("data:image/jpeg;base64,")


HISTORY = [
    {"step": 10, "train/loss": 0.7, "train/learning_rate": 1e-3},
    {"step": 20, "train/loss": 0.5, "train/learning_rate": 1e-3, "val/f1_macro": 0.8, "val/roc_auc": None},
]


def test_page_is_one_file_without_scripts_or_requests() -> None:
    page, html = page_of(scores_of(200), history=HISTORY, best={"metric": "f1_macro", "value": 0.8, "step": 20})
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "iframe", "object", "embed", "audio", "video", "base", "form"}
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), f"{tag} {name}"
            if name in ("src", "srcset", "poster", "data", "action") or (name.endswith("href") and value):
                assert str(value).startswith(("data:image/jpeg;base64,", "#")), f"{tag} {name} = {value}"
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)
    policies = [a for tag, a in page.tags if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy"]
    assert [a["content"] for a in policies] == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    assert len(html) < 1_000_000
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids)) > 0
    assert sum(tag == "svg" for tag, _ in page.tags) == 7, "three training plots, scores, ROC, PR, reliability"


def test_numbers_are_those_of_the_summary() -> None:
    scores = scores_of(source=["phone", "web"] * 30)
    summary = summarise(scores, 0.5, seed=0)
    page, _ = page_of(scores)
    f1 = summary["metrics"]["f1_macro"]
    for text in (
        f"Macro-F1 {f1['value']:.3f} 95 % interval {f1['low']:.3f}-{f1['high']:.3f}",
        "60 images in 30 independent groups: 36 real, 24 fake",
        "the model catches 75 of 100 fakes and calls 0 of 100 real images fake",
        "real (36) 36 100.0 % 0 0.0 % fake (24) 6 25.0 % 18 75.0 %",
    ):
        assert text in page.text, text
    assert summary["confusion_matrix"] == [[36, 0], [6, 18]]
    rows = re.findall(r"(phone|web) (\d+) (\d+) (\d+) \d\.\d{3}", page.text)
    assert rows == [("phone", "18", "12", "0"), ("web", "18", "12", "6")]
    assert "optimizer step" not in page.text, "no history, no training plots"


def test_everything_that_people_wrote_is_escaped() -> None:
    evil = '<script>alert(1)</script><img src="x" onerror="alert(2)">\'"&'
    scores = scores_of(path=[evil] * 60, source=["a", evil] * 30)
    run = ReportData(
        name=evil, title=evil, status="evaluated", scores=scores, summary=summarise(scores, 0.5, 0),
        facts=[("Command", evil), (evil, evil)], threshold_note=evil, notes=[evil], commands=[(evil, evil)],
        versions={evil: evil}, config=f"name: '{evil}'", written=evil, best={"metric": evil, "value": 0.5, "step": 20},
        history=HISTORY,
    )  # fmt: skip
    html = build_report(run)
    page = Page(html)
    assert "<script" not in html
    assert '<img src="x"' not in html
    assert evil in "".join(page.words)
    assert evil in {attributes.get("alt") for tag, attributes in page.tags if tag == "img"}


def test_gallery_shows_the_most_confident_mistakes_first() -> None:
    probability = np.array([0.1] * 20 + [0.9] * 20)
    label = np.array([0] * 20 + [1] * 20)
    probability[:15] = np.linspace(0.6, 0.88, 15)
    page, _ = page_of(scores_of(40, label=label, probability_fake=probability))
    shown = [str(attributes["alt"]) for tag, attributes in page.tags if tag == "img"]
    assert shown == [f"set/{i:03d}.jpg" for i in range(14, 2, -1)], "12 of the 15, the highest score first"
    assert "Real images called fake (15)" in page.text
    assert "Fakes called real" not in page.text
    assert "P(fake) 0.880 , is real" in page.text


def test_one_class_has_no_ranking_curves_and_lost_pictures_leave_gaps() -> None:
    one_class = {"label": np.zeros(20, dtype=np.int64), "probability_fake": np.linspace(0.2, 0.8, 20)}
    page, _ = page_of(scores_of(20, **one_class, read=lambda row: b"no image"))
    assert "there is no ROC or precision-recall curve" in page.text
    assert "ROC-AUC n/a" in page.text
    assert "of 100 fakes" not in page.text
    assert "nan" not in page.text.lower().split()
    assert page.text.count("no picture") == 10
    assert not [tag for tag, _ in page.tags if tag == "img"]


def test_videos_without_mistakes() -> None:
    label = np.repeat([0, 1], 10)
    group = [f"video{i // 5}" for i in range(20)]
    page, _ = page_of(scores_of(20, label=label, probability_fake=np.linspace(0.1, 0.9, 20), group=group))
    assert "Macro-F1, per video 1.000" in page.text
    assert "None: every image is on the right side of the threshold." in page.text


def test_training_page_without_predictions() -> None:
    best = {"metric": "f1_macro", "value": 0.8, "step": 20}
    page, _ = page_of(None, history=HISTORY, best=best, config="seed: 42", commands=[("Again:", "hai train")])
    assert "The best checkpoint, by validation Macro-F1 (0.800), is of step 20. In these curves an" in page.text
    assert "seed: 42" in page.text
    for absent in ("Decisions", "All metrics", "Worst mistakes", "Sources"):
        assert absent not in page.text
