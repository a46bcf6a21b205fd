import math

import pytest

from hai.config.load import config_from_yaml_text, config_with
from hai.config.sweep import Entry
from hai.sweep.space import combinations, draw, params_of, perturbed, trial_id

SPACE = {
    "pairs.loss": Entry("choice", ("margin", "bradley_terry"), {}),
    "optim.learning_rate": Entry("loguniform", (1e-5, 1e-1), {}),
    "model.dropout": Entry("uniform", (0.0, 0.5), {}),
    "model.num_heads": Entry("randint", (1, 4), {}),
    "model.head": Entry("grid", ("linear", "mlp"), {}),
    "pairs.margin": Entry("uniform", (0.2, 2.0), {"pairs.loss": ("margin",)}),
}
CONFIG = config_from_yaml_text("task: ranker\ndata: {sources: [{path: art}]}")


def test_a_trial_has_the_same_values_however_often_it_is_drawn_and_others_than_its_neighbours() -> None:
    drawn = [draw(SPACE, 7, number) for number in range(50)]
    assert drawn == [draw(SPACE, 7, number) for number in range(50)]
    assert len({str(params) for params in drawn}) == 50
    assert draw(SPACE, 8, 0) != drawn[0] != draw(SPACE, 7, 0, attempt=1)


def test_a_key_more_leaves_the_others_as_they_are() -> None:
    fewer = {key: entry for key, entry in SPACE.items() if key != "model.dropout"}
    for number in range(20):
        params = draw(SPACE, 0, number)
        params.pop("model.dropout")
        assert draw(fewer, 0, number) == params


def test_values_spread_over_their_ranges_and_conditions_hold() -> None:
    drawn = [draw(SPACE, 1, number) for number in range(2000)]
    rates = [math.log10(params["optim.learning_rate"]) for params in drawn]
    assert sum(rate < -3 for rate in rates) / 2000 == pytest.approx(0.5, abs=0.04)
    assert min(rates) == pytest.approx(-5, abs=0.02)
    assert max(rates) == pytest.approx(-1, abs=0.02)
    counts = [sum(params["model.num_heads"] == heads for params in drawn) for heads in (1, 2, 3, 4)]
    assert min(counts) > 430
    assert [params["model.head"] for params in drawn[:4]] == ["linear", "mlp", "linear", "mlp"]
    for params in drawn:
        assert ("pairs.margin" in params) == (params["pairs.loss"] == "margin")
        assert 0.0 <= params["model.dropout"] <= 0.5


def test_combinations_stand_once_where_conditions_make_some_equal() -> None:
    space = {
        "pairs.loss": Entry("choice", ("margin", "bradley_terry"), {}),
        "pairs.margin": Entry("grid", (0.5, 1.0), {"pairs.loss": ("margin",)}),
    }
    assert combinations(space) == [
        {"pairs.loss": "margin", "pairs.margin": 0.5},
        {"pairs.loss": "margin", "pairs.margin": 1.0},
        {"pairs.loss": "bradley_terry"},
    ]
    assert combinations(space, 1) == [{"pairs.loss": "margin", "pairs.margin": 0.5}]
    endless = {f"model.key_{number}": Entry("grid", tuple(range(100)), {}) for number in range(20)}
    assert len(combinations(endless, 30)) == 30


def test_perturbing_stays_in_the_space_and_near_or_draws_anew() -> None:
    params = draw(SPACE, 3, 0) | {"pairs.loss": "margin", "pairs.margin": 1.0, "optim.learning_rate": 0.001}
    near = [perturbed(SPACE, params, f"{seed}", 0.0) for seed in range(40)]
    assert {found["optim.learning_rate"] for found in near} == {0.0008, 0.0012}
    anew = [perturbed(SPACE, params, f"{seed}", 1.0)["optim.learning_rate"] for seed in range(40)]
    assert len(set(anew)) == 40
    for found in near:
        assert ("pairs.margin" in found) == (found["pairs.loss"] == "margin")
        assert 1 <= found["model.num_heads"] <= 4


def test_a_trials_name_follows_from_what_it_learns_and_not_from_where() -> None:
    params = {"optim.learning_rate": 0.002}
    one = config_with(CONFIG, params, "x")
    name = trial_id(one, params)
    elsewhere = config_from_yaml_text("task: ranker\ndata: {sources: [{path: other}]}\nstorage: gs://b\nname: x")
    assert trial_id(config_with(elsewhere, params, "x"), params) == name
    assert trial_id(config_with(one, {"train.max_epochs": 11}, "x"), params) != name
    assert trial_id(one, params, "abc/step_00000001") != name
    assert params_of(SPACE, CONFIG)["pairs.loss"] == CONFIG.pairs.loss
    assert "pairs.margin" not in params_of(SPACE, CONFIG)
