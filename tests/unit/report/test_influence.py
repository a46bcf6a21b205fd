"""What a sweep's trials tell about its parameters, and what they must not."""

import numpy as np
import pytest

from hai.report.influence import influences


def drawn(count, seed):
    rng = np.random.default_rng(seed)
    return [
        {"rate": 10 ** rng.uniform(-5, -1), "kind": str(rng.choice(["a", "b", "c"])), "size": int(rng.integers(1, 9))}
        | ({"width": float(rng.uniform())} if rng.uniform() < 0.5 else {})
        for _ in range(count)
    ]


def told(params, value):
    return {found.key for found in influences(params, value) if found.share > found.chance}


def test_a_best_value_in_the_middle_a_class_and_a_condition_are_found():
    params = drawn(60, 0)
    noise = np.random.default_rng(1).normal(0, 0.1, 60)
    assert told(params, [-((np.log10(p["rate"]) + 3) ** 2) for p in params] + noise) == {"rate"}
    assert told(params, [float(p["kind"] == "b") for p in params] + noise) == {"kind"}
    assert told(params, [float("width" in p) for p in params] + noise) == {"width"}


def test_chance_is_called_so_in_most_sweeps():
    """Values that depend on nothing: in 5 of 100 sweeps some parameter may look as if it mattered."""
    findings = sum(bool(told(drawn(20, seed), np.random.default_rng(seed + 999).normal(size=20))) for seed in range(60))
    assert findings <= 8


def test_shares_do_not_depend_on_the_scale_of_value_or_parameter():
    params = drawn(30, 2)
    value = np.array([np.log10(p["rate"]) for p in params])
    first = influences(params, value)
    assert first == influences(params, np.exp(3 * value))
    assert first[0].key == "rate"
    assert first[0].share == pytest.approx(1.0)
    assert all(0 <= found.share <= 1 + 1e-12 for found in first)


def test_too_few_trials_equal_values_and_constants_say_nothing():
    params = drawn(30, 3)
    assert influences(params[:14], np.arange(14.0)) == []
    assert influences(params, np.ones(30)) == []
    assert influences([{"rate": 1.0}] * 30, np.arange(30.0)) == []
    assert influences([{"path": str(i)} for i in range(30)], np.arange(30.0)) == [], "a class for each trial fits all"
