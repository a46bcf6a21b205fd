"""The bookkeeping of a run: what it resumes from, when it saves, and every number that it reports."""

from __future__ import annotations

import time
from types import TracebackType

import torch
from torch import nn

from hai.checkpoint.records import CONFIG, LOG, METRICS, save_text, truncate_after
from hai.checkpoint.resume import load_resumable
from hai.checkpoint.store import RunFolder
from hai.config.load import show_config
from hai.config.schema import RunConfig
from hai.context import Context
from hai.distributed import Workers
from hai.errors import CheckpointError, HaiError
from hai.models import architecture_of
from hai.optim import Ema
from hai.order import Order
from hai.state import Progress, restore_tensors, state_tensors
from hai.step import Stepper
from hai.tasks.base import Datasets, Task
from hai.trackers import Trackers
from hai.types import LOST, SAVE, Arrays, Record

__all__ = ["Journal"]

_REPORT_SECONDS = 5.0  # Ray blocks a report for two seconds when it follows the last one at once


class Journal:
    """Everything about a run that is not learning; all workers call it, rank 0 writes.

    Args:
        config: the run's config.
        task: what is learned.
        context: this worker's surroundings.
        workers: this worker's group.
    """

    def __init__(self, config: RunConfig, task: Task, context: Context, workers: Workers) -> None:
        self._config, self._task, self._context, self._workers = config, task, context, workers
        self._run: RunFolder | None = None
        self._trackers: Trackers | None = None
        if workers.is_first:
            self._run = RunFolder(
                context.storage, context.name, attempt=context.attempt, keep=config.checkpoint.keep, report=self._say
            )
        self._predictions: Arrays | None = None
        self._saved_step = -1
        self._saved_at = self._recorded_at = self._shown_at = time.monotonic()
        self._reported_at = float("-inf")
        self._recorded_step = 0
        self._last: Record = {}

    # -- resume ------------------------------------------------------------------------------------------------------

    def restore(
        self, datasets: Datasets, model: nn.Module, optimizer: torch.optim.Optimizer, ema: Ema | None
    ) -> Progress:
        """Put the newest valid checkpoint back on all workers and return where it stood.

        Rank 0 chooses once; its choice and tensors travel to the others, which need not see the storage.
        """
        self._datasets, self._model, self._optimizer, self._ema = datasets, model, optimizer, ema
        served: dict[str, torch.Tensor] | None = None
        state: dict[str, torch.Tensor] | None = None
        choice: Record | None = None
        if self._run is not None:
            try:
                choice, served, state = self._choose(self._run)
            except HaiError as error:  # all workers must raise, or the others wait for ever
                choice = {"error": str(error)}
        choice = self._workers.share(choice)
        if "error" in choice:
            raise CheckpointError(choice["error"])
        if not choice.get("meta"):
            return Progress()
        served, state = self._workers.share_tensors(served), self._workers.share_tensors(state)
        restore_tensors(model, optimizer, ema, served, state)
        progress = Progress.from_record(choice["meta"])
        if self._run is not None:
            truncate_after(self._run.path / METRICS, progress.step)
        self._saved_step = self._recorded_step = progress.step
        self._scaler_state = choice["meta"].get("scaler")
        return progress

    def _choose(self, run: RunFolder) -> tuple[Record, dict[str, torch.Tensor] | None, dict[str, torch.Tensor] | None]:
        checkpoint, refusals = run.newest_valid()
        save_text(run.path / CONFIG, show_config(self._config))
        for refusal in refusals:
            self._say(f"refused checkpoint {refusal.name}: {refusal.reason}")
        if checkpoint is None and self._context.resume:
            checkpoint, refusals = load_resumable(self._context.resume, report=self._say)
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
        return {"meta": checkpoint.meta}, checkpoint.model, checkpoint.state

    def _group(self) -> str:
        size = self._workers.world_size
        return f"{size} worker{'' if size == 1 else 's'}"

    def attach(self, stepper: Stepper, progress: Progress, order: Order, end: int) -> None:
        """Take the parts of the loop that are read at every record."""
        self._stepper, self._progress, self._order, self._end = stepper, progress, order, end
        stepper.add_sums(progress.sums)
        if getattr(self, "_scaler_state", None):
            stepper.scaler.load_state_dict(self._scaler_state)

    def __enter__(self) -> Journal:
        """Start what runs beside the loop."""
        if self._run is not None:
            self._write_summary("running")
            identity = f"{self._context.storage}/{self._context.name}"
            self._trackers = Trackers(self._config, self._run.path, identity, self._progress.step, say=self._say)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the run's files; after an error, with the status `failed`."""
        if self._run is None:
            return
        if error is not None:
            self._write_summary("failed")
            self._close()

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
        return max(self._context.request(), SAVE if self._is_save_due() else 0)

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
            return
        self._stepper.check(progress.step)
        progress.sums = self._stepper.take_sums()
        self._stepper.add_sums(progress.sums)
        self._saved_step, self._saved_at = progress.step, time.monotonic()
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
            "micro_batch_size": self._config.train.micro_batch_size,
            "world_size": self._workers.world_size,
            "torch_threads": torch.get_num_threads(),
            "task": self._config.task,
            "architecture": architecture_of(self._model),
        }
        every = self._config.checkpoint.keep_every_epochs
        permanent = every is not None and progress.step % (every * self._order.steps_per_epoch) == 0
        self._run.save(served, state, meta, step=progress.step, permanent=permanent)

    # -- end ---------------------------------------------------------------------------------------------------------

    def finish(self, status: str) -> Record:
        """Save what is not saved yet, write the summary and the report, and wait for the writer."""
        self.save()
        if self._run is None:
            return {"status": status, "step": self._progress.step}
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
            "total_steps": self._end,
            "epoch": progress.step / self._order.steps_per_epoch,
            "best": progress.best,
            "metrics": progress.metrics,
            **self._context.provenance,
        }
        self._run.save_summary(summary)
        return summary

    def _close(self) -> None:
        assert self._run is not None
        if self._trackers is not None:
            self._trackers.close()
        self._run.close(wait=self._context.wait_for_upload)

    def _say(self, line: str) -> None:
        """Tell people, and keep the line in the run's log; rank 0 alone speaks."""
        if self._run is None:
            return
        self._context.say(line)
        if self._run.path.is_dir():
            with open(self._run.path / LOG, "a", encoding="utf-8") as log:
                log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")
