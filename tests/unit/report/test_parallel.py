"""Where values stand on the axes of parallel coordinates."""

import math

import pytest
from made_sweep import made_trial

from hai.report.parallel import draw_lines, metric_axis, param_axis


def trials_of(values, *, missing=()):
    return [
        made_trial(number, params={} if number in missing else {"k": value}, value=0.5 + number / 100)
        for number, value in enumerate(values)
    ]


def axis_of(entry, values, **options):
    return param_axis("k", "k", entry, trials_of(values, **options))


def test_a_log_axis_gives_each_decade_the_same_height_and_covers_what_was_searched():
    axis = axis_of({"loguniform": [1e-4, 1e-1]}, [1e-3, 1e-2])
    assert axis.is_log
    assert axis.shares == pytest.approx([1 / 3, 2 / 3])
    assert [text for _, text in axis.ticks] == ["0.0001", "0.001", "0.01", "0.1"]


def test_values_that_went_beyond_what_was_searched_are_on_the_axis():
    axis = axis_of({"uniform": [0, 1]}, [0.0, 1.5])
    assert (axis.low, axis.high, axis.is_log) == (0.0, 1.5, False)
    assert axis.shares == pytest.approx([0.0, 1.0])


def test_what_the_space_does_not_say_is_read_from_the_values():
    assert axis_of(None, [1e-5, 1e-2]).is_log
    assert not axis_of(None, [0.1, 0.2]).is_log
    assert not axis_of(None, [-1.0, 0.2, 100.0]).is_log
    assert [text for _, text in axis_of(None, ["a", "b"]).ticks] == ["a", "b"]
    assert [text for _, text in axis_of(["b", "a"], ["a", "b"]).ticks] == ["b", "a"], "as they are listed"


def test_numbers_that_are_listed_stand_evenly_in_their_order():
    axis = axis_of({"choice": [512, 64, 128]}, [64, 128.0])
    assert [text for _, text in axis.ticks] == ["64", "128", "512"]
    assert [share for share, _ in axis.ticks] == pytest.approx([1 / 6, 1 / 2, 5 / 6])
    assert axis.shares == pytest.approx([1 / 6, 1 / 2], abs=0.02)
    few = axis_of({"randint": [1, 3]}, [2])
    assert [text for _, text in few.ticks] == ["1", "2", "3"]
    many = axis_of({"randint": [1, 100]}, [2, 99])
    assert (many.low, many.high) == (1, 100)


def test_words_booleans_lists_and_null_are_categories_and_one_is_not_true():
    axis = axis_of({"choice": [True, 1, None, "x", {"a": [1]}]}, [1, True, {"a": [1]}, "x", None])
    assert [text for _, text in axis.ticks] == ["true", "1", "null", "x", '{"a": [1]}']
    assert len({round(share, 1) for share in axis.shares}) == 5
    assert axis.gap == ""


def test_lines_of_a_category_lie_side_by_side_within_its_part_of_the_axis():
    axis = axis_of({"choice": ["a", "b"]}, ["a"] * 60 + ["b"] * 60)
    below, above = axis.shares[:60], axis.shares[60:]
    assert len(set(below)) == 60
    assert min(below) > 0
    assert max(below) < 0.5 < min(above)
    assert max(above) < 1


@pytest.mark.parametrize("entry", [{"uniform": [0, 1]}, {"choice": [0.1, 0.2, 0.3]}])
def test_a_conditional_parameter_has_a_place_for_trials_without_it(entry):
    axis = axis_of(entry, [0.1, 0.2, 0.3], missing={1})
    assert axis.gap == "not set"
    assert [share is None for share in axis.shares] == [False, True, False]


@pytest.mark.parametrize("value", [0.0, 1e-3, -2.0, 5])
def test_one_value_stands_in_the_middle_of_its_axis(value):
    axis = axis_of(None, [value])
    assert 0 < axis.shares[0] < 1
    assert len(axis.ticks) >= 2
    assert all(math.isfinite(share) for share, _ in axis.ticks)


def test_better_is_up_whichever_way_the_metric_goes():
    trials = trials_of([1, 2, 3])
    assert metric_axis("F1", "f1", "max", trials).shares == pytest.approx([0, 0.5, 1])
    axis = metric_axis("loss", "loss", "min", trials)
    assert axis.shares == pytest.approx([1, 0.5, 0])
    heights = dict((text, share) for share, text in axis.ticks)
    assert heights["0.5"] == pytest.approx(1.0)
    assert heights["0.52"] == pytest.approx(0.0)


def test_lines_are_drawn_from_the_worst_to_the_best_and_the_chosen_one_on_top():
    trials = [*trials_of(range(30)), made_trial(30, params={"k": 3}, value=math.nan, status="failed")]
    axes = [param_axis("k", "k", None, trials), metric_axis("F1", "f1", "max", trials)]
    drawn = draw_lines(axes, trials, [f"trial {i}" for i in range(31)], trials[28].id)
    assert [line["number"] for line in drawn.lines] == [30, *range(28), 29, 28]
    tones = {line["number"]: line["tone"] for line in drawn.lines}
    assert (tones[29], tones[25], tones[15], tones[0], tones[30]) == (
        "tone-4",
        "tone-3",
        "tone-2",
        "tone-1",
        "unscored",
    )
    failed = drawn.lines[0]
    assert failed["points"][-1] == (f"{drawn.axes[-1]['x']:.1f}", f"{drawn.gap:.1f}")
    assert drawn.gap < drawn.height


def test_many_axes_are_as_wide_as_they_need_and_few_fit_the_page():
    trials = trials_of([1, 2])
    few = draw_lines([param_axis("k", "k", None, trials)] * 3, trials, ["", ""], "")
    many = draw_lines([param_axis("k", "a long name of a parameter", None, trials)] * 20, trials, ["", ""], "")
    assert few.width <= 960
    assert many.width == 2 * 64 + 19 * 128
    assert all(len(axis["title"]) <= 16 for axis in many.axes)
