import csv
import io
import itertools
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from hai.rank_results import COMPARISONS, RankScores, ranking_tables, summarise_ranking
from hai.results import PREDICTIONS
from hai.score_scale import Scale

SCALE = Scale(temperature=1.0, center=0.5, thresholds=(2.0, 0.0))


def manifest_of(count: int = 12, **changes: object) -> SimpleNamespace:
    """The columns of a manifest, whose paths fall as its rows rise."""
    columns: dict[str, object] = {
        "path": [f"{count - i:02d}.jpg" for i in range(count)],
        "source": ["a" if i % 3 else "b" for i in range(count)],
        "group": [f"g{i // 2}" for i in range(count)],
        "label": np.arange(count, dtype=np.int8) % 3,
        "labels": ("S", "A", "B"),
        "image_id": [f"id{i}" for i in range(count)],
        "score": np.where(np.arange(count) == 4, np.nan, np.linspace(9, 1, count)),
        "comparisons": np.zeros((0, 3), dtype=np.int32),
        "read": lambda row: str(row).encode(),
    }

    class Rows(SimpleNamespace):
        def __len__(self) -> int:
            return count

    return Rows(**(columns | changes))


def predictions_of(rows: list[int], seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    score = (3.0 - 2.0 * (np.array(rows) % 3) + rng.normal(size=len(rows))).astype(np.float32)
    return {"index": np.array(rows), "score": score, "spread": np.abs(score) / 10, "label": np.array(rows) % 3}


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_scores_find_their_images() -> None:
    predictions, manifest = predictions_of([9, 2, 4, 3, 7]), manifest_of()
    scores = RankScores.of(predictions, manifest, SCALE)  # type: ignore[arg-type]
    assert scores.source == ["a", "a", "a", "b", "b"]
    assert scores.path == ["05.jpg", "08.jpg", "10.jpg", "03.jpg", "09.jpg"]
    assert [scores.read(row) for row in range(5)] == [b"7", b"4", b"2", b"9", b"3"]
    assert scores.tier.tolist() == [1, 1, 2, 0, 0]
    assert scores.score.tolist() == [float(predictions["score"][k]) for k in (4, 2, 1, 0, 3)]
    assert scores.human is not None
    assert np.isnan(scores.human[1])
    assert scores.num_per_tier == [2, 2, 1]


def test_comparisons_of_other_splits_are_left_out() -> None:
    comparisons = np.array([[9, 2, 1], [2, 5, -1], [3, 9, 0], [1, 0, 1]], dtype=np.int32)
    manifest = manifest_of(labels=("image",), label=np.zeros(12, dtype=np.int8), comparisons=comparisons, score=None)
    scores = RankScores.of(predictions_of([9, 2, 4, 3, 7]), manifest, SCALE)  # type: ignore[arg-type]
    named = [(scores.path[i], scores.path[j], preference) for i, j, preference in scores.comparisons.tolist()]
    assert named == [("03.jpg", "10.jpg", 1), ("09.jpg", "03.jpg", 0)]
    assert scores.tiers == ()
    assert comparisons[0].tolist() == [9, 2, 1], "the manifest stays as it is"


def test_summary_counts_what_brute_force_counts() -> None:
    scores = RankScores.of(predictions_of(list(range(12))), manifest_of(), SCALE)  # type: ignore[arg-type]
    summary = summarise_ranking(scores, seed=0)
    right = total = 0
    confusion = np.zeros((3, 3), dtype=int)
    for i, j in itertools.product(range(12), repeat=2):
        if scores.tier[i] < scores.tier[j]:
            total += 1
            right += scores.score[i] > scores.score[j]
    for i in range(12):
        called = 0 if scores.score[i] >= 2 else 1 if scores.score[i] >= 0 else 2
        confusion[scores.tier[i], called] += 1
    assert (summary["n"], summary["num_groups"]) == (12, 6)
    assert (summary["num_pairs"], summary["num_correct"]) == (total, right)
    assert 0 < right < total, "the sample holds mistakes"
    assert summary["confusion_matrix"] == confusion.tolist()
    metrics = summary["metrics"]
    assert metrics["pair_accuracy"]["value"] == pytest.approx(right / total)
    assert metrics["tier_accuracy"]["value"] == pytest.approx(np.trace(confusion) / 12)
    assert metrics["pair_accuracy"]["low"] <= right / total <= metrics["pair_accuracy"]["high"]
    names = {"pair_accuracy", "pair_accuracy_gap_1", "pair_accuracy_gap_2", "srcc", "srcc_score", "kendall_tau"}
    assert names | {"tier_accuracy", "quadratic_weighted_kappa"} == set(metrics)
    assert summary["tiers"] == ["S", "A", "B"]
    assert Scale.from_record(summary["scale"]) == SCALE
    assert [(part["source"], part["n"]) for part in summary["per_source"]] == [("a", 8), ("b", 4)]
    assert "srcc_score" not in summarise_ranking(replace(scores, human=None), seed=0)["metrics"]


def test_a_source_with_one_tier_has_no_pair_accuracy() -> None:
    source = [f"s{i % 3}" for i in range(12)]
    scores = RankScores.of(predictions_of(list(range(12))), manifest_of(source=source), SCALE)  # type: ignore[arg-type]
    parts = summarise_ranking(scores, seed=0)["per_source"]
    assert [part["num_pairs"] for part in parts] == [0, 0, 0]
    assert [part["metrics"]["pair_accuracy"]["value"] for part in parts] == [None, None, None]


def test_table_of_images() -> None:
    scores = RankScores.of(predictions_of(list(range(12))), manifest_of(), SCALE)  # type: ignore[arg-type]
    tables = ranking_tables(scores)
    assert list(tables) == [PREDICTIONS]
    rows = table(tables[PREDICTIONS])
    assert list(rows[0]) == [
        "filename", "tier", "score", "predicted_tier", "elo", "spread", "group", "source", "human_score",
        "image_id",
    ]  # fmt: skip
    assert [row["filename"] for row in rows] == scores.path
    for i, row in enumerate(rows):
        score = float(row["score"])
        assert np.float32(score) == np.float32(scores.score[i])
        assert row["tier"] == "SAB"[scores.tier[i]]
        assert row["predicted_tier"] == ("S" if score >= 2 else "A" if score >= 0 else "B")
        assert float(row["elo"]) == pytest.approx(SCALE.elo(scores.score)[i], abs=0.1)
    assert [(row["filename"], row["image_id"]) for row in rows if not row["human_score"]] == [("08.jpg", "id4")]


def test_table_of_comparisons() -> None:
    comparisons = np.array([[0, 1, 1], [2, 3, -1], [4, 5, 0]], dtype=np.int32)
    manifest = manifest_of(labels=("image",), label=np.zeros(12, dtype=np.int8), comparisons=comparisons, score=None)
    scores = RankScores.of(predictions_of(list(range(12))), manifest)  # type: ignore[arg-type]
    tables = ranking_tables(scores)
    assert {row["tier"] + row["predicted_tier"] + row["human_score"] for row in table(tables[PREDICTIONS])} == {""}
    rows = table(tables[COMPARISONS])
    assert [(row["left"], row["right"], row["preference"]) for row in rows] == [
        ("12.jpg", "11.jpg", "left"), ("10.jpg", "09.jpg", "right"), ("08.jpg", "07.jpg", "tie"),
    ]  # fmt: skip
    score = dict(zip(scores.path, scores.score, strict=True))
    for row in rows:
        expected = scores.scale.probability(score[row["left"]], score[row["right"]])
        assert float(row["probability_left"]) == pytest.approx(float(expected), abs=1e-6)
        assert (float(row["probability_left"]) > 0.5) == (score[row["left"]] > score[row["right"]])


def test_names_with_commas_and_quotes_stay_whole() -> None:
    path = [f'a,"{i}"\n.jpg' for i in range(12)]
    scores = RankScores.of(predictions_of(list(range(12))), manifest_of(path=path), SCALE)  # type: ignore[arg-type]
    assert sorted(row["filename"] for row in table(ranking_tables(scores)[PREDICTIONS])) == sorted(path)
