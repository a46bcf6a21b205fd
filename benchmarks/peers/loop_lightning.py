"""Lightning's loop as its documentation has it: clipping, schedule, loss and accuracy logged to TensorBoard."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LambdaLR

from benchmarks.peers.alternating import CLIP, LOG_EVERY, RATE, Alternation, build_model
from benchmarks.peers.contestant import Job, serve


class Classifier(L.LightningModule):
    def __init__(self, steps: int) -> None:
        super().__init__()
        self.model, self.steps = build_model(), steps

    def training_step(self, batch: tuple[Tensor, Tensor], number: int) -> Tensor:
        images, labels = batch
        outputs = self.model(images)
        loss = cross_entropy(outputs, labels)
        accuracy = (outputs.argmax(1) == labels).float().mean()
        self.log_dict({"train/loss": loss, "train/accuracy": accuracy})
        return loss

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = torch.optim.AdamW(self.parameters(), lr=RATE, fused=True)
        schedule = LambdaLR(optimizer, lambda step: 0.5 + 0.5 * math.cos(math.pi * min(1.0, step / self.steps)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Batches:
    def __init__(self, alternation: Alternation) -> None:
        self._alternation = alternation

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self._alternation.batches()


def prepare(job: Job) -> Callable[[], dict[str, Any]]:
    torch.set_num_threads(1)

    def measure() -> dict[str, Any]:
        alternation = Alternation()
        trainer = L.Trainer(
            accelerator="cpu", max_steps=job.steps, gradient_clip_val=CLIP, log_every_n_steps=LOG_EVERY,
            logger=TensorBoardLogger(str(job.scratch)), enable_checkpointing=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(Classifier(job.steps), Batches(alternation))
        return alternation.result(job.steps)

    return measure


if __name__ == "__main__":
    serve(prepare)
