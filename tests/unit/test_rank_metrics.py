"""The ranker's metrics against loops over all pairs, scipy and scikit-learn."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau, spearmanr
from sklearn.metrics import cohen_kappa_score

from hai.errors import DataError
from hai.rank_metrics import (
    comparison_metrics,
    comparison_point_metrics,
    pair_counts,
    point_metrics,
    ranker_metrics,
)

images = st.lists(st.tuples(st.integers(0, 3), st.integers(-3, 3), st.integers(0, 3)), min_size=1, max_size=25)


def known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


@given(images)
def test_metrics_are_their_definitions(rows: list[tuple[int, int, int]]) -> None:
    tier, score, called = (np.array(column) for column in zip(*rows, strict=True))
    found = point_metrics(score, tier, predicted_tier=called)
    pairs = [(i, j) for i, j in permutations(range(len(tier)), 2) if tier[i] < tier[j]]
    right = [bool(score[i] > score[j]) for i, j in pairs]
    assert pair_counts(score, tier) == (sum(right), len(pairs))
    assert found["pair_accuracy"] == (pytest.approx(np.mean(right)) if right else None)
    for gap in range(1, int(tier.max()) + 1):
        own = [ok for ok, (i, j) in zip(right, pairs, strict=True) if tier[j] - tier[i] == gap]
        assert found[f"pair_accuracy_gap_{gap}"] == (pytest.approx(np.mean(own)) if own else None)
    if len(set(score)) > 1 and len(set(tier)) > 1:
        assert found["srcc"] == pytest.approx(spearmanr(score, -tier)[0])
        assert found["kendall_tau"] == pytest.approx(kendalltau(score, -tier)[0])
    else:
        assert found["srcc"] is None
        assert found["kendall_tau"] is None
    assert found["tier_accuracy"] == pytest.approx(np.mean(called == tier))
    if len(set(tier) | set(called)) > 1:
        kappa = cohen_kappa_score(tier, called, labels=range(4), weights="quadratic")
        assert found["quadratic_weighted_kappa"] == pytest.approx(kappa)


def test_human_scores_count_where_they_are_known() -> None:
    rng = np.random.default_rng(0)
    score, human = rng.normal(size=50), np.round(rng.normal(size=50), 1)
    human[::7] = np.nan
    there = np.isfinite(human)
    found = point_metrics(score, np.zeros(50, dtype=int), human=human)
    assert found["srcc_score"] == pytest.approx(spearmanr(score[there], human[there])[0])
    assert point_metrics(score, np.zeros(50, dtype=int), human=np.full(50, np.nan))["srcc_score"] is None


def test_better_tiers_above_is_positive() -> None:
    found = point_metrics([4.0, 3, 2, 1], [0, 1, 2, 3], predicted_tier=[0, 1, 2, 3])
    assert set(found.values()) == {1.0}
    turned = point_metrics([1.0, 2, 3, 4], [0, 1, 2, 3])
    assert (turned["pair_accuracy"], turned["srcc"], turned["kendall_tau"]) == (0, -1, -1)


def test_equal_scores_are_wrong() -> None:
    assert point_metrics([1.0, 1.0, 1.0], [0, 1, 2])["pair_accuracy"] == 0


def test_intervals_are_those_of_resampled_tables() -> None:
    rng = np.random.default_rng(1)
    tier = rng.integers(0, 3, 40)
    score, group = -tier + rng.normal(size=40) * 1.5, [f"g{i // 4}" for i in range(40)]
    found = ranker_metrics(score, tier, group=group, bootstrap=400, seed=5)
    drawn: dict[str, list[float]] = {"pair_accuracy": [], "kendall_tau": [], "srcc": []}
    members = [np.arange(4 * g, 4 * g + 4) for g in range(10)]
    for _ in range(400):
        rows = np.concatenate([members[g] for g in rng.integers(0, 10, 10)])
        values = point_metrics(score[rows], tier[rows])
        for name, value in drawn.items():
            value.append(values[name] or 0.0)
    for name, values in drawn.items():
        low, high = np.quantile(values, (0.025, 0.975))
        assert found[name]["low"] == pytest.approx(low, abs=0.06), name
        assert found[name]["high"] == pytest.approx(high, abs=0.06), name
        assert found[name]["low"] < found[name]["value"] < found[name]["high"]
    alone = ranker_metrics(score, tier, bootstrap=400, seed=5)
    assert alone["srcc"]["value"] == found["srcc"]["value"]
    assert alone != found
    assert ranker_metrics(score, tier, group=group, bootstrap=400, seed=5) == found


def test_comparisons() -> None:
    score = np.array([3.0, 1.0, 2.0, 2.0])
    comparisons = np.array([[0, 1, 1], [1, 2, 1], [2, 3, 1], [0, 3, 0], [1, 0, -1]])
    assert comparison_point_metrics(score, comparisons) == {"pair_accuracy": 0.5}
    found = comparison_metrics(score, comparisons, bootstrap=50)["pair_accuracy"]
    assert found["value"] == 0.5
    assert 0 <= found["low"] <= 0.5 <= found["high"] <= 1
    nothing = comparison_metrics(score, np.zeros((0, 3), dtype=int))["pair_accuracy"]
    assert nothing == {"value": None, "low": None, "high": None}


def test_a_model_that_diverged_is_said() -> None:
    with pytest.raises(DataError, match="NaN or Inf"):
        point_metrics([1.0, np.nan], [0, 1])


def test_one_image_or_none() -> None:
    for score, tier in (([1.0], [0]), ([], [])):
        assert set(point_metrics(score, tier).values()) == {None}
        assert pair_counts(score, tier) == (0, 0)
        assert ranker_metrics(score, tier, bootstrap=10)["srcc"]["low"] is None
