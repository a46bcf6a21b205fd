"""Training on Ray Train workers, one or many, fixed or elastic.

Ray starts the workers, restarts them after a failure and resizes an elastic group. It never decides what a run resumes
from: every (re)started group asks the run's own manifests. The driver stays free to answer signals and draw the bar; it
talks to the workers through one small actor.
"""

from __future__ import annotations

import functools
import os
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

from hai.config.schema import RunConfig, ScaleConfig
from hai.errors import HaiError, OutOfMemoryError
from hai.launch.cluster import connected, forwarded, is_on_loopback, is_own
from hai.launch.mailbox import POLL_SECONDS, Asked, Mailbox
from hai.launch.plan import Outcome, Plan
from hai.launch.room import Machine, machines_of, plan_group
from hai.launch.signals import StopSignals
from hai.types import Record

__all__ = ["train_on_ray", "trainer_for"]

_GRACE_SECONDS = 15.0
_PATIENCE_SECONDS = 60.0
_RESIZE_SECONDS = 30.0  # how often an elastic group looks for room to grow


def _on_worker(spec: Record) -> None:
    """Train on one Ray Train worker; runs there."""
    import ray
    import ray.train
    import ray.train.torch
    import torch

    from hai.launch.leaving import training
    from hai.launch.worker import run_worker

    train_context, mailbox = ray.train.get_context(), spec["mailbox"]
    rank = train_context.get_world_rank()
    asked = Asked(mailbox)
    device = ray.train.torch.get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if rank == 0:
        asked.start()
    try:
        with training(mailbox, rank=rank, local_rank=train_context.get_local_rank()):
            summary = run_worker(
                Plan(**spec["plan"]),
                device=device,
                rank=rank,
                world_size=train_context.get_world_size(),
                local_world_size=train_context.get_local_world_size(),
                micro_batch_limit=ray.get(mailbox.micro_batch_limit.remote()),
                request=asked.request,
                report=lambda record: ray.train.report(record),
                say=lambda line: mailbox.put.remote("say", line),
                show=lambda progress: mailbox.put.remote("show", progress),
            )
        if rank == 0:
            ray.get(mailbox.put.remote("summary", summary))
    except OutOfMemoryError as error:
        if error.micro_batch_size == 1:
            ray.get(mailbox.put.remote("error", [type(error).__name__, str(error)]))
            return
        ray.get(mailbox.halve.remote(error.micro_batch_size))
        mailbox.put.remote("say", f"{error}; the workers start again with half of that, from the newest checkpoint")
        raise RuntimeError("out of memory") from None  # Ray starts the group again
    except HaiError as error:  # the user's to mend: starting the workers again would not help
        ray.get(mailbox.put.remote("error", [type(error).__name__, str(error)]))
    finally:
        asked.end()


def train_on_ray(
    config: RunConfig,
    plan: Plan,
    *,
    say: Callable[[str], None],
    show: Callable[[Record], None],
    request: Callable[[], int] = lambda: 0,
) -> Outcome:
    """Train on the workers that the config asks for.

    Args:
        config: of the run.
        plan: of this launch.
        say: takes a line for people.
        show: takes progress for a bar.
        request: asked now and then, besides this process's signals: 0 or STOP.

    Raises:
        HaiError: what a worker raised for the user to mend, or more workers than the cluster can hold.
    """
    with connected(say) as ray, StopSignals(say) as signals:  # in this order: Ray takes SIGTERM when it starts
        import ray.train

        from hai.launch.group import GroupConfig

        scaling = _scaling(config.scale, machines_of(ray.nodes(), os.environ))
        workers = scaling.num_workers if isinstance(scaling.num_workers, int) else "{}:{}".format(*scaling.num_workers)
        if workers == scaling.num_workers:  # a fixed group waits its turn on a busy cluster; an elastic one tries anew
            os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "600")
        kind = "GPU" if scaling.use_gpu else f"CPU ({scaling.resources_per_worker['CPU']} threads)"
        say(f"training on {workers} worker{'' if workers == 1 else 's'}, {kind} each")
        own_node = {ray._raylet.RAY_NODE_ID_KEY: ray.get_runtime_context().get_node_id()}
        mailbox = ray.remote(num_cpus=0, label_selector=own_node)(Mailbox).remote()
        environment = forwarded()
        with tempfile.TemporaryDirectory(prefix="hai-ray-") as scratch:
            trainer = trainer_for(is_alone=is_own(), mailbox=mailbox)(
                _on_worker,
                train_loop_config={"plan": plan.record(), "mailbox": mailbox},
                torch_config=GroupConfig(
                    backend="nccl" if scaling.use_gpu else "gloo",
                    folder=f"{scratch}/groups" if is_on_loopback() else None,
                    max_failures=config.scale.max_failures,
                ),
                scaling_config=scaling,
                run_config=ray.train.RunConfig(
                    name=f"{plan.name}-{plan.attempt}",
                    storage_path=scratch,
                    failure_config=ray.train.FailureConfig(max_failures=_max_failures(config)),
                    worker_runtime_env={"env_vars": environment} if environment else None,
                    logging_config=ray.train.LoggingConfig(log_level="ERROR"),
                ),
            )
            try:
                outcome = _attend(ray, trainer, mailbox, lambda: signals.request or request(), say=say, show=show)
            finally:
                if hasattr(trainer, "end"):
                    trainer.end()
        return outcome or Outcome("interrupted", {"status": "interrupted", "step": _newest_step(plan)})


