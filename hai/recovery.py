"""What a run does about trouble that would come again: steps that are not finite, memory that runs out, fatal steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hai.config.schema import RunConfig
from hai.errors import NonFiniteError
from hai.memory import device_gigabytes
from hai.types import Record

__all__ = [
    "MOST_ROLLBACKS",
    "build_rollback",
    "is_fatal",
    "is_new_machine",
    "memory_record",
    "merge_rollbacks",
    "micro_batch_size",
    "refuse_rollback",
]

MOST_ROLLBACKS = 3
"""How often one launch goes back to a checkpoint because of NaN or Inf."""

_MORE_MEMORY = 1.2  # a card with so much more memory than the one that ran out is tried anew
_NAMED = 8
_SAME_STEP = 2


def build_rollback(step: int, examples: list[str], attempt: str | None) -> Record:
    """Describe a step that was not finite; from now on its batch is left out."""
    return {"step": step, "examples": examples, "attempt": attempt}


def merge_rollbacks(remembered: Sequence[Record], own: Sequence[Record]) -> list[Record]:
    """Join what a checkpoint remembers with what this launch has seen; one record for each step, in order."""
    return [record for _, record in sorted({record["step"]: record for record in [*remembered, *own]}.items())]


def refuse_rollback(rollbacks: Sequence[Record], attempt: str | None, error: NonFiniteError) -> None:
    """Raise the error when this launch has rolled back often enough, with what the batches have in common."""
    own = [record for record in rollbacks if record["attempt"] == attempt]
    if len(own) <= MOST_ROLLBACKS:
        return
    steps = ", ".join(str(record["step"]) for record in own)
    common = set.intersection(*(set(record["examples"]) for record in own))
    shared = f"in all their batches: {named(sorted(common))}; " if common else ""
    raise NonFiniteError(
        f"{error}; not finite at steps {steps}, rolled back {MOST_ROLLBACKS} times; {shared}the newest checkpoint is "
        "kept, log.txt names the examples",
        error.step,
    )


def named(examples: Sequence[str]) -> str:
    """Join the first names of many."""
    more = len(examples) - _NAMED
    return ", ".join(examples[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def micro_batch_size(config: RunConfig, remembered: Record | None, limit: int | None, device: torch.device) -> int:
    """Choose how many examples a worker forwards at once.

    Args:
        config: of the run.
        remembered: what a checkpoint says of memory that ran out, as `memory_record` made it.
        limit: what the launcher knows of memory that ran out just now.
        device: of this worker.
    """
    asked = config.train.micro_batch_size or config.train.global_batch_size
    sizes = [asked, *([limit] if limit else [])]
    if remembered is not None and not is_new_machine(config, remembered, device):
        sizes.append(int(remembered["micro_batch_size"]))
    return min(sizes)


def memory_record(config: RunConfig, size: int, device: torch.device) -> Record:
    """Describe a micro-batch that was found to fit, for the next start."""
    return {
        "micro_batch_size": size,
        "asked": config.train.micro_batch_size,
        "gigabytes": device_gigabytes(device),
    }


def is_new_machine(config: RunConfig, remembered: Record, device: torch.device) -> bool:
    """Say whether what was learned about memory is void: another size is asked for, or the card is a larger one."""
    if remembered["asked"] != config.train.micro_batch_size:
        return True
    then, now = remembered["gigabytes"], device_gigabytes(device)
    if then is None or now is None:
        return bool(then != now)
    return bool(now > _MORE_MEMORY * then)


def is_fatal(deaths: Sequence[tuple[int, int]], start: int) -> int | None:
    """Return the step in which the last two launches from a checkpoint died, None when they did not.

    Args:
        deaths: (step of the checkpoint, step in flight) of launches that ended without a word, the oldest first.
        start: step of the checkpoint.
    """
    steps = [step for origin, step in deaths if origin == start][-_SAME_STEP:]
    return steps[0] if len(steps) == _SAME_STEP and len(set(steps)) == 1 else None
