import tracemalloc

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from hai.data.separable import features_of, plan_test, separate
from hai.rank_metrics import concordance, resampled_weights


def test_the_auc_is_that_of_its_scores_and_lies_in_its_interval():
    rng = np.random.default_rng(0)
    target = rng.integers(0, 2, 400)
    value = rng.normal(size=400) + target
    plan = plan_test(target, np.arange(400), 1000, 0)
    found = separate(plan, features_of({"value": value}, plan.rows))
    assert found.value == pytest.approx(roc_auc_score(1 - target[plan.rows], np.round(found.scores, 9)), abs=1e-9)
    assert found.low < found.value < found.high
    assert 0.65 < found.value < 0.85


def test_equal_scores_count_half_for_any_number_of_tiers():
    rng = np.random.default_rng(1)
    tier, score = rng.integers(0, 3, 60), rng.integers(0, 4, 60).astype(float)
    pairs = [(i, j) for i in range(60) for j in range(60) if tier[i] < tier[j]]
    wanted = np.mean([(score[i] > score[j]) + (score[i] == score[j]) / 2 for i, j in pairs])
    found = concordance(score, tier, resampled_weights(None, 60, 50, 0))
    assert found["value"] == pytest.approx(wanted, abs=1e-12)
    assert found["low"] < wanted < found["high"]


def test_a_dependence_that_is_not_monotone_is_found():
    value = np.random.default_rng(2).normal(size=600)
    target = (np.abs(value) > 0.7).astype(int)
    plan = plan_test(target, np.arange(600), 1000, 0)
    assert separate(plan, features_of({"value": value}, plan.rows)).value > 0.95


def test_texts_are_told_by_their_commonest_values():
    rng = np.random.default_rng(3)
    target = rng.integers(0, 2, 300)
    texts = [("camera", "scanner")[t] if rng.random() < 0.8 else f"rare {k}" for k, t in enumerate(target)]
    plan = plan_test(target, np.arange(300), 1000, 0)
    assert 0.9 < separate(plan, features_of({"text": texts}, plan.rows)).value < 1


def test_groups_stay_together_so_what_tells_groups_tells_nothing():
    group = np.repeat(np.arange(40), 10)
    target = group % 2  # even groups are real, and each group has a name of its own
    apart = plan_test(target, np.arange(400), 1000, 0)
    together = plan_test(target, group, 1000, 0)
    names = [f"g{code}" for code in group.tolist()]
    assert separate(apart, features_of({"x": names}, apart.rows)).value > 0.75
    assert separate(together, features_of({"x": names}, together.rows)).value < 0.6
    for code in np.unique(group):
        assert len(set(together.fold[group[together.rows] == code])) == 1
    assert together.is_grouped
    assert together.num_units == 40
    value = np.random.default_rng(0).normal(size=40)[group] + target
    wide, narrow = (separate(plan, features_of({"x": value}, plan.rows)) for plan in (together, apart))
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)  # 40 independent things, not 400


def test_every_fold_has_every_class():
    target = np.array([0] * 200 + [1] * 40)
    plan = plan_test(target, np.arange(240) // 4, 1000, 0)
    counts = np.array([np.bincount(plan.target[plan.fold == k], minlength=2) for k in range(plan.folds)])
    assert plan.folds == 5
    assert (counts[:, 1] == 8).all()
    assert (counts[:, 0] == 40).all()


def test_a_class_of_one_group_is_divided_and_said_to_be():
    target = np.array([0] * 30 + [1] * 30)
    unit = np.concatenate([np.arange(30), np.full(30, 99)])
    plan = plan_test(target, unit, 1000, 0)
    assert not plan.is_grouped
    assert separate(plan, features_of({"x": target.astype(float)}, plan.rows)).value == 1.0


def test_what_never_varies_tells_nothing():
    target = np.arange(40) % 2
    plan = plan_test(target, np.arange(40), 1000, 0)
    features = features_of({"a": np.ones(40), "b": ["x"] * 40}, plan.rows)
    assert features.shape == (40, 0)
    assert separate(plan, features)[:3] == (0.5, 0.5, 0.5)


def test_one_class_or_few_images_are_not_tested():
    assert plan_test(np.zeros(50, dtype=int), np.arange(50), 1000, 0) is None
    assert plan_test(np.array([0] * 50 + [1] * 3), np.arange(53), 1000, 0) is None


def test_a_sample_takes_whole_units_and_spares_the_rare_class():
    target = np.array([0] * 9000 + [1] * 300)
    unit = np.arange(9300) // 3
    plan = plan_test(target, unit, 1000, 5)
    assert 900 <= len(plan.rows) <= 1010
    assert (plan.target == 1).sum() == 300
    assert (np.unique(unit[plan.rows], return_counts=True)[1] != 3).sum() <= 1, "the last one drawn is cut"
    again = plan_test(target, unit, 1000, 5)
    assert np.array_equal(plan.rows, again.rows)
    assert not np.array_equal(plan.rows, plan_test(target, unit, 1000, 6).rows)


def test_one_long_text_costs_its_own_length():
    texts = ["short"] * 2000
    texts[7] = "x" * 50_000
    tracemalloc.start()
    features = features_of({"text": texts}, np.arange(2000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert features.sum(axis=0).tolist() in ([1999, 1], [1, 1999])
    assert peak < 10_000_000, "not the longest length for each"


def test_a_giant_unit_is_sampled_too():
    target = np.array([0] * 9000 + [1] * 3000)
    unit = np.arange(12_000)
    unit[:8000] = 0
    plan = plan_test(target, unit, 1000, 0)
    assert np.bincount(plan.target).tolist() == [500, 500]
    assert 400 < (unit[plan.rows] == 0).sum() < 490
    assert plan.is_grouped
