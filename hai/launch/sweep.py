"""The verb `tune`: what is checked before a trial starts, how trials are carried out, and what is said at the end."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from hai.checkpoint.owner import Owner
from hai.checkpoint.records import CONFIG
from hai.checkpoint.remote import check_storage, locate
from hai.config.compare import compare_configs
from hai.config.fields import config_fields
from hai.config.load import config_from_yaml_text, config_with
from hai.config.schema import RunConfig
from hai.config.sweep import Sweep, show_sweep, sweep_changes
from hai.config.text import dump_yaml, parse_yaml
from hai.errors import ConfigError, StorageError
from hai.launch.bar import SweepBar
from hai.launch.board import Board, params_text
from hai.launch.plan import Plan, located
from hai.launch.sweep_results import Results
from hai.launch.train import read_data, refuse_name
from hai.masking import masked
from hai.provenance import provenance
from hai.sweep.folder import SWEEP, SweepFolder
from hai.sweep.records import best_trial
from hai.sweep.space import combinations, draw
from hai.sweep.strategy import Strategy, Suggest
from hai.sweep.suggest import check_optuna, suggest
from hai.types import Record

if TYPE_CHECKING:
    from hai.launch.room import Room
    from hai.tasks.base import Datasets, Task

__all__ = ["run_sweep"]

_INTERRUPTED = 3
_MOST_REASONS = 3


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
    location = locate(storage, name)
    refuse_name(location, name, CONFIG)
    with SweepBar() as bar:
        task, datasets = read_data(sweep.base, bar.say)
        owner = Owner(location, bar.say)
        attempt = owner.acquire()
        try:
            folder = SweepFolder(owner.location, attempt, bar.say)
            try:
                return _carry_out(asked, sweep, folder, f"{storage}/{name}", task, datasets, bar)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                raise StorageError(
                    f"{folder.path}: {error.strerror}; what is saved stays; make room and run the same command"
                ) from error
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
        combinations(sweep.space, settings.num_trials)
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
    metric = _metric(sweep, task)
    _refuse_changes(folder, sweep, name, datasets.identity)
    common: Record = {"storage": f"{place}/trials", "provenance": provenance()}
    strategy = Strategy(sweep, _epochs(sweep.base, datasets), _suggest_for(sweep))
    board = Board(
        strategy, folder, metric=metric, mode=sweep.settings.mode, keys=list(sweep.space), common=common,
        max_failures=sweep.base.scale.max_failures, say=bar.say,
    )  # fmt: skip
    if board.trials:
        done = sum(trial.status in ("finished", "stopped", "failed") for trial in board.trials)
        bar.say(f"going on with sweep {name}: {len(board.trials)} trials are known, {done} of them need nothing now")
    known = {trial.number: trial.step for trial in board.trials}
    results = Results(
        folder, sweep, board, metric=metric, place=place, provenance=common["provenance"], say=bar.say
    )  # fmt: skip
    results.save("running")
    try:
        if _train(board, sweep, task, bar):
            results.save("interrupted")
            bar.say(f"stopped with everything saved, {len(board.trials)} trials known; run the same command to go on")
            return _INTERRUPTED
        best = best_trial(board.trials, sweep.settings.mode)
        if best is None:
            raise ConfigError("\n".join([f"sweep {name}: no trial has a value", *_reasons(board)]))
        status = "interrupted" if board.has_more() else "finished"
        if status == "interrupted":
            bar.say("the time limit has come before the end; run the same command to go on")
        elif {trial.number: trial.step for trial in board.trials} == known:
            bar.say(f"sweep {name} is finished; raise sweep.num_trials to go on with it, --name NAME starts another")
        results.save_best(asked, best)
        results.send_best(best)
        test = results.measure(best)
    except BaseException:
        results.save("interrupted")
        raise
    results.tell(results.save(status, test), best)
    return 0


def _reasons(board: Board) -> list[str]:
    """Say why no trial has a value: what failed, or that the time was too short."""
    failed = [f"trial {trial.number}: {trial.error}" for trial in board.trials if trial.error][:_MOST_REASONS]
    return failed or ["the time limit came before the first evaluation; run the same command to go on, or raise it"]


def _metric(sweep: Sweep, task: Task) -> str:
    """Return the metric that trials are compared by; raises ConfigError where they would not have it."""
    from hai.metrics import LESS_IS_BETTER

    metric, known = sweep.settings.metric or task.metric, task.metric_names()
    if metric not in known:
        raise ConfigError(f"sweep.metric = {metric}; evaluations have {', '.join(sorted(known))}")
    if sweep.settings.mode == "max" and metric.partition("/")[0].removeprefix("video_") in LESS_IS_BETTER:
        raise ConfigError(f"sweep.mode = max; of {metric} less is better; set sweep.mode=min")
    return metric


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


def _refuse_changes(folder: SweepFolder, sweep: Sweep, name: str, identity: str) -> None:
    """Compare with the sweep that the folder holds; raises ConfigError with every line that may not change."""
    base_now = masked(sweep.base.model_dump(mode="python"))
    shown: Record = {"data_identity": identity, "base": base_now, **show_sweep(sweep)}
    text = folder.load_text(SWEEP)
    if text is not None and folder.load_trials():  # before the first trial there is nothing to keep to
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
        if old.get("data_identity", identity) != identity:
            changes.append(
                f"data: the sweep has {str(old['data_identity'])[:12]}..., the sources now give {identity[:12]}...; "
                "trials are compared on the same images, labels, groups and splits"
            )
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

    from hai.distributed import Workers
    from hai.launch.preemption import saving
    from hai.launch.signals import StopSignals
    from hai.launch.trial import failure, telling, train_trial
    from hai.types import STOP

    use_gpu = sweep.base.scale.use_gpu
    on_gpu = torch.cuda.is_available() if use_gpu is None else use_gpu
    workers = Workers(device=torch.device("cuda", 0) if on_gpu else torch.device("cpu"))
    with StopSignals(bar.say) as signals:

        def request() -> int:
            return STOP if signals.request or time_left() <= 0 else 0

        if not task.prepare(workers, say=bar.say, asked=request):
            return signals.request
        with saving(request, bar.say) as asked:
            while not request() and (job := board.take(lambda config: config)) is not None:
                bar.show(board.progress())
                try:
                    say = telling(int(job["number"]), bar.say)
                    outcome = train_trial(job, num_workers=1, on_gpu=on_gpu, request=asked, say=say)
                except Exception as error:  # the next trial's values may be better
                    outcome = failure(error)
                board.ended(int(job["number"]), outcome)
        return signals.request
