"""What comes before an elastic group takes more workers; Ray's controller reads this, and without torch."""

from __future__ import annotations

from typing import Any

from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.controller.state import ResizingState

from hai.launch.mailbox import wait_for_checkpoint

__all__ = ["SaveFirst"]

_PATIENCE_SECONDS = 20.0


class SaveFirst(ControllerCallback):
    """Let a group that is about to be ended for a larger one save first, so that no step is done again."""

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        """Wait for a checkpoint; after a failure the state is another, and nobody is left to save."""
        if isinstance(current_state, ResizingState):
            wait_for_checkpoint(self._mailbox, _PATIENCE_SECONDS)
