"""One optimizer step: forward, loss of the global batch, backward, clipping, update.

The loss is a function of the whole global batch. Where the batch is forwarded in several micro-batches and the loss is
no plain mean over examples, gradients are cached: all outputs without a graph, then d loss / d outputs, then each
micro-batch again with its share of that gradient (Gao et al., Scaling Deep Contrastive Learning Batch Size under Memory
Limited Setup, 2021). Dropout repeats itself because it is a function of (seed, step, rank, micro-batch), and BatchNorm
statistics move in the first pass only.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hai.config.schema import RunConfig
from hai.data.draws import hash_int
from hai.distributed import Workers
from hai.errors import NonFiniteError, OutOfMemoryError
from hai.memory import first_line, free_memory, is_out_of_memory
from hai.models.freeze import set_frozen, statistics_kept, statistics_of, train_mode
from hai.optim import Ema, same_kind
from hai.order import slice_bounds
from hai.precision import precision_on
from hai.tasks.base import Task
from hai.types import Batch

__all__ = ["Stepper"]

_DROPOUT = 104  # which draw, see hai.order


class Stepper:
    """Carry out steps on one worker, together with the others.

    Args:
        config: the run's config.
        task: what to learn.
        model: the bare network on its device.
        optimizer: its optimizer, with `lr_scale` in each group.
        ema: averaged weights or None.
        workers: this worker's group.
        learning_rate: learning rate as a function of the step.
        micro_batch_size: most examples that this worker forwards at once.
    """

    def __init__(
        self,
        config: RunConfig,
        task: Task,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        ema: Ema | None,
        workers: Workers,
        *,
        learning_rate: Callable[[int], float],
        micro_batch_size: int,
    ) -> None:
        self._config, self._task, self._workers = config, task, workers
        self._bare, self._optimizer, self._ema = model, optimizer, ema
        self.learning_rate_at = learning_rate
        self._precision = precision_on(workers.device, config.train.mixed_precision)
        self.scaler = torch.amp.GradScaler(workers.device.type, enabled=self._precision is torch.float16)
        self._parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        total = config.train.global_batch_size
        shares = [slice_bounds(total, rank, workers.world_size) for rank in range(workers.world_size)]
        self._sizes = [high - low for low, high in shares]
        self._cut(micro_batch_size)
        self._statistics = statistics_of(model)
        self._statistics_before = [buffer.clone() for buffer in self._statistics]
        self._copies = same_kind(self._statistics_before, self._statistics)
        self._backbone = task.backbone(model)
        self._frozen: set[str] | None = None
        self._forward: nn.Module = model
        self.has_run_out = False
        """Whether memory has run out and the micro-batch was halved since the start."""
        self._bad_step = torch.full((), -1, dtype=torch.int64, device=workers.device)
        self._sums: _Sums | None = None
        self._losses: list[Tensor] = []

    def step(self, batch: Batch, *, step: int, epoch: int, prepare: Callable[[Batch], Batch]) -> None:
        """Learn from this worker's part of global batch `step`.

        Args:
            batch: as loaded, on the device.
            step: steps done so far.
            epoch: epoch of the batch.
            prepare: turns a micro-batch into the model's input.

        Raises:
            NonFiniteError: on CPUs in the step itself; on GPUs `check` raises it, the weights are untouched either way.
            OutOfMemoryError: one example does not fit, or there are other workers, which wait in vain for this one.
        """
        self._freeze(epoch)
        rate = self.learning_rate_at(step)
        for group in self._optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]
        for before, now in self._copies:
            torch._foreach_copy_(before, now)
        sums, self._losses = self._sums, []
        while trouble := self._lack_of_memory(batch, step, epoch, prepare):
            self._halve(step, trouble)
            self._optimizer.zero_grad(set_to_none=True)
            self._sums, self._losses = sums, []
            for buffer, value in zip(self._statistics, self._statistics_before, strict=True):
                buffer.data.copy_(value)
        try:
            self._update(step)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemoryError(
                f"step {step}: out of memory for what the optimizer keeps of each weight on worker "
                f"{self._workers.rank}; set model.freeze_backbone=true, optim.name=sgd or take a smaller model; "
                f"{first_line(error)}",
                1,
            ) from error

    def _lack_of_memory(self, batch: Batch, step: int, epoch: int, prepare: Callable[[Batch], Batch]) -> str:
        """Compute the gradients of a step; return what was said when memory has run out on the way, else nothing."""
        try:
            if self.num_micro_batches > 1 and self._task.needs_global_batch(epoch):
                self._backward_cached(batch, step, epoch, prepare)
            else:
                self._backward(batch, step, epoch, prepare)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return first_line(error)
        return ""

    def _halve(self, step: int, trouble: str) -> None:
        """Take half the micro-batch; the global batch, and so the objective, stay as they are."""
        free_memory(self._workers.device)
        size = self.micro_batch_size
        if size == 1 or self._workers.world_size > 1:
            raise OutOfMemoryError(
                f"step {step}: out of memory with {size} example{'s' if size > 1 else ''} at once on worker "
                f"{self._workers.rank}; "
                + (
                    f"set train.micro_batch_size={size // 2}"
                    if size > 1
                    else "lower data.image_size or take a smaller model"
                )
                + f"; {trouble}",
                size,
            )
        self._cut(size // 2)
        self.has_run_out = True

    def _cut(self, most: int) -> None:
        """Divide every worker's part into as many micro-batches as it takes for none to exceed `most` examples."""
        self.num_micro_batches = -(-max(self._sizes) // max(1, most))
        self.micro_batch_size = -(-max(self._sizes) // self.num_micro_batches)

    def check(self, step: int) -> None:
        """Raise NonFiniteError if a step up to this one was not finite; waits for the device."""
        bad = int(self._bad_step)
        if bad >= 0:
            raise NonFiniteError(_non_finite(bad), bad)
        if self.scaler.is_enabled() and self.scaler.get_scale() < 2.0**-10:  # every step overflows, none is to blame
            raise NonFiniteError(_non_finite(step))

    def take_sums(self) -> list[float]:
        """Return [sum of losses x examples, examples, task statistics...] over all workers since the last call."""
        if self._sums is None:
            return []
        loss, count, statistics = self._sums
        sums = self._workers.total(torch.cat([loss[None], loss.new_tensor([count]), statistics])).tolist()
        self._sums = None
        return [float(value) for value in sums]

    def _micro(self, batch: Batch, number: int) -> tuple[Batch, list[int]]:
        """Cut micro-batch `number` out of this worker's part; also return its size on every worker."""
        low, high = slice_bounds(self._sizes[self._workers.rank], number, self.num_micro_batches)
        bounds = [slice_bounds(size, number, self.num_micro_batches) for size in self._sizes]
        return {name: values[low:high] for name, values in batch.items()}, [high - low for low, high in bounds]

    def _outputs(self, module: nn.Module, batch: Batch, step: int, number: int) -> Tensor:
        device = self._workers.device
        # torch.manual_seed would also reach for every kind of accelerator, 2 ms and a growing queue a call
        generator = torch.cuda.default_generators[device.index] if device.type == "cuda" else torch.default_generator
        generator.manual_seed(hash_int(self._config.seed, _DROPOUT, step, self._workers.rank, number) >> 1)
        with torch.autocast(device.type, self._precision, enabled=self._precision is not None):
            return self._task.outputs(module, batch).float()

    def _gather(self, batch: Batch, outputs: Tensor, counts: list[int]) -> tuple[Tensor, Batch]:
        if self._workers.world_size == 1:
            return outputs, batch
        small = {name: values for name, values in batch.items() if name != "image"}
        rows = {name: self._workers.gather_rows(values, counts) for name, values in small.items()}
        return self._workers.gather_rows(outputs, counts), rows

    def _backward(self, batch: Batch, step: int, epoch: int, prepare: Callable[[Batch], Batch]) -> None:
        """Accumulate gradients of a loss that is a mean over examples, or of one whole micro-batch."""
        total = self._config.train.global_batch_size
        for number in range(self.num_micro_batches):
            part, counts = self._micro(batch, number)
            part = prepare(part)
            with self._synchronised(number):
                outputs = self._outputs(self._forward, part, step, number)
                gathered, rows = self._gather(part, outputs, counts)
                loss = self._task.loss(gathered, rows, epoch=epoch) * (sum(counts) / total)
                self.scaler.scale(loss * self._workers.world_size).backward()  # type: ignore[no-untyped-call]
            self._count(loss, outputs, part)

    def _backward_cached(self, batch: Batch, step: int, epoch: int, prepare: Callable[[Batch], Batch]) -> None:
        """Accumulate gradients of a loss over the whole global batch, one micro-batch in memory at a time."""
        world, numbers = self._workers.world_size, range(self.num_micro_batches)
        parts = [self._micro(batch, number)[0] for number in numbers]
        with torch.no_grad():
            first = [self._outputs(self._bare, prepare(part), step, number) for number, part in enumerate(parts)]
        own = torch.cat(first).requires_grad_()
        gathered, rows = self._gather(batch, own, self._sizes)
        loss = self._task.loss(gathered, rows, epoch=epoch)
        (gradient,) = torch.autograd.grad(loss, own)
        self._count(loss, own.detach(), batch)
        with statistics_kept(self._bare):
            for number, share in zip(numbers, torch.split(gradient, [len(part) for part in first]), strict=True):
                with self._synchronised(number):
                    outputs = self._outputs(self._forward, prepare(parts[number]), step, number)
                    self.scaler.scale((outputs * share).sum() * world).backward()  # type: ignore[no-untyped-call]

    def _synchronised(self, number: int) -> contextlib.AbstractContextManager[Any]:
        """Let gradients travel between workers with the last micro-batch only."""
        if isinstance(self._forward, DistributedDataParallel) and number < self.num_micro_batches - 1:
            return self._forward.no_sync()
        return contextlib.nullcontext()

    def _update(self, step: int) -> None:
        self.scaler.unscale_(self._optimizer)
        limit = self._config.train.gradient_clip_norm
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, limit if limit is not None else float("inf"))
        losses = self._losses[0] if len(self._losses) == 1 else torch.stack(self._losses).sum()
        # fp16: a gradient that overflows is the scaler's to skip, a loss that is not finite is not
        total = losses if self.scaler.is_enabled() else norm + losses
        if self._waits:
            if not math.isfinite(total.item()):
                raise NonFiniteError(_non_finite(step), step)
        else:
            finite = torch.isfinite(total)
            self._bad_step = torch.where(finite | (self._bad_step >= 0), self._bad_step, step)
            if not self.scaler.is_enabled():  # the fused optimizer skips the update, as it does for the scaler
                self._optimizer.found_inf = (self._bad_step >= 0).float()  # type: ignore[attr-defined]
        self._begin_momentum()
        self.scaler.step(self._optimizer)
        self.scaler.update()
        self._optimizer.zero_grad(set_to_none=True)
        if self._ema is not None:
            self._ema.update(step)

    @property
    def _waits(self) -> bool:
        """Say whether a step waits to hear that it was not finite; a GPU is asked by `check` only."""
        return self._workers.device.type == "cpu"

    def _begin_momentum(self) -> None:
        """Begin SGD's momentum at 0, as its first step does; the fused one fails where some begin later than others.

        It would also take memory that a skipped first step has left uninitialised for momentum.
        """
        for group in self._optimizer.param_groups:
            if group.get("momentum"):
                for parameter in group["params"]:
                    state = self._optimizer.state[parameter]
                    if parameter.grad is not None and state.get("momentum_buffer") is None:
                        state["momentum_buffer"] = torch.zeros_like(parameter)

    def _count(self, loss: Tensor, outputs: Tensor, batch: Batch) -> None:
        """Sum up what training metrics need, on the device, without waiting for it."""
        self._losses.append(loss.detach())
        with torch.no_grad():
            weighted = loss.detach().double() * self._config.train.global_batch_size
            if self._workers.world_size > 1:
                weighted = weighted / self._workers.world_size
            sums = _Sums(weighted, len(outputs), self._task.statistics(outputs, batch).double())
            self._sums = sums if self._sums is None else self._sums.plus(sums)

    def add_sums(self, sums: list[float]) -> None:
        """Go on with sums that were counted before; they hold all workers' part, so the others add zeros."""
        if sums:
            own = sums if self._workers.is_first else [0.0] * len(sums)
            values = torch.tensor(own, dtype=torch.float64, device=self._workers.device)
            self._sums = _Sums(values[0], own[1], values[2:])

    def _freeze(self, epoch: int) -> None:
        """Freeze or unfreeze the backbone as the epoch asks, and wrap the model anew when that changes."""
        model = self._config.model
        freeze = model.freeze_backbone and (model.unfreeze_after_epochs is None or epoch < model.unfreeze_after_epochs)
        frozen = self._backbone if freeze else set()
        if frozen == self._frozen:
            return
        self._frozen = frozen
        set_frozen(self._bare, self._backbone, bool(frozen))
        self.train()
        self._forward = self._wrapped()

    def train(self) -> None:
        """Put the model into training mode, its frozen parts excepted."""
        train_mode(self._bare, self._frozen or set())

    def _wrapped(self) -> nn.Module:
        module: Any = self._bare
        if self._config.train.compile:
            torch._inductor.config.fallback_random = True  # dropout as without compilation, keyed by the step
            module = torch.compile(module)
        if self._workers.world_size == 1:
            return module  # type: ignore[no-any-return]
        ids = [self._workers.device.index] if self._workers.device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=ids, gradient_as_bucket_view=True)


class _Sums(NamedTuple):
    """What training metrics are made of, summed over examples; never changed in place, a step may be done again."""

    loss: Tensor
    """float64, a scalar."""
    num_examples: float
    statistics: Tensor
    """The task's, float64 [K]."""

    def plus(self, other: _Sums) -> _Sums:
        return _Sums(self.loss + other.loss, self.num_examples + other.num_examples, self.statistics + other.statistics)


def _non_finite(step: int) -> str:
    return (
        f"step {step}: loss or gradient = NaN or Inf; the weights were left untouched; "
        "lower optim.learning_rate, set train.gradient_clip_norm or train.mixed_precision=false"
    )
