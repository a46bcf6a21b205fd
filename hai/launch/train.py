"""The verbs `train` and `embed`: what is checked before a worker starts, the launch, and what is said at the end."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from hai.checkpoint.find import split_reference
from hai.checkpoint.owner import Owner
from hai.checkpoint.reach import reach
from hai.checkpoint.records import CONFIG, REPORT, SUMMARY, parse_json
from hai.checkpoint.remote import Location, check_storage, locate
from hai.checkpoint.resume import run_of
from hai.checkpoint.runs import restart_run
from hai.checkpoint.store import RunFolder
from hai.config.compare import compare_configs
from hai.config.load import config_from_yaml_text, show_config
from hai.config.schema import RunConfig
from hai.errors import ConfigError
from hai.launch.bar import TrainingBar
from hai.launch.plan import Outcome, Plan, located
from hai.live import build_console
from hai.provenance import provenance
from hai.sweep.folder import SWEEP
from hai.types import Record

if TYPE_CHECKING:
    from hai.tasks.base import Datasets, Task

__all__ = ["read_data", "refuse_name", "run_embedding", "run_training"]

_INTERRUPTED, _UNSAVED, _MOST_NOTES = 3, 2, 20


def run_training(
    config: RunConfig,
    *,
    resume: str | None = None,
    dry_run: bool = False,
    restart: bool = False,
    wait_for_upload: bool = False,
    config_name: str = "run",
) -> int:
    """Train or go on training; the same command does both.

    Args:
        config: the validated config.
        resume: run folder or checkpoint elsewhere to start from.
        dry_run: say what would happen, start nothing.
        restart: begin anew and keep the old run aside.
        wait_for_upload: wait until everything is confirmed on the storage.
        config_name: name of a run that the config does not name.

    Returns:
        Exit status: 0 finished, 3 stopped by a signal with everything saved, 2 the last step could not be saved.

    Raises:
        HaiError: the user can mend it; nothing was lost.
    """
    config = located(config)
    config = config.model_copy(update={"name": config.name or config_name})
    if int(os.environ.get("RANK", "0")) > 0:  # under torchrun the first process checks, owns and speaks
        return _status(_launch(config, _plan(config, "", resume, wait_for_upload), lambda _: None, lambda _: None))
    with TrainingBar() as bar:
        if dry_run:
            _explain(config, bar.say)
            return 0
        return _train(config, resume, restart, wait_for_upload, bar)


def _train(config: RunConfig, resume: str | None, restart: bool, wait_for_upload: bool, bar: TrainingBar) -> int:
    storage, name = str(config.storage), str(config.name)
    check_storage(storage)
    refuse_name(locate(storage, name), name, SWEEP)
    if not restart:
        _refuse_changes(locate(storage, name), config)
    if resume is not None:
        _refuse_changes(locate(*run_of(resume)), config)
        _tell_apart(config, resume, bar.say)
    _, datasets = read_data(config, bar.say)
    if restart:
        restart_run(storage, name, report=bar.say)
    owner = Owner(locate(storage, name), bar.say)
    attempt = owner.acquire()
    try:
        finished = _finished_summary(owner.location, config, attempt, datasets, bar.say)
        if finished is not None and int(os.environ.get("WORLD_SIZE", "1")) == 1:  # torchrun's others wait for this one
            _say_end(config, finished, bar.say, again=True)
            return 0
        outcome = _launch(config, _plan(config, attempt, resume, wait_for_upload), bar.say, bar.show)
        _say_end(config, outcome.summary, bar.say)
        return _status(outcome)
    finally:
        owner.release()


def run_embedding(config: RunConfig) -> int:
    """Compute and keep the features of a run's images with all workers; those that are kept already are not repeated.

    Returns:
        Exit status: 0 all are kept, 3 stopped by a signal, what is done is kept.

    Raises:
        HaiError: the user can mend it.
    """
    from hai.tasks.ranker import keeps_embeddings

    if config.task != "ranker":
        raise ConfigError(f"task = {config.task}; only the ranker keeps features; give a config with task = ranker")
    on = config.data.model_copy(update={"cache_embeddings": "on"})
    keeps_embeddings(config.model_copy(update={"data": on}))
    config = located(config)
    plan = replace(_plan(config, "embed", None, False), only_prepare=True)
    with TrainingBar() as bar:
        read_data(config, bar.say)
        outcome = _launch(config, plan, bar.say, bar.show)
        if outcome.status == "interrupted":
            bar.say("stopped; run the same command to go on")
        return _status(outcome)


def _plan(config: RunConfig, attempt: str, resume: str | None, wait_for_upload: bool) -> Plan:
    return Plan(
        config=config.model_dump_json(),
        storage=str(config.storage),
        name=str(config.name or config.task),
        attempt=attempt,
        resume=resume,
        wait_for_upload=wait_for_upload,
        provenance=provenance(),
    )


def _launch(config: RunConfig, plan: Plan, say: Callable[[str], None], show: Callable[[Record], None]) -> Outcome:
    if config.scale.launcher == "in_process":
        from hai.launch.in_process import train_in_process

        return train_in_process(plan, use_gpu=config.scale.use_gpu, say=say, show=show)
    from hai.launch.ray_train import train_on_ray

    return train_on_ray(config, plan, say=say, show=show)


def _status(outcome: Outcome) -> int:
    if not _is_saved(outcome.summary):
        return _UNSAVED
    return _INTERRUPTED if outcome.status == "interrupted" else 0


def _is_saved(summary: Record) -> bool:
    """Say whether the state of the last step is whole on this machine's disk."""
    saved, step = summary.get("saved_step"), int(summary["step"])
    return saved is None or int(saved) >= step


