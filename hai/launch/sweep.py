"""The verb `tune`: what is checked before a trial starts, how trials are carried out, and what is said at the end."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hai.checkpoint.owner import Owner
from hai.checkpoint.records import REPORT
from hai.checkpoint.remote import check_storage, locate
from hai.config.compare import compare_configs
from hai.config.fields import config_fields
from hai.config.load import config_from_yaml_text, config_with, show_config
from hai.config.schema import RunConfig
from hai.config.sweep import Sweep, show_sweep, sweep_changes
from hai.config.text import dump_yaml, parse_yaml
from hai.errors import ConfigError, DataError, HaiError
from hai.launch.bar import SweepBar
from hai.launch.board import Board, params_text
from hai.launch.plan import Plan, located
from hai.launch.train import read_data
from hai.masking import masked
from hai.provenance import provenance
from hai.sweep.folder import BEST_CONFIG, SWEEP, SweepFolder
from hai.sweep.records import SweepRecord, TrialRecord, best_trial
from hai.sweep.space import combinations, draw
from hai.sweep.strategy import Strategy, Suggest
from hai.sweep.suggest import check_optuna, suggest
from hai.types import Record

if TYPE_CHECKING:
    from hai.launch.tune import Room
    from hai.tasks.base import Datasets, Task

__all__ = ["run_sweep"]

_INTERRUPTED = 3
_SHOWN = 5


def run_sweep(sweep: Sweep, *, name: str, storage: str) -> int:
    """Try a sweep's values; the same command again goes on.

    Args:
        sweep: what was asked for.
        name: of the sweep.
        storage: folder or URL that holds runs and sweeps.

    Returns:
        Exit status: 0 done, 3 stopped by a signal with everything saved.

    Raises:
        HaiError: the user can mend it; nothing was lost.
    """
    asked, sweep = sweep, replace(sweep, base=_for_trials(sweep.base, storage))
    storage = str(sweep.base.storage)
    if sweep.settings.searcher == "optuna":
        check_optuna()
    _check_combinations(sweep)
    check_storage(storage)
    with SweepBar() as bar:
        task, datasets = read_data(sweep.base, bar.say)
        location = locate(storage, name)
        owner = Owner(location, bar.say)
        attempt = owner.acquire()
        try:
            folder = SweepFolder(location, attempt, bar.say)
            try:
                return _carry_out(asked, sweep, folder, f"{storage}/{name}", task, datasets, bar)
            finally:
                folder.close()
        finally:
            owner.release()


def _for_trials(base: RunConfig, storage: str) -> RunConfig:
    """Return the base config as trials have it: absolute paths, and little that they leave on a disk.

    Unless the config says otherwise, of each trial the newest and the best checkpoint stay, and no TensorBoard files.
    """
    checkpoint, logging = base.checkpoint, base.logging
    if "keep" not in checkpoint.model_fields_set:
        checkpoint = checkpoint.model_copy(update={"keep": 1})
    if "tensorboard" not in logging.model_fields_set:
        logging = logging.model_copy(update={"tensorboard": False})
    changes = {"name": None, "storage": storage, "checkpoint": checkpoint, "logging": logging}
    return located(base.model_copy(update=changes))


def _check_combinations(sweep: Sweep) -> None:
    """Refuse values that do not go together before the first trial starts, where they are known by then."""
    settings = sweep.settings
    tried = (
        combinations(sweep.space)[: settings.num_trials]
        if settings.searcher == "grid"
        else [draw(sweep.space, settings.seed, number + 1) for number in range(settings.num_trials or 0)]
    )
    for params in tried if settings.searcher != "optuna" else ():
        try:
            config_with(sweep.base, params, "space")
        except ConfigError as error:
            raise ConfigError(
                "\n".join(f"{line}; with {params_text(params)}; a `when` can say where a key applies"
                          for line in str(error).splitlines())
            ) from None  # fmt: skip


def _carry_out(
    asked: Sweep, sweep: Sweep, folder: SweepFolder, place: str, task: Task, datasets: Datasets, bar: SweepBar
) -> int:
    name = place.rpartition("/")[2]
    _refuse_changes(folder, sweep, name)
    metric = sweep.settings.metric or task.metric
    common = {"storage": f"{place}/trials", "provenance": provenance()}
    strategy = Strategy(sweep, _epochs(sweep.base, datasets), _suggest_for(sweep))
    board = Board(
        strategy, folder, metric=metric, mode=sweep.settings.mode, keys=list(sweep.space), common=common, say=bar.say
    )
    if board.trials:
        done = sum(trial.status in ("finished", "stopped", "failed") for trial in board.trials)
        bar.say(f"going on with sweep {name}: {len(board.trials)} trials are known, {done} of them need nothing now")
    known = {trial.number: trial.step for trial in board.trials}
    _summarise(folder, sweep, board, metric, place, common, "running")
    try:
        signal = _train(board, sweep, task, bar)
    except BaseException:
        _summarise(folder, sweep, board, metric, place, common, "interrupted")
        raise
    if signal:
        _summarise(folder, sweep, board, metric, place, common, "interrupted")
        bar.say(f"stopped with everything saved, {len(board.trials)} trials are known; run the same command to go on")
        return _INTERRUPTED
    best = best_trial(board.trials, sweep.settings.mode)
    if best is None:
        reasons = [f"trial {trial.number}: {trial.error}" for trial in board.trials if trial.error][:3]
        raise ConfigError("\n".join([f"sweep {name}: no trial has a value", *reasons]))
    if {trial.number: trial.step for trial in board.trials} == known:
        bar.say(f"sweep {name} is finished; raise sweep.num_trials to go on with it, --name NAME starts another")
    chosen = asked.base if _is_base(best, sweep) else config_with(asked.base, best.params, "space")
    chosen = chosen.model_copy(update={"name": None, "storage": None})
    head = f"# Trial {best.number} of the sweep {name}: {metric} {best.value:.4f} on val. Train it again:\n"
    command = f"#   hai train --config {BEST_CONFIG} --name {name}-best\n\n"
    folder.save_text(BEST_CONFIG, head + command + show_config(chosen))
    test = _measure(folder, sweep, board, best, place, bar)
    record = _summarise(folder, sweep, board, metric, place, common, "finished", test)
    _tell(record, best, place, bar)
    return 0


def _epochs(base: RunConfig, datasets: Datasets) -> float:
    """Return the epochs after which the base config's training ends."""
    from hai.loop import total_steps
    from hai.order import Order

    order = Order(*datasets.splits["train"].strata(), batch_size=base.train.global_batch_size, seed=base.seed)
    return total_steps(base, order.steps_per_epoch) / order.steps_per_epoch


