"""The detector's metrics, against brute-force definitions and scikit-learn."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from hai.errors import DataError
from hai.metrics import (
    METRICS,
    best_threshold,
    confusion_matrix,
    detector_metrics,
    point_metrics,
    pr_curve,
    reliability_curve,
    roc_curve,
    video_predictions,
)

Arrays = tuple[Any, Any]


def examples(size: int = 200, *, ties: bool = False, seed: int = 0) -> Arrays:
    random = np.random.default_rng(seed)
    label = random.integers(0, 2, size)
    probability = np.clip(0.5 + 0.25 * (label - 0.5) + 0.2 * random.standard_normal(size), 0, 1)
    return label, np.round(probability, 1) if ties else probability


def brute_auc(label: Any, probability: Any) -> float:
    fakes, reals = probability[label == 1], probability[label == 0]
    return float(np.mean([(f > r) + 0.5 * (f == r) for f in fakes for r in reals]))


def brute_eer(label: Any, probability: Any) -> float:
    """Walk the ROC in small straight steps until misses are no more frequent than false alarms."""
    points = [(0.0, 0.0)]
    for threshold in sorted(set(probability), reverse=True):
        called = probability >= threshold
        points.append((float(called[label == 0].mean()), float(called[label == 1].mean())))
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        for t in np.linspace(0, 1, 20_001):
            x, y = x0 + t * (x1 - x0), y0 + t * (y1 - y0)
            if 1 - y <= x:
                return float(x)
    raise AssertionError("the ROC ends at (1, 1)")


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
def test_against_scikit_learn(ties: bool, threshold: float) -> None:
    label, probability = examples(ties=ties)
    result = point_metrics(label, probability, threshold)
    predicted = (probability >= threshold).astype(int)
    precision, recall, f1, _ = sk.precision_recall_fscore_support(label, predicted)
    expected = {
        "accuracy": sk.accuracy_score(label, predicted),
        "precision_real": precision[0],
        "recall_real": recall[0],
        "f1_real": f1[0],
        "precision_fake": precision[1],
        "recall_fake": recall[1],
        "f1_fake": f1[1],
        "f1_macro": sk.f1_score(label, predicted, average="macro"),
        "roc_auc": sk.roc_auc_score(label, probability),
        "average_precision": sk.average_precision_score(label, probability),
    }
    for name, value in expected.items():
        assert result[name] == pytest.approx(value, abs=1e-12), name
    assert tuple(result) == METRICS


@pytest.mark.parametrize("ties", [False, True])
def test_against_brute_force(ties: bool) -> None:
    label, probability = examples(60, ties=ties)
    result = point_metrics(label, probability)
    assert result["roc_auc"] == pytest.approx(brute_auc(label, probability), abs=1e-12)
    assert result["equal_error_rate"] == pytest.approx(brute_eer(label, probability), abs=1e-4)
    gaps = []
    for b in range(15):
        inside = (probability >= b / 15) & ((probability < (b + 1) / 15) | ((b == 14) & (probability == 1)))
        if inside.any():
            gaps.append(inside.mean() * abs(probability[inside].mean() - label[inside].mean()))
    assert result["expected_calibration_error"] == pytest.approx(sum(gaps), abs=1e-12)


def test_perfect_reversed_and_constant_scores() -> None:
    label = np.array([0, 0, 1, 1])
    perfect, reversed_, constant = (
        point_metrics(label, p) for p in ([0.1, 0.2, 0.8, 0.9], [0.9, 0.8, 0.2, 0.1], [0.5] * 4)
    )
    assert (perfect["roc_auc"], perfect["equal_error_rate"], perfect["f1_macro"]) == (1, 0, 1)
    assert (reversed_["roc_auc"], reversed_["equal_error_rate"], reversed_["f1_macro"]) == (0, 1, 0)
    assert (constant["roc_auc"], constant["equal_error_rate"], constant["accuracy"]) == (0.5, 0.5, 0.5)
    assert constant["precision_real"] is None  # at 0.5 all four are called fake
    assert constant["recall_real"] == 0
    assert constant["f1_macro"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("only", [0, 1])
def test_one_class_leaves_undefined_what_needs_two(only: int) -> None:
    probability = np.array([0.2, 0.3, 0.9])
    result = point_metrics([only] * 3, probability)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = sk.f1_score([only] * 3, probability >= 0.5, average="macro")
    assert result["f1_macro"] == pytest.approx(expected)
    assert result["roc_auc"] is result["equal_error_rate"] is None
    assert result[("recall_fake", "recall_real")[only]] is None
    assert (result["average_precision"] is None) == (only == 0)
    intervals = detector_metrics([only] * 3, probability, bootstrap=20)
    assert intervals["roc_auc"] == {"value": None, "low": None, "high": None}


def test_one_class_predicted_right_is_perfect() -> None:
    assert point_metrics([0, 0], [0.1, 0.2])["f1_macro"] == 1
    assert point_metrics([0, 0], [0.1, 0.2])["f1_fake"] is None


@pytest.mark.parametrize(
    ("label", "probability", "message"),
    [
        ([0, 1, 1], [0.1, np.nan, np.nan], r"2 of 3 probabilities are NaN"),
        ([0, 1, 1], [0.1, 1.5, np.inf], r"2 of 3 probabilities are outside 0-1"),
        ([0, 1, 2], [0.1, 0.5, 0.5], r"1 of 3 labels are neither 0 \(real\) nor 1 \(fake\)"),
        ([0, 1], [0.1], r"label \[2\], probability \[1\]; two equally long lists"),
        ([], [], r"at least one example"),
    ],
)
def test_impossible_values_are_counted(label: Any, probability: Any, message: str) -> None:
    for function in (point_metrics, detector_metrics, best_threshold, confusion_matrix):
        with pytest.raises(DataError, match=message):
            function(label, probability)
    with pytest.raises(DataError, match="1 groups for 2 examples"):
        point_metrics([0, 1], [0.1, 0.2], group=["a"])


def test_videos_are_judged_by_their_mean_logit() -> None:
    label, probability = [1, 1, 0, 0, 1], np.array([0.9, 0.2, 0.4, 0.6, 0.7])
    group = ["b", "b", "a", "a", ""]
    videos = video_predictions(label, probability, group)
    assert videos is not None
    mean = np.log(0.9 / 0.1) / 2 + np.log(0.2 / 0.8) / 2
    expected = {(0, 0.5), (1, round(float(1 / (1 + np.exp(-mean))), 9)), (1, 0.7)}
    assert {(int(y), round(float(p), 9)) for y, p in zip(*videos, strict=True)} == expected
    result = point_metrics(label, probability, 0.55, group)
    for name, value in point_metrics(*videos, 0.55).items():
        assert result[f"video_{name}"] == value
    certain = video_predictions([1, 1], [1.0, 0.0], ["v", "v"])
    assert certain is not None
    assert certain[1] == pytest.approx([0.5])


def test_groups_that_are_no_videos_give_no_video_metrics() -> None:
    label, probability = [0, 1, 1], [0.1, 0.8, 0.9]
    for group in (None, ["", "", ""], ["a", "b", "c"], ["a", "a", "b"]):  # the last mixes real and fake
        assert not [name for name in point_metrics(label, probability, group=group) if name.startswith("video_")]


def test_intervals_are_those_of_a_plain_bootstrap() -> None:
    label, probability = examples(80, ties=True)
    group = [f"v{i // 4}" if i < 40 else "" for i in range(80)]
    label[:40] = np.repeat(label[:40:4], 4)
    result = detector_metrics(label, probability, group, 0.4, bootstrap=25, seed=3)
    names = sorted({name for name in group if name})
    members = [np.flatnonzero(np.array(group) == name) for name in names] + [np.array([i]) for i in range(40, 80)]
    drawn = np.random.default_rng(3).integers(0, len(members), size=(25, len(members)))
    replicates: list[dict[str, float | None]] = []
    for row in drawn:
        rows = np.concatenate([members[g] for g in row])
        copies = np.concatenate([[f"copy{i}"] * len(members[g]) for i, g in enumerate(row)])
        replicates.append(point_metrics(label[rows], probability[rows], 0.4, list(copies)))
    assert "video_roc_auc" in result
    for name, interval in result.items():
        values = [value for replicate in replicates if (value := replicate[name]) is not None]
        low, high = np.percentile(values, [2.5, 97.5])
        assert interval["low"] == pytest.approx(low, abs=1e-9), name
        assert interval["high"] == pytest.approx(high, abs=1e-9), name
        assert interval["value"] == point_metrics(label, probability, 0.4, group)[name]


def test_intervals_repeat_and_follow_the_seed() -> None:
    label, probability = examples()
    first, again, other = (detector_metrics(label, probability, bootstrap=50, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first["roc_auc"] != other["roc_auc"]
    assert detector_metrics(label, probability, bootstrap=0)["roc_auc"]["low"] is None


def test_intervals_cover_about_95_percent() -> None:
    hits = 0
    for seed in range(100):
        random = np.random.default_rng(seed)
        right = random.random(150) < 0.8
        label = random.integers(0, 2, 150)
        interval = detector_metrics(label, np.where(right, label, 1 - label), bootstrap=200, seed=seed)["accuracy"]
        assert interval["low"] is not None
        assert interval["high"] is not None
        hits += interval["low"] <= 0.8 <= interval["high"]
    assert 88 <= hits <= 99


def test_confusion_matrix() -> None:
    label, probability = examples(ties=True)
    expected = sk.confusion_matrix(label, probability >= 0.6)
    assert confusion_matrix(label, probability, 0.6).tolist() == expected.tolist()
    assert confusion_matrix([0], [0.1]).tolist() == [[1, 0], [0, 0]]


scores = st.lists(
    st.tuples(st.integers(0, 1), st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.5000000000000001, 0.75, 1.0])),
    min_size=1,
    max_size=12,
)


@settings(max_examples=100, deadline=None)
@given(scores)
def test_no_threshold_beats_the_best(pairs: list[tuple[int, float]]) -> None:
    label, probability = (np.array(column) for column in zip(*pairs, strict=True))
    found = best_threshold(label, probability)

    def f1_macro(threshold: float) -> float:
        value = point_metrics(label, probability, threshold)["f1_macro"]
        assert value is not None
        return value

    others = [*sorted(set(probability.tolist())), 2.0]
    assert f1_macro(found) == pytest.approx(max(f1_macro(t) for t in others), abs=1e-12)
    assert 0 <= found <= np.nextafter(1.0, 2.0)


def test_the_best_threshold_lies_midway_and_near_a_half() -> None:
    assert best_threshold([0, 0, 1, 1], [0.1, 0.2, 0.4, 0.9]) == pytest.approx(0.3)
    assert best_threshold([0, 1, 0, 1], [0.1, 0.45, 0.55, 0.9]) == pytest.approx(0.5, abs=0.25)
    assert best_threshold([1, 1], [0.6, 0.9]) == pytest.approx(0.3)
    assert best_threshold([0, 0], [0.6, 1.0]) == np.nextafter(1.0, 2.0)


@pytest.mark.parametrize("ties", [False, True])
def test_curves_are_scikit_learns(ties: bool) -> None:
    label, probability = examples(ties=ties)
    for ours, theirs in zip(
        roc_curve(label, probability), sk.roc_curve(label, probability, drop_intermediate=False), strict=True
    ):
        np.testing.assert_allclose(ours, theirs)
    recall, precision, threshold = pr_curve(label, probability)
    their_precision, their_recall, their_threshold = sk.precision_recall_curve(label, probability)
    np.testing.assert_allclose(recall, their_recall[::-1])
    np.testing.assert_allclose(precision, their_precision[::-1])
    np.testing.assert_allclose(threshold[1:], their_threshold[::-1])


def test_reliability_curve_adds_up_to_the_calibration_error() -> None:
    label, probability = examples(seed=1)
    mean, share, count = reliability_curve(label, probability)
    filled = count > 0
    assert count.sum() == len(label)
    assert np.isnan(mean[~filled]).all()
    their_share, their_mean = calibration_curve(label, probability, n_bins=15)
    np.testing.assert_allclose(mean[filled], their_mean)
    np.testing.assert_allclose(share[filled], their_share)
    error = (np.abs(mean - share)[filled] * count[filled]).sum() / len(label)
    assert point_metrics(label, probability)["expected_calibration_error"] == pytest.approx(error)
