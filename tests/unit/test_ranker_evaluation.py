import contextlib
import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from ranked_run import save_ranker
from trained_run import save_image

from hai.errors import DataError
from hai.evaluation import run_evaluation
from hai.rank_metrics import ranker_metrics
from hai.ranking import load_ranker
from hai.score_scale import Scale


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of 24 test images of three tiers in groups of two, and 6 validation images; and 20 comparisons."""
    root = tmp_path_factory.mktemp("ranked")
    rows: list[list[object]] = []
    for i in range(30):
        save_image(root / "images" / f"{i:02d}.png", i, size=(30 + i, 40))
        tier, split = ("gold", "silver", "bronze")[i % 3], "val" if i >= 24 else "test"
        rows.append([f"id{i}", f"{i:02d}.png", tier, f"g{i // 2}", split, "phone" if i % 4 else "web", 30 - i])
    head = ["image_id", "filename", "tier", "group", "split", "source", "votes"]
    with open(root / "metadata.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([head, *rows])
    with open(root / "comparisons.csv", "w", encoding="utf-8", newline="") as file:
        lines = [[f"{i:02d}.png", f"{i + 1:02d}.png", ("left", "right", "tie")[i % 3]] for i in range(0, 20)]
        csv.writer(file).writerows([["left", "right", "preference"], *lines])
    return root


def table(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """A run whose borders cut the test images into thirds."""
    storage = tmp_path_factory.mktemp("runs")
    first = save_ranker(storage, "unfitted", Scale())
    with contextlib.redirect_stdout(io.StringIO()):
        run_evaluation(str(first), str(data / "metadata.csv"))
    score = np.array([float(row["score"]) for row in table(first / "evaluation" / "test" / "predictions.csv")])
    high, low = np.quantile(score, (2 / 3, 1 / 3))
    return save_ranker(storage, "ranked", Scale(float(score.std()), float(score.mean()), (float(high), float(low))))


@pytest.fixture(scope="module")
def evaluated(run: Path, data: Path) -> tuple[Path, str]:
    """The folder of an evaluation, and what was printed."""
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        assert run_evaluation(str(run), str(data / "metadata.csv")) == 0
    return run / "evaluation" / "test", told.getvalue()


def test_files_agree_with_each_other(evaluated: tuple[Path, str], data: Path) -> None:
    folder, told = evaluated
    assert sorted(path.name for path in folder.iterdir()) == ["evaluation.json", "predictions.csv", "report.html"]
    record = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    rows = table(folder / "predictions.csv")
    assert list(rows[0])[:4] == ["filename", "tier", "score", "predicted_tier"]
    assert record["task"] == "ranker"
    assert record["n"] == len(rows) == 24
    assert record["num_groups"] == 12
    assert record["tiers"] == ["gold", "silver", "bronze"]
    score = np.array([float(row["score"]) for row in rows])
    tier = np.array([record["tiers"].index(row["tier"]) for row in rows])
    called = np.array([record["tiers"].index(row["predicted_tier"]) for row in rows])
    assert np.bincount(called).tolist() == [8, 8, 8]
    matrix = [[int(((tier == a) & (called == b)).sum()) for b in range(3)] for a in range(3)]
    assert record["confusion_matrix"] == matrix
    right = sum(score[i] > score[j] for i in range(24) for j in range(24) if tier[i] < tier[j])
    assert (record["num_pairs"], record["num_correct"]) == (192, right)
    votes = [30 - int(row["filename"][:2]) for row in rows]
    assert [float(row["human_score"]) for row in rows] == votes
    group = [row["group"] for row in rows]
    expected = ranker_metrics(score, tier, group=group, human=votes, predicted_tier=called, seed=3)
    assert set(record["metrics"]) == set(expected)
    for name, metric in expected.items():
        assert record["metrics"][name] == pytest.approx(metric), name
    assert {part["source"].rpartition("/")[2]: part["n"] for part in record["per_source"]} == {"phone": 18, "web": 6}
    assert all(float(row["spread"]) > 0 for row in rows), "three heads"
    assert record["scale"]["thresholds"][0] > record["scale"]["thresholds"][1]
    assert record["checkpoint"]["step"] == 3
    assert {"commit", "hardware", "versions", "command"} <= set(record)
    assert f"24 images (8 gold, 8 silver, 8 bronze) in 12 groups, checkpoint of step 3, {right} of 192 pairs" in told
    assert all(str(folder / name) in told for name in ("evaluation.json", "predictions.csv", "report.html"))
    html = (folder / "report.html").read_text(encoding="utf-8")
    for text in ("Pair accuracy on test images", "True and called tiers", "Biggest disagreements", "hai rank"):
        assert text in html, text


def test_scores_do_not_depend_on_the_batch(evaluated: tuple[Path, str], run: Path, data: Path, tmp_path: Path) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        run_evaluation(
            str(run), str(data / "metadata.csv"), output=str(tmp_path), overrides=["train.eval_batch_size=5"]
        )
    assert (tmp_path / "predictions.csv").read_bytes() == (evaluated[0] / "predictions.csv").read_bytes()


def test_scores_are_those_of_the_ranker(evaluated: tuple[Path, str], run: Path, data: Path) -> None:
    rows = table(evaluated[0] / "predictions.csv")
    found = list(load_ranker(str(run)).score(data / "images" / row["filename"] for row in rows))
    assert [row["score"] for row in rows] == [f"{one.score:.9g}" for one in found], "bit for bit"
    assert [row["predicted_tier"] for row in rows] == [one.tier for one in found]
    assert [row["elo"] for row in rows] == [f"{one.elo:.1f}" for one in found]


def test_comparisons_are_measured(run: Path, data: Path, tmp_path: Path) -> None:
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        run_evaluation(str(run), str(data / "comparisons.csv"), output=str(tmp_path))
    record = json.loads((tmp_path / "evaluation.json").read_text(encoding="utf-8"))
    images = {row["filename"]: row for row in table(tmp_path / "predictions.csv")}
    lines = table(tmp_path / "comparisons.csv")
    assert len(images) == record["n"] == 21
    assert {row["tier"] for row in images.values()} == {""}
    decided = [line for line in lines if line["preference"] != "tie"]
    right = 0
    for line in lines:
        lead = float(images[line["left"]]["score"]) - float(images[line["right"]]["score"])
        assert (float(line["probability_left"]) > 0.5) == (lead > 0)
        right += line["preference"] == ("left" if lead > 0 else "right")
    assert (record["num_pairs"], record["num_ties"], record["num_correct"]) == (len(decided), 6, right)
    assert record["metrics"]["pair_accuracy"]["value"] == pytest.approx(right / len(decided))
    assert "comparisons.csv" in told.getvalue()
    assert "that people compared" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_unknown_tiers_are_refused(run: Path, data: Path, tmp_path: Path) -> None:
    text = (data / "metadata.csv").read_text(encoding="utf-8").replace("silver", "tin")
    (tmp_path / "metadata.csv").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match="tin"):
        run_evaluation(str(run), str(tmp_path / "metadata.csv"), image_dir=str(data / "images"))


def test_absent_split_names_those_present(run: Path, data: Path) -> None:
    with pytest.raises(DataError, match=r"no image in the split train; present: val \(6\), test \(24\); choose with"):
        run_evaluation(str(run), str(data / "metadata.csv"), split="train")