def _suggest_for(sweep: Sweep) -> Suggest | None:
    settings = sweep.settings
    if settings.searcher != "optuna":
        return None
    return lambda trials, number: suggest(sweep.space, trials, seed=settings.seed, number=number, mode=settings.mode)


def _refuse_changes(folder: SweepFolder, sweep: Sweep, name: str) -> None:
    """Compare with the sweep that the folder holds; raises ConfigError with every line that may not change."""
    shown: Record = {"base": masked(sweep.base.model_dump(mode="python")), **show_sweep(sweep)}
    text = folder.load_text(SWEEP)
    if text is not None:
        old, problems = parse_yaml(text, str(folder.path / SWEEP))
        if not isinstance(old, dict) or problems:
            raise ConfigError("\n".join(problems) or f"{folder.path / SWEEP}: is no sweep; put back what was there")
        fields = config_fields()
        base = config_from_yaml_text(dump_yaml(old["base"]), str(folder.path / SWEEP))
        changes = [
            f"{change.field}: the sweep has {change.old}, given {change.new}"
            for change in compare_configs(base, sweep.base)
            if not change.allowed or fields.get(change.field, {}).get("resume") == "raise"
        ]
        changes += sweep_changes(old, shown)
        if changes:
            raise ConfigError("\n".join([*changes, f"sweep {name} keeps these; --name NAME starts another sweep"]))
    folder.save_text(SWEEP, dump_yaml(shown))


# Trials


def _train(board: Board, sweep: Sweep, task: Task, bar: SweepBar) -> int:
    """Train all trials; returns STOP when a signal came, else 0."""
    start, limit = time.monotonic(), sweep.settings.time_limit_minutes

    def time_left() -> float:
        return float("inf") if limit is None else 60 * limit - (time.monotonic() - start)

    if board.is_over():
        return 0
    if sweep.base.scale.launcher == "in_process":
        return _train_here(board, sweep, task, time_left, bar)
    from hai.launch.tune import train_on_tune

    def prepare(room: Room, asked: Callable[[], int]) -> bool:
        return _prepare(sweep, task, room.gpus > 0, asked, bar)

    return train_on_tune(
        board, sweep.base, sweep.settings, prepare=prepare, time_left=time_left, say=bar.say, show=bar.show
    )


def _prepare(sweep: Sweep, task: Task, on_gpu: bool, asked: Callable[[], int], bar: SweepBar) -> bool:
    """Compute the features that all trials read, once: on CPUs here, on GPUs with all workers of the cluster."""
    import torch

    from hai.distributed import Workers

    if not on_gpu:
        return task.prepare(Workers(device=torch.device("cpu")), say=bar.say, asked=asked)
    from hai.launch.ray_train import train_on_ray
    from hai.tasks.ranker import keeps_embeddings

    if sweep.base.task != "ranker" or not keeps_embeddings(sweep.base):
        return True

    plan = Plan(sweep.base.model_dump_json(), str(sweep.base.storage), "features", "sweep", only_prepare=True)
    return train_on_ray(sweep.base, plan, say=bar.say, show=lambda _: None, request=asked).status != "interrupted"


