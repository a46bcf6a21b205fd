"""How many workers there are on a machine of one's own; Ray's controller reads this, and without torch."""

from __future__ import annotations

from typing import Any

from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy

__all__ = ["LonePolicy"]


class LonePolicy(FixedScalingPolicy):
    """A fixed number of workers on one machine: no process that collects what the cluster should grow by."""

    def after_controller_start(self, train_run_context: Any) -> None:
        """Ask for nothing."""

    def _maybe_send_resource_request(self) -> None:
        pass
