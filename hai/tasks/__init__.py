"""What can be trained: one file a task, one line here."""

from __future__ import annotations

from hai.config.schema import RunConfig
from hai.tasks.base import Task

__all__ = ["build_task"]


def build_task(config: RunConfig) -> Task:
    """Build the task that the config names."""
    from hai.tasks.detector import DetectorTask
    from hai.tasks.ranker import RankerTask

    tasks: dict[str, type[Task]] = {"detector": DetectorTask, "ranker": RankerTask}
    return tasks[config.task](config)
