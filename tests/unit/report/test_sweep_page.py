"""The page of a sweep, read as a browser would."""

import math
import re
from dataclasses import replace

import pytest
from made_sweep import made_evaluation, made_sweep, made_trial
from web_page import Page

from hai.report.sweep import render_sweep


def page_of(sweep):
    html = render_sweep(sweep)
    return Page(html), html


def rows_of(page):
    return [attributes["id"] for tag, attributes in page.tags if tag == "tr" and "id" in attributes]


def lines_of(html):
    return html.count('<path class="line')


@pytest.mark.parametrize("count", [1, 20, 500])
def test_every_trial_is_a_line_and_a_row_on_one_page_that_loads_nothing(count):
    page, html = page_of(made_sweep(count))
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "iframe", "object", "embed", "base", "form", "img"}
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), f"{tag} {name}"
            assert name != "src"
            if name.endswith("href"):
                assert re.fullmatch(r"#[\w-]+|\./trials/[0-9a-f]{12}/report\.html", value), value
    assert not re.search(r"url\((?!#)", html)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert lines_of(html) == count
    assert sorted(rows_of(page)) == sorted(f"trial-{number}" for number in range(count))
    assert len(html) < 60_000 + 1_600 * count


def test_the_table_is_in_order_and_failed_trials_come_last():
    sweep = made_sweep(60)
    page, html = page_of(sweep)
    scored = sorted((trial for trial in sweep.trials if trial.value is not None), key=lambda trial: -trial.value)
    failed = [trial for trial in sweep.trials if trial.value is None]
    assert rows_of(page) == [f"trial-{trial.number}" for trial in [*scored, *failed]]
    table = page.text[page.text.index("All trials") :]
    best = scored[0]
    assert f"1 {best.number} finished {best.value:.3f} 100" in table
    table = table[table.index("rank trial") :]
    assert table.count("stopped early") == sum(trial.status == "stopped" for trial in sweep.trials)
    assert "The other 10 trials" in table
    assert html.index("<details>") < html.index('id="trial-7"')
    assert page.text.count("out of memory: 14.2 GB") == len(failed)


def test_a_metric_that_should_fall_is_ordered_the_other_way():
    sweep = made_sweep(12, mode="min", best="0" * 12, test={})
    scored = sorted((trial for trial in sweep.trials if trial.value is not None), key=lambda trial: trial.value)
    page, _ = page_of(sweep)
    assert rows_of(page)[0] == f"trial-{scored[0].number}"


@pytest.mark.parametrize(
    ("best", "default", "half", "says"),
    [
        (0.713, 0.684, 0.03, "is ahead, 0.713 against 0.684 of the default config; the intervals overlap"),
        (0.713, 0.584, 0.03, "is better: 0.713 against 0.584 of the default config, and the intervals do not overlap"),
        (0.684, 0.713, 0.03, "is no better: 0.684 against 0.713 of the default config. The search has found nothing"),
        (0.684, 0.684, 0.03, "is no better"),
        (math.nan, 0.684, 0.03, "do not tell it from the default config"),
    ],
)
def test_the_test_split_is_judged_as_it_is(best, default, half, says):
    test = {"best": made_evaluation(best, half), "default": made_evaluation(default, half)}
    page, _ = page_of(made_sweep(20, test=test))
    assert says in page.text


def test_the_default_itself_may_be_the_best():
    record = made_evaluation(0.684) | {"checkpoint": {"path": "a", "step": 3, "sha256": "f" * 64}}
    page, _ = page_of(made_sweep(20, test={"best": record, "default": record}))
    assert "It is the default config: the search has found nothing better." in page.text


def test_a_metric_that_only_training_knows_leaves_the_headline_to_validation():
    page, _ = page_of(made_sweep(20, metric="val/loss"))
    assert "loss on validation images" in page.text
    assert "SRCC 0.753 0.723-0.783" in page.text, "what test images say is still there"


def test_best_and_default_stand_side_by_side_with_their_intervals():
    sweep = made_sweep(20)
    page, _ = page_of(sweep)
    number = next(trial.number for trial in sweep.trials if trial.id == sweep.best)
    assert (
        "Pair accuracy on test images 0.713 95 % interval 0.683-0.743 400 images in 390 independent groups" in page.text
    )
    assert (
        f"metric best (trial {number}) default config 0 to 1 meaning Pair accuracy 0.713 0.683-0.743 0.684" in page.text
    )


def test_without_a_test_split_the_page_says_that_the_value_flatters():
    page, _ = page_of(made_sweep(20, test={}))
    assert "Pair accuracy on validation images" in page.text
    assert "the best of 18 values, so it flatters" in page.text
    assert "On test images" not in page.text


def test_the_default_may_be_missing_and_metrics_may_differ():
    best = made_evaluation(0.7, task="detector")
    best["metrics"]["video_roc_auc"] = {"value": 0.8, "low": None, "high": None}
    sweep = made_sweep(20, task="detector", metric="val/f1_macro", test={"best": best})
    page, _ = page_of(sweep)
    assert "Macro-F1 on test images 0.700" in page.text
    assert "ROC-AUC, per video 0.800" in page.text
    assert "default config" not in page.text


