"""The one training loop: build, resume, then step, evaluate, save and report until the run is finished."""

from __future__ import annotations

import functools
from contextlib import closing, nullcontext

import torch

from hai.config.schema import RunConfig
from hai.context import Context
from hai.distributed import Workers
from hai.errors import CheckpointError, NonFiniteError
from hai.journal import Journal
from hai.memory import free_memory
from hai.models.batch_norm import share_statistics
from hai.models.freeze import statistics_of
from hai.optim import Ema, build_optimizer, learning_rate_at
from hai.order import Order
from hai.predictions import predict_split
from hai.recovery import micro_batch_size
from hai.state import Progress
from hai.step import Stepper
from hai.tasks.base import Datasets, Task
from hai.types import LOST, STOP, Record

__all__ = ["is_finished", "total_steps", "train"]


def total_steps(config: RunConfig, steps_per_epoch: int) -> int:
    """Return the step that ends the run: the earlier of its two limits."""
    limits = [config.train.max_steps, config.train.max_epochs and config.train.max_epochs * steps_per_epoch]
    return min(limit for limit in limits if limit is not None)


def is_finished(progress: Progress, config: RunConfig, end: int) -> bool:
    """Say whether nothing is left to do: the last step is evaluated, or patience has run out."""
    patience = config.train.early_stopping_patience
    if patience is not None and progress.evaluations_without_improvement >= patience:
        return True
    return progress.step >= end and progress.evaluated_step == progress.step


def train(config: RunConfig, task: Task, context: Context) -> Record:
    """Train until the run is finished or asked to stop; every worker calls this.

    Args:
        config: the run's config.
        task: what to learn.
        context: this worker's surroundings.

    Returns:
        The run's summary, as in summary.json: status (finished or interrupted), step, best.

    Raises:
        HaiError: on all workers, for what the user can mend; the state up to the last checkpoint is safe.
    """
    workers = Workers.join(context.rank, context.world_size, context.device)
    datasets = task.build_datasets()
    with Journal(config, task, context, workers, datasets) as journal:
        while True:
            try:
                return _train_on(config, task, context, workers, datasets, journal)
            except NonFiniteError as error:
                if error.step < 0:
                    raise
                journal.roll_back(error)
            free_memory(context.device)


def _train_on(
    config: RunConfig, task: Task, context: Context, workers: Workers, datasets: Datasets, journal: Journal
) -> Record:
    """Build everything, go on from the newest valid checkpoint, and train to the end.

    Raises:
        NonFiniteError: on all workers; nothing of that step is kept. Its number is -1 where no step is to blame.
    """
    settings, device = config.train, context.device
    training, validation = datasets.splits["train"], datasets.splits["val"]
    order = Order(*training.strata(), batch_size=settings.global_batch_size, seed=config.seed)
    end = total_steps(config, order.steps_per_epoch)
    eval_steps = max(1, round(settings.eval_every_epochs * order.steps_per_epoch))

    model = task.build_model().to(device)
    if settings.channels_last:
        model = model.to(memory_format=torch.channels_last)
    if workers.world_size > 1 and device.type == "cuda" and settings.sync_batch_norm:
        model = share_statistics(model)
    optimizer = build_optimizer(model, config.optim, task.backbone(model), device)
    ema = Ema(model, settings.ema_decay) if settings.ema_decay else None
    progress = journal.restore(model, optimizer, ema)
    stepper = Stepper(
        config, task, model, optimizer, ema, workers,
        learning_rate=lambda step: learning_rate_at(step, config.optim, order.steps_per_epoch, end),
        micro_batch_size=workers.agree(micro_batch_size(config, progress.memory, context.micro_batch_limit, device)),
    )  # fmt: skip
    journal.begin(stepper, progress, order, end)
    left_out = {record["step"] for record in progress.rollbacks}

    def evaluate() -> None:
        with ema.swapped(model) if ema else nullcontext():
            workers.copy_first(statistics_of(model))  # rank 0's are saved and served
            predictions = predict_split(
                model, task, validation, workers,
                batch_size=settings.eval_batch_size or max(1, settings.global_batch_size // workers.world_size),
                mixed_precision=settings.mixed_precision,
            )  # fmt: skip
        stepper.train()
        journal.evaluated(predictions)

    requests = order.requests(progress.step, end, rank=workers.rank, world_size=workers.world_size)
    batches = training.batches(requests, device=device, training=True)
    asked = 0
    with closing(batches):
        while True:
            due = progress.step > 0 and (progress.step % eval_steps == 0 or progress.step == end)
            if due and progress.evaluated_step != progress.step:
                evaluate()
            elif progress.step % config.logging.every_steps == 0:
                journal.record_training()
            if is_finished(progress, config, end):
                break
            asked = workers.agree(journal.asked())
            if asked == LOST:
                raise CheckpointError(f"run {context.name}: another attempt has taken it over; this one has stopped")
            if asked and progress.step > 0:
                journal.save()
            if asked == STOP:
                break
            epoch = order.epoch_of(progress.step)
            prepare = functools.partial(training.prepare, epoch=epoch, training=True)
            batch = next(batches)
            journal.step_begins()
            if progress.step not in left_out:
                stepper.step(batch, step=progress.step, epoch=epoch, prepare=prepare)
            progress.step += 1
        return journal.finish("interrupted" if asked == STOP else "finished")