def read_data(config: RunConfig, say: Callable[[str], None]) -> tuple[Task, Datasets]:
    """Read the sources before anything is claimed; workers find the hashes cached."""
    from rich.progress import Progress

    from hai.tasks import build_task

    task = build_task(config)
    if config.data.embedding_cache and config.task == "ranker":
        check_storage(config.data.embedding_cache)
    console = build_console()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        line = bar.add_task("reading the images", total=None)
        datasets = task.build_datasets(progress=lambda done, total: bar.update(line, completed=done, total=total))
    for note in datasets.notes[:_MOST_NOTES]:
        say(note)
    if len(datasets.notes) > _MOST_NOTES:
        say(f"and {len(datasets.notes) - _MOST_NOTES} more notes on the data")
    say("data: " + ", ".join(f"{split} {len(dataset)}" for split, dataset in datasets.splits.items()))
    return task, datasets


def _explain(config: RunConfig, say: Callable[[str], None]) -> None:
    """Print what a run would be: the resolved config, the model's size, the steps, the data."""
    from rich.console import Console
    from rich.table import Table

    from hai.loop import total_steps
    from hai.order import Order

    console = Console(soft_wrap=True, highlight=False)
    console.print(show_config(config), markup=False)
    task, datasets = read_data(config, say)
    table = Table(title="data")
    for column in datasets.table[0] if datasets.table else ():
        table.add_column(column)
    for row in datasets.table:
        table.add_row(*(str(value) for value in row.values()))
    console.print(table)
    parameters = list(task.build_model().parameters())
    size, count = sum(p.numel() * p.element_size() for p in parameters), sum(p.numel() for p in parameters)
    console.print(f"model: {config.model.name}, {count:,} parameters, {size / 1e6:.1f} MB of weights")
    batch = config.train.global_batch_size
    order = Order(*datasets.splits["train"].strata(), batch_size=batch, seed=config.seed)
    end = total_steps(config, order.steps_per_epoch)
    console.print(f"steps: {order.steps_per_epoch} an epoch of {batch} examples each, {end} in all")
    console.print(f"run: {config.name} in {config.storage}; nothing was started (--dry-run)")


