"""The bookkeeping of a run: what it resumes from, when it saves, and every number that it reports."""

from __future__ import annotations

import time
from types import TracebackType

import torch
from torch import nn

from hai.checkpoint.flight import Flight
from hai.checkpoint.format import Checkpoint, step_of
from hai.checkpoint.resume import load_resumable
from hai.checkpoint.store import RunFolder
from hai.config.load import show_config
from hai.config.schema import RunConfig
from hai.context import Context
from hai.distributed import Workers
from hai.errors import CheckpointError, HaiError, NonFiniteError
from hai.masking import without_secrets
from hai.models import architecture_of
from hai.optim import Ema
from hai.order import Order
from hai.recovery import build_rollback, is_fatal, memory_record, merge_rollbacks, named, refuse_rollback
from hai.state import Progress, restore_tensors, state_tensors
from hai.step import Stepper
from hai.tasks.base import Datasets, Task
from hai.trackers import Trackers
from hai.types import LOST, SAVE, STOP, Arrays, Record

__all__ = ["Journal"]

_MOST_EVALUATIONS = 1000  # remembered in checkpoints
_REPORT_SECONDS = 5.0  # Ray blocks a report for two seconds when it follows the last one at once


class Journal:
    """Everything about a run that is not learning; all workers call it, rank 0 writes.

    Args:
        config: the run's config.
        task: what is learned.
        context: this worker's surroundings.
        workers: this worker's group.
        datasets: what is learned from.
    """

    def __init__(self, config: RunConfig, task: Task, context: Context, workers: Workers, datasets: Datasets) -> None:
        self._config, self._task, self._context, self._workers = config, task, context, workers
        self._datasets = datasets
        self._run: RunFolder | None = None
        self._trackers: Trackers | None = None
        if workers.is_first:
            self._run = RunFolder(
                context.storage, context.name, attempt=context.attempt, keep=config.checkpoint.keep, report=self._say
            )
        self._flight = Flight(self._run.path) if self._run is not None else None
        self._begun = False
        self._rollbacks: list[Record] = []
        self._scaler_state: Record | None = None
        self._predictions: Arrays | None = None
        self._saved_step = -1
        self._urgent = False  # somebody waits for the next checkpoint to be whole
        self._saved_at = self._recorded_at = self._shown_at = time.monotonic()
        self._reported_at = float("-inf")
        self._recorded_step = 0
        self._last: Record = {}

    # -- resume ------------------------------------------------------------------------------------------------------

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer, ema: Ema | None) -> Progress:
        """Put the newest valid checkpoint back on all workers and return where it stood.

        Rank 0 chooses once; its choice and tensors travel to the others, which need not see the storage.
        """
        self._model, self._optimizer, self._ema = model, optimizer, ema
        served: dict[str, torch.Tensor] | None = None
        state: dict[str, torch.Tensor] | None = None
        choice: Record | None = None
        if self._run is not None:
            try:
                choice, served, state = self._choose(self._run)
            except (HaiError, OSError) as error:  # all workers must raise, or the others wait for ever
                choice = {"error": str(error)}
        choice = self._workers.share(choice)
        if "error" in choice:
            raise CheckpointError(choice["error"])
        progress = Progress()
        if choice.get("meta"):
            served, state = self._workers.share_tensors(served), self._workers.share_tensors(state)
            restore_tensors(model, optimizer, ema, served, state)
            progress = Progress.from_record(choice["meta"])
        progress.rollbacks = merge_rollbacks(progress.rollbacks, self._rollbacks)
        if self._run is not None:
            self._run.start_at(progress.step, known=progress.evaluations)
        self._saved_step = progress.step if progress.step and choice["is_own"] else -1
        self._recorded_step = progress.step
        self._scaler_state = choice.get("meta", {}).get("scaler")
        return progress

    def _choose(self, run: RunFolder) -> tuple[Record, dict[str, torch.Tensor] | None, dict[str, torch.Tensor] | None]:
        checkpoint, refusals = run.newest_valid()
        run.save_config(show_config(self._config))
        for refusal in refusals:
            self._say(f"refused checkpoint {refusal.name}: {refusal.reason}")
        if checkpoint is not None and self._context.micro_batch_limit is None:  # else the deaths have their reason
            checkpoint = self._past_fatal_steps(run, checkpoint)
        is_own = checkpoint is not None
        if checkpoint is None and self._context.resume:
            checkpoint, refusals = load_resumable(self._context.resume, report=self._say)
            self._take_over(checkpoint)
        assert self._flight is not None
        self._flight.begin(checkpoint.step if checkpoint is not None else 0)
        if checkpoint is None:
            self._say(
                f"starting from step 0 on {self._group()}" + ("; no valid checkpoint is left" if refusals else "")
            )
            return {}, None, None
        known, found = checkpoint.meta.get("data_identity"), self._datasets.identity
        if known != found:
            raise CheckpointError(
                f"{checkpoint.path}: data = {str(known)[:12]}..., the sources now give {found[:12]}...; a resume needs "
                "the same images, labels, groups and splits; --restart begins anew, --name NAME keeps both"
            )
        self._say(f"resuming from {checkpoint.path.name} (sha256 {checkpoint.sha256[:12]}) on {self._group()}")
        return {"meta": checkpoint.meta, "is_own": is_own}, checkpoint.model, checkpoint.state

    def _take_over(self, checkpoint: Checkpoint) -> None:
        """Make another run's checkpoint the beginning of this one."""
        best = checkpoint.meta.get("best")
        if isinstance(best, dict) and best.get("step") != checkpoint.step:  # that one has stayed where it is
            checkpoint.meta.update(best=None, evaluations_without_improvement=0)

    def _past_fatal_steps(self, run: RunFolder, newest: Checkpoint) -> Checkpoint:
        """Return the checkpoint before the newest one where two launches in a row died in one step after that.

        Raises:
            CheckpointError: the same step was fatal from both.
        """
        assert self._flight is not None
        step = is_fatal(self._flight.deaths, newest.step)
        if step is None:
            return newest
        earlier, _ = run.newest_valid(before=newest.step)
        if earlier is None:
            return newest
        if is_fatal(self._flight.deaths, earlier.step) == step:
            self._flight.forget()
            raise CheckpointError(
                f"run {self._context.name}: step {step} has ended the process twice from {newest.path.name} and twice "
                f"from {earlier.path.name}, without an error of its own; most likely the machine's memory ran out or a "
                "driver failed; lower train.micro_batch_size or data.num_threads, or run the command again to go on"
            )
        self._say(f"step {step} has ended the process twice from {newest.path.name}; going back one checkpoint")
        return earlier

    def roll_back(self, error: NonFiniteError) -> None:
        """Get ready to go on from the newest checkpoint without the batch that was not finite.

        Raises:
            NonFiniteError: that has been done often enough.
        """
        names = self._datasets.splits["train"].names(self._order.batch_at(error.step).positions)
        self._rollbacks = merge_rollbacks(
            self._progress.rollbacks, [*self._rollbacks, build_rollback(error.step, names, self._context.attempt)]
        )
        self._log(f"{error}; its examples: {', '.join(names)}")
        refuse_rollback(self._rollbacks, self._context.attempt, error)
        if self._run is not None:
            self._run.wait()
            self._context.say(
                f"step {error.step}: loss or gradient = NaN or Inf; going back to the newest checkpoint and leaving "
                f"this batch out; its examples: {named(names)}"
            )
        del self._stepper, self._model, self._optimizer, self._ema  # room for what is built next

    def _group(self) -> str:
        size = self._workers.world_size
        return f"{size} worker{'' if size == 1 else 's'}"

    def begin(self, stepper: Stepper, progress: Progress, order: Order, end: int) -> None:
        """Take the parts of the loop that are read at every record, and start what runs beside the loop."""
        self._stepper, self._progress, self._order, self._end = stepper, progress, order, end
        stepper.add_sums(progress.sums)
        if self._scaler_state:
            stepper.scaler.load_state_dict(self._scaler_state)
        self._begun = True
        self._recorded_at = time.monotonic()
        if self._run is not None:
            self._write_summary("running")
            if self._trackers is not None:
                self._trackers.close()
            identity = f"{self._context.storage}/{self._context.name}"
            self._trackers = Trackers(self._config, self._run.path, identity, progress.step, say=self._say)
        share = -(-self._config.train.global_batch_size // self._workers.world_size)
        self._micro_batch_size = min(share, self._config.train.micro_batch_size or share)
        self._say_micro_batch()
        if progress.step:
            self.save()  # what comes from another run is kept here from the start

    def __enter__(self) -> Journal:
        """Be there until the run's files are closed."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the run's files; after an error, with the status `failed`."""
        if self._run is None:
            return
        try:
            if error is not None and self._begun:
                self._write_summary("failed")
                self._close(limit_s=0.0 if isinstance(error, KeyboardInterrupt) else None)
            elif error is not None:
                self._run.close(limit_s=0.0)
        finally:
            assert self._flight is not None
            self._flight.land()

    def step_begins(self) -> None:
        """Note which step is in flight, and show people where training stands."""
        if self._flight is not None:
            self._flight.at(self._progress.step)
            self._say_micro_batch()
            self.show()

    def _say_micro_batch(self) -> None:
        if self._stepper.micro_batch_size < self._micro_batch_size:
            self._micro_batch_size = self._stepper.micro_batch_size
            self._say(
                f"memory has run out: from step {self._progress.step} on, each worker forwards at most "
                f"{self._micro_batch_size} examples at once; the global batch and the order of examples stay"
            )

    # -- records -----------------------------------------------------------------------------------------------------

    def record_training(self) -> None:
        """Record training metrics since the last record; all workers take part in the sum."""
        if self._progress.step > self._recorded_step:
            self._record(self._training_record())

    def _training_record(self) -> Record:
        step = self._progress.step
        self._stepper.check(step)
        sums = self._stepper.take_sums()
        now = time.monotonic()
        seconds, steps = now - self._recorded_at, step - self._recorded_step
        self._recorded_at, self._recorded_step = now, step
        record: Record = {"step": step, "epoch": step / self._order.steps_per_epoch}
        if sums:
            record["train/loss"] = sums[0] / max(sums[1], 1)
            record |= {f"train/{name}": value for name, value in self._task.training_metrics(sums[2:]).items()}
        record["train/learning_rate"] = self._stepper.learning_rate_at(step - 1)
        record["train/examples_per_second"] = steps * self._order.batch_size / max(seconds, 1e-9)
        if self._context.device.type == "cuda":
            record["train/gpu_memory_gb"] = torch.cuda.max_memory_allocated(self._context.device) / 1e9
        return record

    def _record(self, record: Record) -> None:
        if self._run is None:
            return
        record["time"] = round(time.time(), 3)
        self._last |= record
        self._run.append(record)
        assert self._trackers is not None
        self._trackers.record(record)
        self.show(force=True)

    def show(self, *, force: bool = False) -> None:
        """Tell the bar where training stands, at most twice a second."""
        now = time.monotonic()
        if self._run is None or (not force and now - self._shown_at < 0.5):
            return
        self._shown_at = now
        self._context.show(
            {
                "step": self._progress.step,
                "total_steps": self._end,
                "epoch": self._progress.step / self._order.steps_per_epoch,
                "loss": self._last.get("train/loss"),
                "examples_per_second": self._last.get("train/examples_per_second"),
                "best": self._progress.best,
            }
        )

    def evaluated(self, predictions: Arrays) -> None:
        """Take an evaluation's predictions: metrics, best, patience, a checkpoint and a report."""
        progress, metric = self._progress, self._task.metric
        record = self._training_record() if progress.step > self._recorded_step else {"step": progress.step}
        outcome: Record | None = None
        if self._workers.is_first:
            outcome = {
                "metrics": self._task.metrics(predictions),
                "fitted": self._task.fit(predictions),
                "report": time.monotonic() - self._reported_at >= _REPORT_SECONDS,
            }
        outcome = self._workers.share(outcome)
        progress.metrics, progress.fitted = outcome["metrics"], outcome["fitted"]
        progress.evaluated_step = progress.step
        value = float(progress.metrics[metric] or 0.0)
        least = self._config.train.early_stopping_min_delta
        improved = progress.best is None or value > progress.best["value"] + least
        if improved:
            checkpoint = f"checkpoints/step_{progress.step:08d}"
            progress.best = {"metric": metric, "value": value, "step": progress.step, "checkpoint": checkpoint}
            progress.evaluations_without_improvement = 0
            self._predictions = predictions
        else:
            progress.evaluations_without_improvement += 1
        record |= {"epoch": progress.step / self._order.steps_per_epoch}
        record |= {f"val/{name}": number for name, number in progress.metrics.items()}
        self._record(record)
        progress.evaluations = [*progress.evaluations, record][-_MOST_EVALUATIONS:]
        self.save()
        self._say(self._evaluation_line(improved))
        if outcome["report"]:
            self._reported_at = time.monotonic()
            self._context.report(record)

    def _evaluation_line(self, improved: bool) -> str:
        progress = self._progress
        numbers = [
            f"{name} {progress.metrics[name]:.4f}"
            for name in (self._task.metric, "roc_auc", "srcc")
            if progress.metrics.get(name) is not None
        ]
        loss = self._last.get("train/loss")
        loss_text = f"train loss {loss:.4f}, " if loss is not None else ""
        best = "best so far" if improved else f"best {progress.best['value']:.4f} at step {progress.best['step']}"  # type: ignore[index]
        epoch = progress.step / self._order.steps_per_epoch
        return f"epoch {epoch:g}, step {progress.step}/{self._end}: {loss_text}val {', '.join(numbers)} ({best})"

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def asked(self) -> int:
        """Return what to do before the next step: 0, SAVE, STOP, or LOST; rank 0's answer counts."""
        if self._run is not None and self._run.lost:
            return LOST
        request = STOP if self._is_far_enough() else self._context.request()
        self._urgent = request == SAVE
        return max(request, SAVE if self._is_save_due() else 0)

    def _is_far_enough(self) -> bool:
        until = self._context.until_epoch
        return until is not None and self._progress.evaluated_step >= until * self._order.steps_per_epoch

    def _is_save_due(self) -> bool:
        cadence, step = self._config.checkpoint, self._progress.step
        if step == self._saved_step:
            return False
        if cadence.every_minutes is not None and time.monotonic() - self._saved_at >= 60 * cadence.every_minutes:
            return True
        every = cadence.every_epochs
        return every is not None and step % max(1, round(every * self._order.steps_per_epoch)) == 0

    def save(self) -> None:
        """Hand a consistent copy of the state to the background writer, unless this step is saved already."""
        progress = self._progress
        if progress.step == self._saved_step:
            if self._run is not None and self._urgent:
                self._run.wait()
            return
        self._stepper.check(progress.step)
        progress.sums = self._stepper.take_sums()
        self._stepper.add_sums(progress.sums)
        self._saved_step, self._saved_at = progress.step, time.monotonic()
        if self._stepper.has_run_out or self._context.micro_batch_limit is not None:
            progress.memory = memory_record(self._config, self._stepper.micro_batch_size, self._context.device)
        if self._run is None:
            return
        served, state = state_tensors(self._model, self._optimizer, self._ema)
        epoch, position = divmod(progress.step, self._order.steps_per_epoch)
        meta = progress.record() | {
            "epoch": epoch,
            "epoch_position": position * self._order.batch_size,
            "steps_per_epoch": self._order.steps_per_epoch,
            "data_identity": self._datasets.identity,
            "scaler": self._stepper.scaler.state_dict(),
            "micro_batch_size": self._stepper.micro_batch_size,
            "world_size": self._workers.world_size,
            "torch_threads": torch.get_num_threads(),
            "task": self._config.task,
            "architecture": architecture_of(self._model),
            "crop_settings": self._datasets.crop_settings,
        }
        every = self._config.checkpoint.keep_every_epochs
        permanent = every is not None and progress.step % (every * self._order.steps_per_epoch) == 0
        self._run.save(served, state, meta, step=progress.step, permanent=permanent, wait=self._urgent)

    # -- end ---------------------------------------------------------------------------------------------------------

    def finish(self, status: str) -> Record:
        """Save what is not saved yet, write the summary and the report, and wait for the writer."""
        self.save()
        if self._run is None:
            return {"status": status, "step": self._progress.step}
        self._run.wait()
        summary = self._write_summary(status)
        try:
            self._context.publish(self._run.path, self._predictions, self._datasets)
        except Exception as error:  # a page must never cost a run
            self._say(f"report.html was not written: {error}")
        self._close()
        return summary

    def _write_summary(self, status: str) -> Record:
        assert self._run is not None
        progress = self._progress
        summary: Record = {
            "status": status,
            "task": self._config.task,
            "name": self._context.name,
            "step": progress.step,
            "saved_step": next((step_of(name) for name in self._run.names()), 0),
            "total_steps": self._end,
            "epoch": progress.step / self._order.steps_per_epoch,
            "best": progress.best,
            "metrics": progress.metrics,
            "left_out_steps": [record["step"] for record in progress.rollbacks],
            **self._context.provenance,
        }
        self._run.save_summary(summary)
        return summary

    def _close(self, limit_s: float | None = None) -> None:
        assert self._run is not None
        if self._trackers is not None:
            self._trackers.close()
        self._run.close(wait=self._context.wait_for_upload, limit_s=limit_s)

    def _say(self, line: str) -> None:
        """Tell people, and keep the line in the run's log; rank 0 alone speaks."""
        if self._run is None:
            return
        self._context.say(line)
        self._log(line)

    def _log(self, line: str) -> None:
        """Keep a line in the run's log."""
        if self._run is not None:
            self._run.log(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {without_secrets(line)}")
