"""Copies of the metrics for TensorBoard and Weights & Biases; their trouble never reaches the run."""

from __future__ import annotations

import contextlib
import hashlib
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from hai.checkpoint.records import TENSORBOARD
from hai.config.schema import RunConfig
from hai.masking import masked
from hai.types import Record

__all__ = ["Trackers"]

_CLOSE_SECONDS = 10.0


class Trackers:
    """Send records to whatever the config enables.

    Weights & Biases runs in a thread of its own behind a bounded queue: unreachable, slow or broken, it costs records
    there, never time here. Its run id follows from storage and name, so a resumed run goes on in the same place.

    Args:
        config: the run's config.
        folder: the local run folder.
        identity: storage and name of the run, the same wherever it goes on.
        step: records up to here exist already.
        say: takes a line for people.
    """

    def __init__(
        self, config: RunConfig, folder: Path, identity: str, step: int, *, say: Callable[[str], None]
    ) -> None:
        self._say = say
        self._board: Any = None
        self._queue: queue.Queue[Record | None] | None = None
        if config.logging.tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter

                self._board = SummaryWriter(str(folder / TENSORBOARD), purge_step=step + 1)
            except Exception as error:
                say(f"TensorBoard is off: {error}")
        if config.logging.wandb.enabled:
            self._queue = queue.Queue(maxsize=10_000)
            self._thread = threading.Thread(
                target=self._send, args=(config, folder, identity), name="hai-wandb", daemon=True
            )
            self._thread.start()

    def record(self, record: Record) -> None:
        """Copy the numbers of one record."""
        numbers = {name: value for name, value in record.items() if "/" in name and isinstance(value, int | float)}
        if self._board is not None:
            try:
                for name, value in numbers.items():
                    self._board.add_scalar(name, value, record["step"])
            except Exception as error:
                self._say(f"TensorBoard is off: {error}")
                self._board = None
        if self._queue is not None:
            try:
                self._queue.put_nowait({"step": record["step"], **numbers})
            except queue.Full:
                self._queue = None
                self._say("Weights & Biases is off: it has not taken a record for 10,000 records")

    def close(self) -> None:
        """Flush; waits a few seconds at most."""
        if self._board is not None:
            self._board.close()
        if self._queue is not None:
            with contextlib.suppress(queue.Full):
                self._queue.put_nowait(None)
            self._thread.join(_CLOSE_SECONDS)
            if self._thread.is_alive():
                self._say("Weights & Biases did not answer in time; `wandb sync` sends what is kept in the run folder")

    def _send(self, config: RunConfig, folder: Path, identity: str) -> None:
        records = self._queue
        assert records is not None
        try:
            run = self._begin(config, folder, identity)
            while (record := records.get()) is not None:
                run.log({name: value for name, value in record.items() if name != "step"}, step=record["step"])
            run.finish()
        except Exception as error:
            self._say(f"Weights & Biases is off: {_first_line(error)}")
            self._queue = None

    def _begin(self, config: RunConfig, folder: Path, identity: str) -> Any:
        """Open the run; where the service cannot be reached, one beside it that waits in the folder to be sent."""
        mode = config.logging.wandb.mode
        try:
            return _open_run(config, folder, identity, mode, _run_id(identity))
        except Exception as error:
            if mode != "online":
                raise
            self._say(
                f"Weights & Biases: {_first_line(error)}; its records are kept in {folder}, `wandb sync` sends them"
            )
            # the name that could not be opened may stay taken in this process
            return _open_run(config, folder, identity, "offline", f"{_run_id(identity)}-offline")


def _run_id(identity: str) -> str:
    return hashlib.sha256(identity.encode()).hexdigest()[:16]


def _open_run(config: RunConfig, folder: Path, identity: str, mode: Literal["online", "offline"], run_id: str) -> Any:
    import wandb

    settings = config.logging.wandb
    return wandb.init(
        project=settings.project,
        entity=settings.entity,
        tags=list(settings.tags),
        mode=mode,
        dir=str(folder),
        name=identity.rpartition("/")[2],
        id=run_id,
        resume="allow",
        config=masked(config.model_dump()),
        # without the command line and what is printed, which are not ours to check for secrets
        settings=wandb.Settings(silent=True, init_timeout=30, console="off", x_disable_meta=True),
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
