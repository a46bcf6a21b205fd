import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from hai.calibration import Calibration, calibrate, common_threshold, fit_temperature
from hai.metrics import best_threshold, point_metrics, threshold_interval
from hai.results import probability_of


def drawn(size: int, temperature: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels drawn from the probabilities of logits, which are then multiplied by the temperature."""
    generator = np.random.default_rng(seed)
    logit = generator.normal(0, 2, size)
    return (generator.random(size) < probability_of(logit)).astype(np.int64), temperature * logit


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_the_temperature_is_the_one_that_labels_were_drawn_with(temperature: float) -> None:
    label, logit = drawn(20_000, temperature)
    assert fit_temperature(label, logit) == pytest.approx(temperature, rel=0.05)


def test_the_temperature_has_the_smallest_log_loss_of_groups_that_count_once() -> None:
    label, logit = drawn(60, 3.0)
    group = ["a"] * 20 + ["b"] * 10 + [""] * 30
    weight = np.array([1 / 20] * 20 + [1 / 10] * 10 + [1.0] * 30)
    fake, real = weight[label == 1].sum(), weight[label == 0].sum()
    target = np.where(label == 1, (fake + 1) / (fake + 2), 1 / (real + 2))

    def loss(logarithm: float) -> float:
        scaled = logit / math.exp(logarithm)
        return float((weight * (np.logaddexp(0, scaled) - target * scaled)).sum())

    best = math.exp(minimize_scalar(loss, bounds=(-5, 5), method="bounded", options={"xatol": 1e-8}).x)
    assert fit_temperature(label, logit, group) == pytest.approx(best, rel=1e-5)
    assert fit_temperature(label, logit) != pytest.approx(best, rel=1e-2), "groups matter"


def test_copies_of_an_image_in_one_group_change_nothing() -> None:
    label, logit = drawn(50, 2.0)
    names = [f"g{i}" for i in range(50)]
    copies = np.repeat(np.arange(50), 1 + np.arange(50) % 4)
    once = fit_temperature(label, logit, names)
    assert fit_temperature(label[copies], logit[copies], [names[i] for i in copies]) == pytest.approx(once)


@pytest.mark.parametrize("size", [2, 20, 2000])
def test_separated_images_do_not_ask_for_endless_confidence(size: int) -> None:
    label = np.arange(size) % 2
    logit = np.where(label == 1, 7.0, -7.0)
    probability = probability_of(logit / fit_temperature(label, logit))
    assert probability.max() == pytest.approx((size / 2 + 1) / (size / 2 + 2), abs=1e-6)
    assert fit_temperature(label, logit, ["v", "w"] * (size // 2)) > 4, "two videos vouch for little"


@pytest.mark.parametrize(
    ("label", "logit"),
    [([1, 1], [0.5, 2.0]), ([0, 0], [0.5, 2.0]), ([0, 1], [0.0, 0.0]), ([0, 1], [np.nan, 1.0]), ([0, 1], [0, np.inf])],
)
def test_no_temperature_where_none_can_be_fitted(label: list[int], logit: list[float]) -> None:
    assert fit_temperature(label, logit) == 1.0


def test_a_model_that_is_worse_than_guessing_becomes_unsure_but_keeps_its_order() -> None:
    label, logit = drawn(400, 1.0)
    temperature = fit_temperature(1 - label, logit)
    probability = probability_of(logit / temperature)
    assert np.abs(probability - 0.5).max() < 0.05
    assert (np.argsort(probability) == np.argsort(logit)).all()


def test_calibration_lowers_the_calibration_error_and_keeps_the_ranking() -> None:
    label, logit = drawn(4000, 5.0)
    fitted = calibrate(label, logit)
    before = point_metrics(label, probability_of(logit))
    after = point_metrics(label, probability_of(logit / fitted.temperature))
    assert before["expected_calibration_error"] > 0.1
    assert after["expected_calibration_error"] < 0.03
    assert after["roc_auc"] == pytest.approx(before["roc_auc"])


def test_the_threshold_is_of_calibrated_probabilities_and_lies_in_its_interval() -> None:
    label, logit = drawn(500, 3.0)
    group = [f"video{i // 5}" for i in range(500)]
    fitted = calibrate(label, logit, group)
    assert fitted.threshold == best_threshold(label, probability_of(logit / fitted.temperature))
    assert fitted.threshold_low is not None
    assert fitted.threshold_high is not None
    assert fitted.threshold_low <= fitted.threshold <= fitted.threshold_high
    assert fitted.threshold_low < fitted.threshold_high
    assert (fitted.num_images, fitted.num_groups) == (500, 100)
    assert calibrate(label, logit, group) == fitted, "the same every time"


def test_the_interval_of_the_threshold_is_that_of_thresholds_of_resampled_groups() -> None:
    label, logit = drawn(120, 1.0)
    probability = probability_of(logit)
    ids = np.arange(120) // 4
    low, high = threshold_interval(label, probability, [str(i) for i in ids], bootstrap=400, seed=3)
    generator = np.random.default_rng(5)
    found = []
    for _ in range(400):
        rows = np.concatenate([np.flatnonzero(ids == group) for group in generator.integers(0, 30, 30)])
        found.append(best_threshold(label[rows], probability[rows]))
    assert [low, high] == pytest.approx(np.percentile(found, [2.5, 97.5]), abs=0.08)


def test_more_images_make_the_interval_narrower() -> None:
    widths = []
    for size in (60, 6000):
        label, logit = drawn(size, 1.0, seed=1)
        low, high = threshold_interval(label, probability_of(logit))
        widths.append(high - low)
    assert widths[1] < widths[0] / 2


def test_records_keep_the_calibration_and_older_ones_are_read() -> None:
    label, logit = drawn(80, 2.0)
    fitted = calibrate(label, logit)
    assert Calibration.from_record(fitted.record()) == fitted
    assert Calibration.from_record({"threshold": 0.4, "temperature": 1.0}) == Calibration(threshold=0.4)
    assert Calibration.from_record({}) == Calibration(1.0, 0.5)


def test_an_ensemble_s_threshold_is_the_mean_in_logits() -> None:
    assert common_threshold([0.3]) == 0.3
    assert common_threshold([0.2, 0.8]) == pytest.approx(0.5)
    assert common_threshold([0.0, 1.0]) == pytest.approx(0.5)
