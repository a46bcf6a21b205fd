"""Optuna as an adviser without a memory: it is told of all trials, then asked for one."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from hai.config.sweep import Entry
from hai.errors import ConfigError
from hai.sweep.records import TrialRecord
from hai.sweep.space import applying

__all__ = ["check_optuna", "suggest"]


def check_optuna() -> None:
    """Raise ConfigError where Optuna is not installed."""
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise ConfigError(
            "sweep.searcher = optuna; it is not installed; pip install 'hai[sweep]', or set sweep.searcher=random"
        ) from None


def suggest(
    space: Mapping[str, Entry], trials: Sequence[TrialRecord], *, seed: int, number: int, mode: str
) -> dict[str, Any]:
    """Ask for the values of trial `number`, given all trials so far; those that run count as likely bad.

    A trial that was stopped early counts with what it had reached. A value outside of the space, such as the base
    config's own, is left out: Optuna knows only what may be tried.

    Source: Bergstra et al., Algorithms for Hyper-Parameter Optimization, 2011 (TPE), as Optuna has it.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(seed=(seed * 1_000_003 + number) % 2**32, constant_liar=True)
    study = optuna.create_study(direction="maximize" if mode == "max" else "minimize", sampler=sampler)
    for trial in trials:
        kept = {key: _coded(space[key], value) for key, value in trial.params.items() if space[key].takes(value)}
        known: dict[str, Any] = {"params": kept, "distributions": {key: _distribution(space[key]) for key in kept}}
        states = optuna.trial.TrialState
        if trial.status == "finished" and trial.value is not None:
            known |= {"state": states.COMPLETE, "value": trial.value}
        elif trial.status in ("running", "pending"):
            known |= {"state": states.RUNNING}
        elif trial.value is not None:
            known |= {"state": states.PRUNED, "intermediate_values": {max(len(trial.rungs), 1): trial.value}}
        else:
            known |= {"state": states.FAIL}
        study.add_trial(optuna.trial.create_trial(**known))
    asked = study.ask()

    def choose(key: str, entry: Entry) -> Any:
        low, high = (entry.values[0], entry.values[-1])
        if entry.kind == "randint":
            return asked.suggest_int(key, low, high)
        if entry.is_range:
            value = asked.suggest_float(key, low, high, log=entry.kind == "loguniform")
            return min(max(float(f"{value:.4g}"), low), high)
        return entry.values[asked.suggest_categorical(key, list(range(len(entry.values))))]

    return applying(space, choose)


def _coded(entry: Entry, value: Any) -> Any:
    """Write a value as Optuna knows it: of listed values the position, since they may be lists themselves."""
    return value if entry.is_range else entry.values.index(value)


def _distribution(entry: Entry) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if entry.kind == "randint":
        return IntDistribution(*entry.values)
    if entry.is_range:
        return FloatDistribution(entry.values[0], entry.values[1], log=entry.kind == "loguniform")
    return CategoricalDistribution(range(len(entry.values)))
