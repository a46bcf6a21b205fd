"""This project's loop: clipping, schedule, finite checks, keyed dropout, loss, accuracy and F1 recorded."""

import tempfile
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.loop import CONFIG, EPOCH_STEPS, in_memory_task
from benchmarks.peers.alternating import EXAMPLES, INPUT, LOG_EVERY, RATE, Alternation, build_model
from benchmarks.peers.contestant import Job, serve
from hai.config.schema import RunConfig
from hai.context import Context
from hai.loop import train


def prepare(job: Job) -> Callable[[], dict[str, Any]]:
    torch.set_num_threads(1)
    sections = CONFIG | {
        "data": {"image_size": INPUT},
        "optim": {"learning_rate": RATE},
        "train": CONFIG["train"]
        | {"global_batch_size": EXAMPLES, "max_steps": job.steps, "eval_every_epochs": job.steps / EPOCH_STEPS},
        "logging": {"every_steps": LOG_EVERY},
    }
    config = RunConfig.model_validate(sections)

    def measure() -> dict[str, Any]:
        alternation = Alternation()
        with tempfile.TemporaryDirectory(dir=job.scratch) as storage:
            task = in_memory_task(config, build_model)
            train(config, task, Context(storage, "run", request=alternation.step))
        return alternation.result(job.steps)

    return measure


if __name__ == "__main__":
    serve(prepare)
