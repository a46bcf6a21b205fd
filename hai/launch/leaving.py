"""What a process that trains on Ray does when it or its machine must go: a checkpoint first, then the end."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from hai.launch.mailbox import wait_for_checkpoint
from hai.launch.preemption import PATIENCE_SECONDS, Notice, NoticeWatch

__all__ = ["move", "take_sigterm", "training"]

_MOVE_SECONDS = 5.0  # a drained node's workers start again elsewhere after this; waiting for the end would waste it
_mailboxes: list[Any] = []  # of the run that trains in this process


@contextlib.contextmanager
def training(mailbox: Any, *, rank: int, local_rank: int) -> Iterator[None]:
    """For the length of the block answer SIGTERM and, once on each machine, the cloud's notices with a checkpoint."""
    watch = NoticeWatch(lambda notice: _leave_machine(mailbox, notice))
    if local_rank == 0:
        watch.start()
    _mailboxes.append((mailbox, rank))
    try:
        yield
    finally:
        _mailboxes.clear()
        watch.end()


def take_sigterm() -> None:
    """Put a checkpoint before what SIGTERM does in this process; called in its main thread, as signals are."""
    before = signal.getsignal(signal.SIGTERM)

    def received(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, before)  # a second one ends at once
        threading.Thread(target=_leave, name="hai-leave", daemon=True).start()

    signal.signal(signal.SIGTERM, received)


def _leave() -> None:
    for mailbox, rank in _mailboxes[:1]:
        mailbox.put.remote("say", f"SIGTERM to worker {rank}: saving a checkpoint, then it ends")
        wait_for_checkpoint(mailbox, PATIENCE_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)


def _leave_machine(mailbox: Any, notice: Notice) -> None:
    mailbox.put.remote("say", notice.text)
    gone = time.time() + notice.seconds
    wait_for_checkpoint(mailbox, min(notice.seconds, PATIENCE_SECONDS))
    move(gone, lambda line: mailbox.put.remote("say", line))


def move(gone: float, say: Callable[[str], None]) -> None:
    """Have Ray start what trains here on the other machines, where there are any, once all is saved.

    What then dies with the machine counts as no failure: Ray knows that it was announced.

    Args:
        gone: when the machine goes, seconds since 1970.
        say: takes a line for people.
    """
    if _can_move():
        say("training moves to the other machines of the cluster")
        _drain(min(gone, time.time() + _MOVE_SECONDS))


def _can_move() -> bool:
    """Say whether this is one of several machines, and not the head, whose end is the cluster's."""
    import ray

    own = ray.get_runtime_context().get_node_id()
    alive = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    is_head = any("node:__internal_head__" in node["Resources"] for node in alive if node["NodeID"] == own)
    return len(alive) > 1 and not is_head


def _drain(deadline: float) -> None:
    """Let Ray place nothing on this machine any more, and Ray Train start its group again without it."""
    import ray
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason  # type: ignore[attr-defined]

    context = ray.get_runtime_context()
    GcsClient(address=context.gcs_address).drain_node(
        context.get_node_id(),
        DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"),
        "the cloud takes this machine away",
        int(1000 * deadline),
    )
