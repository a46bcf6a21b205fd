"""What a sweep has found: its summary and page, the best trial's config, and the measurement on test."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from hai.checkpoint.records import REPORT
from hai.checkpoint.runs import send_run
from hai.config.load import config_with, show_config
from hai.config.sweep import Sweep
from hai.errors import DataError, HaiError
from hai.launch.board import Board, params_text
from hai.sweep.folder import BEST_CONFIG, SweepFolder
from hai.sweep.records import SweepRecord, TrialRecord, best_trial
from hai.types import Record

__all__ = ["Results"]

_SHOWN: Final = 5


class Results:
    """Write what a sweep has found so far.

    Args:
        folder: of the sweep.
        sweep: as its trials have it.
        board: has the records.
        metric: that trials are compared by.
        place: folder or URL of the sweep.
        provenance: versions, commit, hardware and command.
        say: takes a line for people.
    """

    def __init__(
        self,
        folder: SweepFolder,
        sweep: Sweep,
        board: Board,
        *,
        metric: str,
        place: str,
        provenance: Record,
        say: Callable[[str], None],
    ) -> None:
        self._folder, self._sweep, self._board = folder, sweep, board
        self._metric, self._place, self._provenance, self._say = metric, place, provenance, say
        self._name = place.rpartition("/")[2]

    def save(self, status: str, test: dict[str, Any] | None = None) -> SweepRecord:
        """Write summary.json, and the page unless the sweep has just begun; a disk that is full costs these alone.

        Args:
            status: running, interrupted or finished.
            test: what was measured on test; None: what the summary has.
        """
        sweep, trials = self._sweep, self._board.trials
        best = best_trial(trials, sweep.settings.mode)
        record = SweepRecord(
            name=self._name,
            task=sweep.base.task,
            metric=self._metric,
            mode=sweep.settings.mode,
            space={key: entry.to_yaml() for key, entry in sweep.space.items()},
            trials=trials,
            best=best.id if best is not None else "",
            test=self._folder.load_summary().get("test", {}) if test is None else test,
            command=self._provenance["command"],
            provenance=self._provenance,
        )
        counts = {kind: sum(trial.status == kind for trial in trials) for kind in ("finished", "stopped", "failed")}
        summary: Record = {
            "status": status,
            "task": f"{record.task} sweep",
            "name": record.name,
            "step": sum(trial.step for trial in trials),
            "num_trials": len(trials),
            **{f"num_{kind}": count for kind, count in counts.items()},
            "best": None,
            "test": record.test,
            **self._provenance,
        }
        if best is not None:
            summary["best"] = {
                "metric": self._metric, "value": best.value, "step": best.step, "checkpoint": best.folder,
                "trial": best.number, "id": best.id, "params": best.params,
            }  # fmt: skip
        with suppress(OSError):
            self._folder.save_summary(summary)
        if status != "running":
            self._save_page(record)
        return record

    def _save_page(self, record: SweepRecord) -> None:
        from hai.report.sweep import render_sweep

        try:
            self._folder.save_text(REPORT, render_sweep(record))
        except Exception as error:  # a page must never cost a sweep
            self._say(f"{REPORT} was not written: {type(error).__name__}: {error}")

    def save_best(self, asked: Sweep, best: TrialRecord) -> None:
        """Write the best trial's config as the user would have written it.

        Args:
            asked: the sweep with the base config as it was given.
            best: the best trial.
        """
        chosen = asked.base if self._is_base(best) else config_with(asked.base, best.params, "space")
        chosen = chosen.model_copy(update={"name": None, "storage": None})
        lines = [f"Trial {best.number} of the sweep {self._name}: {self._metric} {best.value:.4f} on val."]
        if best.parent:
            lines.append(f"It went on from {best.parent} with changed values: these alone need not come as far.")
        lines += ["Train it again:", f"  hai train --config {BEST_CONFIG} --name {self._name}-best"]
        head = "".join(f"# {line}\n" for line in lines)
        self._folder.save_text(BEST_CONFIG, f"{head}\n{show_config(chosen)}")

    def send_best(self, best: TrialRecord) -> None:
        """Send the best trial's checkpoints if its own launch could not; a storage in trouble is said."""
        try:
            send_run(f"{self._place}/trials", best.id, self._say)
        except HaiError as error:
            self._say(f"{error}; the best trial may not be whole there, the same command tries again")

    def measure(self, best: TrialRecord) -> dict[str, Any]:
        """Measure the best trial and the base on test; what was measured before is not measured again."""
        if not self._sweep.settings.evaluate_test:
            return {}
        from hai.evaluation import evaluate_checkpoint

        before = self._folder.load_summary().get("test") or {}
        base = next((one for one in self._board.trials if self._is_base(one) and one.value is not None), None)
        found: dict[str, Any] = {}
        for role, trial in (("best", best), ("default", base)):
            if trial is None:
                continue
            known = [one for one in (*found.values(), *before.values()) if one.get("trial") == [trial.id, trial.step]]
            if known:
                found[role] = known[0]
                continue
            self._say(f"measuring trial {trial.number} on the test split")
            try:
                record = evaluate_checkpoint(f"{self._place}/{trial.folder}", None, split="test", quiet=True)
            except DataError as error:
                self._say(f"{error}; nothing is measured on test")
                return {}
            found[role] = {**record, "trial": [trial.id, trial.step]}
        return found

    def tell(self, record: SweepRecord, best: TrialRecord) -> None:
        """Say what is best and where it is kept."""
        say = self._say
        sign = 1 if record.mode == "max" else -1
        valued = [trial for trial in record.trials if trial.value is not None]
        for trial in sorted(valued, key=lambda trial: (-sign * (trial.value or 0.0), trial.number))[:_SHOWN]:
            say(f"  {record.metric} {trial.value:.4f}  trial {trial.number}: {params_text(trial.params)}")
        say(f"best {record.metric} {best.value:.4f} on val, trial {best.number}: {self._place}/{best.folder}")
        for role, label in (("best", f"trial {best.number}"), ("default", "the base")):
            found = record.test.get(role, {}).get("metrics", {}).get(record.metric)
            if found is not None and found["value"] is not None:
                low, high = found["low"], found["high"]
                interval = f" (95 % interval {low:.4f} to {high:.4f})" if low is not None else ""
                say(f"on test {label}: {record.metric} {found['value']:.4f}{interval}, n = {record.test[role]['n']}")
        say(f"best config: {self._place}/{BEST_CONFIG}")
        say(f"report: {self._place}/{REPORT}")

    def _is_base(self, trial: TrialRecord) -> bool:
        return trial.number == 0 and self._sweep.settings.include_base