def _train_here(board: Board, sweep: Sweep, task: Task, time_left: Callable[[], float], bar: SweepBar) -> int:
    """Train one trial after the other in this process."""
    import torch

    from hai.launch.signals import StopSignals
    from hai.launch.trial import train_trial
    from hai.types import STOP

    use_gpu = sweep.base.scale.use_gpu
    on_gpu = torch.cuda.is_available() if use_gpu is None else use_gpu
    with StopSignals(bar.say) as signals:

        def request() -> int:
            return STOP if signals.request or time_left() <= 0 else 0

        if not _prepare(sweep, task, False, request, bar):
            return signals.request
        while not request() and (job := board.take(lambda config: config)) is not None:
            bar.show(board.progress())
            try:
                outcome = train_trial(job, num_workers=1, on_gpu=on_gpu, request=request, say=lambda _: None)
            except HaiError as error:
                outcome = {"status": "failed", "error": str(error)}
            board.ended(int(job["number"]), outcome)
        return signals.request


# The end


def _is_base(trial: TrialRecord, sweep: Sweep) -> bool:
    return trial.number == 0 and sweep.settings.include_base


def _measure(
    folder: SweepFolder, sweep: Sweep, board: Board, best: TrialRecord, place: str, bar: SweepBar
) -> dict[str, Any]:
    """Measure the best trial and the base on test; what was measured before is not measured again."""
    if not sweep.settings.evaluate_test:
        return {}
    from hai.evaluation import evaluate_checkpoint

    before = folder.load_summary().get("test") or {}
    base = next((trial for trial in board.trials if _is_base(trial, sweep) and trial.value is not None), None)
    found: dict[str, Any] = {}
    for role, trial in (("best", best), ("default", base)):
        if trial is None:
            continue
        known = [one for one in (*found.values(), *before.values()) if one.get("trial") == [trial.id, trial.step]]
        if known:
            found[role] = known[0]
            continue
        bar.say(f"measuring trial {trial.number} on the test split")
        try:
            record = evaluate_checkpoint(f"{place}/{trial.folder}", None, split="test", quiet=True)
        except DataError as error:
            bar.say(f"{error}; nothing is measured on test")
            return {}
        found[role] = {**record, "trial": [trial.id, trial.step]}
    return found


def _summarise(
    folder: SweepFolder, sweep: Sweep, board: Board, metric: str, place: str, common: Record, status: str,
    test: dict[str, Any] | None = None,
) -> SweepRecord:  # fmt: skip
    """Write summary.json and the page."""
    from hai.report.sweep import render_sweep

    trials, origin = board.trials, common["provenance"]
    best = best_trial(trials, sweep.settings.mode)
    record = SweepRecord(
        name=place.rpartition("/")[2],
        task=sweep.base.task,
        metric=metric,
        mode=sweep.settings.mode,
        space={key: entry.to_yaml() for key, entry in sweep.space.items()},
        trials=trials,
        best=best.id if best is not None else "",
        test=folder.load_summary().get("test", {}) if test is None else test,
        command=origin["command"],
        provenance=origin,
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
        **origin,
    }
    if best is not None:
        summary["best"] = {
            "metric": metric, "value": best.value, "step": best.step, "checkpoint": best.folder,
            "trial": best.number, "id": best.id, "params": best.params,
        }  # fmt: skip
    folder.save_summary(summary)
    if status != "running":
        with suppress(OSError):  # a full disk: a page must never cost a sweep
            folder.save_text(REPORT, render_sweep(record))
    return record


def _tell(record: SweepRecord, best: TrialRecord, place: str, bar: SweepBar) -> None:
    sign = 1 if record.mode == "max" else -1
    valued = [trial for trial in record.trials if trial.value is not None]
    for trial in sorted(valued, key=lambda trial: (-sign * (trial.value or 0.0), trial.number))[:_SHOWN]:
        bar.say(f"  {record.metric} {trial.value:.4f}  trial {trial.number}: {params_text(trial.params)}")
    bar.say(f"best {record.metric} {best.value:.4f} on val, trial {best.number}: {place}/{best.folder}")
    for role, label in (("best", f"trial {best.number}"), ("default", "the base")):
        found = record.test.get(role, {}).get("metrics", {}).get(record.metric)
        if found is not None and found["value"] is not None:
            interval = f" (95 % interval {found['low']:.4f} to {found['high']:.4f})" if found["low"] is not None else ""
            bar.say(f"on test {label}: {record.metric} {found['value']:.4f}{interval}, n = {record.test[role]['n']}")
    bar.say(f"best config: {place}/{BEST_CONFIG}")
    bar.say(f"report: {place}/{REPORT}")