def _stored(location: Location, name: str) -> bytes | None:
    """Read a small file of the run, from the storage first."""
    remote = location.remote
    content = reach(remote.url, lambda: remote.read(name)) if remote is not None else None
    if content is None and (location.path / name).exists():
        content = (location.path / name).read_bytes()
    return content


def refuse_name(location: Location, name: str, file: str) -> None:
    """Raise ConfigError where the name is taken by a sweep, for a run, or by a run, for a sweep.

    Args:
        location: of what is to begin.
        name: that it is to have.
        file: what the other kind has in its folder: run.yaml or sweep.yaml.
    """
    if _stored(location, file) is not None:
        there, here = ("run", "sweep") if file == CONFIG else ("sweep", "run")
        raise ConfigError(f"{name} is a {there}; --name NAME starts a {here} beside it")


def _refuse_changes(location: Location, config: RunConfig) -> None:
    """Compare with the config that the run has; raises ConfigError with every field that may not change."""
    content = _stored(location, CONFIG)
    if content is None:
        return
    old = config_from_yaml_text(content.decode("utf-8"), f"{location.path}/{CONFIG}")
    refused = [change for change in compare_configs(old, config) if not change.allowed]
    if refused:
        lines = [f"{change.field}: run {config.name} has {change.old}, given {change.new}" for change in refused]
        raise ConfigError(
            "\n".join([*lines, "a run keeps these; --name NAME starts another run, --restart begins this one anew"])
        )


def _tell_apart(config: RunConfig, resume: str, say: Callable[[str], None]) -> None:
    """Say where the run is kept if that is not where it comes from, which who gives only a URL may not expect."""
    storage, name = run_of(resume)
    if (storage, name) != split_reference(f"{config.storage}/{config.name}"):
        place = f"--storage {shlex.quote(storage)}" + (f" --name {shlex.quote(name)}" if name != config.name else "")
        say(
            f"run {config.name}: kept in {config.storage}, apart from {resume} where it comes from; "
            f"add {place} to go on in that place"
        )


def _finished_summary(
    location: Location, config: RunConfig, attempt: str, datasets: Datasets, say: Callable[[str], None]
) -> Record | None:
    """Return the run's summary if its newest whole checkpoint is the end under this config, so that nothing starts."""
    from hai.loop import is_finished, total_steps
    from hai.order import Order
    from hai.state import Progress

    summary = parse_json(_stored(location, SUMMARY))
    if summary is None or summary.get("status") != "finished":
        return None
    run = RunFolder(str(config.storage), str(config.name), attempt=attempt, report=say)
    checkpoint, refusals = run.newest_valid()
    run.close()
    for refusal in refusals:
        say(f"refused checkpoint {refusal.name}: {refusal.reason}")
    if checkpoint is None or checkpoint.meta.get("data_identity") != datasets.identity:
        return None
    order = Order(*datasets.splits["train"].strata(), batch_size=config.train.global_batch_size, seed=config.seed)
    end = total_steps(config, order.steps_per_epoch)
    return summary if is_finished(Progress.from_record(checkpoint.meta), config, end) else None


def _say_end(config: RunConfig, summary: Record, say: Callable[[str], None], *, again: bool = False) -> None:
    run, best = f"{config.storage}/{config.name}", summary.get("best")
    if not _is_saved(summary):
        say(
            f"step {summary['step']} could not be saved, the newest checkpoint is of step {summary['saved_step']}; "
            "mend what is said above and run the same command: it goes on from there"
        )
    elif summary.get("status") == "interrupted":
        say(f"stopped at step {summary['step']} with everything saved; run the same command to go on")
    elif again:
        say(f"run {config.name} is finished; raise train.max_epochs to go on with it, --restart begins anew")
    if best:
        say(f"best {best['metric']} {best['value']:.4f} on val, step {best['step']}: {run}/{best['checkpoint']}")
    say(f"report: {run}/{REPORT}")
