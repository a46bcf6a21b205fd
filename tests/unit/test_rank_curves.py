import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hai.rank_curves import comparison_reliability, pair_reliability, worst_comparisons, worst_pairs
from hai.score_scale import Scale

SCALE = Scale(temperature=0.5, center=0.0, thresholds=(0.8, 0.0, -0.8))


def sample(count: int, seed: int = 0, *, noise: float = 0.8) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    tier = rng.integers(0, 4, count)
    return np.round(1.2 - 0.8 * tier + noise * rng.normal(size=count), 1), tier


@settings(max_examples=30)
@given(st.integers(0, 1000), st.integers(2, 14))
def test_reliability_counts_every_pair_once(seed: int, count: int) -> None:
    score, tier = sample(count, seed)
    curve = pair_reliability(score, tier, [""] * count, SCALE, bootstrap=3)
    right, total, mean = np.zeros(10), np.zeros(10), np.zeros(10)
    for i, j in itertools.product(range(count), repeat=2):
        if tier[i] < tier[j]:
            p = 1 / (1 + np.exp(-abs(score[i] - score[j]) / 0.5))
            k = min(9, int((p - 0.5) * 20))
            total[k] += 1
            mean[k] += p
            right[k] += 0.5 + 0.5 * np.sign(score[i] - score[j])
    np.testing.assert_allclose(curve.count, total)
    used = total > 0
    np.testing.assert_allclose(curve.frequency[used], right[used] / total[used])
    np.testing.assert_allclose(curve.confidence[used], mean[used] / total[used], atol=0.0026)
    assert np.isnan(curve.frequency[~used]).all()


def test_intervals_draw_whole_groups() -> None:
    score, tier = sample(120)
    alone = pair_reliability(score, tier, [""] * 120, SCALE)
    inside = (alone.low <= alone.frequency) & (alone.frequency <= alone.high)
    assert inside.all()
    grouped = pair_reliability(np.tile(score, 4), np.tile(tier, 4), [f"g{i}" for i in range(120)] * 4, SCALE)
    np.testing.assert_allclose(grouped.frequency, alone.frequency)
    assert np.mean(grouped.high - grouped.low) == pytest.approx(np.mean(alone.high - alone.low), rel=0.1)
    again = pair_reliability(score, tier, [""] * 120, SCALE)
    assert (again.low == alone.low).all()


def test_one_tier_has_no_pairs() -> None:
    curve = pair_reliability(np.arange(5.0), np.zeros(5, dtype=int), [""] * 5, SCALE)
    assert not curve.count.any()
    assert worst_pairs(np.arange(5.0), np.zeros(5, dtype=int), SCALE, 12) == []


def test_reliability_of_comparisons() -> None:
    score = np.array([0.0, 1.0, 1.0])
    comparisons = np.array([[1, 0, 1], [0, 1, -1], [0, 2, 1], [1, 0, 0], [1, 2, 1]])
    curve = comparison_reliability(score, comparisons, [""] * 3, SCALE)
    assert curve.count.tolist() == [1, 0, 0, 0, 0, 0, 0, 4, 0, 0], "P is 0.5 once and 0.881 four times"
    assert curve.frequency[7] == pytest.approx((1 + 1 + 0 + 0.5) / 4)
    assert curve.frequency[0] == 0.5, "equal scores are half right"
    assert curve.confidence[7] == pytest.approx(1 / (1 + np.exp(-2)))


@settings(max_examples=50)
@given(st.integers(0, 1000), st.integers(2, 20), st.integers(1, 6))
def test_worst_pairs_are_those_of_all_pairs(seed: int, count: int, limit: int) -> None:
    score, tier = sample(count, seed)
    score = score + 1e-6 * np.arange(count)  # no ties, so that the choice is unique up to equal differences
    leads = sorted(
        (score[i] - score[j], i, j)
        for i in range(count)
        for j in range(count)
        if tier[i] < tier[j] and score[i] < score[j]
    )
    expected, used = [], set()
    for lead, i, j in leads:
        if len(expected) < limit and not used & {i, j}:
            used |= {i, j}
            expected.append(lead)
    found = worst_pairs(score, tier, SCALE, limit)
    np.testing.assert_allclose([score[pair.better] - score[pair.worse] for pair in found], expected)
    for pair in found:
        assert tier[pair.better] < tier[pair.worse]
        assert pair.probability == pytest.approx(SCALE.probability(score[pair.better], score[pair.worse]))
        assert pair.probability < 0.5


def test_worst_comparisons_leave_out_ties_and_what_is_right() -> None:
    score = np.array([0.0, 1.0, 2.0, 3.0])
    comparisons = np.array([[0, 3, 1], [3, 0, -1], [1, 2, 1], [2, 1, 1], [0, 1, 0]])
    found = worst_comparisons(score, comparisons, SCALE, 12)
    assert [(pair.better, pair.worse) for pair in found] == [(0, 3), (1, 2)]
