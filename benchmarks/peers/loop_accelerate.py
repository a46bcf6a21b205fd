"""Accelerate's loop as its documentation has it: clipping, schedule, loss and accuracy logged to TensorBoard."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, IterableDataset

from benchmarks.peers.alternating import CLIP, LOG_EVERY, RATE, Alternation, build_model
from benchmarks.peers.contestant import Job, serve


class Batches(IterableDataset[tuple[Tensor, Tensor]]):
    def __init__(self, alternation: Alternation) -> None:
        self._alternation = alternation

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self._alternation.batches()


def prepare(job: Job) -> Callable[[], dict[str, Any]]:
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True, log_with="tensorboard", project_dir=str(job.scratch))
    accelerator.init_trackers("run")

    def measure() -> dict[str, Any]:
        alternation, model = Alternation(), build_model()
        optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, fused=True)
        schedule = LambdaLR(optimizer, lambda step: 0.5 + 0.5 * math.cos(math.pi * min(1.0, step / job.steps)))
        loader = DataLoader(Batches(alternation), batch_size=None)
        model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)
        model.train()
        for step, (images, labels) in enumerate(loader):
            if step == job.steps:
                break
            with accelerator.accumulate(model):
                outputs = model(images)
                loss = cross_entropy(outputs, labels)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), CLIP)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
            if step % LOG_EVERY == 0:
                accuracy = (outputs.argmax(1) == labels).float().mean()
                accelerator.log({"train/loss": loss.item(), "train/accuracy": accuracy.item()}, step=step)
        accelerator.free_memory()
        return alternation.result(job.steps)

    return measure


if __name__ == "__main__":
    serve(prepare)
