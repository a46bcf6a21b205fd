"""Where a sweep's records meet those who carry out its trials: work is handed out here, and what came of it noted."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from hai.config.schema import RunConfig
from hai.console import shown
from hai.masking import without_secrets
from hai.sweep.folder import TRIALS, SweepFolder
from hai.sweep.records import TrialRecord, best_trial, trials_csv
from hai.sweep.strategy import Job, Outcome, Strategy
from hai.types import Record

__all__ = ["Board", "params_text"]


_UNKNOWN = "its process has died; most likely memory has run out"


class Board:
    """Hand out pieces of work and keep the records; may be called from any thread.

    Args:
        strategy: decides what comes next.
        folder: keeps the records.
        metric: name of what trials are compared by.
        mode: max or min.
        keys: of the space.
        common: what every job's JSON holds besides: storage, provenance.
        max_failures: how often a piece of work is handed out again when its process has died; -1: always.
        say: takes a line for people.
    """

    def __init__(
        self,
        strategy: Strategy,
        folder: SweepFolder,
        *,
        metric: str,
        mode: str,
        keys: list[str],
        common: Record,
        max_failures: int,
        say: Callable[[str], None],
    ) -> None:
        self._strategy, self._folder, self._say = strategy, folder, say
        self._max_failures = max_failures if max_failures >= 0 else sys.maxsize
        self._metric, self._mode, self._keys, self._common = metric, mode, keys, common
        self._lock = threading.RLock()
        self._stopped = False
        self._troubles: dict[int, str] = {}  # why a trial's process was about to end
        self._failures: Counter[int] = Counter()  # of the piece in work, by trial
        self._unsaved = False
        self._trials: dict[int, TrialRecord] = {}
        known = folder.load_trials()
        for before, trial in zip(known, strategy.reopened(known), strict=True):
            self._trials[trial.number] = trial
            if before.status == "failed" and trial.status == "pending":
                say(f"trial {trial.number} failed ({_reason(before)}); trying it again")

    @property
    def trials(self) -> list[TrialRecord]:
        """Return all records, by number."""
        with self._lock:
            return [self._trials[number] for number in sorted(self._trials)]

    @property
    def running(self) -> set[int]:
        """Return the numbers of the trials that are handed out."""
        return {trial.number for trial in self.trials if trial.status == "running"}

    def stop(self) -> None:
        """Hand out no more."""
        self._stopped = True

    def is_over(self) -> bool:
        """Say whether nothing runs and nothing will."""
        with self._lock:
            return not self.running and (self._stopped or self._strategy.next_job(self.trials) is None)

    def has_more(self) -> bool:
        """Say whether there is work left that was not handed out or not ended, as after a stop."""
        with self._lock:
            return bool(self.running) or self._strategy.next_job(self.trials) is not None

    def take(self, shaped: Callable[[RunConfig], RunConfig]) -> Record | None:
        """Hand out the next piece of work as JSON; None where there is none now.

        Args:
            shaped: puts into a trial's config what it is to run on.
        """
        with self._lock:
            while not self._stopped:
                job = self._strategy.next_job(self.trials)
                if job is None:
                    return None
                self._trials[job.trial.number] = job.trial
                self._save()
                if job.config is not None:
                    return self._record(job, shaped(job.config))
                self._say(f"trial {job.trial.number}: failed: {job.trial.error}")
            return None

    def ended(self, number: int, outcome: Mapping[str, Any]) -> None:
        """Note how a piece of work ended, given the fields of `Outcome`."""
        with self._lock:
            self._failures.pop(number, None)
            history = tuple((step, value) for step, value in outcome.get("history", ()))
            trial = self._strategy.settled(self._trials[number], Outcome(**{**outcome, "history": history}))
            self._trials[number] = trial
            self._save()
        line = _line(trial, self._metric, params_text(trial.params))
        if line:
            self._say(line)

    def note_trouble(self, number: int, text: str) -> None:
        """Remember what a trial's process said before its end; `lost` follows."""
        self._troubles[number] = without_secrets(text)

    def lost(self, number: int) -> None:
        """Note that a trial's process has ended without an outcome: its piece goes out again, or it has failed."""
        with self._lock:
            text = self._troubles.pop(number, _UNKNOWN)
            self._failures[number] += 1
            failures = self._failures[number]
            if failures > self._max_failures:
                times = f" (failure {failures}, scale.max_failures = {self._max_failures})" if failures > 1 else ""
                first, _, rest = text.partition("\n")
                error = "\n".join(filter(None, [first + times, rest]))
                self.ended(number, {"status": "failed", "error": error, "may_retry": True})
                return
            self._trials[number] = replace(self._trials[number], status="pending")
            self._save()
        then = "the same command goes on with it" if self._stopped else "starting it again from its newest checkpoint"
        self._say(f"trial {number}: {text.splitlines()[0]}; {then}")

    def progress(self) -> Record:
        """Say how far the sweep is, for people."""
        trials = self.trials
        best = best_trial(trials, self._mode)
        found = {"metric": self._metric, "value": best.value, "trial": best.number} if best is not None else None
        ended = sum(trial.status in ("finished", "stopped", "failed") for trial in trials)
        base = sum(trial.number == 0 for trial in trials)
        more = sum(trial.generation > 0 for trial in trials)
        return {
            "ended": ended,
            "total": self._strategy.num_trials + base + more,
            "running": len(self.running),
            "best": found,
        }

    def _record(self, job: Job, config: RunConfig) -> Record:
        trial = job.trial
        parent, _, step = trial.parent.partition("/")
        resume = f"{self._common['storage']}/{parent}/checkpoints/{step}" if parent else None
        return {
            **self._common,
            "number": trial.number,
            "id": trial.id,
            "config": config.model_dump_json(),
            "until_epoch": job.until_epoch,
            "resume": resume,
            "metric": self._metric,
        }

    def _save(self) -> None:
        """Write trials.csv; a disk that is full costs the table's newest lines, not the sweep."""
        try:
            self._folder.save_text(TRIALS, trials_csv(self.trials, self._keys))
            self._unsaved = False
        except OSError as error:
            if not self._unsaved:
                self._say(f"{TRIALS}: {error.strerror or error}; the sweep goes on, will try again")
            self._unsaved = True


def params_text(params: Mapping[str, Any]) -> str:
    """Write a trial's values on a line, keys by their last names where these say enough."""
    last = [key.rpartition(".")[2] for key in params]
    names = [name if last.count(name) == 1 else key for key, name in zip(params, last, strict=True)]
    return ", ".join(f"{name} {shown(value)}" for name, value in zip(names, params.values(), strict=True))


def _line(trial: TrialRecord, metric: str, params: str) -> str:
    name = f"trial {trial.number}" + (" (the base)" if trial.number == 0 else "")
    if trial.status == "failed":
        return f"{name}: failed: {_reason(trial)}; {params}"
    if trial.status == "pending":
        return f"{name}: saved at step {trial.step}"
    value = "no value yet" if trial.value is None else f"{metric} {trial.value:.4f}"
    going = "" if trial.status == "finished" else ", paused"
    return f"{name}: {value} at step {trial.step}{going}, {trial.seconds:.0f} s; {params}"


def _reason(trial: TrialRecord) -> str:
    return trial.error.splitlines()[0] if trial.error else "for an unknown reason"
