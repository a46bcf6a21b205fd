"""What a sweep knows about itself and each of its trials."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["SweepRecord", "TrialRecord"]


@dataclass(frozen=True)
class TrialRecord:
    """One trial.

    Args:
        id: hash of its resolved config, unique in the sweep.
        number: from 0, in the order in which trials were drawn.
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
