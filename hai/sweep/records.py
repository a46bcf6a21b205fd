"""What a sweep knows about itself and each of its trials, and the table that keeps it: trials.csv."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hai.config.text import inline_yaml, parse_yaml

__all__ = ["SweepRecord", "TrialRecord", "best_trial", "parse_trials", "trials_csv"]


@dataclass(frozen=True)
class TrialRecord:
    """One trial.

    Args:
        id: hash of its resolved config, unique in the sweep.
        number: from 0, in the order in which trials were drawn; 0 is the base config where that is included.
        status: pending, running, finished, stopped (by the scheduler) or failed.
        params: dotted key -> value; a conditional key that does not apply is absent.
        value: best validation value so far; None before the first evaluation.
        step: optimizer steps done.
        seconds: time spent.
        history: (step, validation value) pairs in order.
        parent: "" or "<trial id>/step_00000012", the checkpoint that it went on from.
        changed: what differs from the parent's params: dotted key -> value.
        error: why it failed, or "".
        folder: its run folder, relative to the sweep's.
        rungs: value at each point of comparison that it has passed.
        member: place in pbt's population that it holds; -1 outside of it.
        generation: comparison at which pbt made it.
        may_retry: it failed for a reason that may be gone when the sweep goes on.
    """

    id: str
    number: int
    status: str
    params: dict[str, Any]
    value: float | None
    step: int
    seconds: float
    history: list[tuple[int, float]]
    parent: str
    changed: dict[str, Any]
    error: str
    folder: str
    rungs: list[float] = field(default_factory=list)
    member: int = -1
    generation: int = 0
    may_retry: bool = False


@dataclass(frozen=True)
class SweepRecord:
    """A sweep with all its trials.

    Args:
        name: of the sweep.
        task: detector or ranker.
        metric: validation metric that trials are compared by.
        mode: max or min.
        space: dotted key -> its entry in the sweep's YAML.
        trials: in the order of their numbers.
        best: id of the best trial, chosen on validation; "" before there is one.
        test: {"best": evaluation record, "default": evaluation record}, or {}.
        command: that runs it again, or goes on.
        provenance: as of `hai.provenance.provenance`.
    """

    name: str
    task: str
    metric: str
    mode: str
    space: dict[str, Any]
    trials: list[TrialRecord]
    best: str
    test: dict[str, Any]
    command: str
    provenance: dict[str, Any]


def best_trial(trials: Sequence[TrialRecord], mode: str) -> TrialRecord | None:
    """Choose the trial with the best value, the earlier of two equal ones; None before the first evaluation."""
    sign = 1 if mode == "max" else -1
    valued = [trial for trial in trials if trial.value is not None]
    return max(valued, key=lambda trial: (sign * (trial.value or 0.0), -trial.number), default=None)


_BEFORE = ("number", "id", "status", "value", "step", "seconds")
_AFTER = ("parent", "changed", "error", "folder", "rungs", "member", "generation", "may_retry", "history")
_LATER = {"may_retry": "0"}  # columns that tables of earlier versions lack


def trials_csv(trials: Sequence[TrialRecord], keys: Sequence[str]) -> str:
    """Write trials.csv: a row for each trial, a column for each key of the space, values as YAML has them."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow([*_BEFORE, *keys, *_AFTER])
    for trial in sorted(trials, key=lambda trial: trial.number):
        row: list[Any] = [getattr(trial, name) for name in _BEFORE]
        row += [inline_yaml(trial.params[key], 10**6) if key in trial.params else "" for key in keys]
        row += [trial.parent, json.dumps(trial.changed), trial.error, trial.folder]
        row += [json.dumps(trial.rungs), trial.member, trial.generation, int(trial.may_retry)]
        row.append(json.dumps(trial.history))
        table.writerow("" if cell is None else cell for cell in row)
    return text.getvalue()


def parse_trials(text: str) -> list[TrialRecord]:
    """Read what `trials_csv` wrote; raises ValueError where it is something else."""
    trials = []
    table = csv.DictReader(io.StringIO(text))
    csv.field_size_limit(1 << 30)
    missing = [name for name in (*_BEFORE, *_AFTER) if name not in (*(table.fieldnames or ()), *_LATER)]
    if missing:
        raise ValueError(f"column {missing[0]} is missing")
    keys = [name for name in table.fieldnames or () if name not in (*_BEFORE, *_AFTER)]
    for row in table:
        if None in row or None in row.values():
            raise ValueError(f"line {table.line_num} has another number of columns")
        try:
            trials.append(_trial({**_LATER, **row}, keys))
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"line {table.line_num}: {error}") from None
    return trials


def _trial(row: dict[str, str], keys: list[str]) -> TrialRecord:
    return TrialRecord(
        id=row["id"],
        number=int(row["number"]),
        status=row["status"],
        params={key: parse_yaml(row[key], key)[0] for key in keys if row[key]},
        value=float(row["value"]) if row["value"] else None,
        step=int(row["step"]),
        seconds=float(row["seconds"]),
        history=[(int(step), float(value)) for step, value in json.loads(row["history"])],
        parent=row["parent"],
        changed=dict(json.loads(row["changed"])),
        error=row["error"],
        folder=row["folder"],
        rungs=[float(value) for value in json.loads(row["rungs"])],
        member=int(row["member"]),
        generation=int(row["generation"]),
        may_retry=bool(int(row["may_retry"])),
    )
