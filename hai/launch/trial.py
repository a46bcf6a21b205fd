"""One piece of a trial's training: a normal run in a folder of its own, up to where it is to be compared."""

from __future__ import annotations

import contextlib
import math
import time
import traceback
from collections.abc import Callable
from typing import Any

from hai.checkpoint.format import step_of
from hai.checkpoint.owner import Owner
from hai.checkpoint.reach import reach
from hai.checkpoint.records import LOG, METRICS, parse_records
from hai.checkpoint.remote import Location, locate
from hai.config.schema import RunConfig
from hai.errors import CheckpointError, ConfigError, HaiError, NonFiniteError
from hai.launch.plan import Plan
from hai.masking import without_secrets
from hai.types import Record

__all__ = ["failure", "telling", "train_trial"]

_TOLD = ("refused checkpoint", "storage: not on", "memory has run out", "step ")  # a step: it was not finite
_PATIENCE_SECONDS = 30.0  # a process that was killed a moment ago may still hold the folder


def train_trial(
    job: Record,
    *,
    num_workers: int,
    on_gpu: bool,
    request: Callable[[], int],
    say: Callable[[str], None],
) -> Record:
    """Train a piece and return how it ended: the fields of `hai.sweep.strategy.Outcome`, as JSON.

    Args:
        job: `config` (JSON), `storage`, `id`, `until_epoch`, `resume`, `metric`, `provenance`.
        num_workers: 1 trains here, more through Ray Train.
        on_gpu: whether this process has a GPU.
        request: asked between steps: 0 or STOP.
        say: takes a line for people.

    Raises:
        HaiError: the user can mend it.
    """
    start = time.monotonic()
    config = RunConfig.model_validate_json(job["config"])
    with _owned(locate(job["storage"], job["id"]), say) as owner:
        plan = Plan(
            config=job["config"],
            storage=job["storage"],
            name=job["id"],
            attempt=owner.attempt,
            resume=job["resume"],
            until_epoch=job["until_epoch"],
            provenance=job["provenance"],
        )
        if num_workers == 1:
            summary = _train_here(plan, on_gpu, request, say)
        else:
            from hai.launch.ray_train import train_on_ray

            summary = train_on_ray(config, plan, say=say, show=lambda _: None, request=request).summary
    parent = step_of(job["resume"].rpartition("/")[2]) or 0 if job["resume"] else 0
    evaluations = _evaluations(owner.location, job["metric"], after=parent, is_here=num_workers == 1)
    last = evaluations[-1][2] if evaluations else None
    best_step = int((summary.get("best") or {"step": 0})["step"])
    value = {step: value for step, _, value in evaluations}.get(best_step)
    if 0 < best_step <= parent:  # the parent's own: what this run has made of it stands by its newest evaluation
        value = last
    until, status = job["until_epoch"], str(summary["status"])
    if status == "interrupted" and until is not None and evaluations and evaluations[-1][1] >= until - 1e-9:
        status = "paused"
    return {
        "status": status,
        "step": int(summary["step"]),
        "seconds": time.monotonic() - start,
        "value": value,
        "last": last,
        "history": [[step, value] for step, _, value in evaluations],
        "error": "",
    }


def telling(number: int, say: Callable[[str], None]) -> Callable[[str], None]:
    """Return what takes a trial's lines and passes on those that a sweep's user must hear; its log has them all."""

    def tell(line: str) -> None:
        if line.startswith(_TOLD):
            say(f"trial {number}: {line}")

    return tell


def failure(error: Exception) -> Record:
    """Write an error as the outcome of a piece; one that is not for the user to mend with its traceback.

    Only of NaN and Inf the trial's values are the cause for certain. Anything else, such as weights that could not be
    fetched or memory that ran out, may be mended when the sweep goes on.
    """
    text = str(error)
    if not isinstance(error, HaiError):
        text = f"{type(error).__name__}: {text}\n{''.join(traceback.format_exception(error))}"
    return {"status": "failed", "error": without_secrets(text), "may_retry": not isinstance(error, NonFiniteError)}


def _train_here(plan: Plan, on_gpu: bool, request: Callable[[], int], say: Callable[[str], None]) -> Record:
    import torch

    from hai.launch.worker import run_worker
    from hai.memory import free_memory

    device = torch.device("cuda", 0) if on_gpu else torch.device("cpu")
    try:
        return run_worker(
            plan, device=device, request=request, report=lambda _: None, say=say, show=lambda _: None
        )  # fmt: skip
    finally:
        free_memory(device)


@contextlib.contextmanager
def _owned(location: Location, say: Callable[[str], None]) -> Any:
    """Own a trial's folder for the length of the block; an error that is not for the user to mend goes to its log."""
    owner, deadline = Owner(location, say), time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            owner.acquire()
            break
        except CheckpointError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
    try:
        yield owner
    except HaiError:
        raise
    except Exception:  # whatever it is goes on to who called; here it is only written down
        with contextlib.suppress(OSError), open(owner.location.path / LOG, "a", encoding="utf-8") as log:
            log.write(without_secrets(traceback.format_exc()))
        raise
    finally:
        owner.release()


def _evaluations(location: Location, metric: str, *, after: int, is_here: bool) -> list[tuple[int, float, float]]:
    """Read (step, epoch, metric) of every evaluation of a run after a step.

    Raises:
        ConfigError: the evaluations have no such metric.
    """
    remote, path = location.remote, location.path / METRICS
    if remote is not None and not (is_here and path.exists()):
        content = reach(remote.url, lambda: remote.read(METRICS)) or b""
    else:
        content = path.read_bytes() if path.exists() else b""
    records = [record for record in parse_records(content) if any(key.startswith("val/") for key in record)]
    key = f"val/{metric}"
    if records and not any(key in record for record in records):
        known = sorted(name.removeprefix("val/") for name in records[-1] if name.startswith("val/"))
        raise ConfigError(f"sweep.metric = {metric}; evaluations have {', '.join(known)}")
    return [
        (int(record["step"]), float(record["epoch"]), float(record[key]))
        for record in records
        if isinstance(record.get(key), int | float) and math.isfinite(record[key]) and int(record["step"]) > after
    ]
