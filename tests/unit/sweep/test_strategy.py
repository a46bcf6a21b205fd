"""Sweeps carried out on paper: a trial's value is a function of its values and epoch."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path

import pytest

from hai.config.sweep import Sweep, load_sweep
from hai.sweep.records import TrialRecord, best_trial, parse_trials, trials_csv
from hai.sweep.strategy import Job, Outcome, Strategy
from hai.sweep.suggest import suggest

TEXT = """
task: detector
data: {{sources: [{{path: faces}}]}}
train: {{max_epochs: 27}}
space: {space}
sweep: {{num_trials: {trials}, scheduler: {scheduler}, searcher: {searcher}, {more}}}
"""
SPACE = "{optim.learning_rate: {loguniform: [1e-5, 1e-1]}, optim.weight_decay: {uniform: [0, 0.2]}}"
EPOCHS, STEPS = 27, 10


@pytest.fixture
def make(tmp_path: Path):
    def made(
        scheduler: str, trials: object = 20, searcher: str = "random", space: str = SPACE, more: str = ""
    ) -> Sweep:
        text = TEXT.format(space=space, trials=trials, scheduler=scheduler, searcher=searcher, more=more)
        (tmp_path / "s.yaml").write_text(text, encoding="utf-8")
        return load_sweep(tmp_path / "s.yaml")

    return made


def quality(trial: TrialRecord, epoch: float) -> float:
    rate = trial.params.get("optim.learning_rate", 1e-4)
    peak = 1 - 0.1 * abs(math.log10(rate) + 3)
    return round(peak * (1 - math.exp(-epoch / 5)), 6)


class Paper:
    """Carries out pieces, several at once, in an order of its own; can be cut off anywhere."""

    def __init__(
        self,
        sweep: Sweep,
        *,
        at_once: int = 1,
        seed: int = 0,
        fails: frozenset[int] = frozenset(),
        mute: frozenset[int] = frozenset(),
    ) -> None:
        self.sweep, self.at_once, self.fails, self.mute = sweep, at_once, fails, mute
        self.trials: dict[int, TrialRecord] = {}
        self.running: list[Job] = []
        self.epochs = 0.0
        self.random = random.Random(seed)
        self.strategy = self._strategy()

    def _strategy(self) -> Strategy:
        settings = self.sweep.settings
        ask = None
        if settings.searcher == "optuna":

            def ask(trials, number):  # type: ignore[no-untyped-def]
                return suggest(self.sweep.space, trials, seed=settings.seed, number=number, mode=settings.mode)

        return Strategy(self.sweep, EPOCHS, ask)

    def records(self) -> list[TrialRecord]:
        return [self.trials[number] for number in sorted(self.trials)]

    def step(self) -> bool:
        while len(self.running) < self.at_once and (job := self.strategy.next_job(self.records())) is not None:
            self.trials[job.trial.number] = job.trial
            self.running.append(job)
        if not self.running:
            return False
        job = self.running.pop(self.random.randrange(len(self.running)))
        trial = self.trials[job.trial.number]
        end = job.until_epoch or EPOCHS
        if trial.number in self.fails:
            outcome = Outcome("failed", error="it broke")
        else:
            start = trial.step / STEPS if trial.step else int(trial.parent[-8:] or 0) / STEPS if trial.parent else 0.0
            self.epochs += end - start
            value = None if trial.number in self.mute else quality(trial, end)
            status, step = "paused" if job.until_epoch else "finished", int(end * STEPS)
            outcome = Outcome(status, step, 1.0, value, value, () if value is None else ((step, value),))
        self.trials[trial.number] = self.strategy.settled(trial, outcome)
        return True

    def run(self) -> list[TrialRecord]:
        while self.step():
            pass
        return self.records()

    def die(self) -> None:
        """Lose everything but the table."""
        table = parse_trials(trials_csv(self.records(), list(self.sweep.space)))
        self.trials = {t.number: t.__class__(**{**t.__dict__, "status": "pending"}) if t.status == "running" else t
                       for t in table}  # fmt: skip
        self.running, self.strategy = [], self._strategy()


def test_without_a_scheduler_every_trial_and_the_base_train_to_their_end(make) -> None:
    paper = Paper(make("none", 6), at_once=2)
    trials = paper.run()
    assert [trial.number for trial in trials] == list(range(7))
    assert {trial.status for trial in trials} == {"finished"}
    assert paper.epochs == 7 * EPOCHS
    assert trials[0].params == {"optim.learning_rate": 1e-4, "optim.weight_decay": 0.01}


@pytest.mark.parametrize("at_once", [1, 4])
def test_asha_gives_most_to_the_best(make, at_once: int) -> None:
    paper = Paper(make("asha", 27), at_once=at_once)
    trials = [trial for trial in paper.run() if trial.number]
    assert {trial.status for trial in trials} <= {"finished", "stopped"}
    finished = [trial for trial in trials if trial.status == "finished"]
    assert finished
    assert paper.epochs < 0.4 * 28 * EPOCHS
    for rung in range(3):
        passed = [trial for trial in trials if len(trial.rungs) > rung]
        promoted = [trial for trial in trials if len(trial.rungs) > rung + 1]
        assert len(promoted) <= max(len(passed) // 3 + at_once * 2, 1)
    peak = max(quality(trial, EPOCHS) for trial in trials)
    best = best_trial(trials, "max")
    assert best is not None
    assert best.value == peak


@pytest.mark.parametrize(
    ("first", "every", "end", "rungs"),
    [
        (1, 1, 27, [1, 3, 9]),
        (1, 10, 81, [10, 30]),  # 1, 3 and 9 are one comparison
        (1, 2, 27, [2, 4, 10]),
        (1, 10, 10, []),  # the first evaluation is the last
        (0.1, 0.1, 2.5, [0.1, 0.3, 0.9]),
        (1, 0.4, 2.5, [1.2]),  # max_steps ends it in the middle of an epoch
    ],
)
def test_asha_compares_where_trials_are_evaluated_and_once_there(
    make, first: float, every: float, end: float, rungs: list[float]
) -> None:
    sweep = make("asha", 27, more=f"first_rung_epochs: {first}, include_base: false")
    train = sweep.base.train.model_copy(update={"eval_every_epochs": every})
    strategy = Strategy(replace(sweep, base=sweep.base.model_copy(update={"train": train})), end)
    job, found = strategy.next_job([]), []
    while job is not None and job.until_epoch is not None:
        found.append(job.until_epoch)
        passed = strategy.settled(job.trial, Outcome("paused", len(found), value=0.5))
        others = [replace(passed, number=number, value=0.1, rungs=[0.1] * len(found)) for number in range(2, 28)]
        job = strategy.next_job([passed, *others])
    assert found == pytest.approx(rungs)


def test_asha_ends_even_if_too_few_are_left_for_a_promotion(make) -> None:
    trials = Paper(make("asha", 2)).run()
    assert [trial.status for trial in trials].count("finished") == 2  # the base and the better one
    trials = Paper(make("asha", 5), fails=frozenset({1, 2, 3, 4, 5})).run()
    assert [trial.status for trial in trials] == ["finished", *["failed"] * 5]


def test_where_less_is_better_the_least_goes_on(make) -> None:
    trials = Paper(make("asha", 9, more="mode: min")).run()
    at_first = [trial for trial in trials if trial.number]
    on = [trial for trial in at_first if len(trial.rungs) > 1]
    assert max(trial.rungs[0] for trial in on) <= sorted(trial.rungs[0] for trial in at_first)[len(on) - 1]


@pytest.mark.parametrize("scheduler", ["asha", "pbt", "none"])
@pytest.mark.parametrize("searcher", ["random", "optuna"])
def test_a_sweep_that_dies_after_every_piece_ends_as_if_it_had_not(make, scheduler: str, searcher: str) -> None:
    if (scheduler, searcher) == ("pbt", "optuna"):
        pytest.skip("pbt chooses by itself")
    if searcher == "optuna":
        pytest.importorskip("optuna")
    sweep = make(scheduler, 8, searcher, more="interval_epochs: 9")
    unbroken = Paper(sweep).run()
    broken = Paper(sweep)
    while broken.step():
        broken.die()
    assert broken.records() == unbroken


def test_what_was_running_is_resumed_and_not_drawn_again(make) -> None:
    sweep = make("asha", 12)
    paper = Paper(sweep, at_once=3)
    for _ in range(4):
        paper.step()
    ids = {trial.number: trial.id for trial in paper.records()}
    paper.die()
    trials = paper.run()
    assert len({trial.id for trial in trials}) == len(trials) == 13
    assert {number: trial.id for number, trial in enumerate(trials) if number in ids} == ids


def test_more_trials_go_on_with_the_same_list(make) -> None:
    few, many = Paper(make("none", 3)).run(), Paper(make("none", 6)).run()
    assert [trial.id for trial in many[:4]] == [trial.id for trial in few]


def test_pbt_replaces_the_weakest_by_the_strongest_with_changed_values(make) -> None:
    trials = Paper(make("pbt", 8, more="interval_epochs: 9"), at_once=3).run()
    by_id = {trial.id: trial for trial in trials}
    children = [trial for trial in trials if trial.parent]
    assert len(children) == 4  # two of eight, at epochs 9 and 18
    for child in children:
        parent = by_id[child.parent.partition("/")[0]]
        assert child.parent.endswith(f"/step_{90 * child.generation:08d}")
        assert child.changed
        assert {key: child.params[key] for key in child.changed} == child.changed
        peers = [t for t in trials if t.member >= 0 and t.generation < child.generation <= len(t.rungs)]
        strong = sorted((t.rungs[child.generation - 1] for t in peers), reverse=True)[:2]
        assert parent.rungs[child.generation - 1] in strong
    holders = {trial.member: trial for trial in trials}
    assert {trial.status for trial in holders.values()} == {"finished"}
    assert len(holders) == 9  # eight members, and the base outside


def test_pbt_gives_the_place_of_a_failed_member_to_a_strong_one(make) -> None:
    trials = Paper(make("pbt", 4, more="interval_epochs: 9"), fails=frozenset({2})).run()
    second = [trial for trial in trials if trial.member == 1]
    assert second[0].status == "failed"
    assert second[-1].status == "finished"
    assert second[-1].parent


@pytest.mark.parametrize("scheduler", ["asha", "pbt"])
def test_a_trial_without_a_value_where_trials_are_compared_holds_up_nobody(make, scheduler: str) -> None:
    paper = Paper(make(scheduler, 6, more="interval_epochs: 9"), mute=frozenset({2, 3}))
    for _ in range(200):
        if not paper.step():
            break
    trials = paper.records()
    assert not paper.step(), "it goes round in circles"
    assert [trial.status for trial in trials if trial.number in (2, 3)] == ["failed", "failed"]
    assert "no value at step" in trials[2].error
    assert any(trial.status == "finished" for trial in trials if trial.number > 0)


def test_going_on_tries_again_what_its_values_are_not_to_blame_for(make) -> None:
    sweep = make("pbt", 4, more="interval_epochs: 9")
    strategy = Strategy(sweep, EPOCHS)
    member = {"params": {}, "value": None, "step": 0, "seconds": 0.0, "history": [], "parent": "", "changed": {},
              "folder": ""}  # fmt: skip
    trials = [
        TrialRecord(id="a", number=1, status="failed", error="the disk is full", may_retry=True, member=0, **member),
        TrialRecord(id="b", number=2, status="failed", error="NaN", member=1, **member),
        TrialRecord(id="c", number=3, status="failed", error="killed", may_retry=True, member=2, **member),
        TrialRecord(id="d", number=4, status="running", error="", member=3, **member),
        TrialRecord(id="e", number=5, status="finished", error="", member=2, generation=1, **member),  # in c's place
    ]
    assert [(trial.id, trial.status, trial.error) for trial in strategy.reopened(trials)] == [
        ("a", "pending", ""), ("b", "failed", "NaN"), ("c", "failed", "killed"), ("d", "pending", ""),
        ("e", "finished", ""),
    ]  # fmt: skip
    retried = strategy.settled(trials[0], Outcome("failed", error="the disk is full", may_retry=True))
    assert parse_trials(trials_csv([retried], [])) == [retried]


def test_a_grid_is_tried_once_and_a_small_space_ends(make) -> None:
    space = "{optim.learning_rate: {choice: [1e-4, 1e-3]}, optim.weight_decay: {grid: [0.0, 0.1]}}"
    grid = Paper(make("none", "null", "grid", space)).run()
    assert len({str(trial.params) for trial in grid[1:]}) == len(grid) - 1 == 4
    drawn = Paper(make("none", 50, "random", space, "include_base: false")).run()
    assert len(drawn) == 4


def test_a_value_that_the_config_refuses_is_a_failed_trial(make) -> None:
    space = "{optim.min_learning_rate: {choice: [1e-2, 0.0]}, optim.learning_rate: {choice: [1e-4, 1e-1]}}"
    sweep = make("none", 30, "random", space)
    job = Strategy(sweep, EPOCHS).next_job([])
    assert job is not None
    trials, strategy = [], Strategy(sweep, EPOCHS)
    while (job := strategy.next_job(trials)) is not None:
        if job.config is None:
            assert "must not exceed learning_rate" in job.trial.error
            trials.append(job.trial)
        else:
            trials.append(strategy.settled(job.trial, Outcome("finished", 1, 1.0, 0.5)))
    assert sum(trial.status == "failed" for trial in trials) == 1


def test_optuna_comes_nearer_to_the_peak_than_chance(make) -> None:
    pytest.importorskip("optuna")
    asked = Paper(make("none", 30, "optuna")).run()[11:]
    drawn = Paper(make("none", 30)).run()[11:]
    assert sum(t.value for t in asked) / 20 > sum(t.value for t in drawn) / 20 + 0.03


def test_the_table_keeps_every_kind_of_value(make) -> None:
    trial = TrialRecord(
        id="ab", number=3, status="failed", params={"a.b": "null", "c": [1, 2.5], "d": None, "e": True, "f": "x, y"},
        value=None, step=0, seconds=1.5, history=[(3, 0.25)], parent="cd/step_00000001", changed={"c": [1, 2.5]},
        error="line one\nline \"two\"", folder="trials/ab", rungs=[0.5], member=2, generation=1, may_retry=True,
    )  # fmt: skip
    text = trials_csv([trial], ["a.b", "c", "d", "e", "f", "absent"])
    assert parse_trials(text) == [trial]
    assert parse_trials(text.replace(",may_retry", "").replace(",2,1,1,", ",2,1,")) == [replace(trial, may_retry=False)]
    with pytest.raises(ValueError, match="column"):
        parse_trials("a,b\n1,2\n")
    with pytest.raises(ValueError, match="line 2"):
        parse_trials(text.splitlines()[0] + "\n1,2\n")
