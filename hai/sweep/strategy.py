"""What a sweep does next: a function of its records alone, so that one that was killed goes on as if it had not been.

A trial trains in pieces, each up to a point of comparison ("rung"), and its run folder keeps what it has learned by
then. Whoever carries out the pieces (Ray Tune does) decides nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hai.config.load import config_with
from hai.config.schema import RunConfig
from hai.config.sweep import Sweep
from hai.errors import ConfigError
from hai.sweep.records import TrialRecord
from hai.sweep.space import combinations, draw, fraction, params_of, perturbed, trial_id

__all__ = ["Job", "Outcome", "Strategy"]

_ATTEMPTS = 100

Suggest = Callable[[Sequence[TrialRecord], int], dict[str, Any]]


@dataclass(frozen=True)
class Job:
    """The next piece of work.

    Args:
        trial: whose it is; new, or one that was there; `failed` where its values do not go together.
        config: resolved config of the trial; None for such a one.
        until_epoch: point of comparison at which the trial is to pause; None: it trains to its end.
    """

    trial: TrialRecord
    config: RunConfig | None
    until_epoch: float | None


@dataclass(frozen=True)
class Outcome:
    """How a piece of work ended.

    Args:
        status: finished, paused (at its point of comparison), interrupted or failed.
        step: optimizer steps done.
        seconds: it took.
        value: metric at the best checkpoint so far.
        last: metric at the last evaluation.
        history: (step, metric) of all evaluations.
        error: why it failed.
        may_retry: the reason may be gone another time.
    """

    status: str
    step: int = 0
    seconds: float = 0.0
    value: float | None = None
    last: float | None = None
    history: tuple[tuple[int, float], ...] = ()
    error: str = ""
    may_retry: bool = False


class Strategy:
    """Choose pieces of work, and take their outcomes into the records.

    Args:
        sweep: what was asked for.
        epochs: at which the base config's training ends.
        suggest: proposes values from the records and a number; None: they are drawn, or come from the grid.
    """

    def __init__(self, sweep: Sweep, epochs: float, suggest: Suggest | None = None) -> None:
        self._sweep, self._settings, self._suggest = sweep, sweep.settings, suggest
        self._rungs = _rungs(sweep, epochs)
        asked = self._settings.num_trials
        self._grid = combinations(sweep.space, asked) if self._settings.searcher == "grid" else []
        self._sign = 1 if self._settings.mode == "max" else -1
        self.num_trials = min(asked or len(self._grid), len(self._grid)) if self._grid else int(asked or 0)
        """Trials besides the base; fewer than asked for where the space has no more."""
        self._exhausted: tuple[int, int] | None = None  # records for which drawing anew has found nothing

    def next_job(self, trials: Sequence[TrialRecord]) -> Job | None:
        """Return the next piece of work; None: there is none now, or none any more if nothing runs."""
        pending = [trial for trial in trials if trial.status == "pending"]
        if pending:
            return self._job(pending[0])
        if self._settings.include_base and not any(trial.number == 0 for trial in trials):
            return self._job(self._record(0, params_of(self._sweep.space, self._sweep.base)))
        if self._settings.scheduler == "pbt":
            return self._next_generation(trials)
        promoted = self._promoted(trials) if self._settings.scheduler == "asha" else None
        if promoted is not None:
            return self._job(promoted)
        fresh = self._drawn(trials)
        if fresh is not None:
            return self._job(fresh)
        leader = self._leader(trials) if self._settings.scheduler == "asha" else None
        return self._job(leader) if leader is not None else None

    def settled(self, trial: TrialRecord, outcome: Outcome) -> TrialRecord:
        """Take an outcome into the record of its trial."""
        status = {"paused": "stopped", "interrupted": "pending"}.get(outcome.status, outcome.status)
        rungs, error = list(trial.rungs), outcome.error
        passed = outcome.last if self._settings.scheduler == "pbt" else outcome.value
        if outcome.status == "paused" and passed is None:  # or pbt's others would wait for it for ever
            status, error = "failed", f"the metric has no value at step {outcome.step}, where trials are compared"
        elif outcome.status == "paused" and passed is not None:
            rungs.append(passed)
        elif outcome.status == "finished" and outcome.value is not None:
            rungs += [outcome.value] * (len(self._rungs) + 1 - len(rungs))
        return replace(
            trial,
            status=status,
            value=trial.value if outcome.value is None else outcome.value,
            step=max(trial.step, outcome.step),
            seconds=round(trial.seconds + outcome.seconds, 1),
            history=list(outcome.history) or trial.history,
            error=error,
            rungs=rungs,
            may_retry=outcome.may_retry,
        )

    def reopened(self, trials: Sequence[TrialRecord]) -> list[TrialRecord]:
        """Prepare records for going on: what ran, or failed for a reason that may be gone, waits to be trained."""
        holders = {trial.member: trial.number for trial in sorted(trials, key=lambda trial: trial.number)}

        def waits(trial: TrialRecord) -> bool:
            if trial.status == "failed" and trial.may_retry:
                return trial.member < 0 or holders[trial.member] == trial.number  # else another has its place
            return trial.status == "running"

        return [replace(trial, status="pending", error="") if waits(trial) else trial for trial in trials]

    def config_of(self, trial: TrialRecord) -> RunConfig:
        """Return the config of a trial; raises ConfigError where its values do not go together."""
        config = self._sweep.base
        if trial.number or not self._settings.include_base:
            config = config_with(config, trial.params, f"trial {trial.number}")
        if self._settings.scheduler == "pbt":  # others may go on from where it pauses
            keep = config.checkpoint.model_copy(update={"keep_every_epochs": self._settings.interval_epochs})
            config = config.model_copy(update={"checkpoint": keep})
        return config

    def _job(self, trial: TrialRecord) -> Job:
        if trial.status == "failed":
            return Job(trial, None, None)
        is_base = trial.number == 0 and self._settings.include_base
        place = len(trial.rungs)
        until = self._rungs[place] if place < len(self._rungs) and not is_base else None
        return Job(replace(trial, status="running"), self.config_of(trial), until)

    # New trials

    def _fresh(self, number: int, params: dict[str, Any]) -> TrialRecord:
        return self._record(number, params, member=number - 1 if self._settings.scheduler == "pbt" else -1)

    def _record(
        self, number: int, params: dict[str, Any], *, member: int = -1, donor: TrialRecord | None = None
    ) -> TrialRecord:
        parent = f"{donor.id}/step_{donor.step:08d}" if donor is not None else ""
        before = donor.params if donor is not None else params
        trial = TrialRecord(
            id="", number=number, status="pending", params=params, value=None, step=0, seconds=0.0, history=[],
            parent=parent, changed={key: value for key, value in params.items() if before.get(key) != value},
            error="", folder="", rungs=list(donor.rungs) if donor is not None else [], member=member,
            generation=len(donor.rungs) if donor is not None else 0,
        )  # fmt: skip
        line = f"{parent} {member}" if parent else ""
        try:
            name = trial_id(self.config_of(trial), params, line)
        except ConfigError as error:
            name = trial_id(self._sweep.base, params, line)
            return replace(trial, id=name, folder=f"trials/{name}", status="failed", error=str(error))
        return replace(trial, id=name, folder=f"trials/{name}")

    def _drawn(self, trials: Sequence[TrialRecord]) -> TrialRecord | None:
        """Return the next new trial; one that would repeat another is drawn again, as long as there are others."""
        number = max((trial.number for trial in trials), default=0) + 1
        if number > self.num_trials:
            return None
        if self._grid:
            return self._fresh(number, self._grid[number - 1])
        known = {trial.id for trial in trials}
        if self._exhausted == (number, len(known)):
            return None
        for attempt in range(_ATTEMPTS):
            if self._suggest is not None and attempt == 0:
                params = self._suggest(trials, number)
            else:
                params = draw(self._sweep.space, self._settings.seed, number, attempt)
            fresh = self._fresh(number, params)
            if fresh.id not in known:
                return fresh
        self._exhausted = (number, len(known))
        return None

    # Successive halving, asynchronous (Li et al., A System for Massively Parallel Hyperparameter Tuning, 2018)

    def _promoted(self, trials: Sequence[TrialRecord]) -> TrialRecord | None:
        """Return a paused trial that is among the best of its rung, the highest rung first."""
        for rung in reversed(range(len(self._rungs))):
            passed = self._ranked(trials, rung)
            best = passed[: len(passed) // self._settings.reduction]
            for trial in best:
                if trial.status == "stopped" and len(trial.rungs) == rung + 1:
                    return trial
        return None

    def _leader(self, trials: Sequence[TrialRecord]) -> TrialRecord | None:
        """Return the best trial of the highest rung when nothing else is left and none has come to its end."""
        others = [trial for trial in trials if trial.number or not self._settings.include_base]
        if any(trial.status in ("running", "finished") for trial in others):
            return None
        highest = max((len(trial.rungs) for trial in others if trial.status == "stopped"), default=0)
        ranked = [trial for trial in self._ranked(others, highest - 1) if trial.status == "stopped"] if highest else []
        return ranked[0] if ranked else None

    def _ranked(self, trials: Sequence[TrialRecord], rung: int) -> list[TrialRecord]:
        """List the trials that have passed a rung, the best first; the base does not compete."""
        passed = [
            trial for trial in trials
            if len(trial.rungs) > rung and (trial.number or not self._settings.include_base)
        ]  # fmt: skip
        return sorted(passed, key=lambda trial: (-self._sign * trial.rungs[rung], trial.number))

    # Population based training

    def _next_generation(self, trials: Sequence[TrialRecord]) -> Job | None:
        """Return the next piece once all members have come to the same comparison, replacements first."""
        members = [trial for trial in trials if trial.member >= 0]
        size = len({trial.member for trial in members})
        if size < self.num_trials:
            fresh = self._drawn([trial for trial in trials if trial.generation == 0])
            if fresh is not None:
                return self._job(fresh)
        holders = {trial.member: trial for trial in sorted(members, key=lambda trial: trial.number)}
        live = [trial for trial in holders.values() if trial.status != "failed"]
        at = min((len(trial.rungs) for trial in live), default=0)
        if 0 < at <= len(self._rungs):
            number = max(trial.number for trial in trials) + 1
            made = {trial.member for trial in members if trial.generation == at}
            for member, donor in self._replacements(members, at):
                if member not in made:
                    seed = f"{self._settings.seed}/{member}/{at}"
                    params = perturbed(self._sweep.space, donor.params, seed, self._settings.resample)
                    return self._job(self._record(number, params, member=member, donor=donor))
        waiting = [trial for trial in live if trial.status == "stopped" and len(trial.rungs) == at]
        return self._job(waiting[0]) if waiting else None

    def _replacements(self, members: Sequence[TrialRecord], at: int) -> list[tuple[int, TrialRecord]]:
        """Pair each weak or failed member at a comparison with the strong one that takes its place."""
        before = sorted((trial for trial in members if trial.generation < at), key=lambda trial: trial.number)
        holders = {trial.member: trial for trial in before}
        here = {member: trial for member, trial in holders.items() if len(trial.rungs) >= at}
        ranked = sorted(here.values(), key=lambda trial: (-self._sign * trial.rungs[at - 1], trial.member))
        many = int(len(ranked) * self._settings.quantile) or int(len(ranked) > 1)
        strong = ranked[:many]
        weak = [trial.member for trial in ranked[max(len(ranked) - many, many) :]]
        gone = [member for member in holders if member not in here]
        return [
            (member, strong[int(fraction(self._settings.seed, member, at, "donor") * len(strong))])
            for member in sorted([*weak, *gone])
            if strong
        ]


def _rungs(sweep: Sweep, epochs: float) -> list[float]:
    """List the epochs at which trials are compared, before their end: each that of an evaluation, none twice."""
    settings, every = sweep.settings, sweep.base.train.eval_every_epochs
    rungs: list[float] = []
    if settings.scheduler == "asha":
        rung = settings.first_rung_epochs
        while (evaluated := every * math.ceil(rung / every - 1e-9)) < epochs:
            if evaluated not in rungs:
                rungs.append(evaluated)
            rung *= settings.reduction
    elif settings.scheduler == "pbt":
        rungs = [
            float(epoch) for epoch in range(settings.interval_epochs, 10**6, settings.interval_epochs) if epoch < epochs
        ]
    return rungs