def test_importance_is_told_from_chance_or_left_out():
    page, _ = page_of(made_sweep(200))
    section = page.text[page.text.index("Which parameters matter") : page.text.index("Validation over steps")]
    assert "between the 182 trials with a value" in section
    assert re.search(r"optim\.learning_rate 0\.\d{3} 0\.\d{3} matters by itself", section)
    assert section.count("cannot be told from chance") == 4
    page, _ = page_of(made_sweep(12))
    assert "11 trials have a value; from 15 on this can be told from chance." in page.text
    assert "matters by itself" not in page.text


def test_trials_that_went_on_from_others_name_them_and_get_no_credit():
    parents = [made_trial(number) for number in range(16)]
    parent = parents[3]
    params = {**parent.params, "optim.learning_rate": 0.0421}
    child = made_trial(
        16, params=params, changed={"optim.learning_rate": 0.0421}, parent=f"{parent.id}/step_00000040",
        history=[(50, 0.7), (60, 0.9)], value=0.9,
    )  # fmt: skip
    page, html = page_of(made_sweep(0, trials=[*parents, child], best=child.id))
    assert "It went on from trial 3 at step 40." in page.text
    assert "no parameter can be given the credit" in page.text
    assert "<b>0.0421</b>" in html
    assert "went on from another" in html, "the legend of the learning curves"
    lost = replace(child, parent="feedfeedfeed/step_00000040")
    assert "It went on from feedfeedfeed at step 40." in page_of(made_sweep(0, trials=[lost], best=lost.id))[0].text


def test_a_sweep_that_is_not_done_says_how_far_it_is():
    waiting = [made_trial(n, status="pending", value=None, history=[], step=0, seconds=0.0) for n in (8, 9)]
    running = made_trial(10, status="running", value=None, history=[], step=4)
    sweep = made_sweep(0, trials=[*made_sweep(8).trials, *waiting, running], best="0" * 12, test={})
    page, html = page_of(sweep)
    assert "8 of 11 trials" in page.text
    assert "1 unfinished, 2 not begun" in page.text
    assert lines_of(html) == 9, "trials that have not begun have no line"
    assert "trials/00000000000a/report.html" not in html, "a trial has its report when it ends"


def test_a_sweep_in_which_everything_failed_is_called_so():
    trials = [made_trial(n, status="failed", value=None, history=[], error=f"reason {n}\nmore") for n in range(30)]
    page, html = page_of(made_sweep(0, trials=trials, test={}))
    assert 'class="pill failed"' in html
    assert "30 trials: 30 failed. No trial has a value." in page.text
    assert "Trial 3 : reason 3 more" in page.text
    assert "and 10 more, listed in trials.csv" in page.text
    assert "the best tenth" not in page.text
    page, _ = page_of(made_sweep(0, trials=[], test={}))
    assert "Which parameters matter" not in page.text


def test_values_that_are_no_numbers_do_not_count():
    trials = [made_trial(0), made_trial(1, value=math.nan, history=[(1, math.nan)]), made_trial(2, value=math.inf)]
    page, _ = page_of(made_sweep(0, trials=trials, best=trials[0].id, test={}))
    assert rows_of(page) == ["trial-0", "trial-1", "trial-2"]
    assert "nan" not in page.text.split()
    assert "inf" not in page.text.split()


def test_a_best_value_at_the_edge_is_pointed_out():
    trials = [made_trial(number) for number in range(12)]
    params = {**trials[5].params, "optim.learning_rate": 0.099}
    trials[5] = replace(trials[5], params=params, value=0.99)
    page, _ = page_of(made_sweep(0, trials=trials, best=trials[5].id))
    assert "optim.learning_rate of the best trial lies at the edge of what was searched; widen the range" in page.text
    few, _ = page_of(made_sweep(0, trials=trials[5:9], best=trials[5].id))
    assert "at the edge" not in few.text


def test_everything_that_people_wrote_is_escaped_and_secrets_are_masked(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    evil = '<script>alert(1)</script><img src="x" onerror="alert(2)">\'"&$a_b$'
    params = {evil: evil, "model.kind": "0123456789abcdef"}
    trials = [made_trial(0, params=params), made_trial(1, params=params, status="failed", error=evil, folder="../..")]
    html = render_sweep(made_sweep(0, name=evil, trials=trials, best=trials[0].id, space={evil: {"choice": [evil]}}))
    page = Page(html)
    assert "<script" not in html
    assert "<img" not in html
    assert evil in "".join(page.words)
    assert "0123456789abcdef" not in html
    assert "../.." not in html


def test_names_are_as_short_as_they_can_be():
    params = {"a.rate": 1, "b.rate": 2, "optim.decay": 3}
    page, _ = page_of(made_sweep(0, trials=[made_trial(0, params=params)], best="0" * 12, space={}))
    table = page.text[page.text.index("All trials") :]
    assert "time a.rate b.rate decay 1 0 finished" in table
