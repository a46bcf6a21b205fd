"""What a score means, against exhaustive search."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from hai.score_scale import Scale, fit_comparison_scale, fit_scale

images = st.lists(st.tuples(st.integers(0, 2), st.integers(-4, 4)), min_size=1, max_size=12)


@given(images)
def test_borders_have_the_smallest_distance_of_all(rows: list[tuple[int, int]]) -> None:
    tier, score = (np.array(column) for column in zip(*rows, strict=True))
    scale = fit_scale(score, tier, 3)
    places = np.concatenate([np.unique(score) - 0.5, [score.max() + 0.5]])
    costs = [
        np.abs((score[:, None] < np.array([high, low])).sum(axis=1) - tier).sum()
        for high in places
        for low in places
        if high >= low
    ]
    assert np.abs(scale.tier_of(score) - tier).sum() == min(costs)
    assert list(scale.thresholds) == sorted(scale.thresholds, reverse=True)
    assert len(scale.thresholds) == 2


def test_probabilities_recover_how_people_judge() -> None:
    rng = np.random.default_rng(0)
    score = rng.normal(size=400) * 3
    left, right = rng.integers(0, 400, (2, 20_000))
    wins = rng.random(20_000) < 1 / (1 + np.exp(-(score[left] - score[right]) / 0.8))
    comparisons = np.stack([left, right, np.where(wins, 1, -1)], axis=1)
    scale = fit_comparison_scale(score, comparisons)
    assert scale.temperature == pytest.approx(0.8, rel=0.05)
    assert scale.thresholds == ()
    lead = (score[left] - score[right]) * comparisons[:, 2]
    best = minimize_scalar(lambda t: np.logaddexp(0, -lead / t).mean(), bounds=(0.1, 5), method="bounded")
    assert scale.temperature == pytest.approx(best.x, rel=1e-3)


@pytest.mark.parametrize("size", [300, 3000])
def test_temperature_of_tiers(size: int) -> None:
    rng = np.random.default_rng(1)
    tier = rng.integers(0, 4, size)
    score = -tier + rng.normal(size=size) * 2
    i, j = np.nonzero(tier[:, None] < tier[None, :])
    lead = score[i] - score[j]
    best = minimize_scalar(lambda t: np.logaddexp(0, -lead / t).mean(), bounds=(0.1, 30), method="bounded")
    assert fit_scale(score, tier, 4).temperature == pytest.approx(best.x, rel=0.02 if size > 1000 else 1e-3)


def test_perfect_order_keeps_probabilities_apart_from_certainty() -> None:
    scale = fit_scale([4.0, 3, 2, 1], [0, 1, 2, 3], 4)
    assert scale.temperature > 0
    assert math.isfinite(scale.temperature)
    assert scale.tier_of([4.0, 3, 2, 1]).tolist() == [0, 1, 2, 3]


def test_scores_that_say_nothing() -> None:
    scale = fit_scale([2.0, 2.0], [0, 1], 2)
    assert scale.temperature == 1
    assert fit_scale([], [], 4) == Scale()
    assert fit_comparison_scale([], np.zeros((0, 3))) == Scale()


def test_points_and_probability() -> None:
    scale = Scale(temperature=2.0, center=1.0)
    assert float(scale.elo(1.0)) == 1500
    assert float(scale.elo(1.0 + 2.0 * math.log(10))) == pytest.approx(1900)
    assert float(scale.probability(2.0 * math.log(10), 0.0)) == pytest.approx(10 / 11)
    assert float(scale.probability(1e9, -1e9)) == 1.0
    assert float(scale.probability(3.0, 1.0) + scale.probability(1.0, 3.0)) == pytest.approx(1)


def test_it_survives_a_checkpoint() -> None:
    scale = fit_scale([4.0, 3.5, 2, 1], [0, 1, 1, 2], 3)
    assert Scale.from_record(json.loads(json.dumps(scale.record()))) == scale
    assert Scale.from_record({}) == Scale()
