"""What Ray's controller reads of ours, and without torch: how many workers there are, and what comes before more."""

from __future__ import annotations

from typing import Any

from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.controller.state import ResizingState
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy

from hai.launch.mailbox import wait_for_checkpoint

__all__ = ["LonePolicy", "SaveFirst"]

_PATIENCE_SECONDS = 20.0


class LonePolicy(FixedScalingPolicy):
    """A fixed number of workers on one machine: no process that collects what the cluster should grow by."""

    def after_controller_start(self, train_run_context: Any) -> None:
        """Ask for nothing."""

    def _maybe_send_resource_request(self) -> None:
        pass


class SaveFirst(ControllerCallback):
    """Let a group that is about to be ended for a larger one save first, so that no step is done again."""

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        """Wait for a checkpoint; after a failure the state is another, and nobody is left to save."""
        if isinstance(current_state, ResizingState):
            wait_for_checkpoint(self._mailbox, _PATIENCE_SECONDS)
