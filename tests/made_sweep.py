"""Records of sweeps as they come out, drawn from a seed: every kind of value, status and parent."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from hai.sweep.records import SweepRecord, TrialRecord

SPACE = {
    "optim.learning_rate": {"loguniform": [1e-5, 1e-1]},
    "model.dropout": {"uniform": [0.0, 0.5]},
    "model.layers": {"randint": [1, 4]},
    "model.kind": {"choice": ["linear", "mlp", "attention"]},
    "model.width": {"choice": [64, 128, 512], "when": {"model.kind": "mlp"}},
}


def made_trial(number: int, **changes: Any) -> TrialRecord:
    """Make a finished trial; the better values have a learning rate near 1e-3, nothing else matters."""
    rng = np.random.default_rng(number)
    rate, kind = 10 ** rng.uniform(-5, -1), ["linear", "mlp", "attention"][rng.integers(3)]
    params = {
        "optim.learning_rate": rate,
        "model.dropout": float(rng.uniform(0, 0.5)),
        "model.layers": int(rng.integers(1, 5)),
        "model.kind": kind,
    } | ({"model.width": int(rng.choice([64, 128, 512]))} if kind == "mlp" else {})
    value = 0.75 - 0.05 * (math.log10(rate) + 3) ** 2 + 0.01 * rng.normal()
    steps = range(10, 101, 10)
    history = [(step, 0.5 + (value - 0.5) * (1 - math.exp(-step / 25)) + 0.004 * rng.normal()) for step in steps]
    columns: dict[str, Any] = {
        "id": f"{number:012x}",
        "number": number,
        "status": "finished",
        "params": params,
        "value": max(value for _, value in history),
        "step": 100,
        "seconds": 8.0 + number % 7,
        "history": history,
        "parent": "",
        "changed": {},
        "error": "",
        "folder": f"trials/{number:012x}",
    }
    return TrialRecord(**(columns | changes))


def stopped(trial: TrialRecord, evaluations: int) -> dict[str, Any]:
    """What a scheduler leaves of a trial that it stops early."""
    history = trial.history[:evaluations]
    value = max(value for _, value in history)
    return {"status": "stopped", "history": history, "value": value, "step": history[-1][0], "seconds": 2.0}


def made_evaluation(value: float, half: float = 0.03, task: str = "ranker") -> dict[str, Any]:
    names = ("pair_accuracy", "pair_accuracy_gap_1", "srcc") if task == "ranker" else ("f1_macro", "roc_auc")
    metrics = {
        name: {"value": value + 0.02 * i, "low": value + 0.02 * i - half, "high": value + 0.02 * i + half}
        for i, name in enumerate(names)
    }
    return {"task": task, "n": 400, "num_groups": 390, "metrics": metrics}


def made_sweep(count: int, **changes: Any) -> SweepRecord:
    """Make a sweep: every third trial stopped early, every eleventh failed before its first evaluation."""
    trials = []
    for number in range(count):
        trial = made_trial(number)
        if number % 11 == 7:
            trial = made_trial(number, status="failed", value=None, history=[], step=3, error="out of memory: 14.2 GB")
        elif number % 3 == 1:
            trial = made_trial(number, **stopped(trial, 2))
        trials.append(trial)
    scored = [trial for trial in trials if trial.value is not None]
    columns: dict[str, Any] = {
        "name": "heads",
        "task": "ranker",
        "metric": "pair_accuracy",
        "mode": "max",
        "space": SPACE,
        "trials": trials,
        "best": max(scored, key=lambda trial: trial.value or 0.0).id if scored else "",
        "test": {"best": made_evaluation(0.713), "default": made_evaluation(0.684)},
        "command": "hai tune --config configs/tune/heads.yaml",
        "provenance": {"versions": {"hai": "0.1"}, "commit": None},
    }
    return SweepRecord(**(columns | changes))