def trainer_for(*, is_alone: bool, mailbox: Any) -> Callable[..., Any]:
    """Return Ray's trainer without the helpers that a run of ours has no use for; with them where this Ray is unknown.

    Args:
        is_alone: see `LeanTrainer`.
        mailbox: see `LeanTrainer`.
    """
    try:
        from hai.launch.trainer import LeanTrainer
    except ImportError:  # a Ray that has moved its parts: the start takes longer, nothing else differs
        from ray.train.torch import TorchTrainer

        return TorchTrainer
    return functools.partial(LeanTrainer, is_alone=is_alone, mailbox=mailbox)


def _max_failures(config: RunConfig) -> int:
    """Count failures of workers, and besides them one restart for every time that memory can make the batch halve."""
    if config.scale.max_failures < 0:
        return -1
    largest = min(config.train.micro_batch_size or config.train.global_batch_size, config.train.global_batch_size)
    return config.scale.max_failures + largest.bit_length() - 1


def _attend(
    ray: Any, trainer: Any, mailbox: Any, request: Callable[[], int], *,
    say: Callable[[str], None], show: Callable[[Record], None],
) -> Outcome | None:  # fmt: skip
    """Run the trainer in a thread; pass on lines, progress and requests until it ends.

    Returns None where it was to stop and no worker ran who could hear it.
    """
    failure: list[BaseException] = []

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as error:
            failure.append(error)

    fitting = threading.Thread(target=fit, name="hai-fit", daemon=True)
    fitting.start()
    summary: Record | None = None
    error: list[str] | None = None
    asked, asked_at, deadline, is_heard = 0, float("inf"), float("inf"), False
    patience = time.monotonic() + _PATIENCE_SECONDS
    while True:
        now = time.monotonic()
        # workers that wait for a machine, at first or after one was lost, would not hear that they are to stop
        is_unheard = now > asked_at + _GRACE_SECONDS and ray.get(mailbox.silence.remote()) > _GRACE_SECONDS
        ended = not fitting.is_alive() or is_unheard or now > deadline
        if request() != asked:
            asked, asked_at = request(), now
            mailbox.ask.remote(asked)
        letters = ray.get(mailbox.take.remote())
        if letters:
            patience, is_heard = float("inf"), True
        elif now > patience:
            say("still waiting for the workers to start: for others to be done, or for machines that are being started")
            patience = float("inf")
        for kind, content in letters:
            if kind == "say":
                say(content)
            elif kind == "show":
                show(content)
            elif kind == "summary":
                summary = content
            elif error is None:  # the first worker's error is the cause; the others may wait for it in vain
                error, deadline = content, now + _GRACE_SECONDS
        if ended:
            break
        time.sleep(POLL_SECONDS)
    if error is not None:
        raise _hai_error(*error)
    if failure:
        raise failure[0]
    if summary is None and is_unheard:
        say("no worker was running any more" if is_heard else "no worker had started yet; nothing was changed")
        return None
    if summary is None:
        raise RuntimeError("the workers ended without a summary")
    return Outcome(str(summary["status"]), summary)


def _newest_step(plan: Plan) -> int:
    """Return the step that the run would go on from, 0 where it has no checkpoint."""
    from hai.checkpoint.find import local_names
    from hai.checkpoint.format import step_of
    from hai.checkpoint.reach import reach
    from hai.checkpoint.remote import locate
    from hai.checkpoint.transfer import CHECKPOINTS, remote_names

    location = locate(plan.storage, plan.name)
    names, remote = local_names(location.path / CHECKPOINTS), location.remote
    if remote is not None:
        names += reach(remote.url, lambda: remote_names(remote))
    return max((step_of(name) or 0 for name in names), default=0)


def _hai_error(name: str, text: str) -> HaiError:
    import hai.errors

    kind = getattr(hai.errors, name, HaiError)
    return kind(text) if isinstance(kind, type) and issubclass(kind, HaiError) else HaiError(text)


def _scaling(scale: ScaleConfig, machines: list[Machine]) -> Any:
    """Translate `scale` for Ray, with what the cluster has or can start; raises ConfigError as `plan_group` does."""
    import ray.train

    group = plan_group(scale, machines)
    settings: dict[str, Any] = {
        "num_workers": (group.least, group.most) if isinstance(scale.num_workers, str) else group.most,
        "use_gpu": group.use_gpu,
        "resources_per_worker": {"CPU": group.cpus, **({"GPU": 1} if group.use_gpu else {})},
        "elastic_resize_monitor_interval_s": _RESIZE_SECONDS,
    }
    return ray.train.ScalingConfig(**settings)
